"""``edge-mbm compare``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from edge_mbm.bundle import BundleFiles
from edge_mbm.spec import (
    Asset,
    CalibrationRecord,
    Decision,
    ErrorFigures,
    Manifest,
    Provenance,
    SpeedFigures,
    Variant,
)
from edge_mbm.testing import tiny_bundle

GAIN = np.float32(8).tobytes()
"""The color head's graph is a product with it."""


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    with BundleFiles(tiny_bundle()) as files:
        return files.manifest


@pytest.fixture(scope="module")
def head_graph() -> bytes:
    with BundleFiles(tiny_bundle()) as files:
        return files.read("graphs/color.fp32.onnx")


def error(cosine: float, accuracy: float) -> ErrorFigures:
    return ErrorFigures(samples=9, cosine=cosine, sqnr_db=31.4, max_abs=0.1, agreement=0.99, accuracy=accuracy)


def kept_int8(manifest: Manifest) -> dict[str, Any]:
    """What is to change so that the head "color" ships an int8 variant."""
    int8 = Variant(
        target="any",
        precision="int8",
        opset=17,
        graph="graphs/int8.onnx",
        decision=Decision(kept=True, reason="3.7 times as fast"),
        error=error(0.98765, 0.871),
        speed=SpeedFigures(host="Some CPU", median_us=123.4, iqr_us=1.0, speedup=3.71),
    )
    color = manifest.components["color"]
    color = replace(color, variants=color.variants | {"x86-cpu-int8": int8})
    return {"components": {**manifest.components, "color": color}}


def test_a_bundle_is_the_same_as_itself(cli: Callable[..., Any]) -> None:
    """Exit code 0, and nothing but that."""
    done = cli("compare", tiny_bundle(), tiny_bundle())
    assert done.code == 0
    assert "Every byte is the same." in done.out
    assert "Files" not in done.out
    found = cli("compare", tiny_bundle(), tiny_bundle(), "--json").json
    assert found["same"]
    assert not any(found[part] for part in ("manifest", "variants", "heads", "provenance", "files"))


def test_a_decision_that_flipped_is_shown_with_both_reasons(
    cli: Callable[..., Any], changed: Callable[..., Path], manifest: Manifest, head_graph: bytes
) -> None:
    """Exit code 1, the figures before and after, and both reasons."""
    other = changed({"graphs/int8.onnx": head_graph}, **kept_int8(manifest))
    done = cli("compare", tiny_bundle(), other)
    assert done.code == 1
    [before, after] = (line.split() for line in done.out.splitlines() if "kept  " in line)
    assert before == ["color", "x86-cpu-int8", "A", "not", "kept", *"-------"]
    assert after == ["B", "kept", "0", "0.9877", "31.4", "0.990", "0.871", "123", "3.71x"]
    assert "color x86-cpu-int8 in A, not kept: there is nothing to quantize in so small a graph" in done.out
    assert "color x86-cpu-int8 in B, kept: 3.7 times as fast" in done.out
    [change] = cli("compare", tiny_bundle(), other, "--json").json["variants"]
    assert (change["component"], change["variant"], change["flipped"]) == ("color", "x86-cpu-int8", True)
    assert change["b"]["file"]["size"] == len(head_graph)


def test_a_variant_that_went_away_is_told(
    cli: Callable[..., Any], changed: Callable[..., Path], manifest: Manifest
) -> None:
    """One that only A has."""
    color = manifest.components["color"]
    fewer = replace(color, variants={"fp32": color.variants["fp32"]})
    other = changed(components={**manifest.components, "color": fewer})
    done = cli("compare", tiny_bundle(), other)
    assert done.code == 1
    assert ["B", "absent", *"-------"] in [line.split() for line in done.out.splitlines()]


def test_the_contract_is_compared_value_by_value(
    cli: Callable[..., Any], changed: Callable[..., Path], manifest: Manifest
) -> None:
    """A tolerance that changed is named by its path; what did not is left out."""
    event = replace(manifest.heads()["event"], tolerance_ns={"audio": 7})
    components = {**manifest.components, "event": event}
    found = cli("compare", tiny_bundle(), changed(components=components, description="\x1b[31mred"), "--json").json
    changes = {change["where"]: (change.get("a"), change.get("b")) for change in found["manifest"]}
    assert changes == {
        "components.event.tolerance_ns.audio": (200_000_000, 7),
        "description": (manifest.description, "\x1b[31mred"),
    }
    assert not found["variants"]


def test_nothing_in_a_bundle_steers_the_terminal(cli: Callable[..., Any], changed: Callable[..., Path]) -> None:
    """Escape sequences show as text."""
    done = cli("compare", tiny_bundle(), changed(description="\x1b[31mred"))
    assert "\x1b" not in done.out
    assert r"\x1b[31mred" in done.out


