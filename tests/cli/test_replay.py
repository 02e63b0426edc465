"""``edge-mbm replay``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.runtime.recording import Recorder, RecordOptions
from edge_mbm.testing import tiny_bundle

MS = 1_000_000
pytestmark = pytest.mark.needs("cv2", "onnxruntime")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A second of green with silence, and a modality that the bundle does not know."""
    path = tmp_path / "session.mcap"
    green = np.zeros((8, 8, 3), np.uint8)
    green[:, :, 1] = 255
    options = RecordOptions(max_bytes=1 << 24, frames="raw", chunk_bytes=2000)
    with Recorder(path, {"image": "image", "audio": "audio", "depth": "image"}, options) as recorder:
        for k in range(25):
            t = 10**15 + k * 40 * MS
            recorder.push("image", green, t, wait=True)
            recorder.push("depth", green[:, :, 0], t, wait=True)
            recorder.push("audio", np.zeros(40, np.float32), t, rate=1000, wait=True)
    return path


def results_of(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("age", "stage_ns")} for line in lines]


def test_two_replays_write_the_same_bytes(cli: Callable[..., Any], recording: Path, tmp_path: Path) -> None:
    """All of it, as fast as possible, in times from the recording's beginning; what the bundle lacks is left out."""
    seen = []
    for name in ("a.jsonl", "b.jsonl"):
        done = cli("replay", recording, "--bundle", tiny_bundle(), "-q", "-o", tmp_path / name)
        assert (done.code, done.err) == (0, "")
        seen.append(results_of(tmp_path / name))
    assert seen[0] == seen[1]
    assert [result["t_capture"] for result in seen[0]] == [k * 40 * MS for k in range(25)]
    assert {result["outputs"]["logits"]["label"] for result in seen[0]} == {"green"}


def test_the_report_is_that_of_run(cli: Callable[..., Any], recording: Path) -> None:
    """Lines for people, JSON for scripts, limits and heads."""
    done = cli("replay", recording, "-b", tiny_bundle(), "--head", "color", "--limit", 3)
    assert len([line for line in done.out.splitlines() if "green" in line]) == 3
    report = cli("replay", recording, "-b", tiny_bundle(), "--json", "-q").json
    assert report["summary"]["heads"]["event"]["results"] == 25
    assert (report["finished"], report["realtime"], report["source"]) == (True, False, str(recording))


def test_answers_are_held_against_the_truth_beside_it(cli: Callable[..., Any], recording: Path) -> None:
    """In the recording's own time."""
    segment = {"start": 0.0, "end": 1.0, "label": "green", "answer_from": 0.0, "answer_to": 1.0, "spoiled": []}
    recording.with_suffix(".truth.json").write_text(json.dumps({"segments": [segment]}))
    scores = cli("replay", recording, "-b", tiny_bundle(), "--json", "-q").json["scores"]
    assert scores["event"]["all"]["results_right"] == 25


def test_at_its_own_pace(cli: Callable[..., Any], recording: Path) -> None:
    """In real time ages mean something."""
    done = cli("replay", recording, "-b", tiny_bundle(), "--realtime", "-q", "--head", "color")
    assert done.code == 0
    assert "age p50 ms" in done.out


def test_a_recording_that_was_cut_off_is_played_as_far_as_it_goes(cli: Callable[..., Any], recording: Path) -> None:
    """With a note of what is missing on stderr."""
    whole = recording.read_bytes()
    recording.write_bytes(whole[: len(whole) // 2])
    done = cli("replay", recording, "-b", tiny_bundle(), "--json", "-q")
    assert done.code == 0
    assert done.err.startswith(f"note: {recording} was cut off: it has no end")
    assert 0 < done.json["summary"]["heads"]["event"]["results"] < 25


def test_what_the_recorder_lost_is_said(cli: Callable[..., Any], tmp_path: Path) -> None:
    """Before results that may suffer from it."""
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, {"image": "image"}, RecordOptions(max_bytes=20_000, frames="raw", chunk_bytes=1))
    recorder.push("image", np.zeros((8, 8, 3), np.uint8), 0)
    recorder.push("image", np.zeros((99, 99, 3), np.uint8), 1)
    with pytest.raises(Exception, match="limit"):
        recorder.close()
    done = cli("replay", path, "-b", tiny_bundle(), "-q", "--head", "color")
    assert (done.code, done.err) == (0, "note: the recorder could not write all: image 1\n")


@pytest.mark.parametrize("content", [None, b"", b"no recording"])
def test_what_is_no_recording_is_exit_code_6(cli: Callable[..., Any], tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty, or something else; with its path."""
    path = tmp_path / "a.mcap"
    if content is not None:
        path.write_bytes(content)
    done = cli("replay", path, "-b", tiny_bundle())
    assert (done.code, done.out) == (6, "")
    assert str(path) in done.err


def test_one_stdout_is_for_one_script(cli: Callable[..., Any], recording: Path) -> None:
    """As with run."""
    assert cli("replay", recording, "-b", tiny_bundle(), "--output", "-", "--json").code == 2
