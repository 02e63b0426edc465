"""Targets: the machines that a bundle is for, as data."""

from __future__ import annotations

import platform
from typing import get_args

import msgspec
import onnx
import pytest

from edge_mbm import spec
from edge_mbm.errors import RecipeError
from edge_mbm.export.targets import TARGETS, Kind, Target, target, variants_for
from edge_mbm.export.variants import DIALECTS

STANDARD = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}


def test_the_targets_of_the_documentation_are_there() -> None:
    """Two CPUs, two Jetsons, one GPU of a PC, in this order."""
    assert list(TARGETS) == ["x86-cpu", "arm-cpu", "jetson-orin", "jetson-thor", "rtx"]
    assert all(name == found.name == target(name).name for name, found in TARGETS.items())


@pytest.mark.parametrize("found", TARGETS.values(), ids=list(TARGETS))
def test_every_variant_of_a_target_is_one_that_can_be_made_for_it(found: Target) -> None:
    """What a target names exists as a dialect, of the target's family, in its quantized form."""
    for variants in found.variants.values():
        for variant in variants:
            dialect = DIALECTS[variant]
            assert dialect.family == found.family
            form = {"x86": "uint8", "arm": "int8", "tensorrt": "int8", None: None}[dialect.form]
            assert form is None or form == found.form.activations[0]


@pytest.mark.parametrize("found", TARGETS.values(), ids=list(TARGETS))
def test_a_default_precision_is_fp32_or_one_that_the_target_has_a_variant_of(found: Target) -> None:
    """Every kind of component of the manifest has a default, and a variant or fp32 to meet it."""
    kinds = {component.__struct_config__.tag for component in get_args(spec.Component)}
    assert kinds == set(get_args(Kind))
    for kind in get_args(Kind):
        precision = found.default_precision(kind)
        made = {DIALECTS[variant].precision for variant in found.variants.get(kind, ())}
        assert precision == "fp32" or precision in made


def test_gpus_default_to_half_precision_and_heads_stay_float() -> None:
    """INT8 is for encoders alone, and on a GPU only where it pays."""
    for found in TARGETS.values():
        assert not any(variant.endswith("int8") for variant in found.variants.get("head", ()))
        if found.family == "tensorrt":
            assert {found.default_precision(kind) for kind in get_args(Kind)} == {"fp16"}
        else:
            assert found.default_precision("head") == "fp32"


@pytest.mark.parametrize("found", TARGETS.values(), ids=list(TARGETS))
def test_lists_of_operators_name_standard_operators(found: Target) -> None:
    """A misspelt operator in the file would be allowed or refused in vain."""
    engine = found.engine
    assert {*engine.ops, *engine.denied} <= STANDARD
    assert not {*engine.ops} & {*engine.denied}
    assert len(set(engine.ops)) == len(engine.ops)
    assert {*found.denied_dtypes, *found.discouraged} <= set(engine.dtypes)


def test_only_hardware_of_compute_capability_8_9_and_above_takes_fp8() -> None:
    """Orin is sm_87, Thor sm_110."""
    assert "float8e4m3fn" not in target("jetson-orin").dtypes()
    assert "float8e4m3fn" in target("jetson-thor").dtypes()
    assert [found.stand_in_fp8 for found in TARGETS.values()] == ["", "", "", "SM89", "SM89"]


@pytest.mark.parametrize(
    ("machine", "measured"), [("x86_64", ["x86-cpu"]), ("AMD64", ["x86-cpu"]), ("aarch64", ["arm-cpu"])]
)
def test_speed_is_measured_only_on_a_machine_of_the_targets_kind(
    machine: str, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's speed is never measured here, a CPU's on the same kind of CPU."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert [name for name, found in TARGETS.items() if found.measurable] == measured


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("jetson-orni", "did you mean 'jetson-orin'?"),
        ("x86", "did you mean 'x86-cpu'?"),
        ("toaster", "unknown target 'toaster'. There are x86-cpu, arm-cpu, jetson-orin, jetson-thor, rtx"),
    ],
)
def test_an_unknown_target_is_refused_with_the_nearest(name: str, said: str) -> None:
    """A typing error costs one look."""
    with pytest.raises(RecipeError) as caught:
        variants_for(["rtx", name], "encoder")
    assert said in str(caught.value)


def test_variants_of_several_targets_come_once_in_order_of_preference() -> None:
    """The first target's first; two GPUs share their variants."""
    assert variants_for(["jetson-orin", "x86-cpu", "rtx"], "encoder") == ("trt-fp16", "trt-int8", "x86-cpu-int8")
    assert variants_for(["x86-cpu", "rtx"], "head") == ("trt-fp16",)
    assert variants_for([], "encoder") == ()


def test_a_key_that_is_not_known_is_no_target() -> None:
    """The file is typed: a misspelt key fails the first test that reads it."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(target("rtx")) | {"opsett": 20}, Target)
