"""One graph, several precisions: what each variant is, and for which machines.

What a target's kernels are fast at differs, so one quantized graph cannot serve all: x86 kernels want unsigned
asymmetric activations, signed weights per channel and int32 biases, all of which TensorRT refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx

from edge_mbm.export.targets import TARGETS

__all__ = ["DIALECTS", "Dialect", "Family", "Form", "quantizable", "runs_here"]

Family: TypeAlias = Literal["x86-cpu", "arm-cpu", "tensorrt"]
Form: TypeAlias = Literal["x86", "arm", "tensorrt"]
"""How a quantized graph is written; see ``quantize``."""

# Operators that 8-bit arithmetic makes faster; the others only keep the data between them in 8 bits.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU")


@dataclass(frozen=True)
class Dialect:
    """How a variant is written, and for whom."""

    family: Family
    """What the manifest calls its target."""
    precision: Literal["int8", "fp16"]
    form: Form | None
    """Of its quantization; None where it is not quantized."""

    @property
    def runs_here(self) -> bool:
        """Whether it is for this machine's CPU, so that its speed can be measured."""
        return any(target.measurable for target in TARGETS.values() if target.family == self.family)


DIALECTS: Mapping[str, Dialect] = {
    "x86-cpu-int8": Dialect("x86-cpu", "int8", "x86"),
    "arm-cpu-int8": Dialect("arm-cpu", "int8", "arm"),
    "trt-fp16": Dialect("tensorrt", "fp16", None),
    "trt-int8": Dialect("tensorrt", "int8", "tensorrt"),
}


def runs_here(variant: str) -> bool:
    """Whether this machine's CPU is what a variant is for; fp32 runs anywhere."""
    return variant == "fp32" or DIALECTS[variant].runs_here


def quantizable(graph: bytes) -> bool:
    """Whether a graph has an operator that 8-bit arithmetic can make faster: one with constant weights."""
    model = onnx.load_model_from_string(graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    return any(node.op_type in _WEIGHTED and node.input[1] in constants for node in model.graph.node)
