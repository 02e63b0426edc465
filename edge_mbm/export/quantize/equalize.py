"""Equalization: channels that share a scale are made alike, so that a quiet one gets more than a few steps of it.

A channel may be multiplied by a factor where it is made and divided by it where it is used (Nagel et al. 2019,
arXiv:1906.04721, section 4.1, who take factors from weights; here they come from the channels' magnitudes on real data,
since weights have a scale per output channel anyway). Sums need one factor for all their terms, so factors belong to
groups of tensors: a whole chain of residual blocks. ReLU lets a positive factor pass, a clip at 6 does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_mbm.errors import ExportError
from edge_mbm.export.chain import Arrays
from edge_mbm.export.graph import first_line, strip

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["equalize"]

_QUIETEST = 2.0**-6
"""Of the loudest channel: no channel is raised as if it were quieter than this."""
_SHARE = 0.5
"""Of a channel's distance to the loudest, in decibels: a louder activation is rounded less, the smaller weight that
takes it is rounded more (the alpha of Xiao et al. 2022, arXiv:2211.10438)."""


@dataclass
class _Group:
    """Tensors whose channels need the same factors.

    Args:
        tensors: their names.
        makers: convolutions that give one of them.
        users: convolutions that take one of them.
    """

    tensors: list[str] = field(default_factory=list)
    makers: list[NodeProto] = field(default_factory=list)
    users: list[NodeProto] = field(default_factory=list)


def equalize(graph: bytes, calls: Sequence[Arrays], name: str) -> bytes:
    """Bring the channels between convolutions nearer to each other's loudness; the function stays the same.

    Args:
        graph: float, folded.
        calls: real calls, all of the graph's inputs by name.
        name: the component's, for messages.

    Returns:
        A float graph; the same bytes where no channels can be equalized.

    Raises:
        ExportError: there are no calls, or the graph does not run on them.
    """
    model = onnx.load_model_from_string(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    groups = _groups(model, weights)
    if not groups:
        return graph
    loudness = _loudness(model, groups, calls, name)
    for group in groups:
        _apply(group, _factors([loudness[value] for value in group.tensors if value in loudness]), weights)
    return strip(model)


# --- which channels belong together ----------------------------------------------------------------------------------


def _groups(model: ModelProto, weights: Mapping[str, TensorProto]) -> list[_Group]:
    """Those that nothing but convolutions, sums and ReLUs see."""
    root: dict[str, str] = {}

    def find(value: str) -> str:
        while root.setdefault(value, value) != value:
            value = root[value]
        return value

    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    convolutions = [node for node in model.graph.node if _is_own(model, node, weights)]
    own = {node.output[0] for node in convolutions}
    for node in model.graph.node:
        values = [value for value in (*node.input, *node.output) if value not in weights]
        if node.op_type in ("Relu", "Add") and len(values) == len(node.input) + 1:
            for value in values[1:]:
                root[find(value)] = find(values[0])
        elif node.output[0] not in own:
            fixed.update(values)
    found: dict[str, _Group] = {}
    for value in dict.fromkeys(value for node in model.graph.node for value in (*node.input, *node.output)):
        if value and value not in weights:
            found.setdefault(find(value), _Group()).tensors.append(value)
    for node in convolutions:
        found[find(node.output[0])].makers.append(node)
        found[find(node.input[0])].users.append(node)
    return [group for group in found.values() if group.makers and group.users and not fixed & set(group.tensors)]


def _is_own(model: ModelProto, node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    """A convolution whose weights no one else has, over all channels or over each of them alone."""
    if node.op_type != "Conv" or any(name not in weights for name in node.input[1:]):
        return False
    uses = [value for other in model.graph.node for value in other.input]
    return all(uses.count(name) == 1 for name in node.input[1:]) and (
        _groups_of(node) == 1 or _is_depthwise(node, weights)
    )


def _groups_of(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _is_depthwise(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    made, taken = weights[node.input[1]].dims[:2]
    return bool(taken == 1 and made == _groups_of(node))


# --- factors ---------------------------------------------------------------------------------------------------------


def _loudness(
    model: ModelProto, groups: Sequence[_Group], calls: Sequence[Arrays], name: str
) -> dict[str, NDArray[np.float32]]:
    """The largest magnitude of each channel, of every tensor but those that a ReLU still follows."""
    before = {node.input[0] for node in model.graph.node if node.op_type == "Relu"}
    names = [value for group in groups for value in group.tensors if value not in before]
    found: dict[str, NDArray[np.float32]] = {}
    for values in _observed(model, names, calls, name):
        for value, array in zip(names, values, strict=True):
            loudest = np.abs(array).max(axis=(0, *range(2, array.ndim)))
            found[value] = np.maximum(found.get(value, loudest), loudest)
    if not found:
        raise ExportError(f"'{name}' cannot be equalized without calls: give calibration recordings that reach it")
    return found


def _observed(
    model: ModelProto, names: Sequence[str], calls: Sequence[Arrays], name: str
) -> Iterator[list[NDArray[np.float32]]]:
    seen = ModelProto()
    seen.CopyFrom(model)
    del seen.graph.output[:]
    seen.graph.output.extend(helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session: Any = ort.InferenceSession(
            seen.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        for call in calls:
            yield session.run(list(names), dict(call))
    except Exception as error:  # ONNX Runtime's exceptions share no base
        raise ExportError(f"'{name}' could not be run to equalize it: {first_line(error)}") from error


def _factors(loudness: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """At least 1, and 1 for the loudest channel: halfway, since what is won for activations is lost for weights."""
    loudest = np.max(loudness, axis=0).astype(np.float64)
    top = loudest.max()
    if top <= 0:
        return np.ones_like(loudest)
    factors: NDArray[np.float64] = np.maximum(loudest / top, _QUIETEST) ** -_SHARE
    return factors


def _apply(group: _Group, factors: NDArray[np.float64], weights: Mapping[str, TensorProto]) -> None:
    for node in group.makers:
        for name in node.input[1:]:
            _scale(weights[name], factors, 0)
    for node in group.users:
        _scale(weights[node.input[1]], 1 / factors, 0 if _groups_of(node) > 1 else 1)


def _scale(tensor: TensorProto, factors: NDArray[np.float64], axis: int) -> None:
    array = numpy_helper.to_array(tensor)
    shape = [-1 if index == axis else 1 for index in range(array.ndim)]
    tensor.CopyFrom(numpy_helper.from_array((array * factors.reshape(shape)).astype(np.float32), tensor.name))
