"""Detectors through an export: maps by one component, regions by another, the same on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

import edge_mbm
from edge_mbm import SessionOptions
from edge_mbm.errors import RecipeError
from edge_mbm.export import export_bundle
from edge_mbm.runtime import RegionsOutput, SequenceOutput
from edge_mbm.runtime.verify import verify_bundle

Write: TypeAlias = Callable[..., Path]
pytestmark = pytest.mark.needs("cv2")

CODE = """
import numpy as np
import torch
from torch import nn


class Record:
    def __init__(self, id, inputs, label):
        self.id, self.inputs, self.label = id, inputs, label


def scene(rng):
    \"\"\"One or two bright squares of 8 on a dark frame of 64 x 48, on a grid of 4.\"\"\"
    frame = rng.integers(0, 40, (48, 64, 3), np.uint8)
    for x, y in {(int(rng.integers(0, 7)) * 4, int(rng.integers(0, 10)) * 4), (44, 8)}:
        frame[y : y + 8, x : x + 8] = rng.integers(200, 255)
    return frame


def recordings(split):
    rng = np.random.default_rng(sum(split.encode()))
    for index in range(12):
        yield Record(f"{split}-{index}", {"image": scene(rng)}, index)


class Maps(nn.Module):
    \"\"\"How bright each square of 8 pixels is, every 4 pixels.\"\"\"

    def forward(self, image):
        light = image.permute(0, 3, 1, 2).float().mean(1, keepdim=True) / 255
        return nn.functional.avg_pool2d(light, 8, 4)


class Decode(nn.Module):
    \"\"\"The six brightest as boxes, with their middles.\"\"\"

    def forward(self, light):
        score, place = light.flatten(1).topk(6)
        x, y = place % light.shape[3] * 4.0, place // light.shape[3] * 4.0
        return torch.stack([x, y, x + 8, y + 8, score, x + 4, y + 4], 2)


class Shade(nn.Module):
    \"\"\"How bright a crop is, in the middle and at its edge.\"\"\"

    def forward(self, crop):
        light = crop.float().mean(3) / 255
        return torch.stack([light[:, 2:6, 2:6].mean((1, 2)), light[:, 0].mean(1)], 1)


class Who(nn.Module):
    def forward(self, found, each):
        return found * 1.0, each * 1.0


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.maps, self.decode, self.shade, self.who = Maps(), Decode(), Shade(), Who()


def load():
    return Model()


def some(outputs, labels):
    return float(np.mean(outputs["regions"][:, 0, 4] > 0.5))
"""

RECIPE = """
name = "squares"
model = "{module}:load"
python_path = ["code"]
calibration_set = "data.toml"
targets = []

[modalities]
image = {{ kind = "image" }}

[components.maps]
kind = "encoder"
module = "maps"
outputs = {{ light = {{ task = "embedding" }} }}

[components.maps.inputs.image]
source = "image"
preprocess = {{ steps = "image", height = 48, width = 64 }}

[components.squares]
kind = "detector"
module = "decode"
inputs = {{ light = "maps.light" }}
outputs = {{ regions = {{ task = "regions", landmarks = 1 }} }}
max_regions = 3
score_threshold = 0.6
metric = "{module}:some"
"""

CROPS = """
[components.shade]
kind = "encoder"
module = "shade"
outputs = {{ light = {{ task = "embedding" }} }}

[components.shade.inputs.crop]
source = "squares.regions"
preprocess = {{ steps = "crop", height = 8, width = 8 }}

[components.who]
kind = "head"
module = "who"
inputs = {{ found = "squares.regions", each = "shade.light" }}
outputs = {{ regions = {{ task = "regions", landmarks = 1 }}, lights = {{ task = "sequence" }} }}
pivot = "image"
deadline_ns = 0
"""


def test_what_is_found_on_the_device_is_what_is_there(project: Write, tmp_path: Path) -> None:
    """Bright squares where they were drawn, in the pixels of frames of another size; the evidence is in the bundle."""
    manifest = export_bundle(project(CODE, RECIPE), tmp_path / "squares.mbm")
    assert manifest.default_results() == ("squares",)
    figures = manifest.components["squares"].variants["fp32"].error
    assert figures is not None
    assert (figures.accuracy, figures.samples) == (1.0, 12)
    with edge_mbm.load(tmp_path / "squares.mbm") as bundle:
        verify_bundle(bundle).check()
        with bundle.session(SessionOptions()) as session:
            for x, y in ((0, 0), (40, 24), (56, 40)):
                frame = np.zeros((96, 128, 3), np.uint8)
                frame[2 * y : 2 * y + 16, 2 * x : 2 * x + 16] = 255
                [result] = session.infer(image=frame)
                assert isinstance(result.output, RegionsOutput)
                assert result.output.boxes.tolist() == [[2 * x, 2 * y, 2 * x + 16, 2 * y + 16]]
                assert result.output.landmarks.tolist() == [[[2 * x + 8, 2 * y + 8]]]


def test_each_region_is_encoded_as_in_the_framework(project: Write, tmp_path: Path) -> None:
    """Golden samples through detector, crops and head; a frame's squares with the brightness that each was drawn in."""
    manifest = export_bundle(project(CODE, RECIPE + CROPS), tmp_path / "squares.mbm")
    assert manifest.default_results() == ("who",)
    assert manifest.components["shade"].outputs["light"].tensor.shape == ("batch", 2)
    assert manifest.components["who"].inputs["each"].tensor.shape == ("batch", 3, 2)
    with edge_mbm.load(tmp_path / "squares.mbm") as bundle:
        verify_bundle(bundle).check()
        with bundle.session() as session:
            frame = np.zeros((96, 128, 3), np.uint8)
            frame[0:16, 0:16], frame[48:64, 80:96] = 255, 204
            [result] = session.infer(image=frame)
            dark = session.infer(image=np.zeros_like(frame))[0]
    where, lights = result.outputs["regions"], result.outputs["lights"]
    assert isinstance(where, RegionsOutput)
    assert isinstance(lights, SequenceOutput)
    assert where.boxes.tolist() == [[0, 0, 16, 16], [80, 48, 96, 64]]
    assert lights.values == pytest.approx(np.array([[1, 1], [0.8, 0.8], [0, 0]]), abs=1e-6)
    assert not dark.outputs["lights"].values.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change",
    [
        ('source = "squares.regions"\npre', 'source = "maps.light"\npre'),
        ("height = 8, width = 8", "height = 8, width = 8, landmarks = [[0.5, 0.5]]"),
    ],
)
def test_crops_that_cannot_be_cut_are_refused_before_tracing(
    project: Write, tmp_path: Path, change: tuple[str, str]
) -> None:
    """Of what is no detector; by landmarks that say no size."""
    with pytest.raises(RecipeError, match=r"no detector's output|all landmarks on one point"):
        export_bundle(project(CODE, RECIPE + CROPS.replace(*change)), tmp_path / "squares.mbm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("landmarks = 1", "landmarks = 2"), "regions are float32"),
        (("max_regions = 3", "max_region = 3"), "max_region"),
        (("score_threshold = 0.6", "iou_threshold = 0"), "iou_threshold"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(
    project: Write, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    """By what is wrong, without a bundle."""
    with pytest.raises(RecipeError, match=message):
        export_bundle(project(CODE, RECIPE.replace(*change)), tmp_path / "squares.mbm")
    assert not (tmp_path / "squares.mbm").exists()
