"""Video through an export: windows of frames in the recipe, in parity, in golden samples, on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

import edge_mbm
from edge_mbm.errors import CalibrationError, InputError, RecipeError, SourceError
from edge_mbm.export import export_bundle
from edge_mbm.runtime import SequenceOutput
from edge_mbm.runtime.source import Sample
from edge_mbm.runtime.verify import verify_bundle
from edge_mbm.testing import ScriptedSource

Write: TypeAlias = Callable[..., Path]

CODE = """
import numpy as np
import torch
from torch import nn


class Record:
    def __init__(self, id, inputs):
        self.id, self.inputs, self.label = id, inputs, None


def film(seed, frames=9):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (frames, 6, 8, 3), np.uint8)


def recordings(split):
    for index in range(8):
        yield Record(f"{split}-{index}", {"video": film(sum(split.encode()) + index)})


class Frames(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.space = nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, frames):
        pixels = frames.permute(0, 4, 1, 2, 3).float() / 255
        return torch.relu(self.time(torch.relu(self.space(pixels)))).mean((3, 4)).transpose(1, 2)


class Score(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.layer = nn.Linear(4, 1)

    def forward(self, features):
        return torch.sigmoid(4 * self.layer(features)).squeeze(2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.frames, self.score = Frames(), Score()


def load():
    return Model()
"""

RECIPE = """
name = "film"
model = "{module}:load"
python_path = ["code"]
calibration_set = "data.toml"
targets = ["x86-cpu"]
{top}
[modalities]
video = {{ kind = "video", rate = 25.0 }}

[components.frames]
kind = "encoder"
module = "frames"
window = {{ length = 6, hop = 4, margin = 1, padding = "repeat" }}
outputs = {{ features = {{ task = "sequence" }} }}

[components.frames.inputs.frames]
source = "video"
preprocess = {{ steps = "image", height = 6, width = 8 }}

[components.score]
kind = "head"
module = "score"
inputs = {{ features = "frames.features" }}
outputs = {{ cut = {{ task = "saliency" }} }}
pivot = "video"
deadline_ns = 0
{more}
"""
PERIOD = 40_000_000


@pytest.fixture(scope="module")
def bundle(project: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "film.mbm"
    export_bundle(project(CODE, RECIPE), path)
    return path


def code() -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(CODE, found)
    return found


def whole(frames: np.ndarray) -> np.ndarray:
    """What torch makes of the whole film in one window: with kernels of three frames, a margin of one says it all."""
    padded = np.concatenate([frames[:1], frames, frames[-1:]])
    with torch.no_grad():
        model = code()["load"]()
        scores: np.ndarray = model.score(model.frames(torch.from_numpy(padded[None])))[0, 1:-1].numpy()
    return scores


def samples(frames: np.ndarray, modality: str = "video") -> list[Sample]:
    return [Sample(modality, frame, index * PERIOD) for index, frame in enumerate(frames)]


def streamed(bundle: Path, source: ScriptedSource) -> tuple[np.ndarray, np.ndarray]:
    options = edge_mbm.SessionOptions(variant="fp32")
    with edge_mbm.open(bundle, source, options=options, realtime=False) as live:
        outputs = [result.output for result in live]
    assert all(isinstance(output, SequenceOutput) for output in outputs)
    return np.concatenate([o.times for o in outputs]), np.concatenate([o.values for o in outputs])  # type: ignore[union-attr]


def test_frames_are_five_axes_and_golden_windows_replay(bundle: Path) -> None:
    """The recipe's window is in the tensor, and the device computes what torch computed."""
    with edge_mbm.load(bundle) as opened:
        tensor = opened.manifest.components["frames"].inputs["frames"].tensor
        assert (tensor.dtype, tensor.shape, tensor.layout) == ("uint8", ("batch", 6, 6, 8, 3), "NTHWC")
        verification = verify_bundle(opened)
        verification.check()
        assert verification.samples > 0


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 37])
def test_a_stream_answers_each_frame_once_as_the_whole_film(bundle: Path, frames: int) -> None:
    """Whatever its length, each frame gets one score, with its own time, and it is torch's of the whole film."""
    film = code()["film"](7, frames)
    times, scores = streamed(bundle, ScriptedSource(samples(film)))
    assert times.tolist() == [index * PERIOD for index in range(frames)]
    np.testing.assert_allclose(scores, whole(film), rtol=1e-4, atol=1e-5)


