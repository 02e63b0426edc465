"""What the faces example is made of, without its weights: peaks to regions, and TensorFlow.js' weights to torch's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_mbm.errors import EdgeMbmError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.needs("torch")
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_regions_are_what_the_maps_say_at_the_highest_peaks() -> None:
    """Against loops over the cells in float64, for two images at once; the surest first, boxes inside the image."""
    import torch
    from zoo.faces import Decode

    heat = RNG.random((2, 1, 12, 16), np.float32)
    maps = [RNG.normal(size=(2, channels, 12, 16)).astype(np.float32) for channels in (2, 2, 10)]
    got = Decode(6)(torch.from_numpy(heat), *map(torch.from_numpy, maps)).numpy()
    assert got.shape == (2, 6, 15)
    for image in range(2):
        expected = _regions(heat[image, 0], *(part[image].astype(np.float64) for part in maps))[:6]
        np.testing.assert_allclose(got[image], expected, atol=1e-3)


def _regions(heat: np.ndarray, scale: np.ndarray, offset: np.ndarray, marks: np.ndarray) -> list[list[float]]:
    rows, columns = heat.shape
    found = []
    for r in range(rows):
        for c in range(columns):
            if heat[r, c] < heat[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].max():
                continue
            height, width = np.exp(scale[:, r, c]) * 4
            y0 = min(max((r + offset[0, r, c] + 0.5) * 4 - height / 2, 0), rows * 4)
            x0 = min(max((c + offset[1, r, c] + 0.5) * 4 - width / 2, 0), columns * 4)
            box = [x0, y0, min(x0 + width, columns * 4), min(y0 + height, rows * 4), float(heat[r, c])]
            for k in range(5):
                box += [marks[2 * k + 1, r, c] * width + x0, marks[2 * k, r, c] * height + y0]
            found.append(box)
    return sorted(found, key=lambda region: -region[4])


def test_weights_are_read_in_8_bits_and_as_they_are() -> None:
    """A byte is its scale's multiple above the least value; bytes that nobody names are an error."""
    from zoo.faces import _read_weights

    entries = [
        {"name": "a", "shape": [2], "dtype": "float32", "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1}},
        {"name": "b", "shape": [1], "dtype": "float32"},
    ]
    manifest = json.dumps([{"weights": entries}]).encode()
    data = bytes([0, 4]) + np.float32(7.25).tobytes()
    weights = _read_weights(manifest, data)
    assert weights["a"].tolist() == [-1, 1]
    assert weights["b"].tolist() == [7.25]
    with pytest.raises(EdgeMbmError, match="7 bytes of weights, its manifest names 6"):
        _read_weights(manifest, data + b"?")


def test_a_scale_layer_is_in_the_convolution_before_it() -> None:
    """The first layer's output is (x * filters + bias) * weights + biases, summed by hand in one place."""
    import torch
    from zoo.faces import _folded

    name, size = "conv32_down", 7
    weights = {
        "fc": RNG.normal(size=(256, 128)).astype(np.float32),
        f"{name}/conv/filters": RNG.normal(size=(size, size, 3, 32)).astype(np.float32),
        **{
            f"{name}/{part}": RNG.normal(size=32).astype(np.float32)
            for part in ("conv/bias", "scale/weights", "scale/biases")
        },
    }
    state = _folded(weights)
    image = RNG.normal(size=(size, size, 3)).astype(np.float32)
    got = torch.nn.functional.conv2d(
        torch.from_numpy(image.transpose(2, 0, 1)[None].copy()), state[f"{name}.weight"], state[f"{name}.bias"]
    )
    plain = (image[..., None] * weights[f"{name}/conv/filters"]).sum((0, 1, 2)) + weights[f"{name}/conv/bias"]
    expected = plain * weights[f"{name}/scale/weights"] + weights[f"{name}/scale/biases"]
    np.testing.assert_allclose(got.numpy().ravel(), expected, rtol=1e-3, atol=1e-3)
    assert state["fc.weight"].shape == (128, 256)


def test_the_network_computes_what_the_package_does() -> None:
    """On a pattern, the first numbers that face-api 1.7.15 itself gives with its CPU kernels in node 20."""
    import torch
    from zoo import faces

    y, x, channel = np.mgrid[:150, :150, :3]
    pattern = torch.from_numpy((x * 7 + y * 13 + channel * 50) % 256).permute(2, 0, 1)[None].float()
    theirs = [-0.060561, 0.133021, 0.068887, 0.002168, -0.057283, -0.032604, -0.072372, 0.002896,
              0.09289, 0.003787, 0.233583, -0.022556, -0.247749, -0.020534, -0.028575, 0.089437]  # fmt: skip
    with torch.no_grad():
        ours = faces.load()(pattern)[0, : len(theirs)].numpy()
    assert ours == pytest.approx(theirs, abs=1e-5)
