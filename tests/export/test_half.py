"""fp16 that keeps in fp32 what fp16 cannot hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from edge_mbm.calibration import TensorRanges
from edge_mbm.calibration.collect import Collector
from edge_mbm.errors import ExportError
from edge_mbm.export.half import to_fp16
from edge_mbm.export.lint import lint
from edge_mbm.export.targets import target
from edge_mbm.export.trt_check import check_trt

Arrays = Mapping[str, NDArray[Any]]


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(" "), [output], name=f"make_{output}", **attributes)


def graph(nodes: Sequence[onnx.NodeProto], weights: Arrays, features: int = 16, out: int | None = None) -> bytes:
    """``x`` float32[batch, features] to ``y``."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", out or features])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def run(model: bytes, x: NDArray[Any]) -> NDArray[Any]:
    """By ONNX's own reference, which rounds every fp16 value: ONNX Runtime on a CPU computes many of them in fp32."""
    with np.errstate(all="ignore"):
        return np.asarray(ReferenceEvaluator(onnx.load_model_from_string(model)).run(None, {"x": x})[0])


def run_in_ort(model: bytes, x: NDArray[Any]) -> NDArray[Any]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def seen(model: bytes, x: NDArray[Any]) -> TensorRanges:
    collector = Collector(model, "net")
    collector.run({"x": x}, where="test")
    return collector.ranges


def plain(model: bytes) -> bytes:
    """What the converter does on its own."""
    converted = convert_float_to_float16(onnx.load_model_from_string(model), keep_io_types=True)
    ordered = ONNXModel(converted)
    ordered.topological_sort()
    return bytes(ordered.model.SerializeToString())


