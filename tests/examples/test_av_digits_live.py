"""The digits' camera and microphone on loopback: real servers, a small clip of noise, and the tiny bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# The examples are not installed.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from av_digits import alignment, clip

from edge_mbm.runtime.source import Sample

MS, SECOND = 1_000_000, 1_000_000_000
SECONDS, FPS, RATE = 3, 25, 8000
servers = pytest.mark.usefixtures("gst_rtsp_server", "pulseaudio")
pytestmark = [pytest.mark.needs("sounddevice", "av"), pytest.mark.timeout(120)]

# In a process of its own: PortAudio and ALSA look at the environment once.
BY_ADDRESS = """
import faulthandler, itertools, json, os, sys
from pathlib import Path
import edge_mbm
from av_digits.alignment import read_clip
from av_digits.loopback import Camera, Room

faulthandler.dump_traceback_later(60, exit=True)  # to say where it hangs, if it does
bundle, path = map(Path, sys.argv[1:])
clip = read_clip(path, 48000)
with Room(48000) as room, Camera(path, 1.0) as camera:
    os.environ.update(room.environment)
    room.play((clip.sound * 32767).astype("<i2").tobytes(), camera.first_frame)
    with edge_mbm.open(bundle, video=camera.url, audio="mic://default?rate=48000") as live:
        results = [result for result in itertools.islice(live, 60) if result.head == "event"]
        sources = [(s.samples > 0, s.reconnects, s.stalls, s.error) for s in live.status().sources]
print(json.dumps({"missing": [result.missing for result in results], "sources": sources}))
"""


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip in which each frame and each second of sound is like no other; all of it is red."""
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("noise") / "clip.mp4"
    pixels = rng.integers(0, 256, (SECONDS * FPS, 24, 32, 3), np.uint8).repeat(10, axis=1).repeat(10, axis=2)
    pixels[..., 0] = 255
    clip._encode(path, iter(pixels), rng.normal(0, 0.1, SECONDS * RATE).astype(np.float32))
    segment = {"start": 0.0, "end": 3.0, "label": "red", "answer_from": 0.5, "answer_to": 2.5}
    path.with_suffix(".truth.json").write_text(json.dumps({"segments": [segment]}))
    return path


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": ":".join(sys.path), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def test_the_clips_beginning_is_found_in_what_was_captured(noise: Path) -> None:
    """Frames and sound that begin at known times, in the middle of blocks, are placed to the sample."""
    whole = alignment.read_clip(noise, RATE)
    begin, late = 7 * SECOND, 123 * SECOND // RATE
    seen = [Sample("image", picture, begin + k * SECOND // FPS) for k, picture in enumerate(whole.pictures)][10:]
    silence = np.zeros(RATE, np.float32)
    sound = np.concatenate([silence, whole.sound, silence])[:, None]
    heard = [
        Sample("audio", sound[k : k + 160], begin + late - SECOND + k * SECOND // RATE, rate=RATE)
        for k in range(0, len(sound), 160)
    ]
    starts = alignment.picture_starts(seen, whole)
    assert len(starts) == len(seen)
    assert np.abs(starts - begin).max() <= 1
    starts = alignment.sound_starts(heard, whole, begin)
    assert len(starts) == SECONDS
    assert np.abs(starts - begin - late).max() <= SECOND // RATE // 2


def test_what_is_not_of_the_clip_is_not_found_in_it(noise: Path) -> None:
    """Black, and other noise, are nowhere in it; neither is nothing."""
    whole = alignment.read_clip(noise, RATE)
    other = np.random.default_rng(6).integers(0, 256, (28, 28), np.uint8)
    seen = [Sample("image", np.zeros((28, 28), np.uint8), 0), Sample("image", other, SECOND)]
    assert len(alignment.picture_starts(seen, whole)) == 0
    assert len(alignment.picture_starts([], whole)) == 0
    silence = [Sample("audio", np.zeros((160, 1), np.float32), k * 20 * MS, rate=RATE) for k in range(400)]
    assert len(alignment.sound_starts(silence, whole, 2 * SECOND)) == 0
    assert len(alignment.sound_starts([], whole, 0)) == 0


@servers
def test_a_bundle_runs_on_both_addresses(noise: Path, tiny: Path) -> None:
    """Every result of the head that joins picture and sound has both, and neither source was lost."""
    done = subprocess.run(
        [sys.executable, "-c", BY_ADDRESS, str(tiny), str(noise)],
        env=environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said["missing"]) > 20
    # The first picture may come before the microphone's first block.
    assert sum(bool(missing) for missing in said["missing"][5:]) == 0
    assert said["sources"] == [[True, 0, 0, None]] * 2


@servers
@pytest.mark.parametrize(("percent", "code", "late"), [("100", 0, 0), ("101", 1, 300)])
def test_the_whole_demo_measures_and_judges(noise: Path, tiny: Path, percent: str, code: int, late: int) -> None:
    """The answer is red, as it should be: fine for 100 %, a failure for 101; a skew is found as it was made."""
    done = subprocess.run(
        [sys.executable, "-m", "av_digits.live", str(tiny), str(noise), "--at-least", percent, "--late", str(late)],
        env=environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "event: 1 of 1 segments right" in done.stdout
    assert "0 reconnects, 0 stalls" in done.stdout
    [skew] = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("skew:")]
    assert float(skew) == pytest.approx(late, abs=100)


@servers
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_early_it_ends_its_processes(noise: Path, tiny: Path, number: signal.Signals) -> None:
    """After Ctrl-C or a polite end, neither server nor player is left."""
    command = [sys.executable, "-m", "av_digits.live", str(tiny), str(noise)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            assert demo.stdout.readline().startswith("As: edge-mbm run")
            tasks = Path(f"/proc/{demo.pid}/task").glob("*/children")
            children = [int(pid) for task in tasks for pid in task.read_text().split()]
            assert len(children) == 3
            demo.send_signal(number)
            assert demo.wait(30) == 128 + number
        finally:
            demo.kill()
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
