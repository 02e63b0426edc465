"""ONNX components: repaired where they can be, held against the original one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.errors import EdgeMbmError, RecipeError, TraceError
from edge_mbm.export.origins import onnx_model
from edge_mbm.export.origins.onnx_model import GraphOrigin, load_onnx
from edge_mbm.export.recipe import EncoderRecipe, Normalize, OnnxModel, StateRecipe
from edge_mbm.export.speed import Probe
from edge_mbm.spec import Embedding

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Edges: TypeAlias = "Sequence[tuple[str, int, Sequence[int | str]]]"
Make: TypeAlias = Callable[..., GraphOrigin]
RELU = helper.make_node("Relu", ["x"], ["y"])
X = ("x", FLOAT, ["n", 3])
Y = ("y", FLOAT, ["n", 3])
RNG = np.random.default_rng(0)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Edges = (X,),
    outputs: Edges = (Y,),
    weights: Sequence[TensorProto] = (),
    *,
    opset: int = 20,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    edges = [[helper.make_tensor_value_info(*edge) for edge in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "main", *edges, list(weights))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def constant(name: str, value: object, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


@pytest.fixture(autouse=True)
def fault(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Strangers run in this process only, for speed; what is put in here is what the other would have said."""
    faults: list[str] = []
    monkeypatch.setattr(
        onnx_model, "probe", lambda graphs, inputs, extended: Probe({"part": next(iter(faults), None)}, {})
    )
    return faults


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A component of a graph; its recipe's names are the graph's unless told otherwise."""

    def make(
        graph: onnx.ModelProto,
        inputs: Sequence[str] = ("x",),
        outputs: Sequence[str] = ("y",),
        states: Sequence[StateRecipe] = (),
        **source: Any,
    ) -> GraphOrigin:
        (tmp_path / "x.onnx").write_bytes(graph.SerializeToString())
        recipe = EncoderRecipe(
            module="",
            inputs=dict.fromkeys(inputs, "image"),
            outputs=dict.fromkeys(outputs, Embedding()),
            states=tuple(states),
        )
        return load_onnx(OnnxModel(path="x.onnx", **source), tmp_path, "model", 20).component("part", recipe)

    return make


def run(graph: bytes, *inputs: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return list(session.run(None, {v.name: value for v, value in zip(session.get_inputs(), inputs, strict=True)}))


def repaired(origin: GraphOrigin, *like: np.ndarray) -> onnx.ModelProto:
    """What becomes of it for such inputs."""
    origin.run(dict(zip((edge.key for edge in origin._inputs), like, strict=True)))
    graph = onnx.load_model_from_string(origin.repaired.graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def dims(value: Any) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]


# --- sizes -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 9), height=st.integers(4, 20), width=st.integers(4, 20))
def test_sizes_that_are_declared_and_false_are_freed(
    tmp_path_factory: pytest.TempPathFactory, batch: int, height: int, width: int
) -> None:
    """Whatever was declared, the graph runs at any batch and at the recipe's size, with the same values."""
    weights = [constant("w", np.ones((2, 3, 3, 3)) / 9)]
    edges = [("x", FLOAT, [10, 3, 32, 32])], [("y", FLOAT, [10, 2, 32, 32])]
    stranger = model([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], *edges, weights, opset=11)
    folder = tmp_path_factory.mktemp("sizes")
    (folder / "x.onnx").write_bytes(stranger.SerializeToString())
    recipe = EncoderRecipe(module="", inputs={"x": "image"}, outputs={"y": Embedding()})
    origin = load_onnx(OnnxModel(path="x.onnx"), folder, "model", 20).component("part", recipe)
    graph = repaired(origin, floats(2, 3, height, width))
    assert dims(graph.graph.input[0]) == ["batch", 3, height, width]
    assert dims(graph.graph.output[0]) == ["batch", 2, height, width]
    x = floats(batch, 3, height, width)
    import torch

    want = torch.conv2d(torch.from_numpy(x), torch.full((2, 3, 3, 3), 1 / 9), padding=1).numpy()
    np.testing.assert_allclose(run(graph.SerializeToString(), x)[0], want, atol=1e-5)
    assert "'x' was declared [10, 3, 32, 32], and is ['batch', 3" in "".join(origin.repaired.notes)


