"""The linter: each rule with a graph that breaks exactly it, and one beside it that breaks nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.errors import TraceError
from edge_mbm.export import lint as linter
from edge_mbm.export.lint import RULES, Finding, lint
from edge_mbm.export.targets import TARGETS, Kind, target
from edge_mbm.export.trt_check import check_trt

FLOAT, HALF, UINT8, INT64, DOUBLE = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.UINT8,
    TensorProto.INT64,
    TensorProto.DOUBLE,
)

Shape = Sequence[int | str] | None


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Inputs and outputs in one string each; the node is named after its first output."""
    outs = outputs.split()
    return helper.make_node(op, inputs.split(" ") if inputs else [], outs, name=f"make_{outs[0]}", **attributes)


def constant(name: str, values: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    x: tuple[int, Shape] = (FLOAT, ("batch", 4)),
    y: tuple[int, Shape] = (FLOAT, None),
    opset: int = 20,
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", *y)],
        list(weights),
    )
    imports = {"": opset, **(domains or {})}
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*entry) for entry in imports.items()], ir_version=10
    )
    if y[1] is None:
        found = [
            value for value in onnx.shape_inference.infer_shapes(made).graph.output if value.type.tensor_type.elem_type
        ]
        made.graph.output[0].CopyFrom(found[0])
    return made


# --- graphs ----------------------------------------------------------------------------------------------------------


def plain(**options: Any) -> onnx.ModelProto:
    return model([node("Relu", "x", "y")], **options)


def of(dtype: int, op: str = "Relu") -> onnx.ModelProto:
    return model([node(op, "x", "y")], x=(dtype, [4, 4]), y=(dtype, None))


def qdq(
    *,
    activations: Any = np.int8,
    zero: int = 0,
    weight_zero: int = 0,
    scale: Any = 0.1,
    axis: int = 0,
    bias: bool = False,
    per_tensor: bool = False,
    opset: int = 20,
) -> onnx.ModelProto:
    """A convolution of 4 channels into 4, activations and weights quantized."""
    rng = np.random.default_rng(0)
    weight_scale = 0.01 if per_tensor else np.full(4, 0.01)
    weights = [
        constant("s", scale),
        constant("z", np.full(np.shape(scale), zero), activations),
        constant("w", rng.integers(-127, 127, (4, 4, 3, 3)), np.int8),
        constant("ws", weight_scale),
        constant("wz", np.full(np.shape(weight_scale), weight_zero), np.int8),
    ]
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w ws wz", "wd", axis=axis),
    ]
    if bias:
        weights += [
            constant("b", np.ones(4), np.int32),
            constant("bs", np.full(4, 1e-3)),
            constant("bz", [0] * 4, np.int32),
        ]
        nodes.append(node("DequantizeLinear", "b bs bz", "bd", axis=0))
    nodes.append(node("Conv", "d wd bd" if bias else "d wd", "y"))
    return model(nodes, weights, x=(FLOAT, ("batch", 4, 8, 8)), opset=opset)


def sixteen(dtype: Any) -> onnx.ModelProto:
    return qdq(activations=dtype, opset=21)


def without_zero_points() -> onnx.ModelProto:
    """ONNX's default is uint8 then."""
    found = qdq()
    for index in (0, 1):
        del found.graph.node[index].input[2]
    return found


def computed_scale() -> onnx.ModelProto:
    found = qdq()
    found.graph.initializer.remove(next(tensor for tensor in found.graph.initializer if tensor.name == "s"))
    found.graph.node.insert(0, node("ReduceMax", "x", "s", keepdims=0))
    return found


def matmul(axis: int) -> onnx.ModelProto:
    """A square weight: both axes have as many elements as there are scales."""
    weights = [
        constant("w", np.ones((4, 4)), np.int8),
        constant("ws", np.full(4, 0.01)),
        constant("wz", [0] * 4, np.int8),
    ]
    return model([node("DequantizeLinear", "w ws wz", "wd", axis=axis), node("MatMul", "x wd", "y")], weights)


