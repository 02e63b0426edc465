"""Clips to calibrate with and to test on, and streams to train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_mbm.errors import InputError
from moving_digits.world import MOTIONS, digits, draw

__all__ = ["FRAMES", "Recording", "Streams", "clips", "recordings", "streams"]

FRAMES = 8  # of a recording, and of the attention's window
_STREAM = 16  # frames of a stream
_BLIND = 3  # of a new motion, frames after which it can be told
_SPLITS = {"calibration": 1, "heldout": 2, "golden": 3}


@dataclass(frozen=True)
class Recording:
    """A clip, the camera's turn at its end, and the digit's own motion.

    Args:
        id: names it in a report.
        inputs: "image" uint8[8, 32, 32, 1]; "gyroscope" float32[3], rad/s.
        label: index into ``MOTIONS``.
    """

    id: str
    inputs: dict[str, NDArray[np.generic]]
    label: int


@dataclass(frozen=True)
class Streams:
    """Some streams at once, each of one motion and then another.

    Args:
        frames: uint8[B, T, 32, 32, 1].
        turns: what the gyroscope says with each frame, float32[B, T, 3].
        labels: int64[B, T]; -1 where the motion has only begun.
    """

    frames: NDArray[np.uint8]
    turns: NDArray[np.float32]
    labels: NDArray[np.int64]


def recordings(split: str) -> Iterator[Recording]:
    """The recordings of a split, the same at every call.

    Args:
        split: "calibration" (training digits), "heldout" or "golden" (digits that training never saw).

    Raises:
        InputError: another split.
    """
    if split not in _SPLITS:
        raise InputError(f"no split is called {split!r}: there are {', '.join(_SPLITS)}")
    return clips(split, seed=_SPLITS[split], unseen=split != "calibration")


def clips(prefix: str, seed: int, *, unseen: bool, dropped: float = 0.0) -> Iterator[Recording]:
    """Clips without end, the motions in turn.

    Args:
        prefix: of their ids.
        seed: of everything random.
        unseen: take digits that training never saw.
        dropped: share of the camera's frames that are missing; a clip holds eight all the same.
    """
    rng = np.random.default_rng(seed)
    for number in range(10_000):
        drift = draw(number % len(MOTIONS), digits(unseen=unseen), rng)
        clip = np.stack([drift.frame(time, rng) for time in _times(FRAMES, dropped, rng)])
        yield Recording(f"{prefix}-{number:05d}", {"image": clip, "gyroscope": drift.gyroscope(rng)}, drift.motion)


def streams(count: int, seed: int, dropped: float) -> Iterator[Streams]:
    """Training batches without end.

    Args:
        count: of streams in each.
        seed: of everything random.
        dropped: share of the camera's frames that are missing, as a busy device would leave them out.
    """
    rng = np.random.default_rng(seed)
    while True:
        frames, turns, labels = zip(*(_stream(dropped, rng) for _ in range(count)), strict=True)
        yield Streams(np.stack(frames), np.stack(turns), np.stack(labels))


def _stream(
    dropped: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    change = int(rng.integers(_STREAM - _BLIND))
    frames, turns, labels = [], [], np.full(_STREAM, -1)
    for first, stop in ((0, change), (change, _STREAM)):
        drift = draw(int(rng.integers(len(MOTIONS))), digits(unseen=False), rng)
        frames += [drift.frame(time, rng) for time in _times(stop - first, dropped, rng)]
        turns += [drift.gyroscope(rng) for _ in range(first, stop)]
        labels[first + _BLIND : stop] = drift.motion
    return np.stack(frames), np.stack(turns), labels


def _times(count: int, dropped: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Of the frames that are left, up to frame 0."""
    steps = rng.geometric(1 - dropped, count)
    times: NDArray[np.int64] = np.cumsum(steps) - steps.sum()
    return times
