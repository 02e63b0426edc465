"""Quantized convolutional nets: the form each target's kernels want, and steps that keep what the net computes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edge_mbm.calibration import Collector
from edge_mbm.errors import ExportError
from edge_mbm.export.graph import fold
from edge_mbm.export.quantize import PRESETS, Material, Preset, presets_for, quantize
from edge_mbm.export.quantize.equalize import equalize
from edge_mbm.export.quantize.pixels import absorb_pixels
from edge_mbm.export.quantize.rounding import _compensated, _halves, _Layer, _rounded


class Residual(nn.Module):
    """A picture's normalization, an inverted bottleneck with a shortcut, as mobile nets have them."""

    def __init__(self, act: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), act())
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1), act())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, groups=24), act())
        self.project = nn.Conv2d(24, 8, 1)
        self.again = nn.Conv2d(8, 16, 1)
        self.classify = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem((image.permute(0, 3, 1, 2).float() / 255 - self.mean) / 0.25)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.classify(self.again(x).mean((2, 3)))


def exported(module: nn.Module) -> bytes:
    """Folded, with a free batch."""
    file = io.BytesIO()
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module.eval(),
        (torch.zeros(2, 16, 16, 3, dtype=torch.uint8),),
        dynamo=True,
        opset_version=20,
        external_data=False,
        dynamic_shapes=({0: batch},),
        input_names=["image"],
        output_names=["logits"],
    )
    assert program is not None
    program.save(file)
    return fold(file.getvalue(), "net")


def pictures(seed: int, count: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Smooth, as photographs are: neighbouring pixels are alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 1, 4, 4, 3))
    fine = np.repeat(np.repeat(coarse, 4, 2), 4, 3) + rng.integers(-8, 9, (count, 1, 16, 16, 3))
    return [{"image": np.clip(picture, 0, 255).astype(np.uint8)} for picture in fine]


def material(graph: bytes, name: str = "net") -> Material:
    collector, calls = Collector(graph, name), pictures(0, 24)
    for call in calls:
        collector.run(call, where="test")
    return Material(name, graph, collector.ranges, calls)


@pytest.fixture(scope="module")
def net() -> Material:
    torch.manual_seed(3)
    return material(exported(Residual()))


@pytest.fixture(scope="module")
def coarse() -> Material:
    """A few outlying weights and loud channels leave the others few steps of 8 bits."""
    torch.manual_seed(3)
    module = Residual()
    module.stem[1] = nn.ReLU()
    with torch.no_grad():
        module.depthwise[0].weight[:, 0, 0, 0] *= 30
        module.expand[0].weight[:, 0] *= 30
        loud = torch.logspace(-1, 1, 8)
        for conv in (module.stem[0], module.project):
            conv.weight *= loud.view(-1, 1, 1, 1)
            conv.bias *= loud
    return material(exported(module))


def run(graph: bytes, calls: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, call)[0] for call in calls])


class Walked:
    """A graph's nodes and constants, by the names of what they give."""

    def __init__(self, graph: bytes) -> None:
        self.model = onnx.load_model_from_string(graph)
        self.nodes = list(self.model.graph.node)
        self.makers = {value: node for node in self.nodes for value in node.output}
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def is_quantized(self, value: str) -> bool:
        return value in self.makers and self.makers[value].op_type == "DequantizeLinear"


@pytest.mark.parametrize(("form", "activations"), [("x86", np.uint8), ("arm", np.int8)])
def test_forms_for_cpus(form: Any, activations: Any, net: Material) -> None:
    """Weights signed per output channel, activations of the form's type, biases int32 at the product of both scales."""
    graph = Walked(quantize(net, PRESETS["plain"], form))
    weighted = graph.of("Conv", "Gemm", "MatMul")
    assert len(weighted) == 6
    for node in weighted:
        into, weights = (graph.makers[value] for value in node.input[:2])
        scale, zero = (graph.constants[name] for name in into.input[1:3])
        assert zero.dtype == activations or node.name == graph.of("Conv")[0].name  # bytes stay bytes
        values, scales, zeros = (graph.constants[name] for name in weights.input)
        assert values.dtype == zeros.dtype == np.int8
        assert not zeros.any()
        assert scales.shape == (values.shape[1 if node.op_type == "MatMul" else 0],) or values.shape[0] == 5
        bias, bias_scale = (graph.constants[name] for name in graph.makers[node.input[2]].input[:2])
        assert bias.dtype == np.int32
        np.testing.assert_allclose(bias_scale, scale * scales, rtol=1e-6)


def test_form_for_tensorrt(net: Material) -> None:
    """Every zero-point is zero, no bias is quantized, and both inputs of the residual sum are."""
    graph = Walked(quantize(net, PRESETS["fitted"], "tensorrt"))
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        zero = graph.constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    for node in graph.of("Conv", "Gemm"):
        assert graph.is_quantized(node.input[0])
        assert graph.is_quantized(node.input[1])
        assert node.input[2] in graph.constants
    [total] = [node for node in graph.of("Add") if not set(node.input) & graph.constants.keys()]
    assert all(graph.is_quantized(value) for value in total.input)