def int4(*, block: bool, opset: int = 21) -> onnx.ModelProto:
    values = np.random.default_rng(0).integers(-7, 7, (32, 8)).astype(ml_dtypes.int4)
    weights = [numpy_helper.from_array(values, "w"), constant("ws", np.full((2, 8) if block else 8, 0.01))]
    attributes: dict[str, int] = {"axis": 0, "block_size": 16} if block else {"axis": 1}
    nodes = [node("DequantizeLinear", "w ws", "wd", **attributes), node("MatMul", "x wd", "y")]
    return model(nodes, weights, x=(FLOAT, ("batch", 32)), opset=opset)


def fp8() -> onnx.ModelProto:
    eight = ml_dtypes.float8_e4m3fn
    weights = [constant("s", 0.1), constant("z", 0, eight), constant("w", np.ones((4, 4)), eight)]
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w s z", "wd"),
        node("MatMul", "d wd", "y"),
    ]
    return model(nodes, weights)


def attention(opset: int, dtype: Any = np.int8) -> onnx.ModelProto:
    """Scores of an activation with itself."""
    weights = [constant("s", 0.1), constant("z", 0, dtype)]
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("Transpose", "x", "t", perm=[0, 2, 1]),
        node("QuantizeLinear", "t s z", "tq"),
        node("DequantizeLinear", "tq s z", "td"),
        node("MatMul", "d td", "scores"),
        node("Softmax", "scores", "y"),
    ]
    return model(nodes, weights, x=(FLOAT, ("batch", 4, 4)), opset=opset)


def residual(*, skip: bool, branch: bool = False) -> onnx.ModelProto:
    """A quantized convolution added to what went into it."""
    found = qdq()
    del found.graph.node[-1]
    found.graph.node.append(node("Conv", "d wd", "c", pads=[1, 1, 1, 1]))
    if branch:
        found.graph.node.extend([node("QuantizeLinear", "c s z", "cq"), node("DequantizeLinear", "cq s z", "cd")])
    found.graph.node.append(node("Add", f"{'cd' if branch else 'c'} {'d' if skip else 'x'}", "y"))
    found.graph.output[0].type.CopyFrom(found.graph.input[0].type)
    return found


def normalization(dtype: int, *, root: str = "Div") -> onnx.ModelProto:
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weights = [
        constant("two", 2, kind),
        constant("axes", [-1], np.int64),
        constant("e", 1e-3, kind),
    ]
    nodes = [
        node("ReduceMean", "x axes", "mean"),
        node("Sub", "x mean", "d"),
        node("Pow", "d two", "d2") if root == "Div" else node("Mul", "d d", "d2"),
        node("ReduceMean", "d2 axes", "variance"),
        node("Add", "variance e", "v"),
        node("Sqrt", "v", "sd"),
        node("Div", "d sd", "y") if root == "Div" else node("Reciprocal", "sd", "y"),
    ]
    return model(nodes, weights, x=(dtype, ("batch", 4)), y=(dtype, None))


def fused() -> onnx.ModelProto:
    weights = [constant("g", [1] * 4, np.float16)]
    return model([node("LayerNormalization", "x g", "y")], weights, x=(HALF, ("batch", 4)), y=(HALF, None))


def recurrent(op: str = "GRU", dtype: int = FLOAT, layout: int = 0) -> onnx.ModelProto:
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    gates = {"GRU": 3, "LSTM": 4}[op]
    weights = [constant("w", np.ones((1, 4 * gates, 3)), kind), constant("r", np.ones((1, 4 * gates, 4)), kind)]
    nodes = [node(op, "x w r", "y", hidden_size=4, **({"layout": layout} if layout else {}))]
    return model(nodes, weights, x=(dtype, (5, 5, 3)), y=(dtype, None))


def resize(dtype: int, **attributes: int) -> onnx.ModelProto:
    nodes = [node("Resize", "x  scales", "y", mode="linear", **attributes)]
    return model(nodes, [constant("scales", [1, 1, 0.5, 0.5])], x=(dtype, (1, 3, 8, 8)), y=(dtype, None))