def test_a_reshape_to_the_declared_batch_is_loosened(make: Make) -> None:
    """Its leading size was the exporter's example."""
    stranger = model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [("x", FLOAT, [1, 6])],
        [("y", FLOAT, [1, 2, 3])],
        [constant("s", [1, 2, 3], np.int64)],
    )
    origin = make(stranger)
    x = floats(4, 6)
    assert np.array_equal(run(repaired(origin, x[:2]).SerializeToString(), x)[0], x.reshape(4, 2, 3))
    assert origin.repaired.batch_free


def test_samples_that_meet_are_taken_one_at_a_time(make: Make) -> None:
    """Here each is divided by the loudest of the batch: the original, one by one, is what counts."""
    nodes = [helper.make_node("ReduceMax", ["x"], ["m"]), helper.make_node("Div", ["x", "m"], ["y"])]
    origin = make(model(nodes))
    x = np.abs(floats(3, 3)) + 1
    assert np.allclose(origin.run({"x": x})["y"], x / x.max(1, keepdims=True))
    assert not origin.repaired.batch_free
    assert "the batch is fixed at 1: with 2 samples at once 'y' is not what the original gives" in str(
        origin.repaired.notes
    )
    graph = onnx.load_model_from_string(origin.repaired.graph)
    assert dims(graph.graph.input[0]) == [1, 3]
    assert dims(graph.graph.output[0]) == [1, 3]


def test_a_batch_can_be_fixed_by_the_recipe(make: Make) -> None:
    """Where only recordings would show that samples meet."""
    origin = make(model([RELU]), batch="one")
    assert dims(repaired(origin, floats(2, 3)).graph.input[0]) == [1, 3]


def test_a_graph_that_does_not_take_the_recipes_size_is_refused(make: Make) -> None:
    """With its shapes, as the engine puts it."""
    origin = make(model([helper.make_node("Add", ["x", "w"], ["y"])], weights=[constant("w", [1, 2, 3])]))
    with pytest.raises(RecipeError, match=r"components\.part, model: .*cannot run .* on \{'x': 'float32\[1, 4\]'\}"):
        origin.run({"x": floats(2, 4)})


def test_a_graph_that_ends_the_process_is_refused(make: Make, fault: list[str]) -> None:
    """It is run in another one first."""
    fault.append("ended the process by signal 11")
    with pytest.raises(
        RecipeError, match=r"given \{'x': 'float32\[1, 3\]'\}, the graph ended the process by signal 11"
    ):
        make(model([RELU])).run({"x": floats(2, 3)})


# --- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_camera_image_gets_the_graphs_layout(make: Make, layout: str) -> None:
    """Its declared shape tells which; type and values follow the recipe."""
    shape = ["n", 3, 5, 4] if layout == "NCHW" else ["n", 5, 4, 3]
    origin = make(
        model([RELU], [("x", FLOAT, shape)], [("y", FLOAT, shape)]),
        normalize={"x": Normalize(mean=(1.0, 2.0, 3.0), std=(4.0,))},
    )
    image = RNG.integers(0, 256, (2, 5, 4, 3), np.uint8)
    want = np.maximum((image - np.float32([1, 2, 3])) / 4, 0)
    want = want.transpose(0, 3, 1, 2) if layout == "NCHW" else want
    graph = repaired(origin, image)
    assert graph.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert dims(graph.graph.input[0]) == ["batch", 5, 4, 3]
    np.testing.assert_allclose(run(graph.SerializeToString(), image)[0], want, atol=1e-5)
    np.testing.assert_allclose(origin.run({"x": image})["y"], want, atol=1e-5)
    assert origin.channels_last == (layout == "NHWC")


def test_a_layout_that_cannot_be_told_must_be_given(make: Make) -> None:
    """Nothing is guessed."""
    stranger = model([RELU], [("x", FLOAT, ["n", "c", "h", "w"])], [("y", FLOAT, ["n", "c", "h", "w"])])
    image = np.zeros((2, 5, 4, 3), np.uint8)
    with pytest.raises(RecipeError, match=r"cannot be told where its 3 channels are: .* layout = 'NCHW' or 'NHWC'"):
        make(stranger).run({"x": image})
    assert make(stranger, layout="NCHW").run({"x": image})["y"].shape == (2, 3, 5, 4)