def test_bytes_go_into_the_first_convolution(net: Material) -> None:
    """Nothing is computed in float before it, and its input's scale is one level of the picture."""
    graph = Walked(quantize(net, PRESETS["plain"], "x86"))
    first = graph.makers[graph.of("Conv")[0].input[0]]
    assert first.op_type == "DequantizeLinear"
    assert graph.constants[first.input[1]] == 1
    assert not graph.of("Cast", "Sub", "Mul", "Div")


def test_absorbing_pixels_keeps_the_function(net: Material) -> None:
    """The float graph gives the same, at the border and for every batch size, but for half a level of grey."""
    absorbed, ranges = absorb_pixels(net.graph)
    assert list(ranges.values()) == [(-102.0, 153.0)]
    calls = pictures(5, 6)
    together = [{"image": np.concatenate([call["image"] for call in calls])}]
    wanted = run(net.graph, calls)
    for got in (run(absorbed, calls), run(absorbed, together)):
        assert 1e-3 * np.abs(wanted).max() > np.abs(got - wanted).max()


def test_float_nodes_stay_float(net: Material) -> None:
    """A named convolution reads and gives float values with float weights; the others stay quantized."""
    kept = [node.name for node in onnx.load_model_from_string(net.graph).graph.node if node.op_type == "Conv"][2]
    graph = Walked(quantize(net, PRESETS["fitted"], "x86", frozenset({kept})))
    for node in graph.of("Conv"):
        assert graph.is_quantized(node.input[1]) == (node.name != kept)


@pytest.mark.parametrize("form", ["x86", "arm", "tensorrt"])
@pytest.mark.parametrize("preset", ["fitted", "equalized", "bias-corrected", "plain"])
def test_presets_compute_the_net(preset: str, form: Any, net: Material) -> None:
    """Each at 20 dB at least on pictures that it was not made from, and in the same bytes when made again."""
    graph, calls = quantize(net, PRESETS[preset], form), pictures(7, 16)
    assert quantize(net, PRESETS[preset], form) == graph
    wanted, got = run(net.graph, calls), run(graph, calls)
    assert 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()) > 20


def test_correcting_biases_lowers_the_mean_error(coarse: Material) -> None:
    """Over pictures, outputs are off less on average; with fitted rounding the error as a whole is smaller too."""
    calls = pictures(9, 48)
    wanted = run(coarse.graph, calls)
    plain, corrected, fitted = (
        run(quantize(coarse, PRESETS[key], "x86"), calls) - wanted for key in ("plain", "bias-corrected", "fitted")
    )
    assert np.abs(corrected.mean(0)).sum() < 0.8 * np.abs(plain.mean(0)).sum()
    assert np.abs(fitted.mean(0)).sum() < 0.8 * np.abs(plain.mean(0)).sum()


