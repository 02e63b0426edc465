"""Which components run, in which variant."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from edge_mbm.bundle import BundleFiles
from edge_mbm.errors import InputError, ManifestError
from edge_mbm.runtime.plan import choose_heads, choose_variant, plan
from edge_mbm.spec import (
    Decision,
    Embedding,
    Encoder,
    Input,
    Manifest,
    Output,
    SpeedFigures,
    TensorSpec,
    Tokens,
    Variant,
    VideoModality,
    Window,
)
from edge_mbm.testing import tiny_bundle


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    with BundleFiles(tiny_bundle()) as files:
        return files.manifest


def variant(target: str, speedup: float | None = None, *, kept: bool = True) -> Variant:
    speed = None if speedup is None else SpeedFigures(host="x", median_us=1.0, iqr_us=0.1, speedup=speedup)
    return Variant(
        target=target,  # type: ignore[arg-type]
        precision="fp32",
        decision=Decision(kept=kept, reason="x"),
        opset=20,
        graph="g.onnx" if kept else None,
        speed=speed,
    )


def encoder(**variants: Variant) -> Encoder:
    return Encoder(inputs={}, outputs={}, variants={key.replace("_", "-"): v for key, v in variants.items()})


def changed(manifest: Manifest, name: str, **fields: Any) -> Manifest:
    component = replace(manifest.components[name], **fields)
    return replace(manifest, components=manifest.components | {name: component})


def test_default_heads_run_unless_told_otherwise(manifest: Manifest) -> None:
    """The manifest's choice, mine, or all where it makes none."""
    assert choose_heads(manifest, None) == ("event",)
    assert choose_heads(manifest, ("color",)) == ("color",)
    assert choose_heads(replace(manifest, default_heads=()), None) == ("event", "color")


def test_only_what_the_heads_need_is_planned(manifest: Manifest) -> None:
    """The head "color" sees no audio, so no audio encoder is loaded; encoders come before heads."""
    assert [p.name for p in plan(manifest, ("color",))] == ["image_encoder", "color"]
    names = [p.name for p in plan(manifest, ("event", "color"))]
    assert set(names) == set(manifest.components)
    assert max(map(names.index, ("image_encoder", "audio_encoder"))) < min(map(names.index, ("event", "color")))


def test_unknown_names_are_refused_with_the_known_ones(manifest: Manifest) -> None:
    """Heads, encoders taken for heads, none at all, and variants."""
    for heads in (("smell",), ("image_encoder",), ()):
        with pytest.raises(InputError, match=r"color.*event"):
            plan(manifest, heads)
    with pytest.raises(InputError, match=r"'int4'.*fp32"):
        plan(manifest, variant="int4")


def test_the_fastest_that_was_kept_for_this_cpu_is_taken() -> None:
    """By measured speed-up, among those for any machine and for this one."""
    part = encoder(
        fp32=variant("any", 1.0),
        x86_cpu_int8=variant("x86-cpu", 1.9),
        arm_cpu_int8=variant("arm-cpu", 2.5),
        trt=variant("tensorrt", 9.0),
    )
    assert choose_variant("x", part, machine="x86_64") == "x86-cpu-int8"
    assert choose_variant("x", part, machine="AMD64") == "x86-cpu-int8"
    assert choose_variant("x", part, machine="aarch64") == "arm-cpu-int8"
    assert choose_variant("x", part, machine="riscv64") == "fp32"
    slow = encoder(fp32=variant("any", 1.0), x86_cpu_int8=variant("x86-cpu", 0.9))
    assert choose_variant("x", slow, machine="x86_64") == "fp32"


def test_a_named_variant_is_taken_where_it_is() -> None:
    """And fp32 where a component does not have it, or it was not kept, or is for another machine."""
    part = encoder(fp32=variant("any"), x86_cpu_int8=variant("x86-cpu", 3.0, kept=False), slow=variant("any", 0.5))
    assert choose_variant("x", part, "slow", machine="x86_64") == "slow"
    assert choose_variant("x", part, "x86-cpu-int8", machine="x86_64") == "fp32"
    assert choose_variant("x", encoder(fp32=variant("any"), trt=variant("tensorrt")), "trt") == "fp32"


def test_nothing_for_this_machine_is_said() -> None:
    """A bundle for another target alone is refused by the component's name."""
    with pytest.raises(ManifestError, match=r"'ears' has no variant for this machine.*trt"):
        choose_variant("ears", encoder(trt=variant("tensorrt")))


def spec(*shape: int | str) -> TensorSpec:
    return TensorSpec(dtype="float32", shape=shape)


def test_what_cannot_run_yet_is_refused_by_name(manifest: Manifest) -> None:
    """The manifest may say more than this version runs: each such thing is refused when a session is made."""
    logits = Output(tensor=spec("batch", 4), task=Tokens(tokenizer="labels"))
    video = replace(manifest, modalities=manifest.modalities | {"image": VideoModality(rate=25.0)})
    for broken, message in (
        (changed(manifest, "event", outputs={"logits": logits}), "'event.logits' is a Tokens"),
        (changed(manifest, "image_encoder", window=Window(length=2, hop=1)), "'image_encoder'.*window"),
        (video, "'image_encoder' reads 'image' without a window"),
    ):
        with pytest.raises(ManifestError, match=message):
            plan(broken)


def test_an_encoder_of_an_encoder_runs_in_order(manifest: Manifest) -> None:
    """Speech to text to embedding is a chain; each comes after the one it reads."""
    second = Encoder(
        inputs={"color": Input(source="image_encoder.color", tensor=spec("batch", 3))},
        outputs={"color": Output(tensor=spec("batch", 3), task=Embedding())},
        variants=manifest.components["color"].variants,
    )
    head = replace(
        manifest.components["color"], inputs={"color": Input(source="second.color", tensor=spec("batch", 3))}
    )
    chained = replace(
        manifest,
        components={"color": head, "second": second, **{k: v for k, v in manifest.components.items() if k != "color"}},
    )
    assert [p.name for p in plan(chained, ("color",))] == ["image_encoder", "second", "color"]
