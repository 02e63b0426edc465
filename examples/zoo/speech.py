"""Speech to calibrate and to test on: recordings of people from Debian packages, and synthetic voices.

| what | Debian package | licence |
|---|---|---|
| ten read sentences and card names, transcribed | pocketsphinx-testdata | BSD-2-Clause |
| prompts of a telephone system, one speaker | asterisk-core-sounds-en-wav | CC-BY-SA 3.0 |
| any text in many voices | flite, espeak-ng | made when asked for |

All at 16 kHz. The test has people and texts that calibration does not have.
"""

from __future__ import annotations

import functools
import io
import itertools
import shutil
import subprocess
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_mbm.errors import InputError, MissingDependencyError
from zoo import sentences

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE = 16_000
_READ = Path("/usr/share/pocketsphinx/test/data")
_PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
_WINDOW = 480_000  # 30 s, what Whisper takes
_SPLITS = ("calibration", "heldout", "golden")


@dataclass(frozen=True)
class Voice:
    """A synthesizer and its settings."""

    program: str
    options: tuple[str, ...]


# Voices of the test are in no other split.
_CALIBRATION_VOICES = (
    Voice("flite", ("-voice", "awb")),
    Voice("flite", ("-voice", "kal16")),
    Voice("espeak-ng", ("-v", "en-us+f3", "-s", "150")),
    Voice("espeak-ng", ("-v", "en-gb-scotland", "-s", "140")),
)
_TEST_VOICES = (
    Voice("flite", ("-voice", "slt")),
    Voice("flite", ("-voice", "rms")),
)
_SPOKEN = 40  # synthetic sentences of the test


@dataclass(frozen=True)
class Recording:
    """Sound, mono at 16 kHz; the label is the place in ``transcripts()`` of what is said, None if it is not there."""

    id: str
    inputs: dict[str, NDArray[np.float32]]
    label: int | None


def recordings(split: str) -> Iterator[Recording]:
    """Half a minute each, the speech and then silence: "calibration", "heldout" or "golden".

    Raises:
        InputError: another split.
        MissingDependencyError: a package is not installed.
    """
    if split not in _SPLITS:
        raise InputError(f"no split is called {split!r}: there are {', '.join(_SPLITS)}")
    makers: dict[str, Callable[[], Iterator[Recording]]] = {
        "calibration": _calibration,
        "heldout": _heldout,
        "golden": _golden,
    }
    for given in makers[split]():
        yield Recording(given.id, {"audio": fitted(given.inputs["audio"], _WINDOW)}, given.label)


@functools.cache
def transcripts() -> tuple[str, ...]:
    """What is said in the recordings of "heldout", in their order."""
    return (*(text for _, text in _transcribed()), *(text for _, text in _test_sentences()))


def say(text: str, voice: Voice) -> NDArray[np.float32]:
    """A text, spoken by a synthesizer.

    Raises:
        MissingDependencyError: the synthesizer is not installed.
    """
    if shutil.which(voice.program) is None:
        raise MissingDependencyError(voice.program, "synthetic speech", f"apt-get install {voice.program}")
    ending = ("-t", text, "-o", "/dev/stdout") if voice.program == "flite" else ("--stdout", text)
    done = subprocess.run([voice.program, *voice.options, *ending], capture_output=True, check=True)
    return read_wave(done.stdout)


def read_wave(data: bytes) -> NDArray[np.float32]:
    """A mono WAV file of 16 bits, at 16 kHz and full scale +-1."""
    with wave.open(io.BytesIO(data)) as file:
        rate = file.getframerate()
        # Synthesizers that stream write no length: what there is, up to a minute.
        samples = np.frombuffer(file.readframes(60 * rate), np.int16).astype(np.float32) / np.float32(32768)
    return samples if rate == RATE else _resampled(samples, rate)