def test_frames_of_any_size_are_made_to_fit_before_they_wait(bundle: Path) -> None:
    """A camera's frames go through the same steps as calibration's did: here each pixel stands for four."""
    film = code()["film"](8, 12)
    large = film.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(streamed(bundle, ScriptedSource(samples(large)))[1], whole(film), rtol=1e-4, atol=1e-5)


def test_one_shot_takes_a_whole_clip(bundle: Path) -> None:
    """The windows of a clip are encoded in turn, and the last one counts; what is no clip is refused."""
    film = code()["film"](9, 9)
    with edge_mbm.load(bundle) as opened, opened.session(edge_mbm.SessionOptions(variant="fp32")) as session:
        output = session.infer(video=film)[0].output
        assert isinstance(output, SequenceOutput)
        assert output.times is None
        # Windows begin one frame early and every four: the last has frames 7, 8 and four times the last again.
        np.testing.assert_allclose(output.values[1:2], whole(film)[8:], rtol=1e-4, atol=1e-5)
        with pytest.raises(InputError, match=r"a video is uint8\[T, H, W, 3\]"):
            session.infer(video=film[0, 0])
        with pytest.raises(InputError, match="a frame is uint8"):
            session.push("video", film.astype(np.float32)[0], 0)


def test_a_broken_stream_is_answered_up_to_where_it_breaks(bundle: Path) -> None:
    """The failure reaches the consumer, and what came before it can still be had."""
    film = code()["film"](10, 7)
    source = ScriptedSource(samples(film), error=SourceError("the cable"))
    with edge_mbm.open(bundle, source, realtime=False, options=edge_mbm.SessionOptions(variant="fp32")) as live:
        outputs = []
        with pytest.raises(SourceError, match="the cable"):
            outputs += [result.output for result in live]
        outputs += [result.output for result in live.session.finish()]
    assert sum(len(output.values) for output in outputs if isinstance(output, SequenceOutput)) <= 7
    assert isinstance(outputs[-1], SequenceOutput)
    assert outputs[-1].times is not None
    assert outputs[-1].times[-1] == 6 * PERIOD


@pytest.mark.parametrize(
    ("line", "changed", "message"),
    [
        ('preprocess = {{ steps = "image", height = 6, width = 8 }}', "", "VideoModality with RawSteps"),
        ('window = {{ length = 6, hop = 4, margin = 1, padding = "repeat" }}', "", "needs a window"),
        ("margin = 1", "margin = 3", "leave nothing of 6 between"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_words(
    project: Write, tmp_path: Path, line: str, changed: str, message: str
) -> None:
    """Before anything is traced: no window, margins that leave nothing, frames that cannot be made to fit."""
    with pytest.raises(RecipeError, match=message):
        export_bundle(project(CODE, RECIPE.replace(line, changed)), tmp_path / "film.mbm")


def test_a_recording_too_short_for_a_window_is_named(project: Write, tmp_path: Path) -> None:
    """Without padding a clip of nine frames fills no window of ten."""
    recipe = RECIPE.replace("length = 6, hop = 4, margin = 1, padding", "length = 10, hop = 4, padding").replace(
        '"repeat"', '"none"'
    )
    with pytest.raises(CalibrationError, match=r"9 frames are fewer than one window of 10"):
        export_bundle(project(CODE, recipe), tmp_path / "film.mbm")
