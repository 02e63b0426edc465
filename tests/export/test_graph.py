"""Graphs as a bundle wants them: named by the manifest, checked against it, the same bytes wherever they were made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.errors import ExportError, TraceError
from edge_mbm.export.graph import check_graph, fold, normalize
from edge_mbm.export.skeleton import Skeleton
from edge_mbm.spec import Embedding, Encoder, Input, Output, State, TensorSpec

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8


def component(*, batch: int | str = "batch", state: bool = False) -> Skeleton:
    """``x`` float32[batch, 2] to ``y`` of the same; a state besides."""
    spec = TensorSpec(dtype="float32", shape=(batch, 2))
    return Encoder(
        inputs={"x": Input(source="imu", tensor=spec)},
        outputs={"y": Output(tensor=spec, task=Embedding())},
        variants={},
        states=(State(input="s", output="t", tensor=spec),) if state else (),
    )


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    *,
    weights: Sequence[onnx.TensorProto] = (),
    batch: int | str = "batch",
    dtype: int = FLOAT,
    domains: Sequence[str] = ("",),
) -> bytes:
    edges = [[helper.make_tensor_value_info(n, dtype, [batch, 2]) for n in names] for names in (inputs, outputs)]
    graph = helper.make_graph(nodes, "main", *edges, list(weights))
    opsets = [helper.make_opsetid(domain, 20 if domain == "" else 1) for domain in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def constant(name: str, value: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def run(graph: bytes, **inputs: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


X = np.array([[1, -2], [3, 4], [-5, 6]], np.float32)

# --- names -----------------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_get_the_manifests_names() -> None:
    """By their order; names may even be exchanged; the batch is called batch, and what is computed is the same."""
    nodes = [helper.make_node("Neg", ["t"], ["s"], name="a"), helper.make_node("Abs", ["y"], ["x"], name="b")]
    graph = normalize(model(nodes, ["y", "t"], ["s", "x"], batch="s77"), component(state=True), "part")
    parsed = onnx.load_model_from_string(graph).graph
    assert [value.name for value in (*parsed.input, *parsed.output)] == ["x", "s", "y", "t"]
    assert {d.dim_param for v in parsed.input for d in v.type.tensor_type.shape.dim[:1]} == {"batch"}
    neg, absolute = run(graph, x=X, s=2 * X)
    assert np.array_equal(neg, -2 * X)
    assert np.array_equal(absolute, np.abs(X))
    check_graph(graph, component(state=True), "part")


def test_who_has_an_edges_name_steps_aside() -> None:
    """Inner values and weights, to names that nobody has, not even another edge."""
    spec = TensorSpec(dtype="float32", shape=("batch", 2))
    wanted = Encoder(
        inputs={"y_inner": Input(source="imu", tensor=spec)},
        outputs={"y": Output(tensor=spec, task=Embedding())},
        variants={},
    )
    nodes = [helper.make_node("Add", ["a", "y"], ["z"]), helper.make_node("Relu", ["z"], ["b"])]
    graph = normalize(model(nodes, ["a"], ["b"], weights=[constant("y", [1, 1])]), wanted, "part")
    check_graph(graph, wanted, "part")
    assert np.array_equal(run(graph, y_inner=X)[0], np.maximum(X + 1, 0))


def test_names_inside_branches_follow() -> None:
    """What an inner graph takes from the outer one is renamed there too."""
    outs = [helper.make_tensor_value_info("r", FLOAT, ["batch", 2])]
    then = helper.make_graph([helper.make_node("Relu", ["a"], ["r"])], "then", [], outs)
    other = helper.make_graph([helper.make_node("Neg", ["a"], ["r"])], "else", [], outs)
    weights = [constant("c", True, np.bool_)]
    nodes = [helper.make_node("If", ["c"], ["b"], then_branch=then, else_branch=other)]
    graph = normalize(model(nodes, ["a"], ["b"], weights=weights), component(), "part")
    assert np.array_equal(run(graph, x=X)[0], np.maximum(X, 0))


def test_nothing_tells_where_it_was_made() -> None:
    """Producers, documentation, stack traces and node names differ; the bytes do not."""
    plain = model([helper.make_node("Relu", ["a"], ["b"])], ["a"], ["b"])
    told = onnx.load_model_from_string(plain)
    told.producer_name, told.producer_version, told.domain, told.doc_string = "torch", "9", "org", "made at /home/me"
    told.graph.doc_string = told.graph.node[0].doc_string = told.graph.input[0].doc_string = "/home/me/model.py"
    told.graph.node[0].name = "layers.0"
    for message in (told, told.graph, told.graph.node[0]):
        helper.set_metadata_props(message, {"pkg.torch.onnx.stack_trace": "/home/me"})
    told.graph.value_info.append(helper.make_tensor_value_info("q", FLOAT, [1]))
    assert normalize(told.SerializeToString(), component(), "part") == normalize(plain, component(), "part")
    assert b"/home/me" not in normalize(told.SerializeToString(), component(), "part")


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (model([helper.make_node("Relu", ["x"], ["y"])]), r"'part' became a graph of inputs \['x'\] .* the recipe has"),
        (b"not a graph", "the graph of 'part' is not an ONNX model"),
    ],
    ids=["an input less", "no graph"],
)
def test_what_has_other_edges_is_refused(graph: bytes, said: str) -> None:
    """An argument that forward does not use is no input of the graph."""
    with pytest.raises(TraceError, match=said):
        normalize(graph, component(state=True), "part")


# --- checks ----------------------------------------------------------------------------------------------------------

RELU = helper.make_node("Relu", ["x"], ["y"])


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (model([RELU], batch=2), "axis 0 of input 'x' came out fixed at 2, not free"),
        (model([RELU], dtype=TensorProto.DOUBLE), r"input 'x' is another tensor than float32\['batch', 2\]"),
        (model([helper.make_node("Relu", ["a"], ["y"])], ["a"]), r"its inputs are \['a'\], the recipe names \['x'\]"),
        (
            model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], domains=("", "com.microsoft")),
            r"operators of \{'com.microsoft': \['Gelu'\]\}",
        ),
        (
            model([helper.make_node("Add", ["x", "w"], ["y"])], weights=[constant("w", [1, np.nan])]),
            "the weights 'w' have NaN values",
        ),
        (model([helper.make_node("Relu", ["nowhere"], ["y"])]), "is not valid ONNX"),
        (model([helper.make_node("NoSuchOperator", ["x"], ["y"])]), "is not valid ONNX"),
    ],
    ids=["batch", "dtype", "names", "domain", "nan", "dangling", "operator"],
)
def test_a_graph_is_held_against_the_manifest(graph: bytes, said: str) -> None:
    """Names, dtypes, sizes, standard operators, numbers for weights: with the component's name."""
    with pytest.raises(TraceError, match=said) as caught:
        check_graph(graph, component(), "part")
    assert "'part'" in str(caught.value)


