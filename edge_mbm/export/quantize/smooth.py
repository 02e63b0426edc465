"""SmoothQuant: what is hard to round in activations is moved into the weights that they meet.

A few channels of a transformer's activations are far larger than the others, so that one scale for all leaves the
others a handful of steps. Dividing each channel by a factor, and multiplying the weights' rows by it, computes the same
(Xiao et al. 2022, arXiv:2211.10438). The factors here are powers of two: the float graph then gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_mbm.errors import ExportError
from edge_mbm.export.chain import Arrays
from edge_mbm.export.graph import first_line, strip

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["smooth"]

Vector: TypeAlias = "NDArray[np.float32]"
"""A value per channel."""

_QUIETEST = 2.0**-10
"""Of a tensor's largest magnitude: a channel that the calls left quieter may be louder on the device."""


@dataclass(frozen=True)
class _Group:
    """The products that read one tensor, whose channels are its last axis."""

    tensor: str
    products: tuple[onnx.NodeProto, ...]


def smooth(graph: bytes, calls: Iterable[Arrays], alpha: float, name: str) -> bytes:
    """Make the channels of what MatMul and Gemm with constant weights read more alike; the function stays the same.

    A channel's factor is ``max|x|**alpha / max|w|**(1 - alpha)``, to the nearest power of two. It is divided out in the
    LayerNormalization before, where nothing else reads that, else in a product (Mul) of its own.

    Args:
        graph: float, folded, one node after those that feed it.
        calls: real calls, all of the graph's inputs by name: what the magnitudes of activations are taken from.
        alpha: 0 moves nothing of the activations' unevenness into the weights, 1 all of it; .5 is the paper's.
        name: the component's, for messages.

    Returns:
        A float graph with the same inputs and outputs.

    Raises:
        ExportError: alpha is not between 0 and 1, there are no calls, or the graph does not run on them.
    """
    if not 0 <= alpha <= 1:
        raise ExportError(f"'{name}' cannot be smoothed with alpha = {alpha}: it lies between 0 and 1, .5 is usual")
    model = onnx.load_model_from_string(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    groups = _groups(model, weights)
    for group, loudest in zip(groups, _loudest(model, [group.tensor for group in groups], calls, name), strict=True):
        factors = _factors(loudest, _rows(group, weights), alpha)
        if (factors != 1).any():
            _multiply(group, weights, factors)
            _divide(model, group, weights, factors)
    return strip(model)


# --- what there is ---------------------------------------------------------------------------------------------------


def _groups(model: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto]) -> list[_Group]:
    """By the tensor that is read; weights that two products share stay as they are, since only one could be served."""
    uses = [value for node in model.graph.node for value in node.input]
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if _smoothable(node, weights) and uses.count(node.input[1]) == 1:
            readers.setdefault(node.input[0], []).append(node)
    return [_Group(tensor, tuple(nodes)) for tensor, nodes in readers.items()]


def _smoothable(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] in weights or node.input[1] not in weights:
        return False
    weight = weights[node.input[1]]
    return len(weight.dims) == 2 and weight.data_type == onnx.TensorProto.FLOAT and not _flag(node, "transA")


def _rows(group: _Group, weights: Mapping[str, onnx.TensorProto]) -> Vector:
    """The largest magnitude that each channel is multiplied with."""
    found = [
        np.abs(numpy_helper.to_array(weights[node.input[1]])).max(axis=_output_axis(node)) for node in group.products
    ]
    rows: Vector = np.max(found, axis=0)
    return rows


def _output_axis(node: onnx.NodeProto) -> int:
    return 0 if _flag(node, "transB") else 1


def _flag(node: onnx.NodeProto, attribute: str) -> int:
    return next((int(found.i) for found in node.attribute if found.name == attribute), 0)


# --- how loud it is --------------------------------------------------------------------------------------------------


def _loudest(model: onnx.ModelProto, tensors: Sequence[str], calls: Iterable[Arrays], name: str) -> list[Vector]:
    """The largest magnitude of each channel of each tensor, over all calls."""
    if not tensors:
        return []
    found: list[Vector] | None = None
    run = _runner(model, tensors, name)
    for call in calls:
        values = [np.abs(value).reshape(-1, value.shape[-1]).max(axis=0) for value in run(call)]
        found = values if found is None else [np.maximum(*pair) for pair in zip(found, values, strict=True)]
    if found is None:
        raise ExportError(f"'{name}' cannot be smoothed without a call to see its activations on")
    return found