def test_files_with_other_bytes_are_listed(
    cli: Callable[..., Any], changed: Callable[..., Path], head_graph: bytes
) -> None:
    """With their sizes, and what is new."""
    other = changed({"graphs/color.fp32.onnx": head_graph.replace(GAIN, np.float32(9).tobytes()), "new.txt": b"12345"})
    found = cli("compare", tiny_bundle(), other, "--json").json
    files = {change["path"]: (change["a"], change["b"]) for change in found["files"]}
    assert files.keys() == {"graphs/color.fp32.onnx", "new.txt"}
    assert (files["new.txt"][0], files["new.txt"][1]["size"]) == (None, 5)
    assert [change["variant"] for change in found["variants"]] == ["fp32"]
    assert "other bytes" in cli("compare", tiny_bundle(), other).out


def test_the_origin_is_compared(cli: Callable[..., Any], changed: Callable[..., Path]) -> None:
    """Digests and versions, each by its name."""
    provenance = Provenance(
        recipe_sha256="a" * 64,
        model_sha256="b" * 64,
        versions={"torch": "2.13.0"},
        calibration=CalibrationRecord(samples=3, data_sha256="c" * 64, method="minmax"),
    )
    found = cli("compare", tiny_bundle(), changed(provenance=provenance), "--json").json
    changes = {change["where"]: change["b"] for change in found["provenance"]}
    assert changes["model_sha256"] == "b" * 64
    assert changes["calibration"]["data_sha256"] == "c" * 64


def test_fused_figures_come_from_the_reports(
    cli: Callable[..., Any], changed: Callable[..., Path], manifest: Manifest, tmp_path: Path
) -> None:
    """Accuracy of a head before and after, where both have a report; else a note says that it is not compared."""

    def reported(accuracy: float) -> Path:
        head = {"head": "color", "error": error(0.99, accuracy), "original": error(1.0, 0.9), "of a newer version": 1}
        assets = {**manifest.assets, "report_data": Asset(kind="report", path="report.json")}
        path = changed({"report.json": msgspec.json.encode({"heads": [head], "new": 1})}, assets=assets)
        return path.rename(tmp_path / f"{accuracy}.mbm")

    done = cli("compare", reported(0.875), reported(0.5))
    assert "0.875 -> 0.500" in done.out
    assert "not compared" not in done.out
    assert (
        "no report.json that can be read in A: fused accuracy is not compared"
        in cli("compare", tiny_bundle(), reported(0.25)).out
    )


def test_run_holds_the_answers_of_one_against_the_others(
    cli: Callable[..., Any], changed: Callable[..., Path], head_graph: bytes
) -> None:
    """A head of twice the gain: the same direction and labels, an error as large as the signal, other heads equal."""
    assert head_graph.count(GAIN) == 1
    other = changed({"graphs/color.fp32.onnx": head_graph.replace(GAIN, np.float32(16).tobytes())})
    done = cli("compare", tiny_bundle(), other, "--run", "--json")
    assert done.code == 1
    found = done.json["replayed"]
    outputs = {output["output"]: output for output in found["outputs"]}
    color, event = outputs["color.logits"], outputs["event.logits"]
    assert color["cosine"] == pytest.approx(1.0)
    assert color["sqnr_db"] == pytest.approx(0.0)
    assert (color["agreement"], event["agreement"]) == (1.0, 1.0)
    assert (event["sqnr_db"], event["max_abs"]) == (120.0, 0.0)
    assert found["a"]["color"] == "fp32"
    assert min(found["a_us"], found["b_us"]) > 0


def test_run_counts_labels_that_differ(
    cli: Callable[..., Any], changed: Callable[..., Path], head_graph: bytes
) -> None:
    """A head of the opposite sign agrees nowhere."""
    other = changed({"graphs/color.fp32.onnx": head_graph.replace(GAIN, np.float32(-8).tobytes())})
    found = cli("compare", tiny_bundle(), other, "--run", "--json").json["replayed"]
    [color] = [output for output in found["outputs"] if output["output"] == "color.logits"]
    assert (color["agreement"], color["cosine"]) == (0.0, pytest.approx(-1.0))


def test_run_leaves_out_what_only_one_can_do(
    cli: Callable[..., Any], changed: Callable[..., Path], manifest: Manifest
) -> None:
    """A head that is gone is told, and the others are compared."""
    components = {name: component for name, component in manifest.components.items() if name != "color"}
    other = changed(components=components, default_heads=("event",))
    done = cli("compare", tiny_bundle(), other, "--run")
    assert "not compared: head 'color': only in A" in done.out
    assert "event.logits" in done.out
    assert "color.logits" not in done.out


def test_run_without_golden_samples_says_so(cli: Callable[..., Any], changed: Callable[..., Path]) -> None:
    """There is nothing to run: an error of the bundle, not a difference."""
    done = cli("compare", changed(golden=()), tiny_bundle(), "--run")
    assert done.code == 3
    assert "golden samples" in done.err


def test_a_bundle_that_cannot_be_used_is_no_difference(cli: Callable[..., Any], tmp_path: Path) -> None:
    """Exit code 3, as everywhere."""
    assert cli("compare", tiny_bundle(), tmp_path / "none.mbm").code == 3
