"""``edge-mbm top``."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edge_mbm.cli.top_screen import Snapshot, Trend, screen
from edge_mbm.cli.usage import Usage, UsageMeter
from edge_mbm.runtime.heat import Heat, Rail, Zone
from edge_mbm.runtime.status import EncoderStatus, HeadStatus, LiveStatus, SourceStatus
from edge_mbm.testing import tiny_bundle

MS, SECOND = 1_000_000, 1_000_000_000
needs_all = pytest.mark.needs("av", "cv2", "soxr", "onnxruntime")
COMMAND = [sys.executable, "-m", "edge_mbm.cli", "top", str(tiny_bundle())]


# --- the command -----------------------------------------------------------------------------------------------------


@needs_all
def test_into_a_pipe_it_prints_snapshots(cli: Callable[..., Any], long_clip: Path) -> None:
    """Whole ones, one after the other, with rates from the second on; nothing that steers a terminal."""
    done = cli("top", tiny_bundle(), "--source", long_clip, "--seconds", 1.5)
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    first, *_, last = done.out.split("\n\ntiny ")
    for part in (first, last):
        assert [word for word in ("source ", "encoder ", "head ", "event: ", "lost: ") if word not in part] == []
    encoder = next(line.split() for line in last.splitlines() if line.startswith("image_encoder"))
    assert float(encoder[1]) > 1


@needs_all
def test_json_is_a_status_a_line(cli: Callable[..., Any], long_clip: Path) -> None:
    """Each of them whole, with times that grow."""
    done = cli("top", tiny_bundle(), "--source", long_clip, "--seconds", 1.2, "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert len(lines) >= 2
    assert all(set(line) == {"t", "sources", "encoders", "heads", "losses", "notes"} for line in lines)
    assert [line["t"] for line in lines] == sorted({line["t"] for line in lines})
    assert lines[-1]["heads"][0]["name"] == "event"


@needs_all
def test_it_ends_with_its_source(cli: Callable[..., Any], clip: Path) -> None:
    """A clip of a second, and no --seconds."""
    done = cli("top", tiny_bundle(), "--source", clip, "--json", "--head", "color")
    assert done.code == 0
    assert json.loads(done.out.splitlines()[-1])["sources"][0]["state"] == "ended"


@pytest.mark.needs("av")
def test_a_source_that_cannot_be_played_is_exit_code_6(cli: Callable[..., Any], tmp_path: Path) -> None:
    """As with run."""
    done = cli("top", tiny_bundle(), "--source", tmp_path / "none.mp4")
    assert (done.code, done.out) == (6, "")
    assert "none.mp4" in done.err


@needs_all
def test_ctrl_c_is_the_usual_way_to_leave(long_clip: Path) -> None:
    """Exit code 0, without a word."""
    process = subprocess.Popen(
        [*COMMAND, "--source", str(long_clip), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


@needs_all
def test_on_a_terminal_it_is_a_screen_of_its_own(clip: Path) -> None:
    """The alternate one, which is left again, with the cursor back."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        [*COMMAND, "--source", str(clip)], stdout=theirs, stderr=subprocess.PIPE, stdin=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the other side has closed it
        pass
    os.close(ours)
    assert (process.wait(60), process.communicate()[1]) == (0, b"")
    assert shown.index(b"\x1b[?1049h") < shown.index(b"image_encoder") < shown.rindex(b"\x1b[?1049l")
    assert b"\x1b[?25h" in shown


# --- the screen ------------------------------------------------------------------------------------------------------


def source(**changes: Any) -> SourceStatus:
    fields: dict[str, Any] = {
        "name": "v4l2:///dev/video0",
        "state": "live",
        "since": 0,
        "modalities": ("image",),
        "samples": 0,
        "last": None,
        "stalls": 0,
        "reconnects": 0,
        "error": None,
        "uncertainty_ns": 0,
    }
    return SourceStatus(**fields | changes)


def status(t: int, **changes: Any) -> LiveStatus:
    frames = 30 * t // SECOND
    encoder = EncoderStatus(
        name="image_encoder", runs=frames // 2, failed=3, gated=4, last_ns=12_340_000, min_interval_ns=100 * MS
    )
    head = HeadStatus(name="event", enabled=True, results=frames // 3, last=0, age_ns=45 * MS, missing=("audio",))
    fields: dict[str, Any] = {
        "sources": (
            source(samples=frames, last=t - 7 * MS),
            source(
                name="mic://default", modalities=("audio",), state="stalled", drift_ppm=-42.5, stalls=2, reconnects=1
            ),
        ),
        "encoders": (encoder,),
        "heads": (head,),
        "losses": {"image.superseded": 17, "audio.gaps": 0},
        "notes": ("image_encoder held to 10 Hz (1/3): too hot",),
    }
    return LiveStatus(t=t, **fields | changes)


def snapshot(**changes: Any) -> Snapshot:
    trend = Trend()
    for second in range(1, 4):
        trend.add(status(second * SECOND))
    fields: dict[str, Any] = {
        "bundle": "robot",
        "status": status(3 * SECOND),
        "reasons": {"event": "no 'audio' has come yet"},
        "trend": trend,
        "usage": Usage(1.25, 300 << 20),
        "heat": Heat(
            zones=(Zone(name="cpu", temperature_c=61.4, limit_c=99.0),),
            rails=(Rail(name="in", watts=7.25, alarm=False),),
        ),
        "running_s": 3723.9,
    }
    return Snapshot(**fields | changes)


def drawn(shown: Snapshot, width: int = 100) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False, emoji=False, highlight=False).print(screen(shown), crop=True)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def row(lines: list[str], start: str) -> list[str]:
    return next(line.split() for line in lines if line.startswith(start))


