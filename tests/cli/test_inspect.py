"""``edge-mbm inspect``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from edge_mbm.bundle import BundleFiles
from edge_mbm.spec import (
    CalibrationRecord,
    Component,
    Decision,
    Encoder,
    ErrorFigures,
    Manifest,
    Provenance,
    SpeedFigures,
    Variant,
    Window,
)
from edge_mbm.testing import tiny_bundle


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    with BundleFiles(tiny_bundle()) as files:
        return files.manifest


def with_int8(component: Component, reason: str = "3.7 times as fast") -> Component:
    """One that was measured and kept."""
    int8 = Variant(
        target="any",
        precision="int8",
        opset=20,
        graph="graphs/int8.onnx",
        decision=Decision(kept=True, reason=reason),
        error=ErrorFigures(samples=9, cosine=0.98765, sqnr_db=31.4, max_abs=0.1, agreement=0.995, accuracy=0.871),
        speed=SpeedFigures(host="Some CPU, onnxruntime 1.32, 1 thread", median_us=123.4, iqr_us=1.0, speedup=3.71),
    )
    return replace(component, variants=component.variants | {"cpu-int8": int8})


def test_it_says_what_a_head_needs_and_gives(cli: Callable[..., Any]) -> None:
    """Inputs with their sources, outputs with their labels, and its times, in ms."""
    done = cli("inspect", tiny_bundle())
    assert done.code == 0
    for line in (
        "event  head, runs by default",
        "in  color <- image_encoder.color: float32[batch, 3]",
        "out logits: float32[batch, 4], classification of 4: red, green, blue, loud",
        "pivot image, deadline 300 ms",
        "tolerance audio: at most 200 ms older than the pivot",
        "may do without some of image, audio (mask input present)",
        "window 100 ms, hop 100 ms",
        "state next_state -> state: float32[batch, 1]",
        "in  image <- image: uint8[batch, 8, 8, 3] (NHWC, rgb 0..255), steps: image height=8 width=8",
        "x86-cpu-int8 (int8, target x86-cpu) not kept: there is nothing to quantize in so small a graph",
        "1 of image, audio with the reference for event.logits",
    ):
        assert line in done.out


def test_a_window_of_frames_has_no_milliseconds(
    cli: Callable[..., Any], changed: Callable[..., Path], manifest: Manifest
) -> None:
    """Where the stream's rate is not known it is said in items."""
    encoder = manifest.components["image_encoder"]
    assert isinstance(encoder, Encoder)
    components = {**manifest.components, "image_encoder": replace(encoder, window=Window(length=4, hop=2))}
    assert "window 4 items, hop 2" in cli("inspect", changed(components=components)).out


def test_variants_come_with_their_evidence(
    cli: Callable[..., Any], changed: Callable[..., Path], manifest: Manifest
) -> None:
    """Size, error, speed and reason; the one that would run here is marked, and the host is named once."""
    components = {name: with_int8(c) if name in ("event", "color") else c for name, c in manifest.components.items()}
    done = cli("inspect", changed({"graphs/int8.onnx": b"x" * 2048}, components=components))
    [row, _] = [line.split() for line in done.out.splitlines() if "cpu-int8 " in line and "31.4" in line]
    assert row == [">", "cpu-int8", "2", "0.9877", "31.4", "0.995", "0.871", "123", "3.71x"]
    assert "cpu-int8 (int8, target any) kept: 3.7 times as fast" in done.out
    assert done.out.count("times on Some CPU, onnxruntime 1.32, 1 thread") == 2  # once for each component


def test_figures_that_nobody_measured_take_no_room(cli: Callable[..., Any]) -> None:
    """The tiny bundle has neither errors nor speeds, so there are no such columns."""
    assert "SQNR" not in cli("inspect", tiny_bundle()).out


