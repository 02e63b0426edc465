"""What a head is worth by the recipe's own measure, in place of accuracy."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import EdgeMbmError, RecipeError
from edge_mbm.export.chain import Arrays
from edge_mbm.export.place import place
from edge_mbm.export.recipe import EncoderRecipe, Recipe
from edge_mbm.export.recordings import import_function

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Metric", "load_metrics"]


@dataclass(frozen=True)
class Metric:
    """A user's function for one head or decoder.

    Args:
        head: the component's name.
        outputs: the names of its outputs.
        reference: how the recipe names the function.
        function: ``(outputs: name -> float32[recordings, ...], labels) -> float``, higher is better; of a decoder the
            outputs are str[recordings].
    """

    head: str
    outputs: tuple[str, ...]
    reference: str
    function: Callable[[Mapping[str, NDArray[Any]], list[int | str]], float]

    def __call__(self, got: Sequence[Arrays], truth: Sequence[int | str]) -> float:
        """Its value over the recordings that have the head's outputs.

        Raises:
            RecipeError: the function raised, or gave no finite number.
        """
        keys = [f"{self.head}.{name}" for name in self.outputs]
        known = [
            (values, label) for values, label in zip(got, truth, strict=True) if all(key in values for key in keys)
        ]
        outputs = {
            name: _joined([_column(values[key]) for values, _ in known])
            for name, key in zip(self.outputs, keys, strict=True)
        }
        value = self._called(outputs, [label for _, label in known])
        if not math.isfinite(value):
            raise RecipeError(f"metric = '{self.reference}' gave {value}: it must be a finite number")
        return value

    def source_sha256(self) -> str:
        """Of the file that the function is defined in: its figures are kept only as long as that stays the same."""
        source = inspect.getsourcefile(inspect.unwrap(self.function))
        return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""

    def _called(self, outputs: Mapping[str, NDArray[Any]], labels: list[int | str]) -> float:
        try:
            return float(self.function(outputs, labels))
        except EdgeMbmError:
            raise
        except Exception as error:  # whatever a user's function raises
            shapes = {name: list(array.shape) for name, array in outputs.items()}
            raise RecipeError(
                f"metric = '{self.reference}' raised {type(error).__name__} on {shapes} and {len(labels)} labels: "
                f"{error}{place(error)}"
            ) from error


def _column(value: NDArray[Any]) -> NDArray[Any]:
    """A head's numbers as float32; a decoder's text as it is."""
    return value if value.dtype.kind == "U" else np.asarray(value, np.float32)


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One after the other; scores for fewer prompts than elsewhere are followed by minus infinity: never the best."""
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1 and all(len(shape) == 1 for shape in shapes):
        width = max(array.shape[1] for array in arrays)
        arrays = [np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=-np.inf) for array in arrays]
    return np.concatenate(arrays)


def load_metrics(recipe: Recipe) -> dict[str, Metric]:
    """The heads' metrics, by component.

    Raises:
        RecipeError: a function is not there.
    """
    found: dict[str, Metric] = {}
    for name, component in recipe.components.items():
        if not isinstance(component, EncoderRecipe) and component.metric is not None:
            function: Any = import_function(component.metric, f"components.{name}.metric")
            found[name] = Metric(name, tuple(component.outputs), component.metric, function)
    return found
