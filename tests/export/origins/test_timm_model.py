"""timm's architectures: against timm itself, without torchvision, and weights that are another model's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_mbm.errors import RecipeError
from edge_mbm.export.origins.timm_model import load_timm
from edge_mbm.export.recipe import EncoderRecipe, TimmModel
from edge_mbm.spec import Embedding

pytestmark = pytest.mark.needs("timm", "safetensors")

NAME = "test_resnet"
RECIPE = """
[modalities]
image = { kind = "image" }

[components.seen]
kind = "encoder"
module = ""
outputs = { embedding = { task = "embedding" } }
inputs = { image = { source = "image", preprocess = { steps = "image", height = 64, width = 64 } } }

[components.seen.model]
from = "timm"
name = "test_resnet"
weights = "weights.safetensors"
options = { num_classes = 0 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of one random model, in both formats."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    state = load_timm(TimmModel(name=NAME, options={"num_classes": 0}), folder, "model").module.state_dict()
    save_file(state, folder / "weights.safetensors")
    torch.save({"state_dict": state}, folder / "weights.pth")
    return folder


def test_it_takes_the_camera_image(strangers: Callable[..., Any], folder: Path, agrees: Callable[..., None]) -> None:
    """uint8 in, normalized as timm says that the architecture was trained, to pooled features."""
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(NAME, num_classes=0).eval()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    mean, std = (np.array(model.default_cfg[key]) for key in ("mean", "std"))

    def wanted(inputs: dict[str, Any]) -> np.ndarray:
        pixels = ((inputs["image"] / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
        return model(torch.from_numpy(pixels)).detach().numpy()

    def images(batch: int) -> dict[str, np.ndarray]:
        return {"image": np.random.default_rng(batch).integers(0, 256, (batch, 64, 64, 3), np.uint8)}

    agrees(strangers(folder, RECIPE, source="seen.embedding").traced()["seen"], wanted, images)


def test_both_formats_hold_the_same(folder: Path) -> None:
    """And the digest is of what they hold."""
    options = {"num_classes": 0}
    digests = {
        load_timm(TimmModel(name=NAME, weights=weights, options=options), folder, "model").sha256()
        for weights in ("weights.safetensors", "weights.pth")
    }
    assert len(digests) == 1


def test_a_part_of_it_is_a_component_too(folder: Path) -> None:
    """By its path, behind the same images."""
    model = load_timm(TimmModel(name=NAME, options={"num_classes": 0}), folder, "model")
    recipe = EncoderRecipe(module="conv1", inputs={"image": "image"}, outputs={"y": Embedding()})
    image = np.full((1, 8, 8, 3), 255, np.uint8)
    assert model.component("seen", recipe).run({"image": image})["y"].shape == (1, 32, 4, 4)


def test_torchvision_is_not_needed_nor_left_behind(tmp_path: Path) -> None:
    """Where it cannot be imported, timm is all the same, and others still see that it is not there."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from edge_mbm.export.origins.timm_model import load_timm
from edge_mbm.export.recipe import TimmModel
load_timm(TimmModel(name="resnet18"), Path(), "model")
print([name for name in sys.modules if name.startswith("torchvision")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (TimmModel(name="mobilenetv3_smal_050"), "which timm does not have: did you mean 'mobilenetv3_small_050'"),
        (TimmModel(name=NAME, options={"clases": 3}), r"raised TypeError: .*'clases'"),
        (TimmModel(name=NAME, weights="none.safetensors"), r"model\.weights: there is no file"),
        (TimmModel(name="resnet18", weights="weights.pth"), "holds another model's weights: Missing key"),
        (TimmModel(name=NAME, weights="weights.pth"), "holds another model's weights: Missing key.*fc"),
        (TimmModel(name=NAME, weights="objects.pth"), r"no file of tensors only \(UnpicklingError\)"),
        (TimmModel(name=NAME, weights="numbers.pth"), "no state dict of tensors"),
        (TimmModel(name=NAME, weights="cut.safetensors"), r"no file of tensors only \(SafetensorError\)"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, source: TimmModel, said: str) -> None:
    """With the nearest name, the option, or the file and what is wrong with it; objects are never unpickled."""
    torch.save(folder, folder / "objects.pth")
    torch.save({"epoch": 3}, folder / "numbers.pth")
    (folder / "cut.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:99])
    with pytest.raises(RecipeError, match=said):
        load_timm(source, folder, "model")
