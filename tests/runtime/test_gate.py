"""Gates: work that is skipped because nothing has changed, and said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

import edge_mbm
from edge_mbm.bundle import BundleFiles, write_bundle
from edge_mbm.errors import ManifestError
from edge_mbm.runtime.gate import make_gate
from edge_mbm.spec import Encoder, Gate, SilenceGate, UnchangedGate
from edge_mbm.testing import NullEngine, tiny_bundle

MS, SECOND = 1_000_000, 1_000_000_000
UNCHANGED = UnchangedGate(threshold=2.0, max_ns=SECOND)
SILENCE = SilenceGate(threshold_db=-40.0, max_ns=SECOND)


def gray(level: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def gated(tmp_path: Path, component: str, gate: Gate) -> edge_mbm.Bundle:
    """The tiny bundle with a gate in front of one of its encoders."""
    with BundleFiles(tiny_bundle()) as files:
        contents = {path: files.read(path) for path in files.manifest.files}
        encoder = files.manifest.components[component]
        assert isinstance(encoder, Encoder)
        components = {**files.manifest.components, component: structs.replace(encoder, gate=gate)}
        write_bundle(tmp_path / "gated.mbm", structs.replace(files.manifest, components=components), contents)
    return edge_mbm.load(tmp_path / "gated.mbm")


def test_a_frame_like_the_last_encoded_one_may_be_skipped() -> None:
    """Up to the threshold in mean absolute difference; the first frame, and one of another size, never."""
    gate = make_gate(UNCHANGED)
    assert gate is not None
    assert not gate.may_skip(gray(100), 0)
    gate.let_through(gray(100), 0)
    assert gate.may_skip(gray(102), MS)
    assert not gate.may_skip(gray(103), MS)
    assert not gate.may_skip(gray(100, (96, 96)), MS)


def test_slow_changes_add_up() -> None:
    """A dusk of one step a frame is compared with what was encoded, not with the frame before."""
    gate = make_gate(UNCHANGED)
    assert gate is not None
    gate.let_through(gray(100), 0)
    assert [gate.may_skip(gray(100 + k), k * MS) for k in range(5)] == [True, True, True, False, False]


@pytest.mark.parametrize("spec", [UNCHANGED, SILENCE])
def test_no_output_stands_for_ever(spec: Gate) -> None:
    """After ``max_ns`` the encoder runs, whatever comes."""
    gate, data = make_gate(spec), gray(0) if isinstance(spec, UnchangedGate) else np.zeros(100, np.float32)
    assert gate is not None
    gate.let_through(data, 0)
    assert gate.may_skip(data, SECOND)
    assert not gate.may_skip(data, SECOND + 1)


def test_silence_is_measured_in_decibels() -> None:
    """A sine of RMS -40 dB is at the threshold: a little quieter is skipped, a little louder is not."""
    gate = make_gate(SILENCE)
    assert gate is not None
    sine = (np.sqrt(2) * 0.01 * np.sin(np.arange(1000) * 0.1 * np.pi)).astype(np.float32)
    gate.let_through(sine, 0)
    assert gate.may_skip(sine * np.float32(0.99), MS)
    assert not gate.may_skip(sine * np.float32(1.01), MS)


def test_results_say_that_an_output_stood(tmp_path: Path) -> None:
    """The head answers for every frame; the encoder ran on those that differ."""
    with gated(tmp_path, "image_encoder", UNCHANGED).session(load_engine=NullEngine) as session:
        found = []
        for k, level in enumerate((10, 11, 10, 200, 201)):
            session.push("image", gray(level), k * 40 * MS)
            session.end("audio")
            found += [(r.t_capture, r.gated) for r in session.poll()]
        assert found == [(0, ()), (40 * MS, ("color",)), (80 * MS, ("color",)), (120 * MS, ()), (160 * MS, ("color",))]
        encoders, _ = session.status()
        assert [(e.runs, e.gated) for e in encoders if e.name == "image_encoder"] == [(2, 3)]


def test_a_silent_window_leaves_the_state_alone(tmp_path: Path) -> None:
    """The tiny bundle's level decays with every window it runs on: three silent ones change nothing."""
    pytest.importorskip("onnxruntime")
    bang, quiet = np.full(100, 0.5, np.float32), np.zeros(100, np.float32)
    with gated(tmp_path, "audio_encoder", SILENCE).session() as session:
        scores = []
        for k, block in enumerate((bang, quiet, quiet, quiet)):
            session.push("audio", block, k * 100 * MS)
            session.push("image", gray(0), (k + 1) * 100 * MS)
            scores += [r.output.scores.tolist() for r in session.poll()]  # type: ignore[union-attr]
        assert len(scores) == 4
        assert scores[1:] == [scores[0]] * 3


def test_a_gate_must_fit_what_it_watches(tmp_path: Path) -> None:
    """Silence of a picture is refused in the manifest."""
    with pytest.raises(ManifestError, match=r"image_encoder\.gate is SilenceGate"):
        gated(tmp_path, "image_encoder", SILENCE)
