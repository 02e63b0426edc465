"""Presets for nets of matrix products, and what stays float between these."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.calibration import Collector
from edge_mbm.export.quantize import PRESETS, Material, presets_for, quantize

WIDTH = 16
RNG = np.random.default_rng(11)


def built(nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: list[Any], out: list[Any]) -> bytes:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def block() -> bytes:
    """Two products, each added to what came in, and a norm: a transformer's network at each token."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["normed"], "norm"),
        helper.make_node("MatMul", ["normed", "up"], ["wide"], "up"),
        helper.make_node("Relu", ["wide"], ["active"], "relu"),
        helper.make_node("MatMul", ["active", "down"], ["narrow"], "down"),
        helper.make_node("Add", ["x", "narrow"], ["sum"], "residual"),
        helper.make_node("MatMul", ["sum", "last"], ["out"], "last"),
        helper.make_node("Add", ["sum", "out"], ["y"], "second_residual"),
    ]
    constants = {
        "scale": np.geomspace(0.1, 10, WIDTH),
        "shift": np.zeros(WIDTH),
        "up": RNG.normal(0, 0.3, (WIDTH, 4 * WIDTH)),
        "down": RNG.normal(0, 0.1, (4 * WIDTH, WIDTH)),
        "last": RNG.normal(0, 0.1, (WIDTH, WIDTH)),
    }
    return built(nodes, constants, ["batch", WIDTH], ["batch", WIDTH])


def mixed(channels: int, features: int) -> bytes:
    """A convolution of ``channels * 9`` weights and a classifier of ``channels * features``."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["seen"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["seen"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "head"], ["y"], "head"),
    ]
    constants = {"kernel": RNG.normal(size=(channels, 1, 3, 3)), "head": RNG.normal(size=(channels, features))}
    return built(nodes, constants, ["batch", 1, 8, 8], ["batch", features])


@pytest.fixture(scope="module")
def material() -> Material:
    graph = block()
    # A few loud channels, as a transformer's sums have them.
    calls = [{"x": (RNG.normal(size=(4, WIDTH)) * ([30] + [1] * (WIDTH - 1))).astype(np.float32)} for _ in range(12)]
    collector = Collector(graph, "block")
    for call in calls:
        collector.run(call, where="test")
    return Material("block", graph, collector.ranges, calls)


def run(graph: bytes, call: dict[str, Any]) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, call)[0]
    return result


@pytest.mark.parametrize("form", ["x86", "arm"])
def test_sums_after_products_stay_float(form: Any, material: Material) -> None:
    """Products read 8 bits; sums read what products and other sums give, none of it rounded."""
    model = onnx.load_model_from_string(quantize(material, PRESETS["plain"], form))
    makers = {value: node for node in model.graph.node for value in node.output}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 3
    assert all(makers[value].op_type == "DequantizeLinear" for node in products for value in node.input[:2])
    sums = [node for node in model.graph.node if node.op_type == "Add"]
    assert len(sums) == 2
    read = [makers[value].op_type for node in sums for value in node.input if value in makers]
    assert sorted(read) == ["Add", "MatMul", "MatMul"]
    assert makers["y"].op_type == "Add"


def test_a_classifier_still_reads_and_holds_8_bits() -> None:
    """Behind convolutions a Gemm is quantized as before; only what it gives is not rounded once more."""
    graph = mixed(8, 5)
    calls = [{"x": RNG.normal(size=(1, 1, 8, 8)).astype(np.float32)} for _ in range(12)]
    collector = Collector(graph, "net")
    for call in calls:
        collector.run(call, where="test")
    quantized = quantize(Material("net", graph, collector.ranges, calls), PRESETS["plain"], "x86")
    model = onnx.load_model_from_string(quantized)
    makers = {value: node for node in model.graph.node for value in node.output}
    [gemm] = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert [makers[value].op_type for value in gemm.input[:2]] == ["DequantizeLinear"] * 2
    assert makers["y"].op_type == "Gemm"
    wanted = np.concatenate([run(graph, call) for call in calls])
    got = np.concatenate([run(quantized, call) for call in calls])
    assert 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()) > 20


@pytest.mark.parametrize("form", ["x86", "arm"])
def test_products_are_smoothed_first(form: Any, material: Material) -> None:
    """For a CPU ranges at run time come before static ones, and nothing that takes minutes is offered."""
    presets = presets_for(material.graph, form)
    assert [(preset.activations, preset.smooth) for preset in presets[:3]] == [
        ("dynamic", 0.7),
        ("dynamic", 0.6),
        ("static", 0.7),
    ]
    assert not any(preset.fit_rounding for preset in presets)


def test_tensorrt_is_offered_static_ranges_only(material: Material) -> None:
    """It computes none at run time."""
    presets = presets_for(material.graph, "tensorrt")
    assert presets[0] == PRESETS["smooth"]
    assert all(preset.activations == "static" for preset in presets)


@pytest.mark.parametrize(("features", "first"), [(5, "equalized"), (8, "equalized"), (9, "equalized"), (10, "smooth")])
def test_most_weights_decide(features: int, first: str) -> None:
    """Products count only where they hold more weights than the convolutions of the same net."""
    presets = presets_for(mixed(4, features), "tensorrt")
    assert presets[0].key == first


@pytest.mark.parametrize("preset", ["smooth-dynamic", "smooth-dynamic-0.6"])
def test_smoothing_helps_dynamic_ranges(preset: str, material: Material) -> None:
    """Where channels are uneven the error falls."""

    def noise(key: str) -> float:
        quantized = quantize(material, PRESETS[key], "x86")
        errors = [run(quantized, call) - run(material.graph, call) for call in material.calls]
        return float(np.mean(np.square(errors)))

    assert noise(preset) < 0.8 * noise("dynamic")


def test_float_nodes_keep_their_names_when_smoothed(material: Material) -> None:
    """Nodes of the float graph can be left float by a preset that smooths."""
    for key in ("smooth-dynamic", "smooth"):
        model = onnx.load_model_from_string(quantize(material, PRESETS[key], "x86", frozenset({"down"})))
        [kept] = [node for node in model.graph.node if node.name == "down"]
        weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        assert weights[kept.input[1]] == TensorProto.FLOAT
