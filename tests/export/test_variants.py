"""Variants: what each is for, that exported ones are what their targets take, and that they compute the model."""

from __future__ import annotations

import platform
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edge_mbm.export import load_recipe
from edge_mbm.export.chain import Chain, GraphRunner
from edge_mbm.export.lint import lint
from edge_mbm.export.recipe import VariantKey
from edge_mbm.export.recordings import importable, recordings
from edge_mbm.export.targets import TARGETS, target
from edge_mbm.export.variants import DIALECTS, quantizable, runs_here

COMPONENTS = ("image_encoder", "audio_encoder", "both", "seen")


@pytest.fixture(scope="module")
def graphs(exported: Any) -> dict[tuple[str, str], bytes]:
    """Every graph of the bundle."""
    return {
        (name, key): exported.files.read(variant.graph)
        for name, component in exported.manifest.components.items()
        for key, variant in component.variants.items()
        if variant.graph
    }


def test_each_variant_is_for_the_targets_that_ask_for_it() -> None:
    """Of their family, and in the form that their kernels take; a recipe may require each of them, and no other."""
    assert set(DIALECTS) == set(get_args(VariantKey))
    asked = {(machine.name, v) for machine in TARGETS.values() for vs in machine.variants.values() for v in vs}
    assert {variant for _, variant in asked} == set(DIALECTS)
    for name, variant in asked:
        dialect, machine = DIALECTS[variant], target(name)
        assert dialect.family == machine.family
        signed = {"x86": "uint8", "arm": "int8", "tensorrt": "int8"}
        assert dialect.form is None or signed[dialect.form] in machine.form.activations


@pytest.mark.parametrize(("machine", "variant"), [("x86_64", "x86-cpu-int8"), ("aarch64", "arm-cpu-int8")])
def test_what_can_be_timed_is_what_this_machine_is(machine: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One CPU's variant and fp32; nothing that is for a GPU."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert [key for key in ("fp32", *DIALECTS) if runs_here(key)] == ["fp32", variant]


def test_exported_variants_are_what_their_targets_take(exported: Any, graphs: dict[tuple[str, str], bytes]) -> None:
    """The linter has no error for a kept one, of whatever target; a quantized one has 8-bit weights and activations."""
    kinds = {name: "head" if name in {"both", "seen"} else "encoder" for name in COMPONENTS}
    assert {key for _, key in graphs} >= {"fp32", "x86-cpu-int8", "trt-fp16", "trt-int8"}
    for (name, key), graph in graphs.items():
        for machine in ("x86-cpu", "jetson-orin"):
            if key in target(machine).variants.get(kinds[name], ()):  # type: ignore[call-overload]
                found = lint(graph, target(machine), kind=kinds[name], name=name)  # type: ignore[arg-type]
                assert [finding for finding in found if finding.severity == "error"] == []
        types = {tensor.data_type for tensor in onnx.load_model_from_string(graph).graph.initializer}
        assert (TensorProto.INT8 in types) == key.endswith("int8")
        assert (TensorProto.FLOAT16 in types) == key.endswith("fp16")


@pytest.mark.parametrize(("variant", "least_db"), [("x86-cpu-int8", 20.0), ("trt-int8", 20.0), ("trt-fp16", 45.0)])
def test_variants_compute_the_model(
    variant: str, least_db: float, exported: Any, graphs: dict[tuple[str, str], bytes]
) -> None:
    """On recordings that calibration never saw, all components in that variant at once, fp32 where there is none."""
    manifest, recipe = exported.manifest, load_recipe(exported.recipe)
    chain = Chain({name: manifest.components[name] for name in manifest.order()})
    with importable(recipe.python_path()):
        heldout = list(recordings(recipe, recipe.data.heldout))
    chosen = {name: variant if (name, variant) in graphs else "fp32" for name in COMPONENTS}
    assert variant in chosen.values()
    results = [
        [chain.run(r, {n: GraphRunner(graphs[n, v], n, extended=True) for n, v in keys.items()}) for r in heldout]
        for keys in (dict.fromkeys(COMPONENTS, "fp32"), chosen)
    ]
    for key in results[0][0]:
        fp32, got = (np.stack([r[key] for r in result if key in r]).astype(np.float64) for result in results)
        noise = ((fp32 - got) ** 2).sum()
        if chosen[key.partition(".")[0]] != "fp32":
            assert noise > 0, "the variant is the original"
        assert 10 * np.log10((fp32**2).sum() / max(noise, 1e-30)) >= least_db, key


def test_what_has_no_weights_is_not_quantizable(graphs: dict[tuple[str, str], bytes]) -> None:
    """There would be nothing to gain; whatever has a product with constants is."""
    assert quantizable(graphs["seen", "fp32"])
    x = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    nodes = [onnx.helper.make_node("MatMul", ["x", "x"], ["y"])]
    assert not quantizable(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y])).SerializeToString())