def write_wave(path: Path, samples: NDArray[np.float32]) -> None:
    """A mono WAV file of 16 bits at 16 kHz, of samples at full scale +-1."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).astype(np.int16).tobytes())


def read_raw(path: Path) -> NDArray[np.float32]:
    """16-bit samples at 16 kHz without a header."""
    return np.fromfile(path, np.int16).astype(np.float32) / np.float32(32768)


def fitted(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Cut, or made longer with silence."""
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def folder(path: Path, package: str) -> Path:
    """A folder that a Debian package brings.

    Raises:
        MissingDependencyError: it is not there.
    """
    if not path.is_dir():
        raise MissingDependencyError(package, "recordings of speech", f"apt-get install {package}")
    return path


def read_aloud(part: str) -> list[Path]:
    """Recordings of one person, whole sentences: "librivox" or "cards"."""
    return [path for path, _ in _transcribed() if path.parent.name == part]


def prompt(name: str) -> Path:
    """One of the telephone system's recordings: "digits/7"."""
    return folder(_PROMPTS, "asterisk-core-sounds-en-wav") / f"{name}.wav"


def prompts() -> Sequence[Path]:
    """The telephone system's sentences, without single words, in a fixed order."""
    return sorted(
        path for path in folder(_PROMPTS, "asterisk-core-sounds-en-wav").glob("*.wav") if path.stat().st_size > 40_000
    )


def _resampled(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    try:
        import soxr  # noqa: PLC0415 - of the live extra
    except ImportError:
        raise MissingDependencyError("soxr", "sound at another rate", "pip install 'edge-mbm[live]'") from None
    resampled: NDArray[np.float32] = soxr.resample(samples, rate, RATE)
    return resampled


# --- splits ----------------------------------------------------------------------------------------------------------


def _calibration() -> Iterator[Recording]:
    """Prompts and synthetic sentences in turn; every second one is longer, and some are soft."""
    texts = (item.inputs["text"] for item in sentences.recordings("calibration"))
    for number, (path, voice) in enumerate(zip(prompts(), itertools.cycle(_CALIBRATION_VOICES), strict=False)):
        prompt, spoken = read_wave(path.read_bytes()), say(next(texts), voice)
        audio = np.concatenate([prompt, spoken]) if number % 4 == 0 else (prompt, spoken)[number % 2]
        gain = (1.0, 0.5, 1.0, 0.2)[number // 4 % 4]
        yield Recording(f"calibration-{number:03d}", {"audio": audio * np.float32(gain)}, None)


def _heldout() -> Iterator[Recording]:
    people = (path.read_bytes() for path, _ in _transcribed())
    for label, data in enumerate(people):
        yield Recording(f"heldout-{label:03d}", {"audio": read_wave(data)}, label)
    first = len(_transcribed())
    for number, (voice, text) in enumerate(_test_sentences()):
        yield Recording(f"heldout-{first + number:03d}", {"audio": say(text, voice)}, first + number)


def _golden() -> Iterator[Recording]:
    """Synthetic only: these travel in the bundle."""
    for number, item in enumerate(sentences.recordings("golden")):
        yield Recording(f"golden-{number:03d}", {"audio": say(item.inputs["text"], _CALIBRATION_VOICES[0])}, None)


@functools.cache
def _transcribed() -> tuple[tuple[Path, str], ...]:
    """The transcribed recordings of people: (file, what is said)."""
    listings = (("librivox", "transcription"), ("cards", "cards.transcription"))
    return tuple(entry for part, listing in listings for entry in _listed(part, listing))


def _listed(part: str, listing: str) -> Iterator[tuple[Path, str]]:
    for line in (folder(_READ, "pocketsphinx-testdata") / part / listing).read_text().splitlines():
        text, _, name = line.strip().rstrip(")").rpartition("(")
        yield _READ / part / f"{name}.wav", text.replace("<s>", "").replace("</s>", "").strip()


@functools.cache
def _test_sentences() -> tuple[tuple[Voice, str], ...]:
    texts = (item.inputs["text"] for item in sentences.recordings("heldout"))
    return tuple(zip(itertools.cycle(_TEST_VOICES), itertools.islice(texts, _SPOKEN), strict=False))
