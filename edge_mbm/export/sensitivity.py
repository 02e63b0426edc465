"""Which parts of a graph quantization hurts most, and what they cost: groups of nodes, and layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from edge_mbm.calibration import observable
from edge_mbm.errors import ExportError
from edge_mbm.export.chain import Arrays, GraphRunner
from edge_mbm.export.draft import LayerError
from edge_mbm.export.figures import sqnr_db
from edge_mbm.export.graph import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Group", "groups_of", "layer_errors", "output_sqnr_db", "outputs_of"]

_LAYER_CALLS = 4  # all activations of a call are in memory at once


@dataclass(frozen=True)
class Group:
    """Neighbouring nodes that are quantized, or left float, together.

    Args:
        name: its first weighted node's, with the number of others.
        nodes: all of them, in running order.
        macs: multiply-accumulates of one call at batch 1.
        sums: whether it is the sums of activations (residual connections), which are in 8 bits only behind others.
    """

    name: str
    nodes: tuple[str, ...]
    macs: int
    sums: bool = False


def groups_of(graph: bytes, most: int) -> tuple[Group, ...]:
    """A graph's nodes in groups: each weighted operator with what follows it up to the next; last, all sums together.

    What lies before the first of them, such as the scaling of pixels, is in none: quantizers merge it into the first.
    Sums of activations are apart because all of them in float cost next to nothing, and a chain of residual blocks
    rounds its sum anew in each. Where there are more groups than ``most``, the neighbours that compute least are
    joined; where there is but one, it is everything.

    Args:
        graph: fp32, folded, its nodes named.
        most: groups at most.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph)).graph
    macs = _multiply_accumulates(model)
    sums = _sums(model, macs) if most > 1 else ()
    groups: list[tuple[list[str], list[str], int]] = []
    for node in model.node:
        if node.name in macs:
            groups.append(([node.name], [node.name], macs[node.name]))
        elif groups and node.name not in sums:
            groups[-1][1].append(node.name)
    while len(groups) > max(1, most - bool(sums)):
        index = min(range(len(groups) - 1), key=lambda i: groups[i][2] + groups[i + 1][2])
        (first, ones, m), (second, others, n) = groups[index : index + 2]
        groups[index : index + 2] = [(first + second, ones + others, m + n)]
    joined = [Group(_group_name(weighted), tuple(filter(None, nodes)), m) for weighted, nodes, m in groups]
    return (*joined, *([Group(_group_name(sums), sums, 0, sums=True)] if sums else []))


def _sums(graph: onnx.GraphProto, weighted: Collection[str]) -> tuple[str, ...]:
    """Names of the additions of two activations, behind the first weighted operator."""
    constants = {tensor.name for tensor in graph.initializer}
    names = [node.name for node in graph.node]
    first = next((index for index, name in enumerate(names) if name in weighted), len(names))
    later = [node for node in graph.node[first:] if node.op_type == "Add" and node.name]
    return tuple(node.name for node in later if not constants & set(node.input))


def _group_name(weighted: Sequence[str]) -> str:
    return weighted[0] if len(weighted) == 1 else f"{weighted[0]}+{len(weighted) - 1}"


