"""Rules on the graph itself: operators, dtypes, names, sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from onnx import TensorProto

from edge_mbm.export.lint.finding import Case, Problem, Rule
from edge_mbm.export.lint.view import attribute, label

__all__ = ["STRUCTURE"]

_INT4 = ("int4", "uint4")
_INT4_OPSET = 21
_ONE_OUTPUT = ("LayerNormalization", "MaxPool")


def _opset(case: Case) -> Iterator[Problem]:
    ceiling = case.target.engine.opset
    if ceiling < _INT4_OPSET and _blocked_int4(case):
        ceiling = _INT4_OPSET  # the one thing that needs it
    if case.view.opset > ceiling:
        yield Problem(
            "",
            f"its operators are of opset {case.view.opset}, {case.target.title} takes {ceiling} at most",
            f"export with opset_version={case.target.engine.opset}",
        )


def _blocked_int4(case: Case) -> bool:
    return any(
        attribute(node, "block_size") and case.view.dtypes.get(node.input[0]) in _INT4
        for node in case.view.of("DequantizeLinear")
    )


def _operator(case: Case) -> Iterator[Problem]:
    engine = case.target.engine
    for node in case.view.nodes:
        standard = node.domain in ("", "ai.onnx")
        if standard and (node.op_type in engine.denied or (engine.ops and node.op_type not in engine.ops)):
            remedy = engine.denied.get(node.op_type, "write it with other operators, or take it out of the graph")
            yield Problem(label(node), f"{case.target.title} does not take the operator {node.op_type}", remedy)


def _domain(case: Case) -> Iterator[Problem]:
    for node in case.view.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield Problem(
                label(node),
                f"the operator {node.domain}.{node.op_type} is not of the ONNX standard",
                "export without the optimisations or plugins that put it there",
            )
    for function in case.view.model.functions:
        yield Problem(
            function.name, "it is a function of the model's own", "inline it: onnx.inliner.inline_local_functions"
        )


def _dtype(case: Case) -> Iterator[Problem]:
    for dtype, value in _first_of_each_dtype(case):
        if dtype not in case.target.dtypes():
            remedy = case.target.denied_dtypes.get(dtype, f"cast it to one of {', '.join(case.target.dtypes())}")
            yield Problem(value, f"{case.target.title} does not compute with {dtype}", remedy)


def _discouraged_dtype(case: Case) -> Iterator[Problem]:
    for dtype, value in _first_of_each_dtype(case):
        if dtype in case.target.discouraged:
            yield Problem(value, f"{dtype} on {case.target.title}", case.target.discouraged[dtype])


def _first_of_each_dtype(case: Case) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for value, dtype in case.view.dtypes.items():
        found.setdefault(dtype, value)
    return sorted(found.items())


def _uint8(case: Case) -> Iterator[Problem]:
    """TensorRT takes uint8 at the edges only, and there only into a cast."""
    if not case.tensorrt:
        return
    for node in case.view.nodes:
        taken = [value for value in node.input if case.view.dtypes.get(value) == "uint8"]
        if taken and node.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear"):
            yield Problem(
                label(node),
                f"{node.op_type} of the uint8 tensor '{taken[0]}': TensorRT casts uint8 and does nothing else with it",
                "cast to float32 first, resize and transpose after that",
            )


def _resize(case: Case) -> Iterator[Problem]:
    for node in case.view.of("Resize") if case.tensorrt else ():
        if attribute(node, "antialias"):
            yield Problem(
                label(node),
                "TensorRT has no antialiased Resize",
                "resize on the host (the image steps), or export with antialias=False",
            )


def _more_outputs(case: Case) -> Iterator[Problem]:
    for node in case.view.of(*_ONE_OUTPUT) if case.tensorrt else ():
        if any(node.output[1:]):
            yield Problem(
                label(node), f"TensorRT gives only the first output of {node.op_type}", "do without the others"
            )


def _dilated_pool(case: Case) -> Iterator[Problem]:
    for node in case.view.of("MaxPool", "AveragePool") if case.tensorrt else ():
        if set(attribute(node, "dilations") or [1]) != {1}:
            yield Problem(label(node), f"TensorRT has no dilated {node.op_type}", "pool without dilation")


def _recurrent_layout(case: Case) -> Iterator[Problem]:
    for node in case.view.of("GRU", "LSTM", "RNN") if case.tensorrt else ():
        if attribute(node, "layout"):
            yield Problem(
                label(node),
                f"TensorRT reads {node.op_type} with layout=1 as if it were 0, without a word",
                "transpose to time first, and leave layout at 0",
            )


def _computed_axes(case: Case) -> Iterator[Problem]:
    for node in case.view.nodes if case.tensorrt else ():
        axes = node.input[1] if node.op_type.startswith("Reduce") and len(node.input) > 1 else ""
        if axes and axes not in case.view.tensors:
            yield Problem(
                label(node), f"the axes of {node.op_type} are computed: TensorRT wants a constant", "fix the axes"
            )


def _dynamic_dims(case: Case) -> Iterator[Problem]:
    """A free size is the batch; each other needs a profile of its own, and comes out fixed under some layers."""
    for value in case.view.model.graph.input if case.tensorrt else ():
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            # The batch of a carried state need not come first.
            if axis and not dim.HasField("dim_value") and dim.dim_param != "batch":
                yield Problem(
                    value.name,
                    f"axis {axis} is free ('{dim.dim_param or '?'}'): only the batch may be",
                    "export with a fixed size, and streams as chunks with their state",
                )


def _names(case: Case) -> Iterator[Problem]:
    graph = case.view.model.graph
    edges = {value.name for value in (*graph.input, *graph.output)}
    for node in case.view.nodes:
        if node.name in edges:
            yield Problem(
                node.name, "a node has the name of an input or output", "normalize the graph: it names nodes anew"
            )
    made = Counter(value for node in case.view.nodes for value in node.output if value)
    made.update({value.name for value in graph.input})
    for value, times in made.items():
        if times > 1:
            yield Problem(value, f"{times} values have this name", "give each value a name of its own")


def _initializer_inputs(case: Case) -> Iterator[Problem]:
    initializers = {tensor.name for tensor in case.view.model.graph.initializer}
    for value in case.view.model.graph.input:
        if value.name in initializers:
            yield Problem(
                value.name,
                "a weight is listed as an input: it may be overridden, so nothing is folded into it",
                "remove it from the graph's inputs (keep_initializers_as_inputs=False)",
            )


def _external_data(case: Case) -> Iterator[Problem]:
    for tensor in case.view.tensors.values():
        if tensor.data_location == TensorProto.EXTERNAL:
            yield Problem(
                tensor.name, "its data lies in another file", "export with external_data=False; a graph is one file"
            )


STRUCTURE = (
    Rule("opset", "error", _opset),
    Rule("operator", "error", _operator),
    Rule("domain", "error", _domain),
    Rule("dtype", "error", _dtype),
    Rule("discouraged-dtype", "warning", _discouraged_dtype),
    Rule("uint8", "error", _uint8),
    Rule("resize", "error", _resize),
    Rule("more-outputs", "error", _more_outputs),
    Rule("dilated-pool", "error", _dilated_pool),
    Rule("recurrent-layout", "error", _recurrent_layout),
    Rule("computed-axes", "error", _computed_axes),
    Rule("dynamic-dims", "error", _dynamic_dims),
    Rule("names", "error", _names),
    Rule("initializer-inputs", "error", _initializer_inputs),
    Rule("external-data", "error", _external_data),
)
"""In the order in which they are checked."""
