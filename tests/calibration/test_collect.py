"""The collector sees the graph's own tensors: numpy, step by step, is the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.calibration import Collector, MinMax, TensorRanges, observable
from edge_mbm.errors import CalibrationError

pytestmark = pytest.mark.needs("onnx", "onnxruntime")

WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25]], np.float32)
BIAS = np.array([0.5, -0.25], np.float32)
Value = tuple[str, int, Sequence[str | int]]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    *,
    constants: dict[str, np.ndarray] | None = None,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def streaming() -> bytes:
    """uint8 features and a carried state: every kind of tensor that must or must not be observed."""
    return model(
        [
            helper.make_node("Cast", ["x"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(np.float32(0.5))),
            helper.make_node("Mul", ["scale", "bias"], ["half_bias"]),
            helper.make_node("Mul", ["real", "scale"], ["scaled"]),
            helper.make_node("MatMul", ["scaled", "weight"], ["product"]),
            helper.make_node("Add", ["product", "half_bias"], ["biased"]),
            helper.make_node("Add", ["biased", "state"], ["summed"]),
            helper.make_node("Relu", ["summed"], ["next_state"]),
            helper.make_node("ArgMax", ["next_state"], ["best"], axis=1),
        ],
        [("x", TensorProto.UINT8, ["batch", 3]), ("state", TensorProto.FLOAT, ["batch", 2])],
        [("next_state", TensorProto.FLOAT, ["batch", 2]), ("best", TensorProto.INT64, ["batch", 1])],
        constants={"weight": WEIGHT, "bias": BIAS},
    )


OBSERVED = ("state", "real", "scaled", "product", "biased", "summed", "next_state")


def by_hand(x: np.ndarray, state: np.ndarray) -> dict[str, np.ndarray]:
    found = {"state": state, "real": x.astype(np.float32)}
    found["scaled"] = found["real"] * np.float32(0.5)
    found["product"] = found["scaled"] @ WEIGHT
    found["biased"] = found["product"] + BIAS * np.float32(0.5)
    found["summed"] = found["biased"] + state
    found["next_state"] = np.maximum(found["summed"], 0)
    return found


def test_the_activations_are_found_in_order() -> None:
    """Float inputs and node outputs; no integers, no weights, nothing that is computed from constants alone."""
    changed, names = observable(streaming())
    assert names == OBSERVED
    outputs = [output.name for output in onnx.load_model_from_string(changed).graph.output]
    assert outputs == ["next_state", "best", *OBSERVED[:-1]]


def test_only_outputs_are_added() -> None:
    """Nodes, weights and inputs of the observed model are the graph's own, bit for bit."""
    before, after = (onnx.load_model_from_string(graph) for graph in (streaming(), observable(streaming())[0]))
    del before.graph.output[:], after.graph.output[:]
    assert before == after
    assert observable(observable(streaming())[0]) == observable(streaming())


def test_histograms_are_those_of_numpy() -> None:
    """Every tensor of every run, with the state carried by the caller; values are exact in float32 here."""
    collector = Collector(streaming(), "image_encoder")
    expected = TensorRanges()
    generator = np.random.default_rng(0)
    state = mine = np.zeros((4, 2), np.float32)
    for step in range(5):
        x = generator.integers(0, 256, (4, 3), dtype=np.uint8)
        outputs = collector.run({"x": x, "state": state}, where=f"recording {step}")
        tensors = by_hand(x, mine)
        expected.update(tensors)
        mine = tensors["next_state"]
        state = outputs["next_state"]
        assert outputs.keys() == {"next_state", "best"}
        assert np.array_equal(state, mine)
        assert np.array_equal(outputs["best"][:, 0], mine.argmax(axis=1))
    assert collector.ranges == expected
    assert collector.tensors == tuple(collector.ranges.histograms) == OBSERVED


def test_memory_does_not_grow_with_runs() -> None:
    """What is kept after a hundred runs is what is kept after one: a histogram per tensor."""
    collector = Collector(streaming(), "encoder")
    inputs = {"x": np.ones((1, 3), np.uint8), "state": np.ones((1, 2), np.float32)}
    for _ in range(100):
        collector.run(inputs, where="recording 0")
    sizes = {histogram.counts.nbytes for histogram in collector.ranges.histograms.values()}
    assert (len(collector.ranges.histograms), sizes) == (len(OBSERVED), {64 * 1024})
    assert all(histogram.count in (200, 300) for histogram in collector.ranges.histograms.values())


