"""Dialects: what each target's graph is made of, node by node, and that it still computes the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edge_mbm.calibration import Collector, Percentile
from edge_mbm.errors import ExportError
from edge_mbm.export import load_recipe
from edge_mbm.export.chain import Chain, GraphRunner
from edge_mbm.export.graph import fold
from edge_mbm.export.recordings import importable, recordings
from edge_mbm.export.variants import DIALECTS, quantizable

COMPONENTS = ("image_encoder", "audio_encoder", "both", "seen")


@pytest.fixture(scope="module")
def graphs(exported: Any) -> dict[tuple[str, str], bytes]:
    """Every graph of the bundle; that all variants were kept is what these tests rest on."""
    found = {
        (name, key): exported.files.read(variant.graph)
        for name, component in exported.manifest.components.items()
        for key, variant in component.variants.items()
    }
    assert set(found) == {(name, variant) for name in COMPONENTS for variant in ("fp32", *DIALECTS)}
    return found


class Walked:
    """A graph's nodes and constants, by the names of what they give."""

    def __init__(self, graph: bytes) -> None:
        self.model = onnx.load_model_from_string(graph)
        self.nodes = list(self.model.graph.node)
        self.makers = {value: node for node in self.nodes for value in node.output}
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}

    def of(self, *kinds: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if node.op_type in kinds)

    def dequantized(self, value: str) -> onnx.NodeProto:
        node = self.makers[value]
        assert node.op_type == "DequantizeLinear", (value, node.op_type)
        return node


@pytest.mark.parametrize("name", COMPONENTS)
def test_int8_for_x86_is_what_its_kernels_want(name: str, graphs: dict[tuple[str, str], bytes]) -> None:
    """Activations unsigned and asymmetric, one scale each; weights signed and symmetric, a scale for each channel that
    comes out; biases int32 at the product of both scales; nothing else is quantized."""
    graph = Walked(graphs[name, "x86-cpu-int8"])
    weighted = list(graph.of("Conv", "Gemm", "MatMul"))
    assert weighted
    for node in weighted:
        activation = graph.dequantized(node.input[0])
        scale, zero = (graph.constants[key] for key in activation.input[1:])
        assert (scale.shape, zero.shape, zero.dtype) == ((), (), np.uint8)
        weights = graph.dequantized(node.input[1])
        values, scales, zeros = (graph.constants[key] for key in weights.input)
        assert values.dtype == zeros.dtype == np.int8
        assert not zeros.any()
        [axis] = [attribute.i for attribute in weights.attribute if attribute.name == "axis"]
        assert axis == (1 if node.op_type == "MatMul" else 0)
        assert scales.shape == (values.shape[axis],)
        if len(node.input) > 2:
            bias, bias_scale, bias_zero = (graph.constants[key] for key in graph.dequantized(node.input[2]).input)
            assert bias.dtype == np.int32
            assert not np.any(bias_zero)
            np.testing.assert_allclose(bias_scale, scale * scales, rtol=1e-6)
    for node in graph.of("QuantizeLinear"):
        assert graph.constants[node.input[2]].dtype == np.uint8


@pytest.mark.parametrize("name", COMPONENTS)
def test_int8_weights_are_the_models_rounded(name: str, graphs: dict[tuple[str, str], bytes]) -> None:
    """Each within half a step of a weight of the folded fp32 graph, which has the same names."""
    graph, original = Walked(graphs[name, "x86-cpu-int8"]), Walked(fold(graphs[name, "fp32"], name))
    compared = 0
    for node in graph.of("Conv", "Gemm", "MatMul"):
        values, scales, _ = (graph.constants[key] for key in graph.dequantized(node.input[1]).input)
        wanted = original.constants[graph.dequantized(node.input[1]).input[0].removesuffix("_quantized")]
        axis = 1 if node.op_type == "MatMul" else 0
        steps = scales.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
        assert (np.abs(values * steps - wanted) <= steps * 0.501).all()
        compared += 1
    assert compared


