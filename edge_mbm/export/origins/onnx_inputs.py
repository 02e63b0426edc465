"""What stands between a recipe's input and that of a graph which was made for another pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_mbm.errors import RecipeError
from edge_mbm.export.recipe import Normalize, OnnxModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Adapter", "adapter"]

_CASTS = {("uint8", "float32"), ("uint8", "float16"), ("int64", "int32"), ("float32", "float16")}


@dataclass(frozen=True)
class Adapter:
    """Type, values, order of axes and shape of one input: in numpy for the original, as nodes in the graph to come."""

    dtype: np.dtype[Any]
    normalize: Normalize = field(default_factory=Normalize)
    layout: Literal["NCHW", "NHWC"] | None = None
    """The graph's, of an image, which comes as NHWC."""
    shape: tuple[int, ...] | None = None
    """Of one sample, where it only has axes of length 1 in other places."""

    def __call__(self, value: NDArray[Any]) -> NDArray[Any]:
        """[batch, ...] as the graph takes it."""
        value = value.astype(self.dtype)
        if self.normalize != Normalize():
            value = (value - self._constant(self.normalize.mean)) / self._constant(self.normalize.std)
        if self.layout == "NCHW":
            value = value.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(value if self.shape is None else value.reshape(-1, *self.shape))

    def nodes(self, given: str, wanted: str, dtype: np.dtype[Any]) -> tuple[list[NodeProto], list[TensorProto]]:
        """The same in operators, with their constants.

        Args:
            given: name of the recipe's input.
            wanted: name of the graph's own input.
            dtype: of the recipe's input.
        """
        steps = list(self._steps(wanted, dtype))
        if not steps:
            return [], []
        names = [given, *(f"{wanted}_adapted_{index}" for index in range(1, len(steps))), wanted]
        made = [
            helper.make_node(kind, [before, *(constant.name for constant in constants)], [after], **attributes)
            for (kind, constants, attributes), before, after in zip(steps, names[:-1], names[1:], strict=True)
        ]
        return made, [constant for _, constants, _ in steps for constant in constants]

    def _steps(self, wanted: str, dtype: np.dtype[Any]) -> Iterator[tuple[str, list[TensorProto], dict[str, Any]]]:
        if dtype != self.dtype:
            yield "Cast", [], {"to": helper.np_dtype_to_tensor_dtype(self.dtype)}
        if self.normalize != Normalize():
            yield "Sub", [_named(self._constant(self.normalize.mean), f"{wanted}_mean")], {}
            yield "Div", [_named(self._constant(self.normalize.std), f"{wanted}_std")], {}
        if self.layout == "NCHW":
            yield "Transpose", [], {"perm": [0, 3, 1, 2]}
        if self.shape is not None:
            yield "Reshape", [_named(np.array([-1, *self.shape], np.int64), f"{wanted}_shape")], {}

    def _constant(self, values: Sequence[float]) -> NDArray[Any]:
        return np.array(values, self.dtype)


def _named(value: NDArray[Any], name: str) -> TensorProto:
    return numpy_helper.from_array(value, name)


def adapter(value: NDArray[Any], declared: Any, source: OnnxModel, key: str, where: str) -> Adapter:
    """What makes of a recipe's input what a graph declares.

    Args:
        value: of the recipe's input, any batch.
        declared: the graph's input.
        source: may say how.
        key: the recipe's input.
        where: for messages.

    Raises:
        RecipeError: another type, or it cannot be told how the image's axes lie.
    """
    tensor = declared.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if value.dtype != dtype and (value.dtype.name, dtype.name) not in _CASTS:
        raise RecipeError(f"{where}: the recipe's input '{key}' is {value.dtype}, the graph's {dtype}: give it that")
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    image = value.dtype == np.uint8 and value.ndim == 4 and len(sizes) == 4
    layout = _layout(sizes, value.shape[3], source, where) if image else None
    shape = None if image else _ones_elsewhere(value.shape[1:], sizes[1:])
    return Adapter(dtype, source.normalize.get(key, Normalize()), layout, shape)


def _layout(sizes: Sequence[int | None], channels: int, source: OnnxModel, where: str) -> Literal["NCHW", "NHWC"]:
    if source.layout != "auto":
        return source.layout
    first, last = sizes[1] == channels, sizes[3] == channels
    if first == last:
        raise RecipeError(
            f"{where}: the graph's image input is {sizes}, from which it cannot be told where its {channels} channels "
            "are: give the model's table layout = 'NCHW' or 'NHWC'"
        )
    return "NCHW" if first else "NHWC"


def _ones_elsewhere(have: Sequence[int], wanted: Sequence[int | None]) -> tuple[int, ...] | None:
    """The wanted shape, if it is the same values in the same order with axes of length 1 put in or left out."""
    fixed = tuple(size for size in wanted if size is not None)
    if len(fixed) < len(wanted) or fixed == tuple(have) or math.prod(fixed) != math.prod(have):
        return None
    same = [size for size in fixed if size != 1] == [size for size in have if size != 1]
    return fixed if same else None
