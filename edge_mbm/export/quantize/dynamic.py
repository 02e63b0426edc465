"""Dynamic quantization: weights in 8 bits, activations by a range found anew at every call.

Nothing is calibrated, so nothing can fall out of range; what it costs is a pass over each activation, little beside a
matrix product. Only standard operators: DynamicQuantizeLinear, MatMulInteger and what turns int32 back into float32.
ONNX Runtime fuses them when it loads the graph (MatMulIntegerToFloat, DynamicQuantizeMatMul).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_mbm.errors import ExportError
from edge_mbm.export.graph import strip
from edge_mbm.export.quantize.preset import Material

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["quantize_dynamic"]

_HIGHEST = 127
"""Symmetric: -128 is left out, so that a weight and its negative are rounded alike."""


def quantize_dynamic(material: Material, float_nodes: frozenset[str]) -> bytes:
    """MatMul and Gemm with constant weights in 8 bits: S8 per output channel, U8 activations with a range per call.

    Args:
        material: the component; only its graph is used.
        float_nodes: names of nodes that stay as they are.

    Returns:
        A graph of standard operators with the same inputs and outputs; equal material gives equal bytes.

    Raises:
        ExportError: a name in ``float_nodes`` is no node's, or there is nothing to quantize.
    """
    model = onnx.load_model_from_string(material.graph)
    strangers = sorted(float_nodes - {node.name for node in model.graph.node})
    if strangers:
        raise ExportError(
            f"'{material.name}' has no nodes {strangers} to keep in float: name nodes of its folded graph"
        )
    writer = _Writer(model)
    chosen = [node for node in model.graph.node if node.name not in float_nodes and writer.takes(node)]
    if not chosen:
        raise ExportError(
            f"'{material.name}' has nothing to quantize dynamically: no MatMul or Gemm with constant weights is left"
        )
    names = {node.output[0] for node in chosen}
    nodes = [new for node in model.graph.node for new in (writer.rewrite(node) if node.output[0] in names else [node])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    writer.drop_unused(model)
    return strip(model)


@dataclass(frozen=True)
class _Quantized:
    """Names of a tensor in 8 bits, of its scale and of its zero point."""

    values: str
    scale: str
    zero: str


class _Writer:
    """Writes products anew, each activation and each weight quantized once however many read it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._taken = {value for node in model.graph.node for value in (*node.input, *node.output)} | {*self._weights}
        self._activations: dict[str, _Quantized] = {}
        self._constants: dict[tuple[str, bool], _Quantized] = {}

    def takes(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a product of an activation with constant float weights in two dimensions."""
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] in self._weights:
            return False
        weight = self._weights.get(node.input[1])
        plain = not _attributes(node).get("transA") and _attributes(node).get("alpha", 1.0) == 1.0
        return weight is not None and weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 2 and plain

    def rewrite(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The nodes that compute in 8 bits what ``node`` does in float, ending in its output."""
        options = _attributes(node)
        yield from self._quantize(node.input[0])
        activation, weight = self._activations[node.input[0]], self._weight(node.input[1], bool(options.get("transB")))
        product, single, scale = (self._free(f"{node.output[0]}_{part}") for part in ("int32", "float", "scale"))
        bias = list(node.input[2:]) if node.op_type == "Gemm" and options.get("beta", 1.0) != 0 else []
        result = self._free(f"{node.output[0]}_scaled") if bias else node.output[0]
        ends = [activation.values, weight.values, activation.zero, weight.zero]
        yield _named(node, "product", "MatMulInteger", ends, product)
        yield _named(node, "cast", "Cast", [product], single, to=onnx.TensorProto.FLOAT)
        yield _named(node, "scale", "Mul", [activation.scale, weight.scale], scale)
        yield _named(node, "scaled", "Mul", [single, scale], result)
        if bias:
            yield _named(node, "bias", "Add", [result, self._bias(bias[0], options.get("beta", 1.0))], node.output[0])

    def drop_unused(self, model: onnx.ModelProto) -> None:
        """Leave out the float weights that nothing reads any more."""
        used = {value for node in model.graph.node for value in node.input}
        kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)

    def _quantize(self, value: str) -> Iterator[onnx.NodeProto]:
        if value in self._activations:
            return
        parts = [self._free(f"{value}_{part}") for part in ("quantized", "scale", "zero")]
        self._activations[value] = _Quantized(*parts)
        yield helper.make_node("DynamicQuantizeLinear", [value], parts, name=self._free(f"{value}_quantize"))

    def _weight(self, value: str, transposed: bool) -> _Quantized:
        key = value, transposed
        if key not in self._constants:
            array = numpy_helper.to_array(self._weights[value])
            quantized, scales = _rounded(array.T if transposed else array)
            zeros = np.zeros(scales.shape, np.int8)
            parts: dict[str, NDArray[Any]] = {"quantized": quantized, "scale": scales, "zero": zeros}
            self._constants[key] = _Quantized(*(self._store(f"{value}_{part}", data) for part, data in parts.items()))
        return self._constants[key]

    def _bias(self, value: str, beta: float) -> str:
        if beta == 1.0:
            return value
        return self._store(f"{value}_bias", np.float32(beta) * numpy_helper.to_array(self._weights[value]))

    def _store(self, name: str, data: NDArray[Any]) -> str:
        name = self._free(name)
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(data), name))
        return name

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _rounded(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Float32[in, out] as int8 with a scale for each output; a column of zeros keeps some scale."""
    highest = np.abs(weight).max(axis=0)
    scales = (np.where(highest > 0, highest, 1) / _HIGHEST).astype(np.float32)
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    return np.clip(np.rint(weight / scales), -_HIGHEST, _HIGHEST).astype(np.int8), scales


def _attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _named(
    node: onnx.NodeProto, part: str, kind: str, inputs: list[str], output: str, **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{node.name}_{part}", **attributes)
