"""The data sets: streams to train on, and recordings to calibrate with and to test on.

Training uses synthetic voices and the first 8,000 images; "heldout" one human voice and the other 2,000. A recording is
what a device would have taken in: one camera frame, and the microphone's last three seconds, in which the word asked
for ended up to half a second ago and other words came before it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from av_digits import sources
from av_digits.cache import cached
from av_digits.degrade import HOLD, Word, lay_out, mix, spoil_images, vary_voice
from av_digits.sources import RATE
from edge_mbm.errors import InputError
from edge_mbm.preprocess import LogMel

__all__ = [
    "CHUNK",
    "LABELS",
    "LOG_MEL",
    "SAMPLES",
    "WINDOW",
    "Batch",
    "Material",
    "Recording",
    "batches",
    "gray",
    "material",
    "recordings",
]

LABELS = tuple("0123456789")
LOG_MEL = LogMel(sample_rate=RATE, window_length=200, hop_length=80, n_fft=256, n_mels=40, f_min=60, f_max=3800)
CHUNK = 800  # samples between two windows of the audio encoder: 10 frames of log-mel
WINDOW = 920  # samples that give 10 frames
SAMPLES = 30 * CHUNK + WINDOW - CHUNK  # of a recording

_TRAIN_IMAGES = 8000
_STREAM = 40 * CHUNK + WINDOW - CHUNK
_SPLITS = {"calibration": (256, 1), "heldout": (400, 2), "golden": (4, 3)}

# How badly the test is spoiled: so much that neither modality is enough.
_TEST_IMAGE_NOISE = 0.9  # where white is 1
_TEST_OCCLUSION = 8
_TEST_AUDIO_NOISE = (-9.0, -3.0)  # dB against the word


@dataclass(frozen=True)
class Recording:
    """What a device took in around one moment, and the truth about it.

    Args:
        id: names it in a report.
        inputs: "image" uint8[28, 28, 3] in RGB; "audio" float32[samples], mono, 8 kHz, full scale +-1.
        label: index into ``LABELS``.
    """

    id: str
    inputs: dict[str, NDArray[np.generic]]
    label: int


@dataclass(frozen=True)
class Material:
    """Clean digits to make data from.

    Args:
        images: of each digit, uint8[n, 28, 28].
        words: of each digit, float32[samples] at 8 kHz.
    """

    images: list[NDArray[np.uint8]]
    words: list[list[NDArray[np.float32]]]


@dataclass(frozen=True)
class Batch:
    """Streams to train on, and the words in them with an image each.

    Args:
        features: log-mel, float32[streams, frames, 40].
        labels: int64[streams, frames]: the digit said in the last half second, or -1.
        stream: int64[words], the stream a word is in.
        frame: int64[words], one frame in the half second after the word.
        word: int64[words], its digit.
        images: uint8[words, 28, 28, 1], of the same digit.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    stream: NDArray[np.int64]
    frame: NDArray[np.int64]
    word: NDArray[np.int64]
    images: NDArray[np.uint8]


def recordings(split: str) -> Iterable[Recording]:
    """The recordings of a split, the same at every call.

    Args:
        split: "calibration" (256: synthetic voices, training images), "heldout" (400: a human voice, unseen images, all
            badly spoiled) or "golden" (4: synthetic voices, unseen images).

    Raises:
        InputError: another split.
        EdgeMbmError: the data must be made first, and a program for it is missing.
    """
    if split not in _SPLITS:
        raise InputError(f"no split is called {split!r}: there are {', '.join(_SPLITS)}")
    count, seed = _SPLITS[split]
    return degraded(material(split), count, seed, harsh=split == "heldout", prefix=split)


def degraded(source: Material, count: int, seed: int, *, harsh: bool, prefix: str = "pair") -> Iterator[Recording]:
    """Recordings with the ten digits in turn.

    Args:
        source: the clean digits.
        count: of recordings.
        seed: of everything random.
        harsh: spoil as the test does, else as training does.
        prefix: of the ids.
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        label = number % 10
        stream = lay_out(_words(source, rng, harsh=harsh, last=label), SAMPLES, rng)
        image = _images(source, np.array([label]), rng, harsh=harsh)[0]
        inputs = {"image": np.repeat(image[:, :, None], 3, axis=2), "audio": mix(stream, SAMPLES, rng)}
        yield Recording(f"{prefix}-{number:04d}", inputs, label)


def batches(source: Material, streams: int, seed: int) -> Iterator[Batch]:
    """Training batches without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield _batch(source, streams, rng)