def test_axes_of_length_1_may_lie_elsewhere(make: Make) -> None:
    """Another component's [batch, 1, 4, 3] into [batch, 4, 3, 1], and nothing that would move a value."""
    shape = ["n", 4, 3, 1]
    x = floats(2, 1, 4, 3)
    graph = repaired(make(model([RELU], [("x", FLOAT, shape)], [("y", FLOAT, shape)])), x)
    assert np.array_equal(run(graph.SerializeToString(), x)[0], np.maximum(x, 0).reshape(2, 4, 3, 1))
    columns = helper.make_node("Add", ["x", "w"], ["y"])
    wide = model([columns], [("x", FLOAT, ["n", 3, 4])], [("y", FLOAT, ["n", 3, 4])], [constant("w", np.ones((3, 4)))])
    with pytest.raises(RecipeError, match="cannot run"):
        make(wide).run({"x": floats(2, 4, 3)})


def test_weights_listed_as_inputs_are_none(make: Make) -> None:
    """As older exporters list them."""
    stranger = model(
        [helper.make_node("Add", ["x", "w"], ["y"])], (X, ("w", FLOAT, [3])), weights=[constant("w", [1, 2, 3])]
    )
    graph = repaired(make(stranger), floats(2, 3))
    assert [value.name for value in graph.graph.input] == ["x"]
    x = floats(2, 3)
    assert np.allclose(run(graph.SerializeToString(), x)[0], x + [1, 2, 3])


def test_an_input_that_never_changes_is_a_constant(make: Make) -> None:
    """A scalar, of the type that the graph has it in; a name that is no input is refused."""
    stranger = model(
        [helper.make_node("Cast", ["k"], ["f"], to=FLOAT), helper.make_node("Mul", ["x", "f"], ["y"])],
        (X, ("k", INT64, [])),
    )
    graph = repaired(make(stranger, constants={"k": 3}), floats(2, 3))
    x = floats(2, 3)
    assert np.allclose(run(graph.SerializeToString(), x)[0], 3 * x)
    with pytest.raises(RecipeError, match=r"model\.constants names 'rate'; the graph's inputs are \['x', 'k'\]"):
        make(stranger, constants={"rate": 3})


