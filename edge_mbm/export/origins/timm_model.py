"""Architectures of the timm library with weights from a file."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from edge_mbm.errors import MissingDependencyError, RecipeError
from edge_mbm.export.origins.images import WithImages, normalized
from edge_mbm.export.origins.module import TorchModel
from edge_mbm.export.recipe import Normalize, TimmModel

__all__ = ["load_timm"]

_PURPOSE, _REMEDY = "a model with from = 'timm'", "pip install --no-deps timm && pip install 'edge-mbm[timm]'"
_TORCHVISION = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.models.feature_extraction",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.utils",
)


def load_timm(source: TimmModel, folder: Path, where: str) -> TorchModel:
    """Build the architecture and load its weights.

    Args:
        source: as the recipe says.
        folder: of the recipe.
        where: the recipe's key, for messages.

    Raises:
        RecipeError: an unknown name or option, or weights that are not there, unsafe to load, or another model's.
        MissingDependencyError: timm is not installed.
    """
    timm = _import_timm()
    if not timm.is_model(source.name):
        near = difflib.get_close_matches(source.name, timm.list_models(), 3, 0.5)
        raise RecipeError(f"{where}.name is '{source.name}', which timm does not have{_meant(near)}")
    try:
        model: nn.Module = timm.create_model(source.name, pretrained=False, **source.options)
    except Exception as error:  # whatever an architecture says to options it does not have
        raise RecipeError(
            f"{where}: timm.create_model('{source.name}') raised {type(error).__name__}: {error}: see its options"
        ) from error
    if source.weights is not None:
        _load(model, folder / source.weights, f"{where}.weights")
    adapt = partial(WithImages, normalize=source.normalize or _trained_with(model))
    return TorchModel(model.cpu().eval().requires_grad_(requires_grad=False), adapt)


def _meant(near: list[str]) -> str:
    return f": did you mean {' or '.join(map(repr, near))}?" if near else ": timm.list_models() has its names"


def _trained_with(model: Any) -> Normalize:
    config: Mapping[str, Any] = model.pretrained_cfg
    return normalized(tuple(config["mean"]), tuple(config["std"]))


# --- weights ---------------------------------------------------------------------------------------------------------


def _load(model: nn.Module, path: Path, where: str) -> None:
    state = _state(path, where)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise RecipeError(f"{where}: {path} holds another model's weights: {' '.join(lines)[:600]}") from error


def _state(path: Path, where: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise RecipeError(f"{where}: there is no file {path}")
    try:
        state = _safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path)
    except MissingDependencyError:
        raise
    except Exception as error:  # a broken file, or one that would run code: every reader has its own words
        raise RecipeError(
            f"{where}: {path} is no file of tensors only ({type(error).__name__}): save model.state_dict(), best as "
            "safetensors"
        ) from error
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise RecipeError(f"{where}: {path} is no state dict of tensors: save model.state_dict()")
    return state


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingDependencyError("safetensors", _PURPOSE, "pip install 'edge-mbm[timm]'") from error
    return load_file(path)


def _checkpoint(path: Path) -> Any:
    state = torch.load(path, map_location="cpu", weights_only=True)  # never unpickles objects
    return state.get("state_dict", state) if isinstance(state, dict) else state


# --- timm without torchvision ----------------------------------------------------------------------------------------


def _import_timm() -> Any:
    try:
        if _has_torchvision():
            return importlib.import_module("timm")
        with _stand_ins():
            return importlib.import_module("timm")
    except ImportError as error:
        raise MissingDependencyError("timm", _PURPOSE, _REMEDY) from error


def _has_torchvision() -> bool:
    if "timm" in sys.modules:
        return True
    try:
        importlib.import_module("torchvision")
    except Exception:  # noqa: BLE001 - a torchvision of another torch raises RuntimeError
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        return False
    return True


class _Named(type):
    """A class of which every attribute is its own name: enumerations such as InterpolationMode are read on import."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(ModuleType):
    """A module that has whatever is asked for, as an empty class: enough to import, derive from and compare with."""

    __path__: list[str] = []  # noqa: RUF012 - a package, to the import system

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or _Named(name, (), {})


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Empty modules by torchvision's names, while timm is imported.

    timm's architectures need none of it: it is for its data sets and augmentations, a box operation and a frozen
    batch norm to compare with. torchvision has no build for the CPU torch everywhere, and breaks beside another's.
    """
    sys.modules.update({name: _StandIn(name) for name in _TORCHVISION})
    try:
        yield
    finally:
        for name in _TORCHVISION:
            del sys.modules[name]
