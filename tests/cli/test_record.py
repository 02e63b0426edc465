"""``edge-mbm record``."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import SourceError
from edge_mbm.runtime import Sample
from edge_mbm.runtime.recording import ReplaySource
from edge_mbm.runtime.source import Timing
from edge_mbm.runtime.sources import FileSource
from edge_mbm.testing import ScriptedSource, tiny_bundle

MS = 1_000_000
needs_all = pytest.mark.needs("av", "cv2")


def samples_of(path: Path) -> list[Sample]:
    source = ReplaySource(path)
    try:
        assert source.cut is None
        return list(source.samples())
    finally:
        source.close()


def played(clip: Path) -> list[Sample]:
    source = FileSource(clip)
    try:
        return list(source.samples())
    finally:
        source.close()


@needs_all
def test_a_clip_is_recorded_to_the_last_bit(cli: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """Picture and sound of one file, in the order in which a camera and a microphone would give them."""
    out = tmp_path / "a.mcap"
    done = cli("record", "--video", clip, "--audio", clip, "-o", out, "--raw")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{out}: 1.0 s  image 25  audio 75  ")
    recorded, expected = samples_of(out), played(clip)
    assert [(s.modality, s.t, s.rate) for s in recorded] == [(s.modality, s.t, s.rate) for s in expected]
    assert all(a.data.tobytes() == b.data.tobytes() for a, b in zip(recorded, expected, strict=True))


@needs_all
def test_picture_and_sound_of_two_files_are_merged(cli: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """By the moment at which each would have been there."""
    other = tmp_path / "other.mov"
    other.write_bytes(clip.read_bytes())
    assert cli("record", "--video", clip, "--audio", other, "-o", tmp_path / "a.mcap").code == 0
    samples = samples_of(tmp_path / "a.mcap")
    available = [sample.t + sample.duration for sample in samples]
    assert (available, len(samples)) == (sorted(available), 100)


@needs_all
def test_as_much_as_was_asked_for(cli: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """In seconds, and as JSON for scripts."""
    out = tmp_path / "a.mcap"
    report = cli("record", "--video", clip, "-o", out, "--seconds", "0.4", "--jpeg-quality", 50, "--json").json
    assert report == {
        "path": str(out),
        "bytes": out.stat().st_size,
        "seconds": 0.36,
        "recorded": {"image": 10},
        "dropped": {},
    }


@needs_all
def test_modalities_are_named_as_the_bundle_names_them(cli: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """And the file says which bundle it was."""
    done = cli("record", "--video", clip, "--bundle", tiny_bundle(), "-o", tmp_path / "a.mcap")
    assert done.code == 0
    assert {sample.modality for sample in samples_of(tmp_path / "a.mcap")} == {"image"}
    assert b"manifest_sha256" in (tmp_path / "a.mcap").read_bytes()


@needs_all
@pytest.mark.parametrize(
    ("arguments", "ends"),
    [
        ((), (2, "give --video, --audio, or both")),
        (("--video", "nowhere.mp4"), (6, "nowhere.mp4")),
        (("--video", "{clip}", "--jpeg-quality", 0), (2, "--jpeg-quality")),
        (("--video", "{clip}", "--max-mib", 0), (2, "--max-mib")),
        (("--video", "{clip}", "--seconds", "inf"), (2, "--seconds")),
        (("--video", "{clip}", "--seconds", "1e300"), (2, "--seconds")),
        (("--video", "{clip}", "--bundle", "nowhere.mbm"), (3, "nowhere.mbm")),
    ],
)
def test_what_cannot_be_recorded_is_said(
    cli: Callable[..., Any], clip: Path, tmp_path: Path, arguments: tuple[Any, ...], ends: tuple[int, str]
) -> None:
    """With the exit code that the help lists, and no file is left."""
    given = [str(argument).replace("{clip}", str(clip)) for argument in arguments]
    done = cli("record", *given, "-o", tmp_path / "a.mcap")
    assert (done.code, done.out) == (ends[0], "")
    assert ends[1] in done.err
    assert not list(tmp_path.glob("*.mcap"))


@needs_all
def test_a_recording_is_never_replaced(cli: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """Exit code 6, and the file is as it was; so where there is no such folder."""
    out = tmp_path / "a.mcap"
    out.write_text("precious")
    assert cli("record", "--video", clip, "-o", out).code == 6
    assert out.read_text() == "precious"
    assert cli("record", "--video", clip, "-o", tmp_path / "no" / "a.mcap").code == 6


@needs_all
def test_a_full_file_is_exit_code_6_and_whole(cli: Callable[..., Any], long_clip: Path, tmp_path: Path) -> None:
    """What fits is there, and counted."""
    out = tmp_path / "a.mcap"
    done = cli("record", "--video", long_clip, "--audio", long_clip, "-o", out, "--raw", "--max-mib", 6)
    assert done.code == 6
    assert "limit of 6291456 bytes" in done.err
    images = sum(sample.modality == "image" for sample in samples_of(out))
    assert images > 0
    assert f"image {images} " in done.out


class _Device(ScriptedSource):
    """Gives the same sample again and again until it is closed."""

    def __init__(self, modality: str = "image", fail_after: int | None = None) -> None:
        data: Any = np.zeros((4, 4, 3), np.uint8) if modality == "image" else np.zeros(8, np.int16)

        def frames() -> Any:
            k = 0
            while not self.closed:
                if k == fail_after:
                    raise SourceError("the cable is out")
                yield Sample(modality, data, 10**12 + k * MS, MS, 8000)
                k += 1

        super().__init__(frames(), modalities=(modality,), timing=Timing("monotonic"))


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Address -> source."""
    known: dict[str, Any] = {}
    monkeypatch.setattr("edge_mbm.cli.record.open_source", lambda uri, **names: known[uri])
    return known