def cast_first(op: str = "Transpose") -> onnx.ModelProto:
    """What the export does with a camera's uint8 NHWC."""
    return model([node("Cast", "x", "f", to=FLOAT), node(op, "f", "y")], x=(UINT8, ("batch", 2, 2, 3)))


def pool(op: str = "MaxPool", outputs: str = "y", dilation: int = 1) -> onnx.ModelProto:
    return model([node(op, "x", outputs, kernel_shape=[2, 2], dilations=[dilation] * 2)], x=(FLOAT, ("batch", 3, 8, 8)))


def branching() -> onnx.ModelProto:
    edges = [helper.make_tensor_value_info(name, FLOAT, ["batch", 4]) for name in ("a", "b")]
    then, other = (
        helper.make_graph([node(op, "x", edge.name)], edge.name, [], [edge])
        for op, edge in zip(("Relu", "Neg"), edges, strict=True)
    )
    nodes = [
        node("ReduceSum", "x", "s", keepdims=0),
        node("Greater", "s zero", "c"),
        node("If", "c", "y", then_branch=then, else_branch=other),
    ]
    return model(nodes, [constant("zero", 0)])


def selected() -> onnx.ModelProto:
    """The same without a branch."""
    nodes = [
        node("ReduceSum", "x", "s", keepdims=0),
        node("Greater", "s zero", "c"),
        node("Relu", "x", "a"),
        node("Neg", "x", "b"),
    ]
    return model([*nodes, node("Where", "c a b", "y")], [constant("zero", 0)])


def qoperator() -> onnx.ModelProto:
    weights = [constant("s", 1), constant("z", 0, np.int8), constant("w", np.ones((4, 4)), np.int8)]
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("QLinearMatMul", "q s z w s z s z", "p"),
        node("DequantizeLinear", "p s z", "y"),
    ]
    return model(nodes, weights)


def attention23() -> onnx.ModelProto:
    return model([node("Attention", "x x x", "y")], x=(FLOAT, (1, 2, 4, 8)), opset=23)


def foreign() -> onnx.ModelProto:
    return model([node("Gelu", "x", "y", domain="com.microsoft")], domains={"com.microsoft": 1})


def own_function() -> onnx.ModelProto:
    found = model([node("Twice", "x", "y", domain="own")], domains={"own": 1})
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    found.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    return found


def axes(*, computed: bool) -> onnx.ModelProto:
    nodes = [node("Shape", "x", "shape"), node("Sub", "shape shape", "zeros"), node("Slice", "zeros one two", "a")]
    weights = [constant("one", [0], np.int64), constant("two", [1], np.int64)]
    if not computed:
        return model([node("ReduceMean", "x one", "y")], weights)
    return model([*nodes, node("ReduceMean", "x a", "y")], weights)


def weight_as_input() -> onnx.ModelProto:
    found = model([node("Add", "x w", "y")], [constant("w", [1] * 4)])
    found.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [4]))
    return found


def external() -> onnx.ModelProto:
    found = model([node("Add", "x w", "y")], [constant("w", [1] * 4)])
    tensor = found.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../elsewhere.bin")
    return found


def named(name: str) -> onnx.ModelProto:
    found = plain()
    found.graph.node[0].name = name
    return found


def made_twice() -> onnx.ModelProto:
    """An inner value of a branch with the name of an input."""
    found = branching()
    for attribute in found.graph.node[2].attribute:
        attribute.g.node[0].output[0] = attribute.g.output[0].name = "x"
    return found


# --- what each rule finds --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A graph that breaks a rule, the same without the fault, and where the fault is."""

    rule: str
    bad: Callable[[], onnx.ModelProto]
    good: Callable[[], onnx.ModelProto]
    at: str
    targets: tuple[str, ...] = ("jetson-orin",)
    kind: Kind = "encoder"
    also: frozenset[str] = field(default_factory=frozenset)
    """Rules that such a graph can't but break too."""
    said: str = ""
    silent: bool = False
    """Whether TensorRT takes it without a word."""

    def __str__(self) -> str:
        return f"{self.rule}-{self.targets[0]}-{self.at}"


def case(rule: str, bad: Any, good: Any, at: str, *targets: str, also: Sequence[str] = (), **more: Any) -> Case:
    return Case(rule, bad, good, at, targets or ("jetson-orin",), also=frozenset(also), **more)


