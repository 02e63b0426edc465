"""One graph, several precisions: a dialect for each kind of target.

What a target's kernels are fast at differs, so one quantized graph cannot serve all: x86 kernels want unsigned
asymmetric activations, signed weights per channel and int32 biases, all of which TensorRT refuses.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime.quantization as ort_quantization
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16

from edge_mbm.errors import ExportError
from edge_mbm.export.graph import first_line, lint_quantized, strip

__all__ = ["DIALECTS", "Dialect", "Ranges", "quantizable"]

Ranges: TypeAlias = Mapping[str, tuple[float, float]]
"""Tensor -> (lowest, highest) value to represent."""

# Weighted operators are what pays; the others only keep the data between them in 8 bits.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BETWEEN = ("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat", "Flatten", "Reshape")


_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


@dataclass(frozen=True)
class Dialect:
    """How a variant is written, and for whom."""

    target: Literal["x86-cpu", "tensorrt"]
    precision: Literal["int8", "fp16"]
    needs_ranges: bool
    runs_here: bool
    """Whether it is for this machine's CPU, so that its speed can be measured."""
    emit: Callable[[bytes, Ranges, str], bytes]
    """(folded fp32 graph, ranges, component's name) -> graph."""


def quantizable(graph: bytes) -> bool:
    """Whether a graph has an operator that 8-bit arithmetic can make faster: one with constant weights."""
    model = onnx.load_model_from_string(graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    return any(node.op_type in _WEIGHTED and node.input[1] in constants for node in model.graph.node)


def _x86_int8(graph: bytes, ranges: Ranges, name: str) -> bytes:
    """U8 asymmetric activations, S8 symmetric weights per channel, int32 biases, by onnxruntime's QDQ quantizer.

    Its own calibration is left out: it holds all activations in memory, and its cache is not keyed to model or data.

    Raises:
        ExportError: the quantizer failed, or wrote a graph that computes nonsense.
    """
    data = {key: TensorData(lowest=np.float32(low), highest=np.float32(high)) for key, (low, high) in ranges.items()}
    with _explained(name, "quantized"):
        quantizer = QDQQuantizer(
            onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph)),
            per_channel=True,
            reduce_range=False,
            weight_qType=ort_quantization.QuantType.QInt8,
            activation_qType=ort_quantization.QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=[*_WEIGHTED, *_BETWEEN],
            extra_options={},
        )
        quantized = quantizer.quantize_model()
    written = _finished(quantized)
    lint_quantized(written, name)
    return written


def _trt_fp16(graph: bytes, ranges: Ranges, name: str) -> bytes:  # noqa: ARG001 - part of Dialect.emit
    """Every operator in fp16 with casts at the edges, so that a strongly typed network has nothing left to choose.

    Raises:
        ExportError: the conversion failed.
    """
    with _explained(name, "converted to fp16"):
        return _finished(convert_float_to_float16(onnx.load_model_from_string(graph), keep_io_types=True))


DIALECTS: Mapping[str, Dialect] = {
    "x86-cpu-int8": Dialect("x86-cpu", "int8", needs_ranges=True, runs_here=_IS_X86, emit=_x86_int8),
    "trt-fp16": Dialect("tensorrt", "fp16", needs_ranges=False, runs_here=False, emit=_trt_fp16),
}


def _finished(model: onnx.ModelProto) -> bytes:
    """The converters append nodes at the end; ONNX wants each after those that feed it."""
    ordered = ONNXModel(model)
    ordered.topological_sort()
    return strip(ordered.model)


@contextmanager
def _explained(name: str, verb: str) -> Iterator[Any]:
    """A library's failure with the component's name; its chatter on the root logger is kept down."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:  # these converters raise whatever they stumble over
        raise ExportError(f"'{name}' could not be {verb}: {type(error).__name__}: {first_line(error)}") from error
    finally:
        root.setLevel(level)
