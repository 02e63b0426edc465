"""``edge-mbm verify``."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from edge_mbm.bundle import BundleFiles
from edge_mbm.testing import tiny_bundle

needs_engine = pytest.mark.needs("onnxruntime")


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


@needs_engine
def test_a_whole_bundle_passes(cli: Callable[..., Any]) -> None:
    """Bytes and answers; fp32 once, since nothing else would run here."""
    done = cli("verify", tiny_bundle())
    assert (done.code, done.err) == (0, "")
    assert "every byte is what it should be" in done.out
    assert done.out.count("golden samples") == 1
    assert "This machine computes what the framework computed." in done.out
    row = next(line.split() for line in done.out.splitlines() if line.startswith("event.logits"))
    assert row[1:] == ["120.0", "60.0", "0", "100.0%", "ok"]


@needs_engine
def test_json_has_the_verdicts(cli: Callable[..., Any]) -> None:
    """Of everything, of each replay and of each output."""
    found = cli("verify", tiny_bundle(), "--json", "--variant", "fp32").json
    assert (found["bundle"], found["passed"], found["samples"]) == ("tiny", True, 1)
    [replayed] = found["replays"]
    assert (replayed["variant"], replayed["passed"]) == ("fp32", True)
    [output] = replayed["outputs"]
    assert (output["output"], output["passed"], output["agreement"]) == ("event.logits", True, 1.0)


@pytest.mark.parametrize("place", [100, -5000, -2500])
def test_a_flipped_bit_is_exit_code_3(cli: Callable[..., Any], tmp_path: Path, place: int) -> None:
    """In the manifest or in a file: refused before anything is run, and nothing is said on stdout."""
    data = bytearray(tiny_bundle().read_bytes())
    data[place] ^= 4
    path = tmp_path / "flipped.mbm"
    path.write_bytes(data)
    done = cli("verify", path)
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("error: ")


@needs_engine
def test_another_answer_is_exit_code_8(cli: Callable[..., Any], changed: Callable[..., Path]) -> None:
    """A reference that was altered and hashed anew: the bytes are right, the row is marked, the error names it."""
    path = changed({"golden/0.event.logits.npy": npy(np.array([[0.0, 7.0, 0.0, 0.6]], np.float32))})
    done = cli("verify", path)
    assert done.code == 8
    assert "every byte is what it should be" in done.out
    assert "FAILED" in done.out
    assert "computes what the framework" not in done.out
    assert "'event.logits' with fp32 (16.9 dB, 60.0 needed)" in done.err
    report = cli("verify", path, "--json")
    assert (report.code, report.json["passed"]) == (8, False)


@needs_engine
def test_a_reference_of_another_shape_is_exit_code_3(cli: Callable[..., Any], changed: Callable[..., Path]) -> None:
    """With both shapes and the sample's name."""
    done = cli("verify", changed({"golden/0.event.logits.npy": npy(np.zeros((1, 3), np.float32))}))
    assert done.code == 3
    assert "golden 'green and quiet': the reference for 'event.logits' is float32[1, 3]" in done.err
    assert "float32[1, 4]" in done.err


def test_without_golden_samples_only_the_bytes_are_verified(
    cli: Callable[..., Any], changed: Callable[..., Path]
) -> None:
    """That is said, and is no failure; no engine is needed for it."""
    done = cli("verify", changed(golden=()))
    assert done.code == 0
    assert "no golden samples, so only the bytes were verified" in done.out
    assert cli("verify", changed(golden=()), "--json").json["replays"] == []


def test_an_unknown_variant_is_exit_code_2(cli: Callable[..., Any]) -> None:
    """With those that there are."""
    done = cli("verify", tiny_bundle(), "--variant", "int4")
    assert done.code == 2
    assert "'int4'; there are ['fp32']" in done.err


@needs_engine
def test_a_hostile_sample_does_not_steer_the_terminal(cli: Callable[..., Any], changed: Callable[..., Path]) -> None:
    """In the table, and in the error that names the sample."""
    with BundleFiles(tiny_bundle()) as files:
        sample = replace(files.manifest.golden[0], id="\x1b[2J")
    wrong = {"golden/0.event.logits.npy": npy(np.zeros((1, 3), np.float32))}
    done = cli("verify", changed(wrong, name="\x1b[31mevil", golden=(sample,)))
    assert done.code == 3
    assert r"golden '\x1b[2J'" in done.err
    assert "\x1b" not in done.out + done.err