def test_another_size_is_refused() -> None:
    """One that the manifest fixes."""
    spec = TensorSpec(dtype="float32", shape=("batch", 3))
    wanted = Encoder(
        inputs={"x": Input(source="imu", tensor=spec)},
        outputs={"y": Output(tensor=spec, task=Embedding())},
        variants={},
    )
    with pytest.raises(TraceError, match="axis 1 of input 'x' is 2, expected 3"):
        check_graph(model([RELU]), wanted, "part")


def test_weights_in_another_file_are_refused() -> None:
    """A bundle's graphs carry theirs."""
    graph = onnx.load_model_from_string(
        model([helper.make_node("Add", ["x", "w"], ["y"])], weights=[constant("w", [1, 2])])
    )
    onnx.external_data_helper.set_external_data(graph.graph.initializer[0], "elsewhere.bin")
    with pytest.raises(TraceError, match="'part'"):
        check_graph(graph.SerializeToString(), component(), "part")


def test_infinity_is_a_constant_like_any_other() -> None:
    """Attention masks are made of it."""
    check_graph(
        model([helper.make_node("Max", ["x", "w"], ["y"])], weights=[constant("w", [-np.inf, 0])]), component(), "part"
    )


# --- folding ---------------------------------------------------------------------------------------------------------


def batch_normalized() -> bytes:
    rng = np.random.default_rng(0)
    weights = [
        constant("w", rng.normal(0, 1, (4, 2, 1, 1))),
        constant("b", rng.normal(0, 1, 4)),
        *(constant(name, rng.uniform(0.5, 2, 4)) for name in ("scale", "shift", "mean", "var")),
        constant("axes", [2, 3], np.int64),
        constant("pick", [0, 1], np.int64),
    ]
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["x4"]),
        helper.make_node("Conv", ["x4", "w", "b"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Squeeze", ["n", "axes"], ["n2"]),
        helper.make_node("Gather", ["n2", "pick"], ["y"], axis=1),
    ]
    return model(nodes, weights=weights)


def test_folding_merges_normalisation_into_convolutions() -> None:
    """The same numbers from fewer, standard operators, with the batch still free and the edges' names kept."""
    graph = batch_normalized()
    folded = fold(graph, "part")
    assert "BatchNormalization" in {node.op_type for node in onnx.load_model_from_string(graph).graph.node}
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_model_from_string(folded).graph.node}
    np.testing.assert_allclose(run(folded, x=X)[0], run(graph, x=X)[0], rtol=1e-5)
    check_graph(folded, component(), "part")
    assert fold(graph, "part") == folded


def test_what_does_not_load_is_told() -> None:
    """With the component's name and one line of the engine's words."""
    with pytest.raises(ExportError, match="ONNX Runtime cannot load the graph of 'part': ") as caught:
        fold(model([helper.make_node("NoSuchOperator", ["x"], ["y"])]), "part")
    assert "\n" not in str(caught.value)