def _multiply_accumulates(graph: onnx.GraphProto) -> dict[str, int]:
    """Of every node that has constant weights; a batch, or what is not known of a shape, counts as 1."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) >= 2}
    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.output, *graph.value_info)}
    found: dict[str, int] = {}
    for node in graph.node:
        held = [weights[name] for name in node.input if name in weights]
        if held and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"):
            times = _repeats(node.op_type, [shapes.get(name, ()) for name in (node.input[0], node.output[0])])
            found[node.name] = sum(math.prod(dims) for dims in held) * times
    return found


def _repeats(op: str, shapes: Sequence[Sequence[int]]) -> int:
    """How often each weight is used: for each place of a picture, row of a matrix, or step of a sequence."""
    given, out = shapes
    if op in ("Conv", "ConvTranspose"):
        return math.prod((out if op == "Conv" else given)[2:])
    if op in ("LSTM", "GRU"):
        return given[0] if given else 1
    return math.prod(out[:-1])


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)


# --- errors ----------------------------------------------------------------------------------------------------------


def outputs_of(graph: bytes, calls: Sequence[Arrays], name: str, *, extended: bool) -> list[Arrays]:
    """Calls through a graph that has run in a process of its own before."""
    runner = GraphRunner(graph, name, extended=extended)
    return [runner(call) for call in calls]


def output_sqnr_db(wanted: Sequence[Arrays], got: Sequence[Arrays], outputs: Sequence[str]) -> float:
    """The lowest SQNR of some outputs over calls, dB.

    Raises:
        ExportError: an output is not finite.
    """
    for name in outputs:
        if not all(np.isfinite(values[name]).all() for values in got):
            raise ExportError(f"it gives NaN or infinite values in '{name}' on calibration recordings")
    return min(sqnr_db(_flat(wanted, name), _flat(got, name)) for name in outputs)


def _flat(calls: Sequence[Arrays], name: str) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(call[name], np.float64).reshape(-1) for call in calls])


def layer_errors(
    original: bytes, quantized: bytes, calls: Sequence[Arrays], name: str, *, rescaled: bool
) -> tuple[LayerError, ...]:
    """How far each tensor of a quantized graph is from its namesake in the float graph, in running order.

    Args:
        original: fp32, folded.
        quantized: made from it; tensors that have lost their names are left out.
        calls: a few of them are run.
        name: the component's, for messages.
        rescaled: whether weights were moved between layers (equalization, smoothing): channels are then compared
            after the scale that fits them best.

    Raises:
        ExportError: a graph does not run with its inner tensors in sight.
    """
    model, inner = onnx.load_model_from_string(original).graph, _tensors(original)
    seen = _as_consumers_see_them(quantized)
    shown = [node for node in model.node if node.output and node.output[0] in inner and node.output[0] in seen]
    names = [node.output[0] for node in shown]
    if not names:
        return ()
    run, run_quantized = _exposed(original, names, name), _exposed(quantized, [seen[n] for n in names], name)
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for call in calls[:_LAYER_CALLS]:
        for tensor, wanted, got in zip(names, run(call), run_quantized(call), strict=True):
            want, have = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
            signal[tensor] += float((want**2).sum())
            noise[tensor] += float(((want - (_fitted(want, have) if rescaled else have)) ** 2).sum())
    return tuple(
        LayerError(node.name, node.op_type, round(_decibels(signal[tensor], noise[tensor]), 2))
        for node, tensor in zip(shown, names, strict=True)
    )


def _decibels(signal: float, noise: float) -> float:
    return sqnr_db(np.array([math.sqrt(signal), 0.0]), np.array([math.sqrt(signal), math.sqrt(noise)]))


def _fitted(want: NDArray[np.float64], have: NDArray[np.float64]) -> NDArray[np.float64]:
    """``have`` with every channel scaled to fit ``want`` best (least squares)."""
    if want.ndim < 2 or want.shape != have.shape:
        return have
    axis = 1 if want.ndim == 4 else want.ndim - 1
    others = tuple(index for index in range(want.ndim) if index != axis)
    power = (have**2).sum(others, keepdims=True)
    scale = np.divide((want * have).sum(others, keepdims=True), power, where=power > 0, out=np.ones_like(power))
    return np.asarray(have * scale, np.float64)


def _tensors(graph: bytes) -> set[str]:
    return set(observable(graph)[1])


def _as_consumers_see_them(quantized: bytes) -> dict[str, str]:
    """Tensor -> what stands for it downstream: its dequantized self, where it is quantized.

    A quantizer may drop a ReLU whose work the quantization does: only after it is the tensor what it was.
    """
    nodes = onnx.load_model_from_string(quantized).graph.node
    quantizers = {node.output[0]: node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    back = {node.input[0]: node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    plain = {name: name for name in _tensors(quantized)}
    return plain | {tensor: back[key] for key, tensor in quantizers.items() if key in back}


def _exposed(graph: bytes, names: Sequence[str], name: str) -> Callable[[Arrays], list[NDArray[Any]]]:
    """The graph with some inner tensors as its outputs, unoptimised, so that they are as they are written."""
    import onnxruntime as ort  # noqa: PLC0415 - heavy

    model = onnx.load_model_from_string(graph)
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in dict.fromkeys(names)
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base
        raise ExportError(f"the layers of '{name}' cannot be shown: {first_line(error)}") from error

    return lambda inputs: session.run(list(names), inputs)