def test_states_are_carried_along_their_own_axis(make: Make) -> None:
    """A batch in the middle of a state is freed there."""
    nodes = [
        helper.make_node("ReduceSum", ["s", "axes"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
        helper.make_node("Add", ["s", "s"], ["t"]),
    ]
    edges = (X, ("s", FLOAT, [2, 1, 3])), (Y, ("t", FLOAT, [2, 1, 3]))
    state = StateRecipe(input="s", output="t", shape=(2, "batch", 3))
    origin = make(model(nodes, *edges, weights=[constant("axes", [0], np.int64)]), states=[state])
    x, s = floats(2, 3), floats(2, 2, 3)
    graph = repaired(origin, x, s)
    assert dims(graph.graph.input[1]) == dims(graph.graph.output[1]) == [2, "batch", 3]
    y, t = run(graph.SerializeToString(), x, s)
    assert np.allclose(y, x + s.sum(0))
    assert np.allclose(t, 2 * s)
    with pytest.raises(RecipeError, match=r"states\.s\.shape is \[2, 1, 3\]: say where the batch goes"):
        make(model(nodes, *edges), states=[StateRecipe(input="s", output="t", shape=(2, 1, 3))])


def test_names_go_before_order(make: Make) -> None:
    """By name where all are the graph's, else by order; of outputs by name some may be left out."""
    nodes = [helper.make_node("Neg", ["a"], ["n"]), helper.make_node("Abs", ["b"], ["m"])]
    edges = [("a", FLOAT, ["n", 3]), ("b", FLOAT, ["n", 3])], [("n", FLOAT, ["n", 3]), ("m", FLOAT, ["n", 3])]
    one, two = floats(2, 3), floats(2, 3)
    named = make(model(nodes, *edges), ["b", "a"], ["m", "n"]).run({"b": one, "a": two})
    assert np.array_equal(named["m"], np.abs(one))
    assert np.array_equal(named["n"], -two)
    ordered = make(model(nodes, *edges), ["first", "second"], ["k", "l"]).run({"first": one, "second": two})
    assert np.array_equal(ordered["k"], -one)
    some = make(model(nodes, *edges), ["a", "b"], ["m"])
    graph = repaired(some, one, two)
    assert [node.op_type for node in graph.graph.node] == ["Abs"]
    with pytest.raises(RecipeError, match=r"the graph's inputs are \['a', 'b'\], the recipe names \['a'\]"):
        make(model(nodes, *edges), ["a"], ["m"])
    with pytest.raises(RecipeError, match=r"the graph's outputs are \['n', 'm'\], the recipe names \['k'\]"):
        make(model(nodes, *edges), ["a", "b"], ["k"])


@pytest.mark.parametrize(
    ("edges", "given_", "said"),
    [
        (((X,), (Y,)), np.zeros((2, 3), np.int64), "input 'x' is int64, the graph's float32"),
        (
            ((("x", TensorProto.DOUBLE, ["n", 3]),), (("y", TensorProto.DOUBLE, ["n", 3]),)),
            np.zeros((2, 3), np.float64),
            r"'part\.y' is float64, a bundle's tensors are bool",
        ),
    ],
)
def test_types_that_do_not_fit_are_refused(make: Make, edges: tuple[Edges, Edges], given_: Any, said: str) -> None:
    """Both ways."""
    with pytest.raises(RecipeError, match=said):
        make(model([RELU], *edges)).run({"x": given_})


# --- branches --------------------------------------------------------------------------------------------------------


def branch(name: str, *nodes: onnx.NodeProto, weights: Sequence[TensorProto] = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info("r", FLOAT, None)], list(weights))


def choosing(condition: Sequence[onnx.NodeProto], more: Edges = ()) -> onnx.ModelProto:
    """x + 1 + 1 where "c" holds, else -x; the inner names are the same in both, and in a branch inside the first."""
    inner = branch("inner", helper.make_node("Add", ["q", "w"], ["r"]), weights=[constant("w", 1)])
    other = branch("other", helper.make_node("Identity", ["q"], ["r"]))
    then = branch(
        "then",
        helper.make_node("Add", ["x", "w"], ["q"]),
        helper.make_node("If", ["c"], ["r"], then_branch=inner, else_branch=other),
        weights=[constant("w", 1)],
    )
    otherwise = branch("else", helper.make_node("Neg", ["x"], ["q"]), helper.make_node("Identity", ["q"], ["r"]))
    nodes = [*condition, helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise)]
    return model(nodes, (X, *more), weights=[constant("one", 1, np.int64), constant("rank", 2, np.int64)])


OF_SHAPE = (
    helper.make_node("Shape", ["x"], ["shape"]),
    helper.make_node("Size", ["shape"], ["size"]),
    helper.make_node("Equal", ["size", "rank"], ["c"]),
)


@pytest.mark.parametrize("value", [1, 2])
def test_a_branch_on_a_constant_is_settled(make: Make, value: int) -> None:
    """With the branches inside it, and their names kept apart."""
    stranger = choosing([helper.make_node("Equal", ["k", "one"], ["c"])], [("k", INT64, [])])
    x = floats(3, 3)
    graph = repaired(make(stranger, constants={"k": value}), x)
    assert "If" not in {node.op_type for node in graph.graph.node}
    assert np.allclose(run(graph.SerializeToString(), x)[0], x + 2 if value == 1 else -x)


def test_a_branch_on_a_rank_is_settled(make: Make) -> None:
    """As scripted models ask for it."""
    x = floats(3, 3)
    graph = repaired(make(choosing(OF_SHAPE)), x)
    assert "If" not in {node.op_type for node in graph.graph.node}
    assert np.allclose(run(graph.SerializeToString(), x)[0], x + 2)


def test_a_branch_on_the_batch_fixes_it(make: Make) -> None:
    """At 1 it is no branch any more, and TensorRT takes no other."""
    first = (
        helper.make_node("Shape", ["x"], ["shape"], end=1),
        helper.make_node("Squeeze", ["shape"], ["size"]),
        helper.make_node("Equal", ["size", "one"], ["c"]),
    )
    origin = make(choosing(first))
    graph = repaired(origin, floats(2, 3))
    assert not origin.repaired.batch_free
    assert "If" not in {node.op_type for node in graph.graph.node}
    assert np.allclose(run(graph.SerializeToString(), np.ones((1, 3), np.float32))[0], 3)


