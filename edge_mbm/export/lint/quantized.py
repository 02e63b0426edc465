"""Rules on quantized graphs: what QuantizeLinear and DequantizeLinear hold, and where they stand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from edge_mbm.export.lint.finding import Case, Problem, Rule
from edge_mbm.export.lint.view import attribute, label

__all__ = ["QUANTIZED"]

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INT16 = ("int16", "uint16")
_INT4_OPSET = 21


# --- scales and zero-points ------------------------------------------------------------------------------------------


def _scale(case: Case) -> Iterator[Problem]:
    for node in case.view.of(*_QDQ):
        scale = case.view.constant(node.input[1])
        if scale is None:
            yield Problem(
                label(node),
                f"the scale '{node.input[1]}' is computed in the graph",
                "quantize with static ranges from calibration",
            )
        elif not (np.isfinite(scale.astype(np.float64)).all() and (scale > 0).all()):
            yield Problem(
                label(node),
                f"the scale '{node.input[1]}' is not a positive finite number",
                "look for a tensor that is constant, NaN or infinite over the calibration set",
            )


def _zero_point(case: Case) -> Iterator[Problem]:
    for node in case.view.of(*_QDQ) if not case.target.form.zero_point else ():
        zero = case.view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero is not None and np.any(zero.astype(np.float64)):
            yield Problem(
                label(node),
                f"the zero-point '{node.input[2]}' is not zero",
                "quantize symmetrically: the tensorrt form",
            )


def _dtype_of(case: Case, node: NodeProto) -> str:
    """The quantized side's dtype; what ONNX takes where nothing says it is uint8."""
    side = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    zero = node.input[2] if len(node.input) > 2 else ""
    return case.view.dtypes.get(zero) or case.view.dtypes.get(side, "uint8")


def _qdq_uint8(case: Case) -> Iterator[Problem]:
    """TensorRT reads uint8 as int8, with a warning or without one: 200 becomes -56."""
    for node in case.view.of(*_QDQ) if case.tensorrt else ():
        if _dtype_of(case, node) == "uint8":
            yield Problem(
                label(node),
                f"{node.op_type} with uint8, written or by default, is read as int8 and computes other numbers",
                "quantize symmetrically with an int8 zero-point of 0: the tensorrt form",
            )


def _qdq_16bit(case: Case) -> Iterator[Problem]:
    for node in case.view.of(*_QDQ):
        if _dtype_of(case, node) in _INT16:
            yield Problem(
                label(node),
                f"{node.op_type} with {_dtype_of(case, node)}",
                "take 8 bits, or leave the operator in float",
            )


def _int4(case: Case) -> Iterator[Problem]:
    for node in case.view.of(*_QDQ):
        if _dtype_of(case, node) in ("int4", "uint4"):
            blocked = attribute(node, "block_size") and case.view.opset >= _INT4_OPSET
            if _dtype_of(case, node) not in case.target.form.weights or not blocked or not _is_weight(case, node):
                yield Problem(
                    label(node),
                    "4-bit numbers are taken by TensorRT only, as weights in blocks, at opset 21",
                    "quantize to int8, or for TensorRT with block_size at opset 21",
                )


def _is_weight(case: Case, node: NodeProto) -> bool:
    return node.input[0] in case.view.tensors


def _bias(case: Case) -> Iterator[Problem]:
    for node in case.view.of("DequantizeLinear") if not case.target.form.int32_bias else ():
        if case.view.dtypes.get(node.input[0]) == "int32":
            yield Problem(
                label(node),
                f"DequantizeLinear of the int32 bias '{node.input[0]}'",
                "leave the bias in float: the tensorrt form",
            )


def _slow_activations(case: Case) -> Iterator[Problem]:
    """0.9x the speed of float on x86 with int8 in place of uint8, where the right form gives 1.9x."""
    wanted = case.target.form.activations
    for node in case.view.of("QuantizeLinear") if not case.tensorrt else ():
        if _dtype_of(case, node) in {"uint8", "int8"} - set(wanted):
            yield Problem(
                label(node),
                f"{_dtype_of(case, node)} activations are slow on {case.target.title}",
                f"quantize activations to {wanted[0]}",
            )


# --- axes ------------------------------------------------------------------------------------------------------------


def _axis(case: Case) -> Iterator[Problem]:
    for node in case.view.of(*_QDQ):
        scale = case.view.constant(node.input[1])
        if scale is None or scale.ndim != 1 or scale.size == 1 or attribute(node, "block_size"):
            continue
        axis = attribute(node, "axis")
        yield from _channel_problems(case, node, 1 if axis is None else int(axis), scale.size)


