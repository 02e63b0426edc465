"""Spoiling what is seen and heard: noise and occlusion on digits, words at random times in noise.

All of it is driven by a numpy Generator: the same seed gives the same data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from av_digits.sources import RATE

__all__ = ["HOLD", "Word", "coloured_noise", "lay_out", "mix", "spoil_images", "vary_voice"]

HOLD = RATE // 2  # samples after a word's end in which its digit is asked for
_LEVEL = 0.08  # RMS of a word, full scale 1
_SILENT = 3600  # samples that a word which nobody says would have taken


@dataclass(frozen=True)
class Word:
    """A digit's place in a stream.

    Args:
        label: 0 to 9.
        start: its first sample; negative when the stream begins inside the word.
        end: one past its last sample.
        clip: float32[end - start], or None when nobody says it.
        noise: level of the noise around it, relative to the word's, dB.
    """

    label: int
    start: int
    end: int
    clip: NDArray[np.float32] | None
    noise: float


def spoil_images(
    images: NDArray[np.uint8], noise: NDArray[np.float64], occlusion: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Add Gaussian noise and put a grey square on each image, somewhere.

    Args:
        images: uint8[n, 28, 28].
        noise: [n], standard deviation on a scale where white is 1.
        occlusion: [n], sides of the squares, pixels.
        rng: of the noise and the places.

    Returns:
        uint8[n, 28, 28].
    """
    count, height, width = images.shape
    pixels = images.astype(np.float32) / 255
    top = rng.integers(0, height - occlusion + 1)[:, None, None]
    left = rng.integers(0, width - occlusion + 1)[:, None, None]
    side = occlusion[:, None, None]
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    hidden = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    pixels = np.where(hidden, np.float32(0.5), pixels)
    pixels += rng.standard_normal((count, height, width), np.float32) * noise[:, None, None].astype(np.float32)
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def vary_voice(clip: NDArray[np.float32], speed: float, tilt: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Say a word faster or slower, at another pitch, through another microphone.

    Args:
        clip: float32[samples].
        speed: most that the speed changes, as a share: 0.1 is 0.9 to 1.1 times; the pitch goes with it.
        tilt: most that the frequency response departs from flat, dB.
        rng: of the changes.

    Returns:
        float32[other samples].
    """
    factor = 1 + rng.uniform(-speed, speed)
    positions = np.arange(0, len(clip) - 1, factor)
    resampled = np.interp(positions, np.arange(len(clip)), clip).astype(np.float32)
    spectrum = np.fft.rfft(resampled, _fast(len(resampled)))
    knots = rng.uniform(-tilt, tilt, 6)
    response = np.interp(np.linspace(0, 5, len(spectrum)), np.arange(6), knots)
    varied = np.fft.irfft(spectrum * 10 ** (response / 20))[: len(resampled)]
    return varied.astype(np.float32)


def lay_out(
    words: Iterable[tuple[int, NDArray[np.float32] | None, float]], samples: int, rng: np.random.Generator
) -> list[Word]:
    """Place words in a stream, last word first, until it is full.

    The stream ends at most ``HOLD`` after the last word, and a word begins at least ``HOLD`` after the one before.

    Args:
        words: label, clip or None for silence, and noise in dB; as many as are needed are drawn.
        samples: length of the stream.
        rng: of the gaps.

    Returns:
        The words in the order of time.
    """
    placed: list[Word] = []
    end = samples - int(rng.integers(0, HOLD))
    for label, clip, noise in words:
        start = end - (_SILENT if clip is None else len(clip))
        placed.append(Word(label, start, end, clip, noise))
        end = start - HOLD - int(rng.integers(RATE // 10, RATE * 6 // 10))
        if end <= 0:
            break
    return placed[::-1]


def mix(words: list[Word], samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """The stream as a microphone hears it: words at one level, noise as each word has it, any gain.

    Args:
        words: in the order of time.
        samples: length of the stream.
        rng: of noise and gain.

    Returns:
        float32[samples], full scale +-1.
    """
    audio = coloured_noise(samples, rng)
    audio *= _LEVEL * np.repeat([10 ** (word.noise / 20) for word in words], _spans(words, samples)).astype(np.float32)
    for word in words:
        if word.clip is not None:
            said = word.clip[max(0, -word.start) :]
            audio[word.end - len(said) : word.end] += said * _gain(word.clip)
    audio *= 10 ** (rng.uniform(-10, 6) / 20)
    return np.clip(audio, -1, 1)


def _gain(clip: NDArray[np.float32]) -> np.float32:
    return np.float32(_LEVEL / max(1e-6, float(np.sqrt(np.mean(clip**2)))))


def _spans(words: list[Word], samples: int) -> NDArray[np.int64]:
    """How long each word's noise lasts: from the hold of the one before to the end of its own."""
    until = [min(samples, word.end + HOLD) for word in words[:-1]] + [samples]
    return np.diff(np.array([0, *until]))


def coloured_noise(samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of RMS 1 whose spectrum falls by 0 (white) to 3 dB (pink) per octave: float32[samples]."""
    spectrum = np.fft.rfft(rng.standard_normal(_fast(samples), np.float32))
    falling = np.maximum(1, np.arange(len(spectrum), dtype=np.float32)) ** -np.float32(rng.uniform(0, 0.5))
    noise = np.fft.irfft(spectrum * falling)[:samples].astype(np.float32)
    noise /= np.sqrt(np.mean(noise**2))
    return noise


def _fast(samples: int) -> int:
    """A length of FFT: lengths with large prime factors are many times slower."""
    return 1 << (samples - 1).bit_length()