ALL = tuple(TARGETS)
CASES = [
    case("opset", lambda: plain(opset=21), plain, "", *ALL, said="21"),
    case("opset", lambda: plain(opset=25), lambda: int4(block=True), "", "rtx"),
    case("operator", branching, selected, "make_y", said="If"),
    case("operator", qoperator, lambda: matmul(1), "make_p", said="QLinearMatMul"),
    case("operator", attention23, plain, "make_y", "x86-cpu", "jetson-thor", also=["opset"]),
    case("operator", lambda: model([node("Det", "x", "y")], x=(FLOAT, (2, 2))), plain, "make_y", said="Det"),
    case("domain", foreign, lambda: model([node("Gelu", "x", "y")]), "make_y", *ALL, said="com.microsoft.Gelu"),
    case("domain", own_function, plain, "make_y", *ALL),
    case("dtype", fp8, fp8, "z", "jetson-orin", said="sm_89"),
    case("dtype", fp8, plain, "z", "x86-cpu", also=["slow-activations"]),
    case("dtype", lambda: of(TensorProto.INT16), plain, "x", *ALL, said="int16"),
    case("discouraged-dtype", lambda: of(DOUBLE), plain, "x"),
    case("discouraged-dtype", lambda: of(HALF), plain, "x", "x86-cpu"),
    case("uint8", lambda: resize(UINT8), lambda: resize(FLOAT), "make_y", said="Resize"),
    case("uint8", lambda: of(UINT8, "Transpose"), cast_first, "make_y", said="Transpose"),
    case("resize", lambda: resize(FLOAT, antialias=1), lambda: resize(FLOAT), "make_y", said="antialias"),
    case("more-outputs", lambda: pool(outputs="y i"), pool, "make_y"),
    case("dilated-pool", lambda: pool(dilation=2), pool, "make_y"),
    case("dilated-pool", lambda: pool("AveragePool", dilation=2), lambda: pool("AveragePool"), "make_y"),
    case("recurrent-layout", lambda: recurrent(layout=1), recurrent, "make_y", silent=True),
    case("recurrent-layout", lambda: recurrent("LSTM", layout=1), lambda: recurrent("LSTM"), "make_y", silent=True),
    case("computed-axes", lambda: axes(computed=True), lambda: axes(computed=False), "make_y"),
    case("dynamic-dims", lambda: plain(x=(FLOAT, ("batch", "time"))), plain, "x", said="time"),
    case("dynamic-dims", lambda: plain(x=(FLOAT, (1, "time"))), lambda: plain(x=(FLOAT, (1, "batch"))), "x"),
    case("names", lambda: named("y"), lambda: named("relu"), "y", *ALL),
    case("names", lambda: named("x"), lambda: named("relu"), "x", *ALL),
    case("names", made_twice, plain, "x", "x86-cpu", said="3 values"),
    case("initializer-inputs", weight_as_input, plain, "w", *ALL),
    case("external-data", external, plain, "w", *ALL),
    case("scale", computed_scale, qdq, "make_q", "jetson-orin", "arm-cpu", said="computed"),
    case("scale", lambda: qdq(scale=0), qdq, "make_q", "jetson-orin", "arm-cpu"),
    case("scale", lambda: qdq(scale=-1), qdq, "make_q", "jetson-orin", "arm-cpu"),
    case("scale", lambda: qdq(scale=np.inf), qdq, "make_q", "jetson-orin", "arm-cpu", silent=True),
    case("scale", lambda: qdq(scale=np.nan), qdq, "make_q", "jetson-orin", "arm-cpu"),
    case("zero-point", lambda: qdq(zero=3), qdq, "make_q"),
    case("zero-point", lambda: qdq(weight_zero=3), qdq, "make_wd"),
    case("zero-point", lambda: qdq(activations=np.uint8, zero=128), qdq, "make_q", also=["qdq-uint8"]),
    case("qdq-uint8", lambda: qdq(activations=np.uint8), qdq, "make_q"),
    case("qdq-uint8", without_zero_points, qdq, "make_q", silent=True),
    case("qdq-16bit", lambda: sixteen(np.int16), qdq, "make_q", "arm-cpu", "rtx", also=["opset", "dtype"]),
    case("qdq-16bit", lambda: sixteen(np.uint16), qdq, "make_q", "arm-cpu", "rtx", also=["opset", "dtype"]),
    case("int4", lambda: int4(block=False), lambda: int4(block=True), "make_wd", also=["opset"]),
    case("int4", lambda: int4(block=True), plain, "make_wd", "x86-cpu", also=["opset", "dtype"]),
    case("int32-bias", lambda: qdq(bias=True), qdq, "make_bd"),
    case("axis", lambda: qdq(axis=1), qdq, "make_wd", "jetson-orin", "arm-cpu", silent=True),
    case("axis", lambda: qdq(axis=2), lambda: qdq(axis=-4), "make_wd", "jetson-orin", "arm-cpu", said="[4, 4, 3, 3]"),
    case("axis", lambda: qdq(axis=9), qdq, "make_wd", "jetson-orin", "arm-cpu"),
    case("axis", lambda: matmul(0), lambda: matmul(1), "make_wd", "jetson-orin", "arm-cpu", silent=True),
    case("axis", lambda: qdq(scale=np.full(4, 0.1)), qdq, "make_q", said="activation", silent=True),
    case("signed-attention", lambda: attention(21), lambda: attention(20), "make_scores", "arm-cpu", also=["opset"]),
    case("per-tensor-weights", lambda: qdq(per_tensor=True), qdq, "make_wd", "jetson-orin", "arm-cpu"),
    case("slow-activations", qdq, lambda: qdq(activations=np.uint8, zero=128), "make_q", "x86-cpu"),
    case("slow-activations", lambda: qdq(activations=np.uint8, zero=128), qdq, "make_q", "arm-cpu"),
    case("float-residual", lambda: residual(skip=False), lambda: residual(skip=True), "make_y"),
    case("float-residual", lambda: residual(skip=True), lambda: residual(skip=True, branch=True), "make_y", "arm-cpu"),
    case("quantized-kind", qdq, plain, "make_q", *ALL, kind="head", also=["slow-activations"]),
    case("decomposed-normalization", lambda: normalization(HALF), lambda: normalization(FLOAT), "make_d2"),
    case("decomposed-normalization", lambda: normalization(HALF, root="Reciprocal"), fused, "make_d2"),
    case("fp16-recurrent", lambda: recurrent(dtype=HALF), recurrent, "make_y"),
    case("fp16-recurrent", lambda: recurrent("LSTM", HALF), lambda: recurrent("LSTM"), "make_y"),
]  # fmt: skip
GOOD_TARGET = {("dtype", "z", "jetson-orin"): "jetson-thor"}
"""Where the same graph is right on another machine."""


