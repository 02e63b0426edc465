"""A stranger's graph made into one that a bundle can hold, and held against what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edge_mbm.errors import TraceError
from edge_mbm.export.graph import first_line, graphs, strange_operators
from edge_mbm.export.origins.onnx_branches import branches, inline_settled
from edge_mbm.export.origins.onnx_inputs import Adapter
from edge_mbm.export.origins.onnx_session import open_session, run_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BATCHES", "Edge", "Original", "Repaired", "Trial", "is_quantized", "repair"]

BATCHES = (1, 2, 5)
"""At which a repaired graph is held against the original."""
_IR = 10  # the newest that all of our runtimes read
_RTOL = 1e-3
_QUANTIZED = {
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
}


@dataclass(frozen=True)
class Edge:
    """One input or output of a component and of the graph.

    Args:
        key: the recipe's name.
        graph: the graph's name.
        axis: the batch's.
        adapt: between the two, for inputs; None passes values as they are.
    """

    key: str
    graph: str
    axis: int
    adapt: Adapter | None = None


@dataclass(frozen=True)
class Original:
    """A graph as it came, and how a recipe's component sees it.

    Args:
        model: never changed.
        constants: what is fed besides.
        inputs: in the recipe's order.
        outputs: in the recipe's order.
        name: the component's, for messages.
    """

    model: ModelProto
    constants: Mapping[str, NDArray[Any]]
    inputs: Sequence[Edge]
    outputs: Sequence[Edge]
    name: str

    def adapted(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The recipe's inputs as the graph takes them."""
        return {e.graph: inputs[e.key] if e.adapt is None else e.adapt(inputs[e.key]) for e in self.inputs}


@dataclass(frozen=True)
class Trial:
    """Inputs by the recipe's names, and what the original makes of each sample alone."""

    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Repaired:
    """What came out.

    Args:
        graph: inputs and outputs in the recipe's order, still by the graph's names.
        batch_free: False: it takes one sample at a time.
        notes: what was done, for the report.
    """

    graph: bytes
    batch_free: bool
    notes: tuple[str, ...]


def is_quantized(model: ModelProto) -> bool:
    """Whether it computes with integers already."""
    return any(node.op_type in _QUANTIZED for graph in graphs(model.graph) for node in graph.node)


def repair(original: Original, trials: Mapping[int, Trial], opset: int) -> Repaired:
    """Repair, and prove it against the original.

    The batch is freed where the graph then gives for each of several samples what the original gives for it alone.
    Where it does not, or where branches would remain that one sample does not need, it is fixed at 1.

    Args:
        original: the graph.
        trials: by batch size: what goes in, and what comes out of the original, one sample at a time. Without sizes
            above 1 the batch is fixed.
        opset: of what comes out.

    Raises:
        TraceError: operators outside the standard, an opset that cannot be converted, or nothing that computes the
            same even for one sample.
    """
    _check(original, opset)
    found: list[tuple[ModelProto, Repaired]] = []
    faults: list[str] = []
    for sizes, loosen in ((BATCHES, False), (BATCHES, True), ((1,), False)):
        if not set(sizes) <= trials.keys():
            continue
        plan = _Plan(original, {size: trials[size] for size in sizes}, opset, loosen)
        try:
            found.append(plan.carry_out())
        except TraceError as error:
            faults.append(str(error))
            continue
        if not branches(found[-1][0]):
            break
    if not found:
        raise TraceError(f"the graph of '{original.name}' cannot be repaired: {faults[-1]}")
    return _best(found, faults)


def _best(found: Sequence[tuple[ModelProto, Repaired]], faults: Sequence[str]) -> Repaired:
    best = next((repaired for model, repaired in found if not branches(model)), found[0][1])
    if best.batch_free:
        return best
    reason = faults[0] if faults else "with a free batch, branches remain"
    return replace(best, notes=(*best.notes, f"the batch is fixed at 1: {reason}"))


def _check(original: Original, opset: int) -> None:
    if strange := strange_operators(onnx.inliner.inline_local_functions(original.model)):
        raise TraceError(
            f"the graph of '{original.name}' uses operators of {strange}: only standard ones run everywhere. Export it "
            "anew without them"
        )
    if (has := _opset(original.model)) > opset:
        raise TraceError(
            f"the graph of '{original.name}' is of opset {has}, newer than this recipe's {opset} (20 is the newest "
            f"that all engines take): export it anew at {opset} or below"
        )


