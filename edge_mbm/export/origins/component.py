"""What an export asks of a model and of its components, whatever framework they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from edge_mbm.export.recipe import ComponentRecipe, HeadRecipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ComponentOrigin", "Model", "input_names", "output_names"]


class ComponentOrigin(Protocol):
    """One component as its framework runs it.

    A protocol because torch modules (Python, timm, Hugging Face, Keras) and foreign ONNX graphs take turns.
    """

    @property
    def channels_last(self) -> bool:
        """Whether four-dimensional outputs are NHWC."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One call: all of the graph's inputs by name, in order; its outputs, then its next states, by name."""
        ...


class Model(Protocol):
    """A loaded model, of which components are parts."""

    def component(self, name: str, recipe: ComponentRecipe) -> ComponentOrigin:
        """A part.

        Raises:
            RecipeError: there is no such part.
        """
        ...

    def sha256(self) -> str:
        """Of the weights: their names, dtypes, shapes and values."""
        ...


def input_names(recipe: ComponentRecipe) -> tuple[str, ...]:
    """Of the graph's inputs, in order: inputs, states, then the present mask."""
    mask = ("present",) if isinstance(recipe, HeadRecipe) and recipe.present else ()
    return (*recipe.inputs, *(state.input for state in recipe.states), *mask)


def output_names(recipe: ComponentRecipe) -> tuple[str, ...]:
    """Of the graph's outputs, in order: outputs, then next states."""
    return (*recipe.outputs, *(state.output for state in recipe.states))
