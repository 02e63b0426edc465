"""The models as their frameworks run them: what every graph is held against."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from edge_mbm.errors import RecipeError
from edge_mbm.export.origins import ComponentOrigin, Model
from edge_mbm.export.origins.factory import load_factory
from edge_mbm.export.origins.huggingface import load_huggingface
from edge_mbm.export.origins.keras_file import load_keras
from edge_mbm.export.origins.module import ModuleOrigin, TorchModel
from edge_mbm.export.origins.onnx_model import GraphOrigin, load_onnx
from edge_mbm.export.origins.timm_model import load_timm
from edge_mbm.export.recipe import HuggingFaceModel, KerasModel, LoadedRecipe, ModelSource, TimmModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Origin"]


class Origin:
    """The recipe's models, component by component.

    Args:
        loaded: the recipe.
        only: of these components; None for all.

    Raises:
        RecipeError: a model or a part of one is not there, or is not what the recipe says.
        MissingDependencyError: a model's framework is not installed.
    """

    def __init__(self, loaded: LoadedRecipe, only: Collection[str] | None = None) -> None:
        recipe = loaded.recipe
        self._models: dict[str, Model] = {}
        self._components: dict[str, ComponentOrigin] = {}
        for name, component in recipe.components.items():
            if only is not None and name not in only:
                continue
            self._components[name] = self._model(loaded, name).component(name, component)

    def _model(self, loaded: LoadedRecipe, name: str) -> Model:
        """A component's model, loaded once for all that have the same."""
        own = loaded.recipe.components[name].model
        source, where = (loaded.recipe.model, "model") if own is None else (own, f"components.{name}.model")
        assert source is not None
        if repr(source) not in self._models:
            self._models[repr(source)] = _load(source, loaded, where)
        return self._models[repr(source)]

    @property
    def model(self) -> nn.Module:
        """The one torch model of all components.

        Raises:
            RecipeError: there are several, or an ONNX graph.
        """
        [*models] = self._models.values()
        if len(models) != 1 or not isinstance(models[0], TorchModel):
            raise RecipeError("the recipe's components are not of one torch model")
        return models[0].module

    def run(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One call of a component.

        Args:
            name: the component's.
            inputs: all of its graph's inputs, in the order of the model's arguments.

        Returns:
            Its outputs, then its next states, by name.

        Raises:
            RecipeError: the model raised, or gives something else than the recipe says.
        """
        return self._components[name].run(inputs)

    def module(self, name: str) -> nn.Module:
        """A component's torch module, in evaluation mode: what is traced, and trained on.

        Raises:
            RecipeError: it is an ONNX graph.
        """
        component = self._components[name]
        if not isinstance(component, ModuleOrigin):
            raise RecipeError(f"components.{name} is an ONNX graph, which has no torch module")
        return component.module

    def graph(self, name: str) -> GraphOrigin | None:
        """A component's own graph, where it came as one: it is imported instead of traced. Known after a run."""
        component = self._components[name]
        return component if isinstance(component, GraphOrigin) else None

    def batch_free(self, name: str) -> bool:
        """Whether a component takes several samples at once; known after a run."""
        graph = self.graph(name)
        return graph is None or graph.repaired.batch_free

    def channels_last(self, name: str) -> bool:
        """Whether a component's four-dimensional outputs are NHWC; known after a run."""
        return self._components[name].channels_last

    def float_only(self, name: str) -> str | None:
        """Why a component is not to be quantized; None if it may be."""
        graph = self.graph(name)
        if graph is not None and graph.quantized:
            return "it came quantized, and is kept as it is: its own rounding is what others would be measured against"
        return None

    def sha256(self) -> str:
        """Of all weights: the one model's digest, or that of several models' digests in the components' order."""
        digests = [model.sha256() for model in self._models.values()]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _load(source: str | ModelSource, loaded: LoadedRecipe, where: str) -> Model:
    folder = loaded.path.parent
    if isinstance(source, str):
        return load_factory(source, where)
    if isinstance(source, TimmModel):
        return load_timm(source, folder, where)
    if isinstance(source, HuggingFaceModel):
        return load_huggingface(source, folder, where)
    if isinstance(source, KerasModel):
        return load_keras(source, folder, where)
    return load_onnx(source, folder, where, loaded.recipe.opset)