def _opset(model: ModelProto) -> int:
    return max(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


@dataclass(frozen=True)
class _Plan:
    """One way of repairing."""

    original: Original
    trials: Mapping[int, Trial]
    opset: int
    loosen: bool

    @property
    def _free(self) -> bool:
        return len(self.trials) > 1

    def carry_out(self) -> tuple[ModelProto, Repaired]:
        model, notes = ModelProto(), list[str]()
        model.CopyFrom(onnx.inliner.inline_local_functions(self.original.model))
        model.ir_version = _IR
        _sort(model)
        self._edges(model, notes)
        if self.loosen:
            _loosen(model, notes)
        samples = [self.original.adapted(trial.inputs) for trial in self.trials.values()]
        if count := inline_settled(model, samples, partial(_outputs, name=self.original.name)):
            notes.append(f"{count} branches that every call takes the same way put in place of their If")
        _prune(model)
        model = self._converted(model, notes)
        self._adapt(model)
        self._check(model)
        return model, Repaired(model.SerializeToString(deterministic=True), self._free, tuple(notes))

    def _edges(self, model: ModelProto, notes: list[str]) -> None:
        """Inputs and outputs as the recipe has them, with the sizes that were run; constants among the weights."""
        graph, trial = model.graph, self.trials[max(self.trials)]
        weights = {tensor.name for tensor in graph.initializer}
        if listed := [value for value in graph.input if value.name in weights]:
            notes.append(f"{len(listed)} weights listed as inputs are no inputs any more")
        for name, value in self.original.constants.items():
            graph.initializer.append(numpy_helper.from_array(value, name))
            notes.append(f"input '{name}' is the constant {value}")
        declared = {value.name: value for value in (*graph.input, *graph.output)}
        arrays = self.original.adapted(trial.inputs) | {e.graph: trial.outputs[e.key] for e in self.original.outputs}
        kept = [[self._sized(declared, edge, arrays[edge.graph], notes) for edge in edges] for edges in self._sides()]
        for side, values in zip((graph.input, graph.output), kept, strict=True):
            del side[:]
            side.extend(values)
        del graph.value_info[:]

    def _sides(self) -> tuple[Sequence[Edge], Sequence[Edge]]:
        return self.original.inputs, self.original.outputs

    def _sized(self, declared: Mapping[str, Any], edge: Edge, value: NDArray[Any], notes: list[str]) -> Any:
        sizes = [("batch" if self._free else 1) if axis == edge.axis else n for axis, n in enumerate(value.shape)]
        before = [dim.dim_value or None for dim in declared[edge.graph].type.tensor_type.shape.dim]
        false = [old for old, new in zip(before, sizes, strict=False) if old is not None and old != new]
        if false:
            notes.append(f"'{edge.graph}' was declared {before}, and is {sizes}")
        return helper.make_tensor_value_info(edge.graph, helper.np_dtype_to_tensor_dtype(value.dtype), sizes)

    def _converted(self, model: ModelProto, notes: list[str]) -> ModelProto:
        used = {node.domain for graph in graphs(model.graph) for node in graph.node} | {""}
        kept = [entry for entry in model.opset_import if entry.domain in used]
        del model.opset_import[:]
        model.opset_import.extend(kept)
        if (has := _opset(model)) == self.opset:
            return model
        try:
            inferred = onnx.shape_inference.infer_shapes(model)  # some of the converter's rules need shapes
            converted = onnx.version_converter.convert_version(inferred, self.opset)
        except Exception as error:  # the converter's own: an operator without a rule
            raise TraceError(f"from opset {has} to {self.opset} it cannot be converted: {first_line(error)}") from error
        converted.ir_version = _IR
        notes.append(f"converted from opset {has} to {self.opset}")
        del converted.graph.value_info[:]
        return converted

    def _adapt(self, model: ModelProto) -> None:
        """The recipe's types and layouts at the inputs."""
        trial = self.trials[max(self.trials)]
        made: list[NodeProto] = []
        for value, edge in zip(model.graph.input, self.original.inputs, strict=True):
            given = trial.inputs[edge.key]
            if edge.adapt is None or not (steps := edge.adapt.nodes(f"given_{edge.graph}", edge.graph, given.dtype))[0]:
                continue
            made += steps[0]
            model.graph.initializer.extend(steps[1])
            sizes = [("batch" if self._free else 1) if axis == edge.axis else n for axis, n in enumerate(given.shape)]
            value.CopyFrom(
                helper.make_tensor_value_info(
                    f"given_{edge.graph}", helper.np_dtype_to_tensor_dtype(given.dtype), sizes
                )
            )
        nodes = [*made, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    def _check(self, model: ModelProto) -> None:
        """The same values for each sample, whatever else is in the batch."""
        session = open_session(model.SerializeToString(), self.original.name)
        names = [value.name for value in model.graph.input]
        for size, trial in self.trials.items():
            feeds = {name: trial.inputs[edge.key] for name, edge in zip(names, self.original.inputs, strict=True)}
            got = run_session(session, feeds, self.original.name)
            for edge, have in zip(self.original.outputs, got, strict=True):
                if not _same(have, trial.outputs[edge.key], edge.axis):
                    raise TraceError(
                        f"with {size} samples at once '{edge.graph}' is not what the original gives for each alone"
                    )


def _outputs(model: ModelProto, feeds: Mapping[str, NDArray[Any]], name: str) -> Sequence[NDArray[Any]]:
    return run_session(open_session(model.SerializeToString(), name), feeds, name)


def _same(have: NDArray[Any], want: NDArray[Any], axis: int) -> bool:
    """Within 1e-3 of each sample's own reach."""
    if have.shape != want.shape:
        return False
    rows = [np.moveaxis(value, axis, 0).astype(np.float64).reshape(value.shape[axis], -1) for value in (have, want)]
    reach = np.nan_to_num(np.abs(rows[1])).max(axis=1, initial=1e-6, keepdims=True)
    return bool(np.isclose(rows[0] / reach, rows[1] / reach, rtol=0, atol=_RTOL, equal_nan=True).all())


def _loosen(model: ModelProto, notes: list[str]) -> None:
    """A Reshape to a fixed leading size copies it from what it is given instead, which 0 stands for."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {
        node.output[0]: attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    count = 0
    for node in model.graph.node:
        tensor = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if tensor is None:
            continue
        shape = numpy_helper.to_array(tensor)
        if len(shape) > 1 and shape[0] > 0:
            loose = np.concatenate([[0], shape[1:]]).astype(np.int64)
            node.input[1] = f"{node.input[1]}_loose_{count}"
            model.graph.initializer.append(numpy_helper.from_array(loose, node.input[1]))
            count += 1
    if count:
        notes.append(f"the leading size of {count} Reshape nodes is no longer fixed")


def _sort(model: ModelProto) -> None:
    """Every node after what it reads, as the standard asks; ONNX Runtime loads graphs that are not so."""
    waiting, unmade = list(model.graph.node), {value for node in model.graph.node for value in node.output}
    ordered: list[NodeProto] = []
    while waiting:
        late: list[NodeProto] = []
        for node in waiting:
            if _reads(node) & unmade:
                late.append(node)
            else:
                ordered.append(node)
                unmade.difference_update(node.output)
        if len(late) == len(waiting):
            raise TraceError(f"its nodes {[node.name or node.op_type for node in late[:3]]} wait for each other")
        waiting = late
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def _reads(node: NodeProto) -> set[str]:
    """Values that a node takes, or a graph inside it."""
    inner = [graph for attribute in node.attribute if attribute.HasField("g") for graph in graphs(attribute.g)]
    taken = {value for graph in inner for made in graph.node for value in made.input}
    results = {value.name for graph in inner for value in graph.output}
    return ({*node.input} | taken | results) - {""}  # an input left out has no name


def _prune(model: ModelProto) -> None:
    """Leave out what no output needs."""
    needed = {value.name for value in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _reads(node)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    for field, values in ((model.graph.node, kept[::-1]), (model.graph.initializer, weights)):
        del field[:]
        field.extend(values)
