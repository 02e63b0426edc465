"""Keras 3 files on the torch backend: no TensorFlow is needed."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edge_mbm.errors import MissingDependencyError, RecipeError
from edge_mbm.export.origins.component import input_names, output_names
from edge_mbm.export.origins.images import WithImages
from edge_mbm.export.origins.module import ModuleOrigin, weights_sha256
from edge_mbm.export.recipe import ComponentRecipe, KerasModel, Normalize

__all__ = ["load_keras"]


def load_keras(source: KerasModel, folder: Path, where: str) -> KerasFile:
    """Load a ``.keras`` file.

    Args:
        source: as the recipe says.
        folder: of the recipe.
        where: the recipe's key, for messages.

    Raises:
        RecipeError: no such file, code of its own in it, or Keras runs on another backend in this process.
        MissingDependencyError: Keras is not installed.
    """
    path = folder / source.path
    _check(path, where)
    keras = _import_keras(where)
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a broken file, another version's: no common base
        text = (str(error).strip().splitlines() or [""])[0]
        raise RecipeError(f"{where}.path: Keras cannot load {path}, {type(error).__name__}: {text[:400]}") from error
    model.cpu().eval().requires_grad_(requires_grad=False)
    return KerasFile(model, source.normalize, where)


def _import_keras(where: str) -> Any:
    # Read once, when Keras is imported.
    os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
    try:
        keras = importlib.import_module("keras")
    except ImportError as error:
        raise MissingDependencyError("keras", "a model with from = 'keras'", "pip install 'edge-mbm[keras]'") from error
    if (backend := keras.backend.backend()) != "torch":
        raise RecipeError(f"{where}: Keras runs on {backend} here: set KERAS_BACKEND=torch before it is imported")
    return keras


# --- nothing in the file may be code ---------------------------------------------------------------------------------


def _check(path: Path, where: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise RecipeError(f"{where}.path: {path} is no file as Keras 3's model.save('x.keras') writes it") from error
    for layer, kind in _foreign(config.get("config"), "model"):
        raise RecipeError(
            f"{where}.path: layer '{layer}' of {path} is a {kind}, whose code is not in the file and not loaded from "
            "one: build the model in a Python factory that registers it (keras.saving.register_keras_serializable), "
            "loads the file and returns the model, and give that as model = 'package.module:function'"
        )


def _foreign(config: Any, layer: str) -> Iterator[tuple[str, str]]:
    """(layer, kind) of whatever in a configuration is not Keras' own."""
    if isinstance(config, list):
        for item in config:
            yield from _foreign(item, layer)
    if isinstance(config, dict):
        inner = config.get("config")
        layer = inner.get("name", layer) if isinstance(inner, dict) and isinstance(inner.get("name"), str) else layer
        kind, module = config.get("class_name"), config.get("module")
        if kind == "Lambda" or (kind is not None and not _is_keras(kind, module)):
            yield layer, f"Lambda ({module})" if kind == "Lambda" else f"{module or 'custom'}.{kind}"
        for value in config.values():
            yield from _foreign(value, layer)


def _is_keras(kind: str, module: Any) -> bool:
    # Layers' shapes and tensors in their arguments have no module.
    return str(module).split(".")[0] == "keras" or (module is None and kind.startswith("__"))


# --- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KerasFile:
    """A functional or sequential model, of which components are stretches between layers.

    Args:
        model: on the CPU, in evaluation mode.
        normalize: of uint8 images.
        where: the recipe's key, for messages.
    """

    model: Any
    normalize: Normalize
    where: str

    def component(self, name: str, recipe: ComponentRecipe) -> ModuleOrigin:
        """The part of the model from the layers that the inputs are named after to the layer ``module``.

        Raises:
            RecipeError: there is no such layer, or the one does not follow from the others.
        """
        keras = importlib.import_module("keras")
        begin = [self._output(key, f"components.{name}.inputs.{key}") for key in input_names(recipe)]
        end = self._output(recipe.module, f"components.{name}.module") if recipe.module else self.model.outputs
        try:
            part = keras.Model(begin, end)
        except Exception as error:  # Keras' own: a layer that needs what is not given
            raise RecipeError(
                f"components.{name}: '{recipe.module or 'the end'}' of {self.where} does not follow from its inputs "
                f"{list(input_names(recipe))} alone: name every layer that it begins with ({error})"
            ) from error
        module = WithImages(_Positional(part.eval()), self.normalize, channels_first=False)
        return ModuleOrigin(
            module.eval(), name, output_names(recipe), keras.config.image_data_format() == "channels_last"
        )

    def _output(self, layer: str, where: str) -> Any:
        names = [known.name for known in self.model.layers]
        if layer not in names:
            near = difflib.get_close_matches(layer, names, 1, 0.5)
            meant = f": did you mean '{near[0]}'?" if near else "."
            raise RecipeError(f"{where} names the layer '{layer}'{meant} The model of {self.where} has {names}")
        try:
            return self.model.get_layer(layer).output
        except (AttributeError, ValueError) as error:
            raise RecipeError(f"{where}: the layer '{layer}' is used more than once, or has no one output") from error

    def sha256(self) -> str:
        """See ``Model``."""
        return weights_sha256(self.model)


class _Positional(nn.Module):
    """Keras takes its inputs as one list, and gives one tensor or a list of them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