def findings(made: onnx.ModelProto, name: str, kind: Kind = "encoder") -> tuple[Finding, ...]:
    return lint(made.SerializeToString(), target(name), kind=kind, name="encoder")


@pytest.mark.parametrize("broken", CASES, ids=str)
def test_a_broken_rule_is_found_where_it_is_and_no_other_rule_cries(broken: Case) -> None:
    """The finding names rule, node and remedy; of the other rules only those that such a graph breaks too."""
    for name in broken.targets:
        found = findings(broken.bad(), name, broken.kind)
        [first, *_] = [finding for finding in found if finding.rule == broken.rule]
        assert first.node == broken.at
        assert broken.said in str(first)
        assert first.remedy
        assert {finding.rule for finding in found} <= {broken.rule, *broken.also}


@pytest.mark.parametrize("broken", CASES, ids=str)
def test_the_same_graph_without_the_fault_passes(broken: Case) -> None:
    """No rule finds anything at all in it."""
    for name in broken.targets:
        elsewhere = GOOD_TARGET.get((broken.rule, broken.at, name), name)
        assert findings(broken.good(), elsewhere, broken.kind) == ()


def test_every_rule_has_its_graphs() -> None:
    """A rule without a test is not a rule."""
    assert {rule.name for rule in RULES} == {broken.rule for broken in CASES}
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_the_good_graphs_are_valid_onnx() -> None:
    """ONNX's own checker has nothing against what the rules pass."""
    for broken in CASES:
        onnx.checker.check_model(broken.good(), full_check=True)