@pytest.mark.parametrize("name", COMPONENTS)
def test_fp16_for_tensorrt_is_fp16_inside(name: str, graphs: dict[tuple[str, str], bytes]) -> None:
    """Between float32 edges every float is a half: weights, and each value on the way."""
    graph = Walked(graphs[name, "trt-fp16"])
    assert {a.dtype for a in graph.constants.values() if a.dtype.kind == "f"} == {np.dtype(np.float16)}
    inferred = onnx.shape_inference.infer_shapes(graph.model, strict_mode=True).graph
    inner = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    assert TensorProto.FLOAT16 in inner.values()
    assert TensorProto.FLOAT not in inner.values()
    edges = [v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.output)]
    assert set(edges) <= {TensorProto.FLOAT, TensorProto.UINT8}


@pytest.mark.parametrize(("variant", "least_db"), [("x86-cpu-int8", 20.0), ("trt-fp16", 45.0)])
def test_variants_compute_the_model(
    variant: str, least_db: float, exported: Any, graphs: dict[tuple[str, str], bytes]
) -> None:
    """On recordings that calibration never saw, all components in that variant at once."""
    manifest, recipe = exported.manifest, load_recipe(exported.recipe)
    chain = Chain({name: manifest.components[name] for name in manifest.order()})
    with importable(recipe.python_path()):
        heldout = list(recordings(recipe, recipe.data.heldout))
    results = [
        [chain.run(r, {n: GraphRunner(graphs[n, key], n, extended=True) for n in COMPONENTS}) for r in heldout]
        for key in ("fp32", variant)
    ]
    for key in results[0][0]:
        fp32, got = (np.stack([r[key] for r in result if key in r]).astype(np.float64) for result in results)
        noise = ((fp32 - got) ** 2).sum()
        assert noise > 0, "the variant is the original"
        assert 10 * np.log10((fp32**2).sum() / noise) >= least_db, key


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_same_bytes_each_time(name: str, graphs: dict[tuple[str, str], bytes]) -> None:
    """From the same graph and ranges."""
    folded = fold(graphs[name, "fp32"], name)
    collector = Collector(folded, name)
    spec = {i.name: i for i in onnx.load_model_from_string(folded).graph.input}
    rng = np.random.default_rng(0)
    inputs = {
        key: rng.integers(0, 255, [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]).astype(
            np.uint8 if value.type.tensor_type.elem_type == TensorProto.UINT8 else np.float32
        )
        for key, value in spec.items()
    }
    collector.run(inputs, where="test")
    ranges = collector.ranges.ranges(Percentile())
    for dialect in DIALECTS.values():
        assert dialect.emit(folded, ranges, name) == dialect.emit(folded, dict(reversed(ranges.items())), name)


def test_tensors_that_were_always_zero_can_be_quantized(graphs: dict[tuple[str, str], bytes]) -> None:
    """Silence and darkness in calibration give ranges that mean nothing, and a graph that loads and runs."""
    folded = fold(graphs["seen", "fp32"], "seen")
    collector, zeros = Collector(folded, "seen"), {"embedding": np.zeros((1, 8), np.float32)}
    collector.run(zeros, where="nothing")
    assert "embedding" in collector.ranges.all_zero
    graph = DIALECTS["x86-cpu-int8"].emit(folded, collector.ranges.ranges(Percentile()), "seen")
    np.testing.assert_allclose(
        GraphRunner(graph, "seen")(zeros)["logits"], GraphRunner(folded, "seen")(zeros)["logits"], atol=0.05
    )


def test_what_has_no_weights_is_not_quantizable(graphs: dict[tuple[str, str], bytes]) -> None:
    """There would be nothing to gain; whatever has a product with constants is."""
    assert quantizable(graphs["seen", "fp32"])
    x = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    nodes = [onnx.helper.make_node("MatMul", ["x", "x"], ["y"])]
    assert not quantizable(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y])).SerializeToString())


def test_a_quantizer_that_fails_is_told(graphs: dict[tuple[str, str], bytes]) -> None:
    """With the component's name, in one line; logging is left as it was."""
    level = logging.getLogger().level
    with pytest.raises(ExportError, match="'seen' could not be quantized: ") as caught:
        DIALECTS["x86-cpu-int8"].emit(fold(graphs["seen", "fp32"], "seen"), {}, "seen")
    assert "\n" not in str(caught.value)
    assert logging.getLogger().level == level