def test_fusions_hide_nothing() -> None:
    """ONNX Runtime would fold this Identity and fuse the Relu; both sides of each are still seen."""
    graph = model(
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Conv", ["same", "kernel"], ["conv"]),
            helper.make_node("Relu", ["conv"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, [1, 1, 3, 3])],
        [("y", TensorProto.FLOAT, [1, 1, 3, 3])],
        constants={"kernel": np.full((1, 1, 1, 1), -2, np.float32)},
    )
    collector = Collector(graph, "conv")
    collector.run({"x": np.arange(-4, 5, dtype=np.float32).reshape(1, 1, 3, 3)}, where="r")
    assert collector.ranges.ranges(MinMax()) == {"x": (-4, 4), "same": (-4, 4), "conv": (-8, 8), "y": (0, 8)}


def branching() -> bytes:
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["x"], [f"inner_{op}"])],
            op,
            [],
            [helper.make_tensor_value_info(f"inner_{op}", TensorProto.FLOAT, [2])],
        )
        for op in ("Neg", "Abs")
    ]
    return model(
        [helper.make_node("If", ["flag"], ["chosen"], then_branch=branches[0], else_branch=branches[1])],
        [("x", TensorProto.FLOAT, [2])],
        [("chosen", TensorProto.FLOAT, [2])],
        constants={"flag": np.array(True)},
    )


def test_a_branch_counts_by_what_it_gives() -> None:
    """Its inside is not observed; its result is, although the only input by name is a constant."""
    assert observable(branching())[1] == ("x", "chosen")
    collector = Collector(branching(), "branch")
    collector.run({"x": np.array([1, 2], np.float32)}, where="r")
    assert collector.ranges.ranges(MinMax())["chosen"] == (-2, 0)


def test_tensors_of_unknown_type_and_left_out_outputs_are_not_observed() -> None:
    """A foreign operator's result has no inferred type; an optional output that is not asked for has no name."""
    graph = model(
        [
            helper.make_node("Gelu", ["x"], ["gelu"], domain="com.microsoft"),
            helper.make_node("MaxPool", ["gelu"], ["y", ""], kernel_shape=[1]),
        ],
        [("x", TensorProto.FLOAT, [1, 1, 2])],
        [("y", TensorProto.FLOAT, [1, 1, 2])],
    )
    assert observable(graph)[1] == ("x", "y")
    assert Collector(graph, "gelu").run({"x": np.ones((1, 1, 2), np.float32)}, where="r").keys() == {"y"}


def test_weights_listed_as_inputs_are_no_activations() -> None:
    """Old exporters list every initializer among the inputs."""
    graph = model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, [2]), ("w", TensorProto.FLOAT, [2])],
        [("y", TensorProto.FLOAT, [2])],
        constants={"w": np.ones(2, np.float32)},
    )
    assert observable(graph)[1] == ("x", "y")


GOOD = {"x": np.ones((1, 3), np.uint8), "state": np.zeros((1, 2), np.float32)}