def test_provenance_is_shown(cli: Callable[..., Any], changed: Callable[..., Path]) -> None:
    """Versions and what the ranges were taken from; or that nothing is known."""
    assert "not recorded" in cli("inspect", tiny_bundle()).out
    record = CalibrationRecord(samples=256, data_sha256="c" * 64, method="entropy", description="from the hall")
    provenance = Provenance(
        recipe_sha256="a" * 64, model_sha256="b" * 64, versions={"torch": "2.13.0"}, calibration=record
    )
    out = cli("inspect", changed(provenance=provenance)).out
    for part in ("a" * 64, "b" * 64, "c" * 64, "made with torch 2.13.0", "256 samples, entropy, from the hall"):
        assert part in out


def test_json_is_the_manifest_and_sizes(cli: Callable[..., Any]) -> None:
    """The manifest as it stands in the file, each graph's bytes, and what would run here."""
    done = cli("inspect", tiny_bundle(), "--json")
    with BundleFiles(tiny_bundle()) as files:
        assert done.json["manifest"] == msgspec.json.decode(files.manifest_bytes)
        sizes = done.json["sizes"]
        assert sizes["graphs"]["color"] == {"fp32": len(files.read("graphs/color.fp32.onnx"))}
        assert sizes["files"] == sum(entry.size for entry in files.manifest.files.values())
        assert sizes["manifest"] == len(files.manifest_bytes)
    assert done.json["chosen"] == dict.fromkeys(done.json["manifest"]["components"], "fp32")
    assert done.err == ""


def test_a_bundle_for_another_machine_is_still_shown(
    cli: Callable[..., Any], changed: Callable[..., Path], manifest: Manifest
) -> None:
    """Nothing of it runs here, and it says so."""
    head = manifest.components["color"]
    foreign = replace(head, variants={"trt": replace(head.variants["fp32"], target="tensorrt")})
    path = changed(components={**manifest.components, "color": foreign})
    assert "> runs on this machine: none does" in cli("inspect", path).out
    assert cli("inspect", path, "--json").json["chosen"]["color"] is None


HOSTILE = "\x1b[2J\x9b31m[bold]evil[/bold]\u202e\x07"


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_hostile_bundle_does_not_steer_the_terminal(
    cli: Callable[..., Any], changed: Callable[..., Path], manifest: Manifest, extra: list[str]
) -> None:
    """Name, description, labels, units, golden ids, versions and reasons are shown, never obeyed."""
    components: dict[str, Any] = {name: with_int8(c, HOSTILE) for name, c in manifest.components.items()}
    encoder = components["image_encoder"]
    value = encoder.inputs["image"]
    tensor = replace(value.tensor, unit=HOSTILE, layout=HOSTILE)
    components["image_encoder"] = replace(encoder, inputs={"image": replace(value, tensor=tensor)})
    path = changed(
        {"graphs/int8.onnx": b"x", "labels/events.txt": f"{HOSTILE}\nb\nc\nd\n".encode()},
        name=HOSTILE,
        description=HOSTILE + "\nsecond line",
        components=components,
        golden=(replace(manifest.golden[0], id=HOSTILE),),
        provenance=Provenance(recipe_sha256="a" * 64, model_sha256="b" * 64, versions={HOSTILE: HOSTILE}),
    )
    done = cli("inspect", path, *extra)
    assert done.code == 0
    assert not set(done.out) & {"\x1b", "\x9b", "\x07", "\u202e"}
    if not extra:
        assert "[bold]evil[/bold]" in done.out.splitlines()[0]


def test_a_damaged_bundle_is_exit_code_3(cli: Callable[..., Any], tmp_path: Path) -> None:
    """One flipped bit in a graph."""
    data = bytearray(tiny_bundle().read_bytes())
    data[data.index(b"ReduceMean")] ^= 1
    path = tmp_path / "flipped.mbm"
    path.write_bytes(data)
    done = cli("inspect", path)
    assert (done.code, done.out) == (3, "")
    assert "graphs/" in done.err
