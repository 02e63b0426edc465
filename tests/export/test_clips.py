"""A clip encoder from torch to a stream: frame by frame a session answers what torch makes of the whole clip."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edge_mbm
from edge_mbm.export import export_bundle
from edge_mbm.runtime.verify import verify_bundle

MS = 1_000_000
MODEL = """
import numpy as np
import torch

from edge_mbm.models import (
    AttentionMemory, ClipEncoder, ConvEncoder, GatedFusion, GRUMemory, MultimodalModel, SensorEncoder
)


class Record:
    def __init__(self, id, inputs, label):
        self.id, self.inputs, self.label = id, inputs, label


def recordings(split):
    rng = np.random.default_rng(sum(split.encode()))
    for index in range(8):
        inputs = {"image": rng.integers(0, 256, (5, 8, 8, 1), np.uint8), "imu": rng.normal(size=3).astype("f")}
        if index == 3:
            del inputs["imu"]
        yield Record(f"{split}-{index}", inputs, index % 3)


def load():
    torch.manual_seed(2)
    frame = ConvEncoder(widths=(4, 8), dim=8, grid=2)
    encoders = {
        "gru": ClipEncoder(frame, GRUMemory(dim=8, hidden=6)),
        "window": ClipEncoder(frame, AttentionMemory(dim=8, frames=4)),
        "imu": SensorEncoder(features=3, dim=8),
    }
    joint = {"modalities": 2, "dim": 8, "classes": 3}
    return MultimodalModel(encoders, {name: GatedFusion(**joint) for name in ("gru", "window")}).eval()
