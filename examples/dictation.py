"""Speech to text as it is spoken: silero hears where somebody speaks, Whisper tiny.en writes down what was said.

    edge-mbm demo dictation
    edge-mbm demo dictation mic://default

The first time it exports the bundle, which takes some twenty minutes on two cores. Without an address, sentences that
people read aloud are played as if they came from a microphone. While a sentence is not over its line is written anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import edge_mbm
from edge_mbm.runtime import TextOutput

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "dictation"  # what is made here, and not kept with the code
BUNDLE, SOUND = FOLDER / "whisper.mbm", FOLDER / "conversation.wav"


def prepare() -> None:
    """The bundle and the sound, made once."""
    from zoo import speech, whisper  # noqa: PLC0415 - they bring torch, which a device lacks

    FOLDER.mkdir(parents=True, exist_ok=True)
    if not BUNDLE.exists():
        from edge_mbm.cli.bars import ExportBars  # noqa: PLC0415 - for the workstation
        from edge_mbm.export import export_bundle  # noqa: PLC0415 - as above

        whisper.main([str(ROOT / ".cache" / "zoo")])
        print("exporting, once: some twenty minutes on two cores")
        with ExportBars() as bars:
            export_bundle(ROOT / "export" / "whisper.toml", BUNDLE, bars)
    if not SOUND.exists():
        pause = np.zeros(speech.RATE, np.float32)
        read = [speech.read_wave(clip.read_bytes()) for clip in speech.read_aloud("librivox")[:3]]
        speech.write_wave(SOUND, np.concatenate([pause, *(part for clip in read for part in (clip, pause))]))


def listen(address: str) -> None:
    """Print what is said, until the sound ends or Ctrl-C."""
    with edge_mbm.open(BUNDLE, audio=address) as live:
        for result in live:
            said, segment = result.output, result.segment
            assert isinstance(said, TextOutput)
            assert segment is not None  # the listener hears utterances
            seconds, end = (segment.start - live.origin) / 1e9, "\n" if segment.is_final else "\r"
            print(f"{seconds:5.1f} s  {said.text.strip()}  ({result.age / 1e9:.1f} s old)", end=end, flush=True)


def main(arguments: Sequence[str]) -> None:
    """Prepare, then listen."""
    prepare()
    listen(arguments[0] if arguments else str(SOUND))


if __name__ == "__main__":
    main(sys.argv[1:])
