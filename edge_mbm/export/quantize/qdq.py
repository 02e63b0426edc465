"""A quantized graph in the form that a target's kernels want: which nodes, which types, which biases.

What kernels are fast at differs, so one quantized graph cannot serve all: x86 wants unsigned asymmetric activations,
signed weights per channel and int32 biases, most of which TensorRT refuses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime.quantization as ort_quantization
from onnx import ModelProto, NodeProto, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edge_mbm.errors import ExportError
from edge_mbm.export.graph import first_line, strip
from edge_mbm.export.quantize.pixels import pass_bytes

__all__ = ["Form", "Ranges", "quantized_nodes", "to_qdq"]

Form: TypeAlias = Literal["x86", "arm", "tensorrt"]
"""x86: U8 asymmetric activations, int32 biases. arm: S8 asymmetric activations, int32 biases. tensorrt: S8 symmetric
activations, float biases. Weights are S8, symmetric, with a scale per output channel, in all."""
Ranges: TypeAlias = Mapping[str, tuple[float, float]]
"""Tensor -> (lowest, highest) value to represent."""

# Weighted operators are what pays; the others only keep the data between them in 8 bits.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What these give stays float: the sums that follow them in a transformer hold too wide a range for 8 bits.
_PRODUCTS = ("Gemm", "MatMul")
_JOINING = ("Add", "Concat")
_POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool")
_PASSING = ("Relu", "LeakyRelu", "Clip", *_POOLING, "Flatten", "Reshape", "Transpose", "Squeeze")
# TensorRT fuses what follows a weighted operator into it and has int8 kernels for these.
_TENSORRT = (*_WEIGHTED, "Add", "MaxPool")


def to_qdq(graph: bytes, ranges: Ranges, form: Form, name: str, float_nodes: frozenset[str] = frozenset()) -> bytes:
    """Put QuantizeLinear and DequantizeLinear around what a target computes in 8 bits, by onnxruntime's quantizer.

    Its own calibration is left out: it holds all activations in memory, and its cache is not keyed to model or data.

    Args:
        graph: fp32, folded; every node has a name of its own.
        ranges: of the graph's activations.
        form: whose kernels it is for.
        name: the component's, for messages.
        float_nodes: names of nodes that stay float.

    Raises:
        ExportError: a name in ``float_nodes`` is no node's, there is nothing to quantize, or the quantizer failed.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    _clip_maxima(model)
    nodes = quantized_nodes(model, form, float_nodes, name)
    data = {key: TensorData(lowest=np.float32(low), highest=np.float32(high)) for key, (low, high) in ranges.items()}
    with _explained(name):
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=ort_quantization.QuantType.QInt8,
            activation_qType=ort_quantization.QuantType.QUInt8 if form == "x86" else ort_quantization.QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=[*_WEIGHTED, *_JOINING, *_PASSING],
            extra_options=_options(form),
        )
        quantized = ONNXModel(quantizer.quantize_model())
        # The quantizer appends nodes at the end; ONNX wants each after those that feed it.
        quantized.topological_sort()
        pass_bytes(quantized.model)
        _spare_float(quantized.model, float_nodes, frozenset(nodes))
    return strip(quantized.model)


def quantized_nodes(model: ModelProto, form: Form, float_nodes: frozenset[str], name: str) -> list[str]:
    """The names of the nodes that a form computes in 8 bits, in the graph's order.

    Weighted operators with constant weights; and what joins or passes on the data that come from these. Arithmetic
    with constants (a picture's normalization) stays float: it is cheap there, and slow in 8 bits.

    Args:
        model: fp32, folded.
        form: whose kernels it is for.
        float_nodes: names of nodes that stay float.
        name: the component's, for messages.

    Raises:
        ExportError: a name in ``float_nodes`` is no node's, or nothing is left to quantize.
    """
    strangers = sorted(float_nodes - {node.name for node in model.graph.node})
    if strangers:
        raise ExportError(f"'{name}' has no nodes {strangers} to keep in float: name nodes of its folded graph")
    constants = {tensor.name for tensor in model.graph.initializer}
    eight_bit: set[str] = set()
    chosen: list[str] = []
    for node in model.graph.node:
        if node.name not in float_nodes and _is_quantized(node, form, constants, eight_bit):
            chosen.append(node.name)
            eight_bit.update(() if node.op_type in _PRODUCTS else node.output)
        elif node.op_type in _PASSING and node.input[0] in eight_bit:
            eight_bit.update(node.output)
    if not chosen:
        raise ExportError(
            f"there is nothing to quantize in '{name}': no convolution or matrix product with constant weights"
        )
    return chosen


def _is_quantized(node: NodeProto, form: Form, constants: set[str], eight_bit: set[str]) -> bool:
    if form == "tensorrt" and node.op_type not in _TENSORRT:
        return False
    if node.op_type in _WEIGHTED:
        return node.input[1] in constants and node.input[0] not in constants
    if node.op_type in _JOINING:
        return not constants & set(node.input) and bool(eight_bit & set(node.input))
    return node.op_type in _PASSING and node.input[0] in eight_bit


def _clip_maxima(model: ModelProto) -> None:
    """The larger of a tensor and a number is a clip: that has kernels for 8 bits, or needs none; a maximum has not."""
    numbers = {tensor.name: tensor for tensor in model.graph.initializer if np.prod(tensor.dims) == 1}
    for node in model.graph.node:
        values = [value for value in node.input if value not in numbers]
        if node.op_type == "Max" and len(node.input) == 2 and len(values) == 1:
            [least] = [numpy_helper.to_array(numbers[value]) for value in node.input if value in numbers]
            lowest = f"{node.output[0]}_lowest"
            model.graph.initializer.append(numpy_helper.from_array(least.reshape(()), lowest))
            node.op_type = "Clip"
            node.input[:] = [*values, lowest]


def _spare_float(model: ModelProto, float_nodes: frozenset[str], quantized: frozenset[str]) -> None:
    """A float node or sum reads what another float node gives as it is, not rounded for a third one."""
    makers = {value: node for node in model.graph.node for value in node.output}
    for node in model.graph.node:
        if node.name not in float_nodes and (node.op_type not in _JOINING or node.name in quantized):
            continue
        for index, value in enumerate(node.input):
            rounded = makers.get(value)
            quantize = makers.get(rounded.input[0]) if rounded and rounded.op_type == "DequantizeLinear" else None
            source = makers.get(quantize.input[0]) if quantize and quantize.op_type == "QuantizeLinear" else None
            if quantize is not None and source is not None and _gives_float(source, quantized):
                node.input[index] = quantize.input[0]


def _gives_float(node: NodeProto, quantized: frozenset[str]) -> bool:
    return node.name not in quantized or node.op_type in _PRODUCTS


def _options(form: Form) -> dict[str, Any]:
    if form != "tensorrt":
        return {"OpTypesToExcludeOutputQuantization": list(_PRODUCTS)}
    # What follows a convolution is fused into it, so only what goes in is rounded.
    return {"ActivationSymmetric": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": list(_TENSORRT)}


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """The library's failure with the component's name; its chatter on the root logger is kept down."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:  # the quantizer raises whatever it stumbles over
        raise ExportError(f"'{name}' could not be quantized: {type(error).__name__}: {first_line(error)}") from error
    finally:
        root.setLevel(level)
