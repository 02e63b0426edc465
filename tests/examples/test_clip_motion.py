"""The moving digits: a world in which neither a single frame nor a clip alone can tell, and a recipe that fits it."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# The examples are not installed.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from moving_digits import data
from moving_digits.world import MOTIONS, RATE, Drift, draw

from edge_mbm.errors import InputError

ROOT = Path(__file__).parents[2]
DIGITS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def seen(drift: Drift, time: float) -> np.ndarray:
    return drift.frame(time, rng(9))


@settings(max_examples=25)
@given(seed=st.integers(0, 1000))
def test_a_single_frame_tells_nothing(seed: int) -> None:
    """With the same random numbers the frame is the same, bit for bit, whatever the motion; the next one is not."""
    drifts = [draw(motion, DIGITS, rng(seed)) for motion in range(len(MOTIONS))]
    assert len({seen(drift, 0).tobytes() for drift in drifts}) == 1
    assert len({seen(drift, -4).tobytes() for drift in drifts}) == len(MOTIONS)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), yaw=st.floats(-1, 1), pitch=st.floats(-1, 1), time=st.integers(-7, 0))
def test_a_turning_camera_looks_like_a_moving_digit(seed: int, yaw: float, pitch: float, time: int) -> None:
    """Before a dark wall a clip cannot tell them apart: the gyroscope can."""
    still = replace(draw(0, DIGITS, rng(seed)), turn=(0.0, 0.0, 0.0))
    turned = replace(still, turn=(pitch, yaw, 0.0))
    moved = replace(still, velocity=(-yaw * 16 / RATE, -pitch * 16 / RATE))
    np.testing.assert_allclose(seen(turned, time).astype(int), seen(moved, time).astype(int), atol=2)
    np.testing.assert_allclose(turned.gyroscope(rng()) - moved.gyroscope(rng()), [pitch, yaw, 0.0], atol=1e-6)


@given(count=st.integers(1, 20), dropped=st.floats(0, 0.9), seed=st.integers(0, 100))
def test_frames_that_are_left_are_in_order_and_end_now(count: int, dropped: float, seed: int) -> None:
    """As many as asked for, each later than the one before, the last at frame 0; every one where none is dropped."""
    times = data._times(count, dropped, rng(seed))
    assert len(times) == count
    assert times[-1] == 0
    assert (np.diff(times) >= 1).all()
    assert dropped > 0 or times.tolist() == list(range(1 - count, 1))


def test_recordings_repeat_and_splits_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A split gives the same at every call, another split something else, and an unknown one an error."""
    monkeypatch.setattr(data, "digits", lambda *, unseen: DIGITS[3:] if unseen else DIGITS[:3])
    first, again, other = (list(itertools.islice(data.recordings(s), 9)) for s in ("heldout", "heldout", "golden"))
    assert [r.label for r in first] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert all(np.array_equal(a.inputs["image"], b.inputs["image"]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].inputs["image"], other[0].inputs["image"])
    with pytest.raises(InputError, match="no split is called 'test'"):
        data.recordings("test")


def test_a_stream_asks_only_for_what_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first three frames of each motion have no label; all others have the motion's."""
    monkeypatch.setattr(data, "digits", lambda *, unseen: DIGITS)
    batch = next(data.streams(16, 0, 0.25))
    assert batch.frames.shape == (16, 16, 32, 32, 1)
    for labels in batch.labels:
        changes = [0, *(np.flatnonzero(np.diff((labels >= 0).astype(int)) == -1) + 1)]
        assert all((labels[change : change + 3] == -1).all() for change in changes)
        assert len(changes) <= 2


@pytest.mark.needs("torch", "onnx", "onnxruntime")
def test_the_recipe_has_the_models_labels_and_memories() -> None:
    """What the recipe says of labels and states is what the code has."""
    from moving_digits.model import HEADS, build

    from edge_mbm.export.recipe import load_recipe

    recipe, model = load_recipe(ROOT / "export" / "clip_motion.toml").recipe, build()
    assert recipe.labels["motions"] == MOTIONS
    for name in ("gru", "attention"):
        [state] = recipe.components[f"{name}_clip"].states
        assert state.shape == ("batch", *model.encoders[name].initial_state(1).shape[1:])
    assert set(recipe.components) > set(HEADS)
