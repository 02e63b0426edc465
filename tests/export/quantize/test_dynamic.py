"""Dynamic quantization: standard operators, the arithmetic that they stand for, and ONNX Runtime's fast kernels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.calibration import TensorRanges
from edge_mbm.errors import ExportError
from edge_mbm.export.quantize.dynamic import quantize_dynamic
from edge_mbm.export.quantize.preset import Material

WIDTH, INNER = 24, 40
RNG = np.random.default_rng(7)
WEIGHTS = {
    "w1": RNG.normal(0, 1, (WIDTH, INNER)) * np.linspace(0.01, 3, INNER),
    "w2": RNG.normal(0, 1, (WIDTH, INNER)),
    "w3": RNG.normal(0, 1, (8, INNER)),
    "bias": RNG.normal(0, 30, 8),
}
NODES = [
    helper.make_node("MatMul", ["x", "w1"], ["first"], "product_1"),
    helper.make_node("MatMul", ["x", "w2"], ["second"], "product_2"),
    helper.make_node("Mul", ["first", "second"], ["mixed"], "mix"),
    helper.make_node("Gemm", ["mixed", "w3", "bias"], ["y"], "gemm", transB=1, beta=0.5),
]


def built(nodes: list[onnx.NodeProto], constants: dict[str, Any], *outputs: str) -> bytes:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def quantized(graph: bytes, *float_nodes: str) -> bytes:
    return quantize_dynamic(Material("c", graph, TensorRanges(), ()), frozenset(float_nodes))


def run(graph: bytes, x: NDArray[np.float32]) -> NDArray[Any]:
    result: NDArray[Any] = ort.InferenceSession(graph).run(None, {"x": x})[0]
    return result


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model_from_string(graph).graph.node)


@pytest.fixture(scope="module")
def graph() -> bytes:
    return built(NODES, WEIGHTS, "y")


@pytest.fixture
def x() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(0.7, 1, (5, WIDTH)).astype(np.float32)


def test_a_product_is_the_product_of_rounded_numbers(x: NDArray[np.float32]) -> None:
    """Against float64 arithmetic on what DynamicQuantizeLinear's specification and symmetric S8 weights say."""
    got = run(quantized(built(NODES[:1], {"w1": WEIGHTS["w1"]}, "first")), x)
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = (high - low) / 255
    zero = np.rint(-low / step)
    activation = (np.clip(np.rint(x / np.float64(step)) + zero, 0, 255) - zero) * step
    steps = np.abs(WEIGHTS["w1"]).max(axis=0) / 127
    weight = np.clip(np.rint(WEIGHTS["w1"] / steps), -127, 127) * steps
    np.testing.assert_allclose(got, activation @ weight, rtol=1e-4, atol=1e-4)


def test_the_whole_is_near_the_float_graph(graph: bytes, x: NDArray[np.float32]) -> None:
    """Shared inputs, transposed weights, a bias and its factor: the error is that of 8 bits, not of a wrong formula."""
    wanted, got = run(graph, x), run(quantized(graph), x)
    assert got.shape == wanted.shape
    assert 10 * np.log10((wanted**2).sum() / ((got - wanted) ** 2).sum()) > 30


def test_only_standard_operators_and_each_activation_once(graph: bytes) -> None:
    """Two products that read one tensor share its quantization; nothing is of another domain; weights are int8 with a
    scale for each output."""
    model = onnx.load_model_from_string(quantized(graph))
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)
    assert operators(quantized(graph))["DynamicQuantizeLinear"] == 2
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            weight = constants[node.input[1]]
            assert weight.dtype == np.int8
            assert weight.min() >= -127
            assert (np.abs(weight.astype(int)).max(axis=0) == 127).all()
    assert not constants.keys() & {"w1", "w2", "w3"}


def test_onnx_runtime_fuses_all_of_it(graph: bytes, tmp_path: Path) -> None:
    """When it loads the graph no int32 product is left by itself: each is one of its fast kernels."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 4
    ort.InferenceSession(quantized(graph), options, providers=["CPUExecutionProvider"])
    fused = operators((tmp_path / "fused.onnx").read_bytes())
    assert fused["MatMulIntegerToFloat"] + fused["DynamicQuantizeMatMul"] == 3
    assert fused["MatMulInteger"] == 0


def test_float_nodes_stay(graph: bytes, x: NDArray[np.float32]) -> None:
    """A node that is named keeps its operator and its weights, and the graph still runs."""
    mixed = quantized(graph, "product_2", "gemm")
    assert operators(mixed)["MatMul"] == operators(mixed)["Gemm"] == operators(mixed)["MatMulInteger"] == 1
    assert {"w2", "w3"} <= {t.name for t in onnx.load_model_from_string(mixed).graph.initializer}
    assert np.isfinite(run(mixed, x)).all()


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"transA": 1}])
def test_a_gemm_of_another_form_is_left_in_float(attributes: dict[str, Any], x: NDArray[np.float32]) -> None:
    """What MatMulInteger cannot say is not rewritten."""
    gemm = helper.make_node("Gemm", ["x", "w2"], ["y"], "gemm", **attributes)
    weight = WEIGHTS["w2"][:3] if "transA" in attributes else WEIGHTS["w2"]
    graph = built([*NODES[:1], gemm], {"w1": WEIGHTS["w1"], "w2": weight}, "y", "first")
    assert operators(quantized(graph))["Gemm"] == 1
    np.testing.assert_array_equal(run(quantized(graph), x[:3]), run(graph, x[:3]))


def test_a_column_of_zeros_stays_zero(x: NDArray[np.float32]) -> None:
    """An output whose weights are all zero has a scale that is no zero, and gives zero."""
    weight = WEIGHTS["w2"].copy()
    weight[:, 4] = 0
    got = run(quantized(built(NODES[1:2], {"w2": weight}, "second")), x)
    assert np.isfinite(got).all()
    assert not got[:, 4].any()


def test_equal_graphs_give_equal_bytes(graph: bytes) -> None:
    """Export twice, the same bytes."""
    assert quantized(graph) == quantized(graph)


def test_nothing_to_quantize_is_said(graph: bytes) -> None:
    """A component without such a product, or with all of them kept, is named in the message."""
    with pytest.raises(ExportError, match="'c' has nothing to quantize dynamically"):
        quantized(graph, "product_1", "product_2", "gemm")


def test_a_stranger_among_float_nodes_is_said(graph: bytes) -> None:
    """A misspelt node would otherwise be quantized without a word."""
    with pytest.raises(ExportError, match=r"'c' has no nodes \['product_9'\]"):
        quantized(graph, "product_9")
