"""An ONNX graph as a bundle wants it: named as the manifest says, nothing in it but what computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_mbm.errors import ExportError, TraceError
from edge_mbm.spec import TensorSpec

if TYPE_CHECKING:  # it is made of origins, and graphs are one kind of these
    from edge_mbm.export.skeleton import Skeleton

__all__ = [
    "check_graph",
    "first_line",
    "fold",
    "graphs",
    "normalize",
    "rename_values",
    "strange_operators",
    "strip",
]

_MESSAGES = ("doc_string", "producer_name", "producer_version", "domain")
_DTYPES = {"bool": TensorProto.BOOL} | {
    name: helper.np_dtype_to_tensor_dtype(np.dtype(name))
    for name in ("uint8", "int8", "int32", "int64", "float16", "float32")
}


def normalize(graph: bytes, component: Skeleton, name: str) -> bytes:
    """The exporter's graph with the manifest's tensor names, and no trace of where and how it was made.

    What an exporter writes beside the mathematics (stack traces with paths, its version) is left out, so that equal
    models give equal bytes. An inner value that has the name of an output steps aside: ONNX Runtime cannot load such
    a graph.

    Args:
        graph: from an exporter, inputs and outputs in the order of the manifest's.
        component: gives the names.
        name: the component's, for messages.

    Raises:
        TraceError: it has another number of inputs or outputs, or is no ONNX model.
    """
    model = _parse(graph, name)
    _strip(model)
    wanted = [*component.graph_inputs(), *component.graph_outputs()]
    edges = [value.name for value in (*model.graph.input, *model.graph.output)]
    if len(edges) != len(wanted):
        found = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
        raise TraceError(
            f"'{name}' became a graph of inputs {found[0]} and outputs {found[1]}, the recipe has {wanted}: an "
            "argument that forward does not use, or an output that is an input, cannot be exported"
        )
    _rename(model, dict(zip(edges, wanted, strict=True)))
    for value, spec in zip(model.graph.input, component.graph_inputs().values(), strict=True):
        _name_batch(value, spec)
    for value, spec in zip(model.graph.output, component.graph_outputs().values(), strict=True):
        _name_batch(value, spec)
    return bytes(model.SerializeToString(deterministic=True))


def check_graph(graph: bytes, component: Skeleton, name: str) -> None:
    """Hold a graph against the manifest's description of it.

    Raises:
        TraceError: not valid ONNX, operators outside the standard, data in other files, another dtype or shape than
            described, or a batch that was to be free and is not.
    """
    model = _parse(graph, name)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's own exceptions share no base
        raise TraceError(f"the graph of '{name}' is not valid ONNX: {first_line(error)}") from error
    for problem in _graph_problems(model, component):
        raise TraceError(f"the graph of '{name}': {problem}")


def fold(graph: bytes, name: str) -> bytes:
    """Constants folded and batch normalisation merged into the convolutions before it, in standard operators.

    This is the form to quantize: what is merged needs no range of its own. Done by ONNX Runtime's basic optimisations.

    Raises:
        ExportError: ONNX Runtime cannot load it.
    """
    import tempfile  # noqa: PLC0415 - only here
    from pathlib import Path  # noqa: PLC0415

    import onnxruntime as ort  # noqa: PLC0415 - heavy, and the graph's checks do without

    with tempfile.TemporaryDirectory(prefix="edge-mbm-fold-") as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder, "folded.onnx"))
        options.log_severity_level = 3
        try:
            ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception as error:  # ONNX Runtime's exceptions share no base
            raise ExportError(f"ONNX Runtime cannot load the graph of '{name}': {first_line(error)}") from error
        model = _parse(Path(options.optimized_model_filepath).read_bytes(), name)
    _strip(model)
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain == ""]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return bytes(model.SerializeToString(deterministic=True))


def strip(model: ModelProto) -> bytes:
    """Serialize a model without what says where and how it was made: equal mathematics, equal bytes."""
    _strip(model)
    return bytes(model.SerializeToString(deterministic=True))


def first_line(error: Exception) -> str:
    """The first line of an error's message, in which libraries say what matters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def strange_operators(model: ModelProto) -> dict[str, list[str]]:
    """Operators outside the standard, by domain; a model's own functions are such too."""
    found: dict[str, set[str]] = {}
    for node in (node for graph in graphs(model.graph) for node in graph.node):
        if node.domain not in ("", "ai.onnx"):
            found.setdefault(node.domain, set()).add(node.op_type)
    if model.functions:
        found.setdefault("its own functions", set()).update(function.name for function in model.functions)
    return {domain: sorted(operators) for domain, operators in sorted(found.items())}


def graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes (If, Loop)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner)


def rename_values(graph: Any, rename: Callable[[str], str]) -> None:
    """Give every value of a graph, but not of those inside its nodes, another name."""
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = rename(value.name)
    for node in graph.node:
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)


# --- inside ----------------------------------------------------------------------------------------------------------


def _parse(graph: bytes, name: str) -> ModelProto:
    try:
        return onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's exceptions share no base with ours
        raise TraceError(f"the graph of '{name}' is not an ONNX model: {first_line(error)}") from error


def _strip(model: ModelProto) -> None:
    for message in (model, model.graph, *model.functions):
        _forget(message)
    for graph in graphs(model.graph):
        _forget(graph)
        del graph.value_info[:]
        for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
            _forget(part)


def _forget(message: Any) -> None:
    for field in _MESSAGES:
        # A node's domain says which operator it is; a model's only who made it.
        if hasattr(message, field) and not (field == "domain" and not isinstance(message, ModelProto)):
            message.ClearField(field)
    if hasattr(message, "metadata_props"):
        del message.metadata_props[:]


def _rename(model: ModelProto, names: Mapping[str, str]) -> None:
    taken = {value for graph in graphs(model.graph) for value in _values(graph)}
    beside = taken | set(names.values())
    # Whoever else has a name that an input or output is to have.
    aside = {old: _free(old, beside) for old in set(names.values()) & (taken - names.keys())}
    new = {**aside, **names}
    for graph in graphs(model.graph):
        rename_values(graph, lambda value: new.get(value, value))
    for node_name, node in ((f"n{index}", node) for index, node in enumerate(model.graph.node)):
        # Node names must not meet value names either; exporters' are made of the module's path and say little.
        node.name = f"{node.op_type}_{node_name}"


def _values(graph: Any) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))
    for node in graph.node:
        yield from node.input
        yield from node.output


def _free(name: str, taken: Iterable[str]) -> str:
    candidates = (f"{name}_inner{'_' * count}" for count in range(1000))
    return next(candidate for candidate in candidates if candidate not in taken)


def _name_batch(value: Any, spec: TensorSpec) -> None:
    """What the exporter calls s0 or s77 is "batch"; a size that it fixed stays fixed, for the check to find."""
    dims = value.type.tensor_type.shape.dim
    for dim, wanted in zip(dims, spec.shape, strict=False):
        if isinstance(wanted, str) and not dim.HasField("dim_value"):
            dim.dim_param = wanted


def _graph_problems(model: ModelProto, component: Skeleton) -> Iterator[str]:
    if strange := strange_operators(model):
        yield f"it uses operators of {strange}: only standard ones run everywhere"
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        yield "its weights lie in another file: graphs above 2 GB cannot be bundled"
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        # Infinity is a legitimate constant, of attention masks for one; where it does harm the outputs show it.
        if array.dtype.kind == "f" and np.isnan(array).any():
            yield f"the weights '{tensor.name}' have NaN values: the model is broken, or was not loaded"
    yield from _edge_problems("input", model.graph.input, component.graph_inputs())
    yield from _edge_problems("output", model.graph.output, component.graph_outputs())


def _edge_problems(kind: str, values: Iterable[Any], specs: Mapping[str, TensorSpec]) -> Iterator[str]:
    found = {value.name: value.type.tensor_type for value in values}
    if list(found) != list(specs):
        yield f"its {kind}s are {list(found)}, the recipe names {list(specs)}"
        return
    for name, spec in specs.items():
        dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in found[name].shape.dim]
        if found[name].elem_type != _DTYPES[spec.dtype] or len(dims) != len(spec.shape):
            yield f"{kind} '{name}' is another tensor than {spec.dtype}{list(spec.shape)}"
            continue
        for axis, (dim, wanted) in enumerate(zip(dims, spec.shape, strict=True)):
            if isinstance(wanted, str) and isinstance(dim, int):
                yield (
                    f"axis {axis} of {kind} '{name}' came out fixed at {dim}, not free: forward takes a size as a "
                    "number somewhere, such as by len(x): use x.shape[0]"
                )
            elif isinstance(wanted, int) and isinstance(dim, int) and dim != wanted:
                yield f"axis {axis} of {kind} '{name}' is {dim}, expected {wanted}"