def sqnr(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """dB."""
    noise = float(np.sum((reference.astype(np.float64) - found) ** 2)) or 1e-300
    return 10 * np.log10(float(np.sum(reference.astype(np.float64) ** 2)) / noise)


def dtypes(model: bytes) -> dict[str, int]:
    """Node name -> the dtype of its first output."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model), strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    return {made.name: types[made.output[0]] for made in inferred.node}


RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 16)).astype(np.float32)
W1, W2 = (RNG.standard_normal((16, 16)).astype(np.float32) / 4 for _ in range(2))


def gained(gain: float) -> bytes:
    """Two layers whose activations in between are ``gain`` times as large as at the ends."""
    nodes = [
        node("MatMul", "x w1", "a"),
        node("Relu", "a", "r"),
        node("Mul", "r up", "big"),
        node("Mul", "r half", "t"),
        node("Add", "big t", "sum"),
        node("Mul", "sum down", "small"),
        node("MatMul", "small w2", "y"),
    ]
    factors = {"up": np.float32(gain), "half": np.float32(0.5), "down": np.float32(1 / gain)}
    return graph(nodes, {"w1": W1, "w2": W2, **factors})


def layer_norm(*, fused: bool) -> bytes:
    """Of a difference that is large; its squares are larger."""
    weights = {"up": np.float32(300), "g": np.ones(16, np.float32), "w2": W2}
    if fused:
        return graph(
            [node("Mul", "x up", "h"), node("LayerNormalization", "h g", "n"), node("MatMul", "n w2", "y")], weights
        )
    nodes = [
        node("Mul", "x up", "h"),
        node("ReduceMean", "h axes", "mean"),
        node("Sub", "h mean", "d"),
        node("Pow", "d two", "d2"),
        node("ReduceMean", "d2 axes", "variance"),
        node("Add", "variance e", "v"),
        node("Sqrt", "v", "sd"),
        node("Div", "d sd", "n"),
        node("MatMul", "n w2", "y"),
    ]
    weights = {**weights, "axes": np.array([-1]), "two": np.float32(2), "e": np.float32(1e-5)}
    return graph(nodes, weights)


def test_what_fits_becomes_fp16_throughout() -> None:
    """Only the edges are cast; nothing is kept."""
    model = gained(2.0)
    half, kept = to_fp16(model, seen(model, X), "net")
    assert kept == ()
    others = {name: dtype for name, dtype in dtypes(half).items() if "cast" not in name}
    assert set(others.values()) == {TensorProto.FLOAT16}
    assert sqnr(run(model, X), run(half, X)) > 50


def test_a_large_activation_stays_in_fp32_from_its_maker_to_its_last_reader() -> None:
    """The plain conversion gives infinity or nonsense there; ours keeps the numbers, and fp16 elsewhere."""
    model = gained(1e6)
    half, kept = to_fp16(model, seen(model, X), "net")
    reference = run(model, X)
    assert sqnr(reference, run(half, X)) > 50
    assert sqnr(reference, run_in_ort(half, X)) > 50
    assert not sqnr(reference, run(plain(model), X)) > 50
    assert not sqnr(reference, run_in_ort(plain(model), X)) > 50
    assert {"make_big", "make_sum", "make_small"} <= set(kept)
    assert dtypes(half)["make_y"] == dtypes(half)["make_a"] == TensorProto.FLOAT16
    assert all(dtypes(half)[name] == TensorProto.FLOAT for name in kept)


def test_no_value_between_two_kept_nodes_is_cast_to_fp16_and_back() -> None:
    """Where it did not fit, that cast alone would make it infinite."""
    model = gained(1e6)
    half, kept = to_fp16(model, seen(model, X), "net")
    nodes = {made.name: made for made in onnx.load_model_from_string(half).graph.node}
    for maker, reader in (("make_big", "make_sum"), ("make_sum", "make_small")):
        assert {maker, reader} <= set(kept)
        assert nodes[maker].output[0] in nodes[reader].input


def test_a_kept_output_reaches_the_edge_without_fp16() -> None:
    """An output of 1e6 is one of 1e6."""
    model = graph([node("Mul", "x up", "m"), node("Neg", "m", "y")], {"up": np.float32(1e6)})
    half, kept = to_fp16(model, seen(model, X), "net")
    assert kept == ("make_m", "make_y")
    np.testing.assert_array_equal(run(half, X), run(model, X))


def test_an_input_that_does_not_fit_is_not_cast() -> None:
    """Such as samples of sound as integers."""
    model = graph([node("Mul", "x down", "m"), node("Tanh", "m", "y")], {"down": np.float32(1e-3)})
    loud = X * np.float32(40_000)
    half, kept = to_fp16(model, seen(model, loud), "net")
    assert kept == ("make_m",)
    assert sqnr(run(model, loud), run(half, loud)) > 50


def test_a_tensor_below_fp16s_normal_numbers_stays_in_fp32() -> None:
    """A factor of 1e-6 and back: the plain conversion rounds to steps of 6e-8."""
    model = gained(1e-7)
    half, kept = to_fp16(model, seen(model, X), "net")
    assert "make_big" in kept
    assert sqnr(run(model, X), run(half, X)) > 50


def test_zeros_are_not_too_small() -> None:
    """A tensor that was always zero, or mostly, is fp16's as much as any."""
    model = graph([node("Relu", "x", "y")], {})
    assert to_fp16(model, seen(model, -np.abs(X)), "net")[1] == ()
    sparse = np.where(np.arange(X.size).reshape(X.shape) == 0, np.float32(1), np.float32(0))
    assert to_fp16(model, seen(model, sparse), "net")[1] == ()


def test_a_fused_layer_norm_of_activations_above_256_accumulates_in_fp32() -> None:
    """Their squares pass 65504 though they themselves fit; below it stays in fp16, as one operator."""
    model = layer_norm(fused=True)
    half, kept = to_fp16(model, seen(model, X), "net")
    assert kept == ("make_n",)
    assert sqnr(run(model, X), run(half, X)) > 50
    assert to_fp16(model, seen(model, X / 10), "net")[1] == ()
    assert [made.op_type for made in onnx.load_model_from_string(half).graph.node].count("LayerNormalization") == 1


def test_a_decomposed_layer_norm_is_kept_whole_and_passes_the_linter() -> None:
    """The plain conversion of it is finite and wrong; ours is right, and the linter has nothing against it."""
    model = layer_norm(fused=False)
    half, kept = to_fp16(model, seen(model, X / 100), "net")  # ranges that show nothing of it
    assert {"make_d2", "make_variance", "make_v", "make_sd", "make_n"} <= set(kept)
    assert sqnr(run(model, X), run(half, X)) > 50
    wrong = run(plain(model), X)
    assert np.isfinite(wrong).all()
    assert sqnr(run(model, X), wrong) < 20
    rules = {
        name: {finding.rule for finding in lint(made, target("rtx"), kind="encoder", name="net")}
        for name, made in (("ours", half), ("plain", plain(model)))
    }
    assert rules["ours"] == set()
    assert "decomposed-normalization" in rules["plain"]


@pytest.mark.parametrize(
    ("op", "weight", "stays"),
    [
        ("Mul", 1e6, True),
        ("Add", 1e6, True),
        ("Mul", 1e-6, True),
        ("Add", 1e-6, False),
        ("Add", -np.inf, False),
        ("Mul", 1.0, False),
    ],
)
def test_a_weight_that_fp16_cannot_hold_keeps_its_node(op: str, weight: float, stays: bool) -> None:
    """A small addend is lost in no more than its size; a mask's infinity is fp16's too."""
    model = graph([node(op, "x w", "y")], {"w": np.float32(weight)})
    assert (to_fp16(model, TensorRanges(), "net")[1] == ("make_y",)) == stays


@pytest.mark.parametrize("least", [np.finfo(np.float32).min, -np.inf])
def test_an_attention_mask_does_not_keep_its_softmax_in_fp32(least: float) -> None:
    """Float32's least number becomes fp16's: what is left out stays so, and a row without anything left is no NaN."""
    nodes = [
        node("Greater", "x zero", "allowed"),
        node("Where", "allowed zero least", "mask"),
        node("Add", "x mask", "scores"),
        node("Softmax", "scores", "y"),
    ]
    model = graph(nodes, {"zero": np.float32(0), "least": np.float32(least)})
    rows = X if np.isinf(least) else np.concatenate([X, -np.abs(X[:1])])
    half, kept = to_fp16(model, seen(model, rows), "net")
    assert kept == ()
    found = run(half, rows)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:8], run(model, rows)[:8], atol=1e-3)