@pytest.mark.parametrize(
    "changes",
    [
        {"x": np.ones((1, 3), np.float32)},
        {"x": np.ones((1, 4), np.uint8)},
        {"x": np.ones(3, np.uint8)},
        {"other": np.ones(3, np.uint8)},
        {"x": None},
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes: dict[str, np.ndarray | None]) -> None:
    """The message names the component and the recording; nothing is counted."""
    collector = Collector(streaming(), "image_encoder")
    inputs = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    with pytest.raises(CalibrationError, match=r"^component 'image_encoder' could not run recording 7: .*To mend it: "):
        collector.run(inputs, where="recording 7")
    assert collector.ranges == TensorRanges()


def test_an_activation_that_is_not_finite_is_named() -> None:
    """Component, tensor and recording: where the float model itself breaks. Nothing of that run is counted."""
    collector = Collector(streaming(), "image_encoder")
    bad = {**GOOD, "state": np.array([[0, np.inf]], np.float32)}
    with pytest.raises(CalibrationError, match=r"^component 'image_encoder', tensor 'state' in recording 7: 1 of 2 "):
        collector.run(bad, where="recording 7")
    assert collector.ranges == TensorRanges()
    assert collector.run(GOOD, where="recording 8")["best"].shape == (1, 1)


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(b"no model", id="garbage"),
        pytest.param(b"", id="empty"),
        pytest.param(
            model([helper.make_node("Nope", ["x"], ["y"])], [("x", 1, [1])], [("y", 1, [1])]), id="unknown operator"
        ),
    ],
)
def test_a_graph_that_does_not_load_is_refused(graph: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """With the component's name and ONNX Runtime's first line, and nothing printed."""
    with pytest.raises(CalibrationError, match=r"^component 'image_encoder' could not load: .*export it again"):
        Collector(graph, "image_encoder")
    assert capfd.readouterr() == ("", "")


def attention(mask: float, *, chosen: bool) -> bytes:
    """Scores to which a mask is added, or in whose place it is chosen, a softmax, and a product."""
    constants = {"mask": np.array([[0, mask], [0, 0]], np.float32), "value": np.array([[1, 2], [3, 4]], np.float32)}
    constants |= {"hide": np.array([[False, True], [False, False]]), "least": np.float32(mask)}
    masking = helper.make_node("Where", ["hide", "least", "scores"], ["masked"])
    if not chosen:
        masking = helper.make_node("Add", ["scores", "mask"], ["masked"])
    return model(
        [
            masking,
            helper.make_node("Softmax", ["masked"], ["weights"]),
            helper.make_node("MatMul", ["weights", "value"], ["y"]),
        ],
        [("scores", TensorProto.FLOAT, [2, 2])],
        [("y", TensorProto.FLOAT, [2, 2])],
        constants=constants,
    )


@pytest.mark.parametrize("mask", [-np.inf, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("chosen", [True, False])
def test_an_attention_mask_is_no_activation(mask: float, chosen: bool) -> None:
    """The masked scores are counted without it, everything else whole; behind the softmax they are zeros."""
    collector = Collector(attention(mask, chosen=chosen), "text")
    collector.run({"scores": np.array([[1, 7], [-2, 3]], np.float32)}, where="r")
    ranges = collector.ranges.ranges(MinMax())
    assert ranges["scores"] == (-2, 7)
    assert ranges["masked"] == (-2, 3)
    assert ranges["weights"] == (0, 1)
    assert {name: h.count for name, h in collector.ranges.histograms.items()}["masked"] == 3


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_masked_scores_may_still_overflow(bad: float) -> None:
    """A mask excuses minus infinity only; the message says what else to do."""
    collector = Collector(attention(-np.inf, chosen=True), "text")
    with pytest.raises(CalibrationError, match=r"'text', tensor 'scores' in r: 1 of 4 .*the framework.*attention mask"):
        collector.run({"scores": np.array([[1, 7], [bad, 3]], np.float32)}, where="r")


def test_a_product_that_overflows_is_no_mask() -> None:
    """Minus infinity that comes of numbers is an error, and named at the tensor where it begins."""
    graph = model(
        [helper.make_node("Mul", ["x", "large"], ["product"]), helper.make_node("Add", ["product", "x"], ["y"])],
        [("x", TensorProto.FLOAT, [2])],
        [("y", TensorProto.FLOAT, [2])],
        constants={"large": np.float32(1e30)},
    )
    with pytest.raises(CalibrationError, match=r"tensor 'product' in r: 1 of 2 values are NaN or infinite"):
        Collector(graph, "c").run({"x": np.array([1, -1e20], np.float32)}, where="r")


def test_silence_gives_usable_ranges_and_is_told() -> None:
    """All-zero inputs: every scale can be made, and ``all_zero`` names what no recording woke."""
    collector = Collector(streaming(), "audio_encoder")
    collector.run({"x": np.zeros((1, 3), np.uint8), "state": np.zeros((1, 2), np.float32)}, where="silence")
    assert collector.ranges.all_zero == ("state", "real", "scaled", "product")
    assert all(low < high for low, high in collector.ranges.ranges(MinMax()).values())


def test_one_recording_is_enough_for_ranges() -> None:
    """They are that recording's own."""
    collector = Collector(streaming(), "encoder")
    collector.run({"x": np.array([[1, 2, 3]], np.uint8), "state": np.zeros((1, 2), np.float32)}, where="r")
    assert collector.ranges.ranges(MinMax())["real"] == (0, 3)
