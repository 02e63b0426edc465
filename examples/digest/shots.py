"""From how likely each frame is the last of its shot to the shots, as the answers come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Shot", "ShotFinder"]


class Shot(NamedTuple):
    """A stretch of video between two cuts. Times are ns."""

    start: int
    """Capture time of its first frame."""
    end: int
    """Of its last one."""
    frames: int
    ends_by: float
    """How likely its last frame was the last; 0 where the video ended or broke off."""


class ShotFinder:
    """Goes through a video's answers once; it holds no more than the shot that is going on.

    Frames whose probability is above the threshold belong to a transition, which ends the shot at its first frame; the
    next begins after its last, as TransNetV2's own ``predictions_to_scenes`` has it.

    Args:
        threshold: probability from which a frame is in a transition.
        max_gap: pause between two frames that ends a shot, ns.
    """

    def __init__(self, threshold: float = 0.5, max_gap: int = 500_000_000) -> None:
        self._threshold = threshold
        self._max_gap = max_gap
        self._start: int | None = None
        self._last = 0
        self._frames = 0
        self._in_transition = False

    def add(self, times: NDArray[np.int64], probabilities: NDArray[np.float32]) -> Iterator[Shot]:
        """Shots that have ended.

        Args:
            times: capture times of frames, ns, after those given before.
            probabilities: float32[frames]: how likely each is the last of its shot.
        """
        for t, probability in zip(times.tolist(), probabilities.tolist(), strict=True):
            if self._start is not None and t - self._last > self._max_gap:
                yield self._ended(0.0)
            yield from self._frame(t, probability)
            self._last = t

    def finish(self) -> Iterator[Shot]:
        """The shot that was going on when the video ended."""
        if self._start is not None:
            yield self._ended(0.0)

    def _frame(self, t: int, probability: float) -> Iterator[Shot]:
        is_transition = probability > self._threshold
        if is_transition and self._start is not None:
            self._last, self._frames = t, self._frames + 1
            yield self._ended(probability)
        elif not is_transition and self._start is None:
            self._start, self._frames = t, 1
        elif not is_transition:
            self._frames += 1

    def _ended(self, probability: float) -> Shot:
        assert self._start is not None
        shot = Shot(self._start, self._last, self._frames, probability)
        self._start, self._frames = None, 0
        return shot