def test_a_mean_whose_sum_overflows_is_kept() -> None:
    """Sixteen times 10 000 is above 65504, though each and their mean are not."""
    model = graph([node("ReduceMean", "x axes", "y")], {"axes": np.array([1])}, out=1)
    assert to_fp16(model, seen(model, np.full_like(X, 10_000)), "net")[1] == ("make_y",)
    assert to_fp16(model, seen(model, np.full_like(X, 1_000)), "net")[1] == ()


def test_operators_without_an_fp16_kernel_are_named_among_the_kept() -> None:
    """Max runs in fp32 whatever its range, and the list says so."""
    model = graph([node("Max", "x zero", "m"), node("Relu", "m", "y")], {"zero": np.float32(0)})
    half, kept = to_fp16(model, seen(model, X), "net")
    assert kept == ("make_m",)
    assert dtypes(half)["make_m"] == TensorProto.FLOAT


def test_nodes_without_names_get_some() -> None:
    """The converter goes by names: two nameless nodes would share their fate."""
    model = onnx.load_model_from_string(gained(1e6))
    for made in model.graph.node:
        made.name = ""
    half, kept = to_fp16(model.SerializeToString(), seen(gained(1e6), X), "net")
    assert len(set(kept)) == len(kept) >= 3
    assert set(kept) <= {made.name for made in onnx.load_model_from_string(half).graph.node}
    assert sqnr(run(gained(1e6), X), run(half, X)) > 50


def test_an_integer_cast_is_not_taken_for_one_of_the_converters() -> None:
    """int64 -> fp16 -> fp32 for a kept node must not hand it the integers."""
    nodes = [
        node("Cast", "x", "i", to=TensorProto.INT64),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "f up", "m"),
        node("Mul", "m down", "y"),
    ]
    model = graph(nodes, {"up": np.float32(1e6), "down": np.float32(1e-6)})
    half, kept = to_fp16(model, seen(model, X * 10), "net")
    assert kept == ("make_m", "make_y")
    assert sqnr(run(model, X * 10), run(half, X * 10)) > 50


@settings(max_examples=25, deadline=None)
@given(st.floats(-9, 9), st.floats(-3, 4))
def test_whatever_the_ranges_the_fp16_graph_stays_close(gain: float, loudness: float) -> None:
    """Over eighteen decades of gain, on what was calibrated, the output keeps 40 dB."""
    model, x = gained(float(10.0**gain)), X * np.float32(10.0**loudness)
    half, _ = to_fp16(model, seen(model, x), "net")
    assert sqnr(run(model, x), run(half, x)) > 40


def test_the_same_graph_and_ranges_give_the_same_bytes() -> None:
    """Reproducible, and without a trace of the converter."""
    model = gained(1e6)
    assert to_fp16(model, seen(model, X), "net") == to_fp16(model, seen(model, X), "net")


def test_what_is_no_graph_is_an_error_with_the_components_name() -> None:
    """In a sentence."""
    with pytest.raises(ExportError, match="'net' could not be converted to fp16"):
        to_fp16(b"rubbish", TensorRanges(), "net")


@pytest.mark.needs("tensorrt_rtx_bindings")
@pytest.mark.parametrize("model", [gained(2.0), gained(1e6), layer_norm(fused=True), layer_norm(fused=False)])
def test_tensorrt_takes_the_mix_of_fp16_and_fp32_in_a_strongly_typed_network(model: bytes) -> None:
    """Every cast that is needed is there."""
    half, _ = to_fp16(model, seen(model, X), "net")
    check = check_trt(half, target("jetson-orin"), kind="encoder", name="net")
    assert check.accepted, check