def material(split: str) -> Material:
    """What a split, or "training", is made of; fetched and made the first time, then cached."""
    images, labels = _mnist()
    unseen = split in ("heldout", "golden")
    images, labels = (
        (images[_TRAIN_IMAGES:], labels[_TRAIN_IMAGES:]) if unseen else (images[:_TRAIN_IMAGES], labels[:_TRAIN_IMAGES])
    )
    words = _human() if split == "heldout" else _synthetic()
    return Material([images[labels == digit] for digit in range(10)], words)


def gray(frame: NDArray[np.generic]) -> NDArray[np.uint8]:
    """An RGB frame of equal channels as the image encoder takes it: uint8[H, W, 3] to uint8[H, W, 1]."""
    return np.ascontiguousarray(frame[:, :, :1]).astype(np.uint8, copy=False)


@functools.cache
def _mnist() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    arrays = cached("mnist", sources.mnist)
    # Shuffled alike for every training seed: what is held out stays held out.
    order = np.random.default_rng(0).permutation(len(arrays["labels"]))
    return arrays["images"][order].astype(np.uint8), arrays["labels"][order].astype(np.int64)


@functools.cache
def _synthetic() -> list[list[NDArray[np.float32]]]:
    return sources.by_label(cached("synthetic_speech", sources.synthetic_speech))


@functools.cache
def _human() -> list[list[NDArray[np.float32]]]:
    return sources.by_label(cached("human_speech", sources.human_speech))


def _batch(source: Material, streams: int, rng: np.random.Generator) -> Batch:
    laid = [lay_out(_words(source, rng, harsh=False), _STREAM, rng) for _ in range(streams)]
    features = np.stack([LOG_MEL(mix(words, _STREAM, rng)) for words in laid])
    labels = np.stack([_frame_labels(words, features.shape[1]) for words in laid])
    # A word that the stream begins inside of is not asked for.
    asked = [(index, word) for index, words in enumerate(laid) for word in words if word.start >= 0]
    digits = np.array([word.label for _, word in asked])
    return Batch(
        features=features,
        labels=labels,
        stream=np.array([index for index, _ in asked]),
        frame=np.array([rng.integers(*_answer_frames(word, features.shape[1])) for _, word in asked]),
        word=digits,
        images=_images(source, digits, rng, harsh=False)[..., None],
    )


def _words(
    source: Material, rng: np.random.Generator, *, harsh: bool, last: int | None = None
) -> Iterator[tuple[int, NDArray[np.float32] | None, float]]:
    """Words as ``lay_out`` takes them, last first."""
    for index in itertools.count():
        label = last if index == 0 and last is not None else int(rng.integers(10))
        clip = source.words[label][rng.integers(len(source.words[label]))]
        if harsh:
            yield label, vary_voice(clip, 0.1, 3.0, rng), rng.uniform(*_TEST_AUDIO_NOISE)
        else:
            # A silent word has a digit that cannot be heard: so the encoder learns to forget, and not to know.
            said = None if rng.random() < 0.1 else vary_voice(clip, 0.15, 8.0, rng)
            yield label, said, rng.uniform(-35.0, 3.0)


def _images(source: Material, digits: NDArray[np.int64], rng: np.random.Generator, *, harsh: bool) -> NDArray[np.uint8]:
    clean = np.stack([source.images[digit][rng.integers(len(source.images[digit]))] for digit in digits])
    count = len(digits)
    if harsh:
        return spoil_images(clean, np.full(count, _TEST_IMAGE_NOISE), np.full(count, _TEST_OCCLUSION), rng)
    blank = rng.random(count) < 0.05
    return spoil_images(
        np.where(blank[:, None, None], np.uint8(0), clean), rng.uniform(0, 1.1, count), rng.integers(0, 13, count), rng
    )


def _frame_labels(words: list[Word], frames: int) -> NDArray[np.int64]:
    labels = np.full(frames, -1)
    for word in words:
        if word.start >= 0:
            first, stop = _answer_frames(word, frames)
            labels[first:stop] = word.label
    return labels


def _answer_frames(word: Word, frames: int) -> tuple[int, int]:
    """The frames, from and to before, whose last sample is within ``HOLD`` after the word; at least one."""
    window, hop = LOG_MEL.window_length, LOG_MEL.hop_length
    first = min(frames - 1, -(-(word.end - window) // hop))
    return first, max(first + 1, min(frames, (word.end + HOLD - window) // hop + 1))