def test_all_that_matters_is_on_it() -> None:
    """Sources with state, rate, age, drift; encoders with what they are held to; heads with what they lack; losses."""
    lines = drawn(snapshot())
    assert lines[0] == "robot   1:02:03   cpu 125%   memory 300.0 MiB   cpu 61 C (38 C left)   7.2 W"
    assert row(lines, "v4l2") == ["v4l2:///dev/video0", "image", "live", "30.0", "7", "-", "0", "0"]
    assert row(lines, "mic") == ["mic://default", "audio", "stalled", "0.0", "-", "-42.5", "2", "1"]
    assert row(lines, "image_encoder ") == ["image_encoder", "15.0", "12.34", "3", "4", "10.0"]
    assert row(lines, "event ") == ["event", "10.0", "30", "45.0", "audio"]
    assert lines[-3:] == [
        "event: no 'audio' has come yet",
        "lost: image.superseded 17",
        "image_encoder held to 10 Hz (1/3): too hot",
    ]


def test_what_went_wrong_with_a_source_is_said() -> None:
    """In its own words, by what it gives."""
    lines = drawn(snapshot(status=status(3 * SECOND, sources=(source(error="unplugged"),))))
    assert "lost: image.superseded 17; image: unplugged" in lines


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_row_is_a_line_on_any_terminal(width: int) -> None:
    """Long names are cut, not broken, so the screen keeps its height: 24 lines hold two cameras and three heads."""
    head = HeadStatus(name="h" * 60, enabled=True, results=1, last=0, age_ns=MS, missing=("audio", "image" * 9))
    sources = (source(name="rtsp://" + "x" * 90, samples=1), source(name="y" * 99))
    crowded = status(3 * SECOND, heads=(head, head, head), sources=sources)
    trend = Trend()
    trend.add(crowded)
    lines = drawn(snapshot(status=crowded, trend=trend, reasons={"h" * 60: "w" * 300, "i": "x", "j": "y"}), width)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= width
    assert row(lines, "rtsp:")[-2:] == ["0", "0"]  # numbers are all there
    assert row(lines, "hhh")[-4:-2] == ["1", "1.0"]


def test_hostile_names_do_not_steer_the_terminal() -> None:
    """Of bundles, sources, and what drivers say."""
    bad = "\x1b[2J\u202e[red]"
    lines = drawn(
        snapshot(
            bundle=bad,
            status=status(3 * SECOND, sources=(source(name=bad, error=bad), source(name=bad))),
            reasons={bad: bad},
        ),
        200,
    )
    assert not set("".join(lines)) & {"\x1b", "\u202e"}
    assert sum(r"\x1b[2J\u202e[red]" in line for line in lines) == 5


def test_before_there_is_anything_there_are_dashes() -> None:
    """No rate from one moment, no memory where the system does not say."""
    trend = Trend()
    first = status(0, sources=(source(state="starting"),), encoders=(), heads=(), losses={}, notes=())
    trend.add(first)
    lines = drawn(snapshot(status=first, trend=trend, usage=Usage(None, None), heat=Heat(), reasons={}))
    assert lines[0] == "robot   1:02:03   cpu -   memory -"
    assert row(lines, "v4l2")[2:] == ["starting", "-", "-", "-", "0", "0"]
    assert lines[-1] == "lost: nothing"


def test_rates_are_of_the_last_three_seconds() -> None:
    """What came before is forgotten, and memory does not grow with time."""
    trend = Trend()
    for tenth in range(1000):
        samples = 100 * min(tenth, 900) + 2 * max(0, tenth - 900)
        trend.add(status(tenth * SECOND // 10, sources=(source(samples=samples),)))
    assert trend.rate(lambda seen: seen.sources[0].samples) == 20.0
    assert len(trend._looks) <= 64


# --- usage -----------------------------------------------------------------------------------------------------------


def test_usage_is_what_was_used_between_two_looks(tmp_path: Path) -> None:
    """Processor time by elapsed time, and the memory that the system says is resident."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tpython\nVmRSS:\t  2048 kB\nThreads:\t3\n")
    cpu, clock = iter([0, 3 * SECOND]), iter([0, 2 * SECOND])
    meter = UsageMeter(tmp_path, cpu=lambda: next(cpu), clock=lambda: next(clock))
    assert meter.look() == (None, 2 << 20)
    assert meter.look() == (1.5, 2 << 20)


@pytest.mark.parametrize("text", [None, "", "VmRSS:\n", "VmRSS: many kB\n"])
def test_a_system_that_does_not_say_is_no_failure(tmp_path: Path, text: str | None) -> None:
    """Memory is unknown there."""
    if text is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/status").write_text(text)
    assert UsageMeter(tmp_path).look() == (None, None)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="there is no /proc here")
def test_this_process_is_looked_at() -> None:
    """The real one has some megabytes."""
    assert 1 << 20 < (UsageMeter().look().memory or 0) < 1 << 40
