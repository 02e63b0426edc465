"""Speech to text as it is spoken: silero hears where somebody speaks, Whisper tiny.en writes down what was said.

    python examples/zoo/whisper.py .cache/zoo
    edge-mbm export export/whisper.toml -o whisper.mbm
    PYTHONPATH=examples python examples/dictation.py whisper.mbm mic://default

Without an address three sentences that people read aloud are played as if they came from a microphone. A line is
written over as long as its sentence is not over.
"""

from __future__ import annotations

import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
from zoo import speech

import edge_mbm
from edge_mbm.runtime import TextOutput

PAUSE = np.zeros(speech.RATE, np.float32)


def conversation(path: Path, clips: int = 3) -> Path:
    """Recordings of people one after the other, with a second of silence around each, as a WAV file."""
    read = [speech.read_wave(clip.read_bytes()) for clip in speech.read_aloud("librivox")[:clips]]
    samples = np.concatenate([PAUSE, *(part for clip in read for part in (clip, PAUSE))])
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(speech.RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).astype(np.int16).tobytes())
    return path


def main(bundle: str, address: str) -> None:
    """Print what is said."""
    with edge_mbm.open(bundle, audio=address) as live:
        for result in live:
            said, segment = result.output, result.segment
            assert isinstance(said, TextOutput)
            assert segment is not None  # the listener hears utterances
            end = "\n" if segment.is_final else "\r"
            seconds = (segment.start - live.origin) / 1e9
            print(f"{seconds:6.1f} s {said.text.strip()}  ({result.age / 1e6:.0f} ms)", end=end, flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        address = sys.argv[2] if len(sys.argv) > 2 else str(conversation(Path(folder, "conversation.wav")))
        main(sys.argv[1] if len(sys.argv) > 1 else "whisper.mbm", address)
