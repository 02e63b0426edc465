"""SmoothQuant: the same function to the bit, with channels that are easier to round."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.calibration import TensorRanges
from edge_mbm.errors import ExportError
from edge_mbm.export.quantize.dynamic import quantize_dynamic
from edge_mbm.export.quantize.preset import Material
from edge_mbm.export.quantize.smooth import smooth

WIDTH, INNER = 16, 24


def graph(*, residual: bool = False, seed: int = 0, shared: bool = False) -> bytes:
    """x -> LayerNormalization -> two products (one a Gemm with transposed weights) -> their sum, or x + that."""
    rng = np.random.default_rng(seed)
    loud = np.where(np.arange(WIDTH) % 5 == 0, 40.0, 1.0)  # a few channels are far larger than the others
    constants = {
        "scale": rng.normal(1, 0.1, WIDTH) * loud,
        "shift": rng.normal(0, 0.1, WIDTH) * loud,
        "w1": rng.normal(0, 1, (WIDTH, WIDTH)) / loud[:, None],
        "w2": rng.normal(0, 1, (WIDTH, WIDTH)) / loud,
        "bias": rng.normal(0, 1, WIDTH),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["normed"], "norm", epsilon=1e-5),
        helper.make_node("MatMul", ["normed", "w1"], ["first"], "product"),
        helper.make_node("Gemm", ["normed", "w2", "bias"], ["second"], "gemm", transB=1),
        helper.make_node("Add", ["first", "second"], ["both"], "sum"),
        helper.make_node("Add", ["both", "normed" if residual else "first"], ["y"], "out"),
    ]
    if shared:
        nodes.append(helper.make_node("MatMul", ["both", "w1"], ["z"], "again"))
    outputs = ["y", "z"] if shared else ["y"]
    return model(nodes, constants, outputs)


def model(nodes: list[onnx.NodeProto], constants: dict[str, Any], outputs: list[str]) -> bytes:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    built = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(built.SerializeToString())


def calls(count: int = 8, seed: int = 1) -> list[dict[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(0, 1, (3, WIDTH)).astype(np.float32)} for _ in range(count)]


def run(graph: bytes, call: dict[str, NDArray[np.float32]], wanted: list[str] | None = None) -> list[NDArray[Any]]:
    """The graph's own arithmetic, node by node; any tensor can be asked for."""
    proto = onnx.load_model_from_string(graph)
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(
        helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in wanted or () if n not in present
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(proto.SerializeToString(), options).run(wanted, dict(call)))


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model_from_string(graph).graph.node)


def weights(graph: bytes) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(graph).graph.initializer}


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 1000), residual=st.booleans())
def test_the_float_graph_computes_the_same_bits(alpha: float, seed: int, residual: bool) -> None:
    """Whatever alpha and weights, a smoothed graph's outputs equal the graph's to the last bit."""
    before = graph(residual=residual, seed=seed)
    after = smooth(before, calls(), alpha, "c")
    assert after != before
    for call in calls(4, seed=2):
        np.testing.assert_array_equal(run(after, call)[0], run(before, call)[0])


def test_a_norm_that_only_products_read_takes_the_factors() -> None:
    """No node is added where the LayerNormalization before can hold the factors."""
    before = graph()
    after = smooth(before, calls(), 0.5, "c")
    assert operators(after) == operators(before)
    assert not np.array_equal(weights(after)["scale"], weights(before)["scale"])


def test_a_norm_that_others_read_too_stays_as_it_is() -> None:
    """What a residual reads is not scaled: the products get one Mul of their own."""
    before = graph(residual=True)
    after = smooth(before, calls(), 0.5, "c")
    assert operators(after) - operators(before) == Counter({"Mul": 1})
    np.testing.assert_array_equal(weights(after)["scale"], weights(before)["scale"])


