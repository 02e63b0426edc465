"""Which tensors of a graph hold an attention mask's "minus infinity", by design."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import MissingDependencyError

try:
    import onnx
except ImportError:
    raise MissingDependencyError("onnx", "calibration", "pip install 'edge-mbm[export]'") from None

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["masked_tensors", "unmasked"]

_MASKED = np.float32(-1e30)
"""From here on down a value says "leave this out": -inf, or the least float32 that exporters write instead of it."""
_ELEMENTWISE = ("Where", "Add", "Sub", "Mul", "Max", "Min", "Cast", "Identity")
_MOVING = (
    "Concat",
    "Reshape",
    "Transpose",
    "Expand",
    "Slice",
    "Gather",
    "Squeeze",
    "Unsqueeze",
    "Tile",
    "Pad",
    "Flatten",
)
_PLACING = ("Split", "Trilu", "ScatterND", "ScatterElements")
_CARRIES = frozenset((*_ELEMENTWISE, *_MOVING, *_PLACING))
"""Operators that hand a mask's value on; a softmax ends it, and behind any other it would be an overflow."""


def masked_tensors(graph: onnx.GraphProto) -> frozenset[str]:
    """Tensors that a constant of -inf, or as good as that, comes into and reaches unchanged."""
    found = {tensor.name for tensor in graph.initializer if _is_mask(tensor)}
    for node in graph.node:
        if _makes_mask(node) or (node.op_type in _CARRIES and not found.isdisjoint(node.input)):
            found.update(node.output)
    return frozenset(found)


def unmasked(array: NDArray[Any]) -> NDArray[Any]:
    """The values that are not the mask's, in one dimension; NaN and infinity stay in."""
    return array[~(array <= _MASKED)]


def _makes_mask(node: onnx.NodeProto) -> bool:
    is_maker = node.op_type in ("Constant", "ConstantOfShape")
    return is_maker and any(_is_mask(attribute.t) or attribute.f <= _MASKED for attribute in node.attribute)


def _is_mask(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return False
    values = onnx.numpy_helper.to_array(tensor)
    return bool(values.size) and bool(values.min() <= _MASKED)
