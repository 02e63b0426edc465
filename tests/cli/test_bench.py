"""``edge-mbm bench``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edge_mbm.bundle import BundleFiles
from edge_mbm.testing import tiny_bundle

needs_engine = pytest.mark.needs("onnxruntime")


@needs_engine
def test_every_stage_has_its_row(cli: Callable[..., Any]) -> None:
    """Each component's preprocessing and inference, and end to end, at three percentiles."""
    done = cli("bench", tiny_bundle(), "--seconds", "0.05")
    assert (done.code, done.err) == (0, "")
    rows = {line.rsplit(maxsplit=4)[0]: line.split()[-4:] for line in done.out.splitlines() if line.count(".") > 3}
    assert {"preprocess.image_encoder", "infer.audio_encoder", "infer.event", "end to end"} <= set(rows)
    assert [float(value) for value in rows["end to end"]] == sorted(float(value) for value in rows["end to end"])
    assert " a second" in done.out
    assert "zeros" not in done.out


@needs_engine
def test_json(cli: Callable[..., Any]) -> None:
    """The same figures for scripts; heads are chosen as for run."""
    report = cli("bench", tiny_bundle(), "--seconds", "0.05", "--head", "color", "--json").json
    [run] = report["runs"]
    assert set(run["stages"]) == {"preprocess.image_encoder", "infer.image_encoder", "infer.color"}
    assert run["components"] == {"image_encoder": "fp32", "color": "fp32"}
    assert run["end_to_end"]["count"] == run["results"] > 0


@needs_engine
def test_without_golden_samples_zeros_are_fed_and_that_is_said(
    cli: Callable[..., Any], changed: Callable[..., Path]
) -> None:
    """Speed depends on values only where they are denormal or not there."""
    done = cli("bench", changed(golden=()), "--seconds", "0.02")
    assert done.code == 0
    assert "no golden input for image, audio: zeros were fed" in done.out


@needs_engine
def test_choices_are_compared_side_by_side(cli: Callable[..., Any], changed: Callable[..., Path]) -> None:
    """Where they differ: both tables and the ratio; where not, that there is nothing to compare."""
    assert "nothing to compare" in cli("bench", tiny_bundle(), "--seconds", "0.02", "--compare", "fp32").out
    with BundleFiles(tiny_bundle()) as files:
        components = dict(files.manifest.components)
    event = components["event"]
    twin = replace(event.variants["fp32"], precision="int8")
    components["event"] = replace(event, variants={"int8": twin, **event.variants})
    done = cli("bench", changed(components=components), "--seconds", "0.05", "--compare", "fp32")
    assert done.code == 0
    assert "event int8" in done.out
    assert "auto faster" in done.out
    assert done.out.count("x\n") >= 3


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9"])
def test_a_time_that_is_none_is_refused(cli: Callable[..., Any], seconds: str) -> None:
    """Exit code 2, with the bounds."""
    done = cli("bench", tiny_bundle(), f"--seconds={seconds}")
    assert (done.code, done.out) == (2, "")
    assert "at most 3600" in done.err