@pytest.mark.parametrize(("alpha", "even"), [(1.0, "activations"), (0.0, "weights")])
def test_alpha_says_where_the_unevenness_goes(alpha: float, even: str) -> None:
    """With 1 all channels of the activations are alike within the rounding to powers of two, with 0 all rows of the
    weights are."""

    def unevenness(of: bytes) -> float:
        held = weights(of)
        rows = np.maximum(np.abs(held["w1"]).max(axis=1), np.abs(held["w2"]).max(axis=0))
        heard = np.max([np.abs(run(of, call, ["normed"])[0]).max(axis=0) for call in calls()], axis=0)
        values = heard if even == "activations" else rows
        return float(values.max() / values.min())

    assert unevenness(graph()) > 8
    assert unevenness(smooth(graph(), calls(), alpha, "c")) <= 2 * (1 + 1e-5)


def test_smoothing_helps_what_is_rounded_afterwards() -> None:
    """With activations and weights in 8 bits the error is less than half of what it is without smoothing."""

    def error(float_graph: bytes) -> float:
        quantized = quantize_dynamic(Material("c", float_graph, TensorRanges(), ()), frozenset())
        pairs = [(run(quantized, call)[0], run(graph(), call)[0]) for call in calls(seed=3)]
        return float(np.sqrt(np.mean([(got - wanted) ** 2 for got, wanted in pairs])))

    assert error(smooth(graph(), calls(), 0.5, "c")) < 0.5 * error(graph())


def test_weights_that_two_products_share_are_left_alone() -> None:
    """Factors of one product's activations would be wrong for the other's."""
    before = graph(shared=True)
    after = smooth(before, calls(), 0.5, "c")
    np.testing.assert_array_equal(weights(after)["w1"], weights(before)["w1"])
    assert not np.array_equal(weights(after)["w2"], weights(before)["w2"])
    for got, wanted in zip(run(after, calls()[0]), run(before, calls()[0]), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_silent_channels_and_dead_weights_stay_finite() -> None:
    """A channel that no call woke, or whose weights are all zero, gets a moderate factor, and is still computed."""
    weight = np.random.default_rng(0).normal(0, 1, (WIDTH, INNER))
    weight[3] = 0
    before = model([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"w": weight}, ["y"])
    quiet = [{"x": call["x"] * (np.arange(WIDTH) != 5).astype(np.float32)} for call in calls()]
    after = smooth(before, quiet, 0.9, "c")
    held = weights(after)
    assert all(np.isfinite(value).all() for value in held.values())
    [factors] = [value for name, value in held.items() if name != "w"]
    assert factors[3] == 1
    assert factors.max() / factors.min() <= 2.0**11
    np.testing.assert_array_equal(run(after, calls()[0])[0], run(before, calls()[0])[0])


def test_nothing_but_silence_changes_nothing() -> None:
    """Without a single value other than zero there is nothing to go by."""
    before = model([helper.make_node("MatMul", ["x", "w"], ["y"], "p")], {"w": np.ones((WIDTH, 2))}, ["y"])
    silent = [{"x": np.zeros((1, WIDTH), np.float32)}]
    assert operators(smooth(before, silent, 0.5, "c")) == operators(before)


def test_smoothing_twice_from_the_same_gives_the_same_bytes() -> None:
    """Equal graphs and calls, equal bytes."""
    assert smooth(graph(), calls(), 0.6, "c") == smooth(graph(), calls(), 0.6, "c")


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_an_alpha_outside_is_refused(alpha: float) -> None:
    """Alpha is a share."""
    with pytest.raises(ExportError, match="alpha"):
        smooth(graph(), calls(), alpha, "c")


def test_no_calls_are_refused() -> None:
    """Nothing is known of activations that were never seen."""
    with pytest.raises(ExportError, match=r"'c'.*without a call"):
        smooth(graph(), [], 0.5, "c")


def test_calls_that_do_not_fit_are_explained() -> None:
    """A call of another shape is the component's error, not ONNX Runtime's traceback."""
    with pytest.raises(ExportError, match="'c' could not be run"):
        smooth(graph(), [{"x": np.zeros((1, WIDTH + 1), np.float32)}], 0.5, "c")