def test_a_device_is_recorded_for_as_long_as_was_asked(
    cli: Callable[..., Any], tmp_path: Path, devices: dict[str, Any]
) -> None:
    """On its own clock, and it is closed."""
    devices["v4l2:///dev/video0"] = camera = _Device()
    done = cli("record", "--video", "v4l2:///dev/video0", "-o", tmp_path / "a.mcap", "--seconds", 0.05, "--raw")
    assert done.code == 0
    assert camera.closed
    times = [sample.t for sample in samples_of(tmp_path / "a.mcap")]
    assert 0 < len(times) <= 50
    assert max(times) < 50 * MS


def test_a_device_that_fails_ends_in_its_error_and_a_whole_file(
    cli: Callable[..., Any], tmp_path: Path, devices: dict[str, Any]
) -> None:
    """The other one is closed, and what both gave is there."""
    devices["cam"], devices["other"] = _Device(fail_after=3), _Device("audio")
    done = cli("record", "--video", "cam", "--audio", "other", "-o", tmp_path / "a.mcap", "--raw")
    assert (done.code, "the cable is out" in done.err) == (6, True)
    assert devices["other"].closed
    assert sum(sample.modality == "image" for sample in samples_of(tmp_path / "a.mcap")) == 3


def test_a_file_and_a_device_go_by_different_clocks(
    cli: Callable[..., Any], tmp_path: Path, devices: dict[str, Any]
) -> None:
    """They are refused together, and both closed."""
    devices["cam"] = _Device()
    devices["file"] = ScriptedSource([], modalities=("audio",))
    done = cli("record", "--video", "cam", "--audio", "file", "-o", tmp_path / "a.mcap")
    assert (done.code, "different clocks" in done.err) == (2, True)
    assert devices["cam"].closed
    assert devices["file"].closed


LASTING = """
import sys
import numpy as np
import edge_mbm.cli.record as record
from edge_mbm.cli import main
from edge_mbm.runtime import Sample
from edge_mbm.runtime.source import Timing
from edge_mbm.testing import ScriptedSource
def frames():
    for k in range(10**9):
        if k == 100:
            print("recording", flush=True)
        if k >= 100:
            source.gone.wait(0.01)
        if source.closed:
            return
        yield Sample("image", np.zeros((4, 4, 3), np.uint8), 10**12 + k * 10**6)
import threading
source = ScriptedSource(frames(), modalities=("image",), timing=Timing("monotonic"))
source.gone = threading.Event()
record.open_source = lambda uri, **names: source
sys.exit(main(["record", "--video", "cam", "-o", sys.argv[1], "--raw"]))
"""


def test_ctrl_c_finishes_the_file(tmp_path: Path) -> None:
    """The signal itself: exit code 130, the file whole with its end, and what it holds is said."""
    out = tmp_path / "a.mcap"
    process = subprocess.Popen(
        [sys.executable, "-c", LASTING, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "recording\n"
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    count = len(samples_of(out))
    assert count >= 99
    assert rest.startswith(f"{out}: ")
    assert f"image {count} " in rest


def test_a_terminal_sees_how_far_it_is(tmp_path: Path) -> None:
    """One line, written over."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", LASTING, str(tmp_path / "a.mcap")], stdout=subprocess.PIPE, stderr=child, text=True
    )
    os.close(child)
    seen = b""
    while b"image 1" not in seen:
        seen += os.read(parent, 1000)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    os.close(parent)
    assert b"\r0.1 s  image 1" in seen