def test_a_branch_on_values_stays(make: Make) -> None:
    """Whichever way random values take it."""
    values = (
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Abs", ["sum"], ["size"]),
        helper.make_node("GreaterOrEqual", ["size", "zero"], ["c"]),
    )
    stranger = choosing(values)
    stranger.graph.initializer.append(constant("zero", 0))
    assert "If" in {node.op_type for node in repaired(make(stranger), floats(2, 3)).graph.node}


# --- operators and versions ------------------------------------------------------------------------------------------


def test_nodes_in_disorder_are_sorted(make: Make) -> None:
    """ONNX Runtime runs such a graph; the standard, and TensorRT's parser, want each after what it reads."""
    nodes = [helper.make_node("Neg", ["h"], ["y"]), helper.make_node("Abs", ["x"], ["h"])]
    graph = repaired(make(model(nodes)), floats(2, 3))
    assert [node.op_type for node in graph.graph.node] == ["Abs", "Neg"]


@pytest.mark.parametrize("opset", [9, 13, 17, 20])
def test_older_opsets_are_converted(make: Make, opset: int) -> None:
    """Softmax meant another thing before 13."""
    shape = ["n", 2, 3]
    edges = [("x", FLOAT, shape)], [("y", FLOAT, shape)]
    x = floats(3, 2, 3)
    stranger = model([helper.make_node("Softmax", ["x"], ["y"], axis=1)], *edges, opset=opset)
    graph = repaired(make(stranger), x)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 20)]
    axes = (1, 2) if opset < 13 else 1
    want = np.exp(x) / np.exp(x).sum(axis=axes, keepdims=True)
    np.testing.assert_allclose(run(graph.SerializeToString(), x)[0], want, atol=1e-6)


def test_a_models_own_functions_are_put_in_place(make: Make) -> None:
    """They are of standard operators."""
    body = [helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function("mine", "Flip", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    nodes = [helper.make_node("Flip", ["x"], ["y"], domain="mine")]
    graph = repaired(make(model(nodes, domains=["mine"], functions=[function])), floats(2, 3))
    assert [node.op_type for node in graph.graph.node] == ["Neg"]


@pytest.mark.parametrize(
    ("stranger", "said"),
    [
        (
            model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], domains=["com.microsoft"]),
            r"uses operators of \{'com\.microsoft': \['Gelu'\]\}",
        ),
        (model([RELU], opset=21), "is of opset 21, newer than this recipe's 20"),
    ],
)
def test_what_not_all_engines_take_is_refused(make: Make, stranger: onnx.ModelProto, said: str) -> None:
    """Operators by name, versions with the newest that goes."""
    with pytest.raises(TraceError, match=said):
        make(stranger).run({"x": floats(2, 3)})


def test_a_graph_that_no_engine_loads_is_refused(make: Make) -> None:
    """With the component, not a traceback."""
    with pytest.raises(EdgeMbmError, match="cannot load the graph of 'part'"):
        make(model([helper.make_node("NoSuchOperator", ["x"], ["y"])])).run({"x": floats(2, 3)})


def test_a_quantized_graph_is_kept_as_it_is(make: Make) -> None:
    """And known to be one, so that nothing quantizes it again."""
    weights = [constant("s", 0.05), constant("z", 3, np.uint8)]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    origin = make(model(nodes, weights=weights, opset=13))
    graph = repaired(origin, floats(2, 3))
    assert origin.quantized
    assert [node.op_type for node in graph.graph.node] == ["QuantizeLinear", "DequantizeLinear"]
    assert not make(model([RELU])).quantized


def test_the_same_file_gives_the_same_bytes(make: Make) -> None:
    """Bundles are compared by them; the digest is of the file's content."""
    one, two = make(choosing(OF_SHAPE)), make(choosing(OF_SHAPE))
    assert repaired(one, floats(2, 3)).SerializeToString() == repaired(two, floats(2, 3)).SerializeToString()
    assert one._file.sha256() == two._file.sha256() != make(model([RELU]))._file.sha256()
