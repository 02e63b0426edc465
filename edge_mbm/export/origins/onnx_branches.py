"""Branches that every call takes the same way, put in place of their ``If``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from edge_mbm.export.graph import graphs, rename_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["branches", "inline_settled"]

Arrays = Mapping[str, "NDArray[Any]"]
_SHAPE = ("Shape", "Size")


def branches(model: ModelProto) -> list[NodeProto]:
    """The top level's ``If`` nodes."""
    return [node for node in model.graph.node if node.op_type == "If"]


def inline_settled(
    model: ModelProto, samples: Sequence[Arrays], run: Callable[[ModelProto, Arrays], Sequence[NDArray[Any]]]
) -> int:
    """Replace each ``If`` whose condition depends on constants and shapes only by the branch that it takes.

    TensorRT refuses ``If``. Scripted models have it for what was never open: a sample rate, the rank of a tensor.

    Args:
        model: changed in place.
        samples: inputs at every batch that the graph is to run at.
        run: computes a model's outputs.

    Returns:
        How many were replaced.
    """
    count = 0
    while settled := _settled(model, samples, run):
        for node, taken in settled:
            _inline(model, node, "then_branch" if taken else "else_branch", f"branch{count}_")
            count += 1
    return count


def _settled(
    model: ModelProto, samples: Sequence[Arrays], run: Callable[[ModelProto, Arrays], Sequence[NDArray[Any]]]
) -> list[tuple[NodeProto, bool]]:
    """The nodes whose condition is the same for every sample, with what it is."""
    nodes = [node for node in branches(model) if _of_shapes_only(model, node.input[0])]
    if not nodes:
        return []
    asked = _asking(model, [node.input[0] for node in nodes])
    seen = [[bool(np.all(value)) for value in run(asked, sample)] for sample in samples]
    return [(node, told[0]) for node, told in zip(nodes, zip(*seen, strict=True), strict=True) if len(set(told)) == 1]


def _of_shapes_only(model: ModelProto, value: str) -> bool:
    """Whether all that leads to a value are constants and shapes."""
    made = {output: node for node in model.graph.node for output in node.output}
    inputs = {given.name for given in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
    waiting, seen = [value], set[str]()
    while waiting:
        name = waiting.pop()
        node = made.get(name)
        if name in inputs or (node is not None and node.op_type in ("If", "Loop", "Scan")):
            return False
        if node is not None and node.op_type not in _SHAPE:
            waiting += [other for other in node.input if other and other not in seen]
        seen.add(name)
    return True


def _asking(model: ModelProto, values: Sequence[str]) -> ModelProto:
    """The same model, which gives these values instead of its outputs."""
    asked = ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    for index, value in enumerate(values):  # through nodes: a weight, or one value twice, cannot be an output
        asked.graph.node.append(helper.make_node("Identity", [value], [f"asked_{index}"]))
        asked.graph.output.append(helper.make_tensor_value_info(f"asked_{index}", TensorProto.BOOL, None))
    return asked


def _inline(model: ModelProto, node: NodeProto, branch: str, prefix: str) -> None:
    [taken] = [attribute.g for attribute in node.attribute if attribute.name == branch]
    inner, at = GraphProto(), list(model.graph.node).index(node)
    inner.CopyFrom(taken)
    own = {tensor.name for tensor in inner.initializer} | {
        value for made in inner.node for value in made.output if value
    }
    for graph in graphs(inner):
        rename_values(graph, lambda value: prefix + value if value in own else value)
    results = [value.name for value in inner.output]
    links = [helper.make_node("Identity", [made], [name]) for made, name in zip(results, node.output, strict=True)]
    del model.graph.node[at]
    for offset, made in enumerate([*inner.node, *links]):
        model.graph.node.insert(at + offset, made)
    model.graph.initializer.extend(inner.initializer)