def _channel_problems(case: Case, node: NodeProto, axis: int, scales: int) -> Iterator[Problem]:
    if not _is_weight(case, node):
        if case.tensorrt and not _made_from_weight(case, node):
            yield Problem(
                label(node), f"{scales} scales for an activation", "quantize activations with one scale a tensor"
            )
        return
    shape = tuple(case.view.tensors[node.input[0]].dims)
    axis = axis + len(shape) if axis < 0 else axis
    if not 0 <= axis < len(shape) or shape[axis] != scales:
        yield Problem(
            label(node),
            f"{scales} scales along axis {axis} of '{node.input[0]}', which is {list(shape)}",
            "quantize per output channel",
        )
        return
    for use in case.view.uses.get(node.output[0], ()):
        right = _channel_axis(use.node, use.place, len(shape))
        if right is not None and axis != right:
            yield Problem(
                label(node),
                f"scales along axis {axis}, and the output channels of '{label(use.node)}' are axis {right}",
                "quantize per output channel",
            )


def _made_from_weight(case: Case, node: NodeProto) -> bool:
    """A weight may be quantized in the graph itself: QuantizeLinear of a constant, and its DequantizeLinear."""
    maker = case.view.made_by(node.input[0], "QuantizeLinear")
    return node.input[0] in case.view.tensors or (maker is not None and maker.input[0] in case.view.tensors)


def _channel_axis(node: NodeProto, index: int, rank: int) -> int | None:
    """The axis of an operator's output channels in its weight; None where the input is no weight."""
    if node.op_type == "Conv" and index == 1:
        return 0
    if node.op_type == "ConvTranspose" and index == 1:
        return 1
    if node.op_type == "MatMul" and index == 1:
        return rank - 1
    if node.op_type == "Gemm" and index == 1:
        return 0 if attribute(node, "transB") else 1
    return None


def _per_tensor_weights(case: Case) -> Iterator[Problem]:
    """Of EfficientNet-Lite0's answers .64 stay with one scale a tensor, .85 with one a channel."""
    for node in case.view.of("DequantizeLinear"):
        scale = case.view.constant(node.input[1])
        if scale is None or scale.size > 1 or not _is_weight(case, node):
            continue
        channels = case.view.tensors[node.input[0]].dims
        uses = case.view.uses.get(node.output[0], ())
        if any(use.node.op_type == "Conv" and use.place == 1 and channels[0] > 1 for use in uses):
            yield Problem(
                label(node),
                f"one scale for the {channels[0]} output channels of '{node.input[0]}'",
                "quantize convolution weights per channel",
            )


# --- places ----------------------------------------------------------------------------------------------------------


def _attention(case: Case) -> Iterator[Problem]:
    """ONNX Runtime's fusion of attention fails on signed activations above opset 20."""
    for node in case.view.of("MatMul") if not case.tensorrt and case.view.opset > 20 else ():
        makers = [case.view.made_by(value, "DequantizeLinear") for value in node.input]
        signed = [maker for maker in makers if maker is not None and not _is_weight(case, maker)]
        if len(signed) == 2 and all(_dtype_of(case, maker) == "int8" for maker in signed):
            yield Problem(
                label(node),
                f"attention with int8 activations at opset {case.view.opset} does not load in ONNX Runtime",
                "export at opset 20",
            )


def _residual(case: Case) -> Iterator[Problem]:
    """Beside a quantized convolution, an addition in float costs a round trip through memory."""
    wanted = 1 if case.tensorrt else 2
    for node in case.view.of("Add"):
        if any(case.view.is_constant(value) for value in node.input):
            continue
        quantized = sum(case.view.made_by(value, "DequantizeLinear") is not None for value in node.input)
        if quantized < wanted and (quantized or _beside_quantized(case, node)):
            yield Problem(
                label(node),
                f"{quantized} of the {len(node.input)} inputs of this addition are quantized",
                "put QuantizeLinear and DequantizeLinear on " + ("the skip" if case.tensorrt else "both inputs"),
            )


def _beside_quantized(case: Case, node: NodeProto) -> bool:
    makers = (case.view.made_by(value, *_WEIGHTED) for value in node.input)
    return any(
        maker is not None and case.view.made_by(maker.input[1], "DequantizeLinear") is not None for maker in makers
    )


def _kind(case: Case) -> Iterator[Problem]:
    """Heads are small and the last to round: there is little to win and all to lose."""
    kept_float = not any(variant.endswith("-int8") for variant in case.target.variants.get(case.kind, ()))
    first = next(case.view.of(*_QDQ), None)
    if kept_float and first is not None:
        yield Problem(
            label(first),
            f"a quantized {case.kind}, a kind that stays in float on {case.target.title}",
            "leave the component in float",
        )


QUANTIZED = (
    Rule("scale", "error", _scale),
    Rule("zero-point", "error", _zero_point),
    Rule("qdq-uint8", "error", _qdq_uint8),
    Rule("qdq-16bit", "error", _qdq_16bit),
    Rule("int4", "error", _int4),
    Rule("int32-bias", "error", _bias),
    Rule("axis", "error", _axis),
    Rule("signed-attention", "error", _attention),
    Rule("per-tensor-weights", "warning", _per_tensor_weights),
    Rule("slow-activations", "warning", _slow_activations),
    Rule("float-residual", "warning", _residual),
    Rule("quantized-kind", "warning", _kind),
)
"""In the order in which they are checked."""