def test_the_x86_form_is_legal_on_x86_alone() -> None:
    """Asymmetric uint8 with int32 biases: what ONNX Runtime is fastest at, TensorRT refuses three times over."""
    made = qdq(activations=np.uint8, zero=128, bias=True)
    assert findings(made, "x86-cpu") == ()
    assert {finding.rule for finding in findings(made, "jetson-orin")} == {"zero-point", "qdq-uint8", "int32-bias"}


def test_errors_come_before_warnings() -> None:
    """What stops an export is read first."""
    made = qdq(per_tensor=True, zero=3)
    assert [finding.severity for finding in findings(made, "rtx")] == ["error", "error", "warning"]


def test_a_finding_reads_as_a_sentence_with_its_remedy() -> None:
    """As it is printed by the export."""
    [first, _] = findings(qdq(zero=3), "rtx")
    assert str(first) == (
        "error zero-point at 'make_q': the zero-point 'z' is not zero. To mend it: quantize symmetrically: the "
        "tensorrt form"
    )


def test_a_graph_above_two_gigabytes_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """protobuf cannot read it, and would say something else."""
    monkeypatch.setattr(linter, "_LIMIT", 10)
    [found] = lint(b"x" * 11, target("rtx"), kind="encoder", name="encoder")
    assert (found.rule, found.severity) == ("size", "error")


def test_what_is_no_onnx_model_is_an_error_with_the_components_name() -> None:
    """And not a traceback out of protobuf."""
    with pytest.raises(TraceError, match="the graph of 'encoder' is not an ONNX model"):
        lint(b"rubbish", target("rtx"), kind="encoder", name="encoder")


# --- against NVIDIA's own parser -------------------------------------------------------------------------------------


def refusals() -> Iterator[Case]:
    """What Jetson Orin refuses because of TensorRT, and not because of ourselves or of an older TensorRT."""
    ours = {"names", "initializer-inputs", "external-data", "dynamic-dims", "opset", "int4", "decomposed-normalization"}
    errors = {rule.name for rule in RULES if rule.severity == "error"} - ours
    return (
        found for found in CASES if found.rule in errors and found.targets[0] == "jetson-orin" and found.said != "If"
    )


@pytest.mark.needs("tensorrt_rtx_bindings")
@pytest.mark.parametrize("broken", list(refusals()), ids=str)
def test_tensorrt_refuses_what_the_linter_refuses_but_for_the_silent_traps(broken: Case) -> None:
    """An independent judge, NVIDIA's parser and builder; and it takes the graph without the fault."""
    elsewhere = GOOD_TARGET.get((broken.rule, broken.at, "jetson-orin"), "jetson-orin")
    assert accepted(broken.good().SerializeToString(), elsewhere)
    assert accepted(broken.bad().SerializeToString(), "jetson-orin") == broken.silent


@functools.cache
def accepted(graph: bytes, name: str) -> bool:
    check = check_trt(graph, target(name), kind="encoder", name="e")
    assert check.checked, check
    return check.accepted


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_the_list_of_operators_is_what_tensorrts_parser_says_it_knows() -> None:
    """Every operator that is allowed is known to the parser; of the standard ones, only those with a reason are not."""
    import tensorrt_rtx_bindings as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    parser = trt.OnnxParser(builder.create_network(0), logger)
    engine = target("rtx").engine
    assert [op for op in engine.ops if not parser.supports_operator(op)] == []
    later = {schema.name for schema in onnx.defs.get_all_schemas() if schema.since_version > engine.opset}
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    known = {op for op in standard - later if parser.supports_operator(op)}
    # Windows come constant-folded; Scatter and Upsample were replaced long ago.
    left_out = {"BlackmanWindow", "HammingWindow", "HannWindow", "Scatter", "Upsample"}
    assert known - {*engine.ops} - {*engine.denied} <= left_out