def _runner(model: onnx.ModelProto, tensors: Sequence[str], name: str) -> Any:
    """A function from a call to the tensors' values."""
    import onnxruntime as ort  # noqa: PLC0415 - heavy, and only here

    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    added = [helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None) for tensor in tensors]
    seen.graph.output.extend(value for value in added if value.name not in present)
    inputs = {value.name for value in model.graph.input}
    fetched = [tensor for tensor in tensors if tensor not in inputs]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    try:
        session = ort.InferenceSession(
            seen.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base
        raise ExportError(f"the graph of '{name}' could not be run to smooth it: {first_line(error)}") from error

    def run(call: Arrays) -> list[NDArray[Any]]:
        try:
            values = {**call, **dict(zip(fetched, session.run(fetched, dict(call)) if fetched else [], strict=True))}
        except Exception as error:
            raise ExportError(f"the graph of '{name}' could not be run to smooth it: {first_line(error)}") from error
        return [values[tensor] for tensor in tensors]

    return run


def _factors(loudest: Vector, rows: Vector, alpha: float) -> Vector:
    """Powers of two; 1 for a channel whose weights are all zero, and for all where there is nothing but zeros."""
    if not (loudest.max() > 0 and rows.max() > 0):
        return np.ones_like(loudest)
    heard, met = (np.maximum(values, values.max() * _QUIETEST) for values in (loudest, rows))
    exponents = alpha * np.log2(heard) - (1 - alpha) * np.log2(met)
    return np.exp2(np.rint(np.where(rows > 0, exponents, 0))).astype(np.float32)


# --- moving it -------------------------------------------------------------------------------------------------------


def _multiply(group: _Group, weights: Mapping[str, onnx.TensorProto], factors: Vector) -> None:
    for node in group.products:
        shaped = factors[None, :] if _flag(node, "transB") else factors[:, None]
        _set(weights[node.input[1]], numpy_helper.to_array(weights[node.input[1]]) * shaped)


def _divide(model: onnx.ModelProto, group: _Group, weights: Mapping[str, onnx.TensorProto], factors: Vector) -> None:
    norm = _own_norm(model, group, weights)
    if norm is None:
        _insert(model, group, factors)
        return
    for value in norm.input[1:]:
        _set(weights[value], numpy_helper.to_array(weights[value]) / factors)


def _own_norm(model: onnx.ModelProto, group: _Group, weights: Mapping[str, onnx.TensorProto]) -> onnx.NodeProto | None:
    """The LayerNormalization before, if it has constants of its own and nobody else reads what it gives."""
    norm = next((node for node in model.graph.node if group.tensor in node.output), None)
    if norm is None or norm.op_type != "LayerNormalization" or norm.output[0] != group.tensor:
        return None
    uses = [value for node in model.graph.node for value in node.input]
    alone = uses.count(group.tensor) == len(group.products) and group.tensor not in _outputs(model)
    own = all(value in weights and uses.count(value) == 1 for value in norm.input[1:])
    return norm if alone and own and len(weights[norm.input[1]].dims) == 1 else None


def _outputs(model: onnx.ModelProto) -> set[str]:
    return {value.name for value in model.graph.output}


def _insert(model: onnx.ModelProto, group: _Group, factors: Vector) -> None:
    """A Mul before the products, placed before the first of them."""
    taken = {value for node in model.graph.node for value in node.output}
    smoothed, inverse = (_free(f"{group.tensor}_{part}", taken) for part in ("smoothed", "factors"))
    model.graph.initializer.append(numpy_helper.from_array(1 / factors, inverse))
    nodes = list(model.graph.node)
    first = next(index for index, node in enumerate(nodes) if node.name == group.products[0].name)
    node = helper.make_node("Mul", [group.tensor, inverse], [smoothed], name=f"{group.products[0].name}_smooth")
    model.graph.node.insert(first, node)
    for product in group.products:
        product.input[0] = smoothed


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _set(tensor: onnx.TensorProto, values: NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
