"""Our presets over well-kept quantizers: one float graph, one calibration, a quantized graph per form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import onnx

from edge_mbm.calibration import Collector, MinMax, Percentile
from edge_mbm.errors import ExportError
from edge_mbm.export.quantize.dynamic import quantize_dynamic
from edge_mbm.export.quantize.equalize import equalize
from edge_mbm.export.quantize.pixels import absorb_pixels
from edge_mbm.export.quantize.preset import Material, Preset
from edge_mbm.export.quantize.qdq import Form, Ranges, to_qdq
from edge_mbm.export.quantize.rounding import fit_layers
from edge_mbm.export.quantize.smooth import smooth

__all__ = ["PRESETS", "Form", "Material", "Preset", "presets_for", "quantize"]

_WIDE = Percentile(99.999)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.key: preset
        for preset in (
            Preset("fitted", method=_WIDE, correct_bias=True, fit_rounding=True),
            Preset("equalized", method=_WIDE, equalize=True, correct_bias=True, fit_rounding=True),
            Preset("bias-corrected", method=_WIDE, correct_bias=True),
            Preset("plain"),
            Preset("smooth", method=MinMax(), smooth=0.7),
            Preset("smooth-dynamic", activations="dynamic", smooth=0.7),
            Preset("smooth-dynamic-0.6", activations="dynamic", smooth=0.6),
            Preset("dynamic", activations="dynamic"),
        )
    }
)
"""By key."""

_FOR_CONVOLUTIONS = ("equalized", "fitted", "bias-corrected", "plain")
_FOR_PRODUCTS = ("smooth-dynamic", "smooth-dynamic-0.6", "smooth", "dynamic")
_FOR_PRODUCTS_STATIC = ("smooth", "plain")
_CONVOLUTIONS, _PRODUCTS = ("Conv", "ConvTranspose"), ("MatMul", "Gemm")


def presets_for(graph: bytes, form: Form) -> tuple[Preset, ...]:
    """The presets worth trying on a graph, best guess first: by whether convolutions or products hold most weights.

    Args:
        graph: fp32, folded.
        form: whose kernels it is for; dynamic ranges are for CPUs only.
    """
    model = onnx.load_model_from_string(graph)
    products = _FOR_PRODUCTS_STATIC if form == "tensorrt" else _FOR_PRODUCTS
    keys = products if _weights(model, _PRODUCTS) > _weights(model, _CONVOLUTIONS) else _FOR_CONVOLUTIONS
    return tuple(PRESETS[key] for key in keys)


def _weights(model: onnx.ModelProto, kinds: tuple[str, ...]) -> int:
    """How many constant weights operators of some kinds hold."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    return sum(sizes.get(node.input[1], 0) for node in model.graph.node if node.op_type in kinds)


def quantize(material: Material, preset: Preset, form: Form, float_nodes: frozenset[str] = frozenset()) -> bytes:
    """A component's quantized graph: standard operators of opset 20 or below, equal bytes for equal material.

    Args:
        material: the component.
        preset: by which steps.
        form: whose kernels it is for.
        float_nodes: names of nodes of ``material.graph`` that stay float.

    Raises:
        ExportError: there is nothing to quantize, a name is no node's, or a step failed; it names the component.
    """
    if preset.activations == "dynamic":
        if form == "tensorrt":
            raise ExportError(f"'{material.name}': TensorRT computes no ranges at run time: choose a static preset")
        if preset.smooth is not None:
            smoothed = smooth(material.graph, material.calls, preset.smooth, material.name)
            material = replace(material, graph=smoothed)
        return quantize_dynamic(material, float_nodes)
    graph, ranges = _prepared(material, preset, form)
    if form != "tensorrt":
        graph, of_bytes = absorb_pixels(graph)
        ranges = {**ranges, **of_bytes}
    quantized = to_qdq(graph, ranges, form, material.name, _left(graph, material, float_nodes))
    if preset.correct_bias or preset.fit_rounding:
        return fit_layers(quantized, graph, material.calls, material.name, rounding=preset.fit_rounding)
    return quantized


def _left(graph: bytes, material: Material, float_nodes: frozenset[str]) -> frozenset[str]:
    """Those of the nodes to keep in float that are still there: what was absorbed is gone, and costs nothing."""
    before, now = ({node.name for node in onnx.load_model_from_string(g).graph.node} for g in (material.graph, graph))
    return float_nodes - (before - now)


def _prepared(material: Material, preset: Preset, form: Form) -> tuple[bytes, Ranges]:
    """The float graph with its weights moved as the preset wants, and the ranges of its activations."""
    graph, symmetric = material.graph, form == "tensorrt"
    if preset.smooth is not None:
        graph = smooth(graph, material.calls, preset.smooth, material.name)
    if preset.equalize:
        graph = equalize(graph, material.calls, material.name)
    if graph == material.graph:
        return graph, material.ranges.ranges(preset.method, symmetric=symmetric)
    # Activations are others now.
    collector = Collector(graph, material.name)
    for number, call in enumerate(material.calls):
        collector.run(call, where=f"call {number}")
    return graph, collector.ranges.ranges(preset.method, symmetric=symmetric)