def test_fitted_rounding_lets_errors_cancel() -> None:
    """Where inputs are alike, a layer's output errs by less than half of what rounding to the nearest leaves."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 9, 500)) + 2 * rng.normal(size=(2, 1, 500))
    covariance = inputs @ inputs.transpose(0, 2, 1) / 500
    weights = rng.normal(size=(2, 16, 9))
    scales = np.abs(weights).max(2) / 127
    fitted = _rounded(weights, scales, covariance, 0.01)
    nearest = np.rint(weights / scales[..., None])
    errors = [(((levels * scales[..., None] - weights) @ inputs) ** 2).mean() for levels in (fitted, nearest)]
    assert errors[0] < 0.5 * errors[1]
    assert np.abs(fitted - nearest).max() <= 3
    assert np.abs(fitted).max() <= 127
    np.testing.assert_array_equal(fitted, np.rint(fitted))


def test_layers_make_up_for_what_those_before_them_lost() -> None:
    """Inputs that have become a fifth quieter get weights a quarter larger; what only the calls have in common is
    not learnt: on others the layer errs no more than before.
    """
    rng = np.random.default_rng(0)
    layer = _Layer(onnx.helper.make_node("MatMul", ["x", "w"], ["y"]), onnx.NodeProto(), {}, (16, 4))
    weights = layer.rows(rng.normal(size=(16, 4)))
    wanted = [rng.normal(size=(64, 16)).astype(np.float32) for _ in range(8)]
    quieter = _compensated(weights, _halves(layer, ((0.8 * x, x) for x in wanted), products=True))
    np.testing.assert_allclose(quieter, weights / 0.8, rtol=0.02)

    noisy = [(x + 0.1 * rng.normal(size=x.shape).astype(np.float32), x) for x in wanted]
    learnt = _compensated(weights, _halves(layer, noisy, products=True))
    unseen = rng.normal(size=(10_000, 16))
    given = unseen + 0.1 * rng.normal(size=unseen.shape)
    before, after = (((unseen @ weights[0].T - given @ w[0].T) ** 2).mean() for w in (weights, learnt))
    assert after < 1.02 * before


def test_one_call_compensates_nothing() -> None:
    """There is no other to hold what it teaches against."""
    layer = _Layer(onnx.helper.make_node("MatMul", ["x", "w"], ["y"]), onnx.NodeProto(), {}, (4, 2))
    weights, x = layer.rows(np.ones((4, 2))), np.eye(4, dtype=np.float32)
    assert _compensated(weights, _halves(layer, [(0.5 * x, x)], products=True)) is weights


def test_equalizing_changes_weights_but_not_the_function(coarse: Material) -> None:
    """Channels more than thirty times quieter than the loudest come nearer to it; the net gives the same."""
    equalized = equalize(coarse.graph, coarse.calls, "net")
    wanted = run(coarse.graph, list(coarse.calls))
    np.testing.assert_allclose(run(equalized, list(coarse.calls)), wanted, atol=1e-4 * np.abs(wanted).max())

    def spread(graph: bytes) -> float:
        model = onnx.load_model_from_string(graph)
        total = [node.output[0] for node in model.graph.node if node.op_type == "Add"][-1]
        model.graph.output.append(onnx.helper.make_tensor_value_info(total, 1, None))
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        values = np.concatenate([session.run([total], call)[0] for call in coarse.calls])
        loudest = np.abs(values).max((0, 2, 3))
        return float(loudest.max() / loudest.min())

    assert spread(coarse.graph) > 30
    assert spread(equalized) < 0.6 * spread(coarse.graph)


def test_a_float_sum_adds_unrounded_values(net: Material) -> None:
    """Two float nodes in a row have nothing between them, whoever else reads the value in 8 bits."""
    nodes = onnx.load_model_from_string(net.graph).graph.node
    total = [node for node in nodes if node.op_type == "Add"][-1]
    last = [node for node in nodes if total.output[0] in node.input]
    graph = Walked(quantize(net, PRESETS["plain"], "x86", frozenset({total.name, *(node.name for node in last)})))
    [kept] = [node for node in graph.nodes if node.name == last[0].name]
    assert kept.input[0] == total.output[0]


class Leaky(nn.Module):
    """Convolutions with a leaky ReLU, cut off below, between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 5, 3)
        self.register_buffer("lowest", torch.tensor(-0.2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image.permute(0, 3, 1, 2).float() / 64 - 2)
        x = torch.maximum(nn.functional.leaky_relu(x, 0.2), self.lowest)
        return self.second(x).mean((2, 3))


@pytest.mark.parametrize("form", ["x86", "arm", "tensorrt"])
def test_leaky_activations_stay_in_eight_bits(form: Any) -> None:
    """A maximum with a number is a clip to quantizers, and a leaky ReLU has a kernel on CPUs: nothing between the
    convolutions is computed in float there, and the net is what it was."""
    torch.manual_seed(1)
    net = material(exported(Leaky()))
    assert [node.op_type for node in Walked(net.graph).of("Max", "LeakyRelu")] == ["LeakyRelu", "Max"]
    graph = Walked(quantize(net, PRESETS["plain"], form))
    assert not graph.of("Max")
    if form != "tensorrt":
        [leaky] = graph.of("LeakyRelu")
        users = [node.op_type for node in graph.nodes if leaky.output[0] in node.input]
        assert graph.is_quantized(leaky.input[0])
        assert set(users) <= {"QuantizeLinear", "Clip"}
    calls = pictures(7, 16)
    wanted = run(net.graph, calls)
    got = run(graph.model.SerializeToString(), calls)
    assert 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()) > 20


def test_what_cannot_be_quantized_is_said(net: Material) -> None:
    """An unknown node, no calls to fit with, and dynamic ranges for TensorRT are refused by the component's name."""
    with pytest.raises(ExportError, match="'net' has no nodes \\['nowhere'\\]"):
        quantize(net, PRESETS["plain"], "x86", frozenset({"nowhere"}))
    with pytest.raises(ExportError, match="'net' cannot be fitted without calls"):
        quantize(Material("net", net.graph, net.ranges, ()), PRESETS["fitted"], "x86")
    with pytest.raises(ExportError, match="'net': TensorRT"):
        quantize(net, PRESETS["dynamic"], "tensorrt")
    everything = frozenset(node.name for node in onnx.load_model_from_string(net.graph).graph.node)
    with pytest.raises(ExportError, match="nothing to quantize in 'net'"):
        quantize(net, PRESETS["plain"], "x86", everything)


def test_presets_worth_trying(net: Material) -> None:
    """For convolutions the equalized one comes first; dynamic ranges are offered for none of them."""
    keys = [preset.key for preset in presets_for(net.graph, "x86")]
    assert keys[0] == "equalized"
    assert "dynamic" not in keys
    assert all(isinstance(preset, Preset) for preset in PRESETS.values())
