"""fp32 to fp16, but for the nodes whose calibrated ranges say that fp16 cannot hold what they compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from edge_mbm.calibration import TensorRanges
from edge_mbm.calibration.mask import unmasked
from edge_mbm.errors import ExportError
from edge_mbm.export.graph import first_line, strip
from edge_mbm.export.lint import View, attribute, decomposed_normalizations

__all__ = ["to_fp16"]

_LARGEST: Final = 65504.0
"""fp16's largest number (IEEE 754 binary16)."""
_MARGIN = 2.0
"""What a device may see beyond the recordings."""
_SMALLEST = 2.0**-14
"""fp16's smallest normal number: a tensor whose largest value is below has fewer than 11 bits for it."""
_SCALED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "Div", "Pow")
"""Where a small constant is a factor: as an addend it matters no more than its size."""
_SQUARED = (
    "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "LpPool", "GlobalLpPool",
    "MeanVarianceNormalization", "ReduceL2", "ReduceSumSquare",
)  # fmt: skip
"""Operators that square their input on the way."""
_SUMMED = ("GlobalAveragePool", "ReduceMean")
"""Operators that sum over their input, and divide only then."""


def to_fp16(graph: bytes, ranges: TensorRanges, name: str) -> tuple[bytes, tuple[str, ...]]:
    """The graph in fp16 with its inputs and outputs as they were, and the nodes left in fp32.

    A node stays in fp32 where a tensor at it came within a factor of two of fp16's largest number, or never reached
    its smallest normal one; where its weights lie outside of that; where what it sums or squares on the way to its
    output would overflow (a normalisation of activations above 256); and where it is part of a normalisation in single
    operators; and where ONNX Runtime has no fp16 kernel (TopK, Min, Max). Between two such nodes values stay in fp32:
    no cast to fp16 and back. An attention mask's -inf, or float32's least number in its place, becomes fp16's.

    Args:
        graph: fp32, in standard operators.
        ranges: of the graph's activations; a tensor without one is taken to fit.
        name: the component's, for messages.

    Returns:
        The graph, the same bytes for the same arguments, and the names of the nodes in it that are left in fp32, in
        the graph's order.

    Raises:
        ExportError: it is no ONNX model, or the conversion failed.
    """
    try:
        model = onnx.load_model_from_string(graph)
        _name_nodes(model)
        kept = tuple(_unfit(View(model), _magnitudes(ranges)))
        converted = convert_float_to_float16(model, keep_io_types=True, node_block_list=list(kept))
    except Exception as error:  # the converter raises whatever it stumbles over
        raise ExportError(
            f"'{name}' could not be converted to fp16: {type(error).__name__}: {first_line(error)}"
        ) from error
    _join_casts(converted)
    ordered = ONNXModel(converted)
    ordered.topological_sort()
    return strip(ordered.model), kept


# --- which nodes stay ------------------------------------------------------------------------------------------------


def _name_nodes(model: ModelProto) -> None:
    """The converter goes by names, so each node needs one of its own."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_fp16_{index}"
        seen.add(node.name)


def _magnitudes(ranges: TensorRanges) -> dict[str, float]:
    """Tensor -> the largest absolute value that was seen; those without values left out."""
    seen = {name: histogram.minmax() for name, histogram in ranges.histograms.items() if histogram.count}
    return {name: max(-low, high) for name, (low, high) in seen.items()}


def _unfit(view: View, seen: Mapping[str, float]) -> Iterator[str]:
    decomposed = {node.name for node in decomposed_normalizations(view)}
    for node in view.model.graph.node:
        reasons = (
            node.name in decomposed,
            node.op_type in DEFAULT_OP_BLOCK_LIST and "float32" in map(view.dtypes.get, node.input),
            _out_of_range(node, seen),
            _overflows_inside(view, node, seen),
            any(_bad_weight(node, view.constant(value)) for value in node.input),
        )
        if any(reasons):
            yield node.name


def _out_of_range(node: NodeProto, seen: Mapping[str, float]) -> bool:
    return any(
        value in seen and (seen[value] * _MARGIN > _LARGEST or 0 < seen[value] < _SMALLEST)
        for value in (*node.input, *node.output)
    )


def _overflows_inside(view: View, node: NodeProto, seen: Mapping[str, float]) -> bool:
    if node.op_type in _SQUARED:
        return seen.get(node.input[0], 0.0) ** 2 > _LARGEST
    if node.op_type in _SUMMED:
        count = view.sizes.get(node.input[0], 1) / view.sizes.get(node.output[0], 1)
        return seen.get(node.output[0], 0.0) * count > _LARGEST
    return False


def _bad_weight(node: NodeProto, weight: NDArray[Any] | None) -> bool:
    if weight is None or weight.dtype != np.float32 or weight.size == 0:
        return False
    # A mask's "minus infinity" becomes fp16's least number, which leaves out as well.
    values = unmasked(weight)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    return largest > _LARGEST or (node.op_type in _SCALED and 0 < largest < _SMALLEST)


# --- casts -----------------------------------------------------------------------------------------------------------


def _join_casts(model: ModelProto) -> None:
    """Where the converter casts a value of fp32 to fp16 and back, take the value itself: it may not fit in between."""
    dtypes = View(model).dtypes
    narrowed = {
        node.output[0]: node.input[0]
        for node in _casts(model, TensorProto.FLOAT16)
        if dtypes.get(node.input[0]) == "float32"
    }
    restored = {
        node.output[0]: narrowed[node.input[0]]
        for node in _casts(model, TensorProto.FLOAT)
        if node.input[0] in narrowed
    }
    for node in model.graph.node:
        if node.op_type == "Cast" and node.output[0] in restored:
            node.CopyFrom(helper.make_node("Identity", [restored[node.output[0]]], [node.output[0]], node.name))
        else:
            node.input[:] = [restored.get(value, value) for value in node.input]
    _drop_unused(model, {*narrowed, *restored})


def _casts(model: ModelProto, dtype: int) -> Iterator[NodeProto]:
    return (node for node in model.graph.node if node.op_type == "Cast" and attribute(node, "to") == dtype)


def _drop_unused(model: ModelProto, values: set[str]) -> None:
    """Remove the casts among ``values`` that nothing takes any more; an output of the graph is taken."""
    taken = {value for graph in View(model).graphs for node in graph.node for value in node.input}
    taken |= {value.name for value in model.graph.output}
    kept = [node for node in model.graph.node if node.output[0] not in values - taken]
    del model.graph.node[:]
    model.graph.node.extend(kept)
