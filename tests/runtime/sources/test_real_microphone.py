"""A real sound server on this machine: what is played into the room is what the microphone gives."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RATE, BLOCK = 16_000, 320
pytestmark = [pytest.mark.needs("sounddevice"), pytest.mark.timeout(120)]

# In a process of its own: PortAudio and ALSA look at the environment once.
RECORDER = """
import faulthandler, sys
import numpy as np
from edge_mbm.runtime.sources import open_source

faulthandler.dump_traceback_later(20, exit=True)  # to say where it hangs, if it does
source = open_source(sys.argv[1])
blocks, heard = [], 0
for sample in source.samples():
    blocks.append(sample)
    if len(blocks) == 10:
        print("listening", source.status().state, flush=True)
    heard += bool(np.abs(sample.data).max() > 0)
    if (heard > 40 and not np.any(sample.data)) or len(blocks) == 1000:
        status, losses = source.status(), source.losses()
        source.close()
np.savez(sys.argv[2], data=np.concatenate([b.data for b in blocks]), t=[b.t for b in blocks],
         n=[len(b.data) for b in blocks], uncertainty=status.uncertainty_ns)
print(status.state, status.stalls, status.reconnects, losses, flush=True)
"""


def write(path: Path, signal: np.ndarray[Any, Any]) -> None:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(signal.tobytes())


def record(server: Any, address: str, recording: Path, played: Path) -> str:
    """Start to record, play, and return what the recorder said at its end."""
    environment = server.environment | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", RECORDER, address, str(recording)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as heard:
        try:
            assert heard.stdout is not None
            if not heard.stdout.readline().startswith("listening live"):
                pytest.fail(heard.communicate(timeout=30)[1])
            server.play(played)
            said, wrong = heard.communicate(timeout=60)
            assert heard.returncode == 0, wrong
            return said
        finally:
            heard.kill()


def test_every_sample_that_was_played_is_heard(sound_server: Any, tmp_path: Path) -> None:
    """One second of noise comes back to the bit, in blocks of 20 ms whose times are counted in samples."""
    signal = np.random.default_rng(7).integers(1, 20_000, RATE).astype(np.int16)
    write(tmp_path / "noise.wav", signal)
    said = record(sound_server, f"mic://default?rate={RATE}&block=20ms", tmp_path / "heard.npz", tmp_path / "noise.wav")
    assert said.strip() == "live 0 0 {}"
    with np.load(tmp_path / "heard.npz") as heard:
        data, t, n = heard["data"], heard["t"], heard["n"]
    assert data.dtype == np.float32
    assert data.shape[1] == 1
    samples = np.round(data[:, 0] * 32768).astype(np.int16)
    begin = int(np.flatnonzero(samples)[0])
    np.testing.assert_array_equal(samples[begin : begin + len(signal)], signal)
    assert set(n) == {BLOCK}
    steps = np.diff(t)
    assert (steps > 0).all()
    assert abs(float(np.median(steps)) - 20e6) < 2e6


def test_a_microphone_that_is_not_there_is_said(sound_server: Any, tmp_path: Path) -> None:
    """With the names of those that are."""
    script = (
        "from edge_mbm.runtime.sources import MicrophoneSource\n"
        "from edge_mbm.errors import SourceError\n"
        "try:\n    MicrophoneSource('Jabra')\nexcept SourceError as error:\n    print(error)\n"
    )
    environment = sound_server.environment | {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "microphone Jabra cannot be opened" in done.stdout
    assert "There are: " in done.stdout
    assert "default" in done.stdout
