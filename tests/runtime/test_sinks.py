"""Results as JSON lines."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import DeviceError
from edge_mbm.runtime import ClassificationOutput, JsonLines, Result

OUTPUT = ClassificationOutput("green", 0.5, 1, np.array([0.5, 0.5], np.float32), ("red", "green"))


def result(seq: int) -> Result:
    return Result(
        head="h",
        seq=seq,
        t_capture=1000 + seq,
        age=7,
        outputs={"logits": OUTPUT},
        missing=(),
        spread=0,
        dropped=0,
        stage_ns={},
        provider="x",
    )


def test_each_line_is_in_the_file_before_the_next(tmp_path: Path) -> None:
    """Without closing it, and with times from the origin on; what was there before is gone."""
    path = tmp_path / "r.jsonl"
    path.write_text("old")
    lines = JsonLines(path, 1000)
    for seq in range(3):
        lines.write(result(seq))
        assert [json.loads(line)["t_capture"] for line in path.read_text().splitlines()] == list(range(seq + 1))
    lines.close()


def test_a_stream_is_written_to_and_left_open() -> None:
    """Standard output belongs to whoever opened it."""
    stream = io.BytesIO()
    with JsonLines(stream) as lines:
        lines.write(result(0))
    assert json.loads(stream.getvalue())["outputs"] == {
        "logits": {"label": "green", "score": 0.5, "scores": [0.5, 0.5]}
    }
    assert not stream.closed


class Slow(io.BytesIO):
    """Takes seven bytes at a time, as a pipe may."""

    def write(self, data: Any) -> int:
        return super().write(bytes(data[:7]))


def test_a_file_that_takes_parts_gets_the_whole_line() -> None:
    """Nothing is lost between two writes."""
    stream = Slow()
    with JsonLines(stream) as lines:
        lines.write(result(0))
        lines.write(result(1))
    assert [json.loads(line)["seq"] for line in stream.getvalue().splitlines()] == [0, 1]


class Failing(io.BytesIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def write(self, data: Any) -> int:
        raise self._error


def test_a_full_disk_is_our_error_and_a_closed_pipe_is_pythons() -> None:
    """The one is a failure; the other means that nobody reads any more."""
    with pytest.raises(DeviceError, match="No space left"):
        JsonLines(Failing(OSError(28, "No space left on device"))).write(result(0))
    with pytest.raises(BrokenPipeError):
        JsonLines(Failing(BrokenPipeError())).write(result(0))


def test_a_place_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    """With its path."""
    with pytest.raises(DeviceError, match=str(tmp_path)):
        JsonLines(tmp_path)