"""
RECIPE = """
name = "clips"
model = "clip_model:load"
python_path = ["."]
calibration_set = "data.toml"
targets = []
[labels]
kinds = ["a", "b", "c"]
[modalities]
image = { kind = "image" }
imu = { kind = "sensor", shape = [3] }
[components.turn]
kind = "encoder"
module = "encoders.imu"
inputs = { reading = "imu" }
outputs = { embedding = { task = "embedding" } }
"""
CLIP = """
[components.{name}_clip]
kind = "encoder"
module = "encoders.{name}"
outputs = {{ embedding = {{ task = "embedding" }} }}
states = [{{ input = "memory", output = "next_memory", shape = {shape} }}]
max_gap_ns = 300_000_000
[components.{name}_clip.inputs.image]
source = "image"
preprocess = {{ steps = "image", height = 8, width = 8, color = "gray" }}
[components.{name}]
kind = "head"
module = "heads.{name}"
inputs = {{ clip = "{name}_clip.embedding", turn = "turn.embedding" }}
outputs = {{ logits = {{ task = "classification", labels = "kinds" }} }}
pivot = "image"
tolerance_ns = {{ imu = 50_000_000 }}
deadline_ns = 0
present = ["image", "imu"]
"""
DATA = """
recordings = "clip_model:recordings"
calibration = { split = "calibration", samples = 4 }
heldout = { split = "heldout", samples = 8 }
golden = { split = "golden", samples = 4 }
"""
STATES = {"gru": '["batch", 14]', "window": '["batch", 4, 9]'}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """The model, and its bundle."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "clip_model.py").write_text(textwrap.dedent(MODEL))
    parts = [CLIP.format(name=name, shape=shape) for name, shape in STATES.items()]
    (folder / "recipe.toml").write_text(RECIPE + "".join(parts))
    (folder / "data.toml").write_text(DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        export_bundle(folder / "recipe.toml", folder / "clips.mbm")
        patch.syspath_prepend(str(folder))
        import clip_model

        yield clip_model.load(), folder / "clips.mbm"
        sys.modules.pop("clip_model", None)


def clip(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


def turns(count: int) -> np.ndarray:
    return np.random.default_rng(6).normal(size=(count, 3)).astype(np.float32)


def expected(model: Any, name: str, frames: np.ndarray, readings: np.ndarray | None) -> np.ndarray:
    """Torch over the whole clip at once: scores after each frame, float32[T, 3]."""
    encoder = model.encoders[name]
    with torch.inference_mode():
        seen = encoder.every_frame(torch.from_numpy(frames)[None], encoder.initial_state())[0][0]
        given = torch.zeros(len(frames), 3) if readings is None else torch.from_numpy(readings)
        present = torch.tensor([[1.0, float(readings is not None)]]).expand(len(frames), 2)
        return torch.softmax(model.heads[name](seen, model.encoders["imu"](given), present), 1).numpy()


def streamed(session: Any, times: list[int], frames: np.ndarray, readings: np.ndarray | None) -> dict[str, np.ndarray]:
    """Head -> its scores for each frame, each at its time, ms."""
    found: dict[str, list[Any]] = {name: [] for name in STATES}
    for index, (t, frame) in enumerate(zip(times, frames, strict=True)):
        if readings is not None:
            session.push("imu", readings[index], t * MS)
        session.push("image", frame, t * MS)
        for result in session.poll():
            assert result.missing == (() if readings is not None else ("imu",))
            found[result.head].append(result.output.scores)
    return {name: np.stack(scores) for name, scores in found.items()}


@pytest.mark.parametrize("with_imu", [True, False])
def test_a_stream_gives_what_torch_makes_of_the_whole_clip(project: tuple[Any, Path], *, with_imu: bool) -> None:
    """At every frame of a clip longer than the window, with the sensor and without it."""
    model, bundle = project
    frames, readings = clip(9), turns(9) if with_imu else None
    with edge_mbm.load(bundle) as opened, opened.session() as session:
        got = streamed(session, [40 * k for k in range(9)], frames, readings)
    for name in STATES:
        np.testing.assert_allclose(got[name], expected(model, name, frames, readings), rtol=1e-4, atol=1e-5)


def test_after_a_hole_the_clip_begins_anew(project: tuple[Any, Path]) -> None:
    """Three frames, a second of nothing, four more: torch's answers for two clips, the second from an empty memory."""
    model, bundle = project
    frames, readings = clip(7), turns(7)
    with edge_mbm.load(bundle) as opened, opened.session() as session:
        got = streamed(session, [0, 40, 80, 1080, 1120, 1160, 1200], frames, readings)
    for name in STATES:
        parts = [expected(model, name, frames[span], readings[span]) for span in (slice(3), slice(3, 7))]
        np.testing.assert_allclose(got[name], np.concatenate(parts), rtol=1e-4, atol=1e-5)


def test_frames_that_a_session_drops_are_not_in_the_clip(project: tuple[Any, Path]) -> None:
    """Every other frame is replaced before the encoder looks: the answers are torch's for the frames that were left."""
    model, bundle = project
    frames = clip(10)
    scores: dict[str, list[Any]] = {name: [] for name in STATES}
    with edge_mbm.load(bundle) as opened, opened.session() as session:
        for index, frame in enumerate(frames):
            session.push("image", frame, 40 * index * MS)
            if index % 2:
                for result in session.poll():
                    scores[result.head].append(result.output.scores)
                    assert result.dropped == 1
    for name in STATES:
        np.testing.assert_allclose(scores[name], expected(model, name, frames[1::2], None), rtol=1e-4, atol=1e-5)


def test_one_shot_and_the_golden_samples_take_whole_clips(project: tuple[Any, Path]) -> None:
    """``infer`` answers for a clip's end as torch does, and what travels in the bundle is replayed frame by frame."""
    model, bundle = project
    frames, reading = clip(6), turns(1)
    with edge_mbm.load(bundle) as opened:
        with opened.session() as session:
            results = session.infer(image=frames, imu=reading[0])
        replay = verify_bundle(opened)
    for result in results:
        whole = expected(model, result.head, frames, np.repeat(reading, 6, 0))
        np.testing.assert_allclose(result.output.scores, whole[-1], rtol=1e-4, atol=1e-5)
    assert replay.passed
    assert replay.samples == 4
