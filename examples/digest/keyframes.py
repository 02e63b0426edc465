"""One picture for each shot, chosen while the video goes by."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from digest.shots import Shot
from edge_mbm.preprocess import as_frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Candidate", "Candidates", "choose"]

_SIDE = 480
"""Longest side of a picture that is kept: what classifiers see is smaller."""
_LOOKED_AT = 8
"""Pictures of a shot that are embedded at most."""
_SHARP = 0.5
"""Pictures less sharp than this part of the sharpest are blurred by motion, or faded."""


@dataclass(frozen=True)
class Candidate:
    """A picture that may stand for its shot.

    Args:
        t: capture time, ns.
        number: counted over the whole video.
        picture: uint8[H, W, 3] RGB, small.
        sharpness: variance of its Laplacian.
    """

    t: int
    number: int
    picture: NDArray[np.uint8] = field(repr=False)
    sharpness: float


class Candidates:
    """Pictures at even steps of time, until the shot that they are of is known.

    A shot of an hour takes no more room than one of a minute: when there are too many, those that have been answered
    for are thinned out evenly.

    Args:
        every: step of time, ns; shots shorter than this may have no picture.
        lag: how far answers are behind at most, ns; nothing younger is thinned out.
        most: pictures at most; more than there are in ``lag``.
    """

    def __init__(self, every: int = 120_000_000, lag: int = 6_000_000_000, most: int = 96) -> None:
        self._every, self._lag, self._most = every, lag, most
        self._due: int | None = None
        self._waiting: deque[Candidate] = deque()
        self._number = 0
        self._stride = 1
        self.highest = 0
        """Most pictures that were held at a time."""

    def add(self, frame: object, t: int) -> None:
        """Look at a frame, as a source gives it; most are let by."""
        if self._due is not None and t < self._due:
            return
        self._due = t + self._every
        small = _small(as_frame(frame))
        gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        sharpness = float(cv2.Laplacian(gray, cv2.CV_64F).var())
        self._waiting.append(Candidate(t, self._number, small, sharpness))
        self._number += 1
        self.highest = max(self.highest, len(self._waiting))
        if len(self._waiting) >= self._most:
            self._thin(t - self._lag)

    def of(self, shot: Shot) -> list[Candidate]:
        """Those of a shot that has ended; those before it are given up."""
        found = []
        while self._waiting and self._waiting[0].t <= shot.end:
            candidate = self._waiting.popleft()
            if candidate.t >= shot.start:
                found.append(candidate)
        self._stride = 1
        return found

    def _thin(self, before: int) -> None:
        """Leave the same even steps between all that are old enough, and wider ones where that is not enough."""
        while True:
            self._waiting = deque(c for c in self._waiting if c.t >= before or c.number % self._stride == 0)
            if len(self._waiting) < self._most or self._waiting[0].t >= before:
                return
            self._stride *= 2


def choose(
    candidates: list[Candidate], embed: Callable[[Any], NDArray[np.float32]] | None
) -> tuple[Candidate, NDArray[np.float32]]:
    """The picture nearest to what its shot is about, among the sharp ones; without an embedding the sharpest.

    Args:
        candidates: of one shot, at least one.
        embed: picture to unit vector; None where there is no model, which leaves coarse colours to compare by.

    Returns:
        The picture, and the shot's unit vector: the mean over its sharp pictures.
    """
    sharpest = max(candidate.sharpness for candidate in candidates)
    sharp = [candidate for candidate in candidates if candidate.sharpness >= _SHARP * sharpest]
    sharp = sharp[:: -(-len(sharp) // _LOOKED_AT)]
    vectors = np.stack([(embed or colors)(candidate.picture) for candidate in sharp])
    mean = _unit(vectors.mean(0))
    if embed is None:
        return max(sharp, key=lambda candidate: candidate.sharpness), mean
    return sharp[int((vectors @ mean).argmax())], mean


def colors(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How a picture's colours are spread, coarsely, about their mean: a unit vector, float32[192]."""
    grid = cv2.resize(picture, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)
    return _unit(grid - 128.0)


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def _small(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy, so that nothing of the source's memory is kept."""
    frame = frame if frame.shape[2] == 3 else np.repeat(frame, 3, axis=2)
    scale = min(1.0, _SIDE / max(frame.shape[:2]))
    if scale == 1.0:
        return frame.copy()
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
