"""Samples on their way from the thread that captures to the one that takes them."""

from __future__ import annotations

import threading
from collections import deque

from edge_mbm.runtime.source import Sample

__all__ = ["Handoff"]


class Handoff:
    """The newest frame of each modality, and every block of sound up to a bound, in the order in which they came.

    ``put`` never waits: a driver's callback may call it.

    Args:
        capacity: blocks of sound that may wait, per modality; beyond it the oldest is dropped and counted.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[tuple[int, Sample]]] = {}
        self._count = 0
        self._ended = self._closed = False
        self._lost: dict[str, int] = {}
        self._arrivals: dict[str, int] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        with self._changed:
            return not any(self._waiting.values())

    @property
    def ended(self) -> bool:
        """Whether everything was taken and no more will come."""
        with self._changed:
            return self._ended and not any(self._waiting.values())

    def put(self, sample: Sample, now: int) -> bool:
        """Hand a sample over.

        Args:
            sample: with a rate it is sound, of which nothing is dropped below the capacity; else only the newest waits.
            now: when it came, ns.

        Returns:
            Whether more is wanted.
        """
        with self._changed:
            if self._closed:
                return False
            self._arrivals[sample.modality] = now
            queue = self._waiting.setdefault(sample.modality, deque())
            is_sound = sample.rate is not None
            if len(queue) >= (self._capacity if is_sound else 1):
                queue.popleft()
                self._count_loss(f"{sample.modality}.{'overflow' if is_sound else 'superseded'}")
            self._count += 1
            queue.append((self._count, sample))
            self._changed.notify_all()
        return True

    def take(self, timeout_s: float) -> Sample | None:
        """The sample that has waited longest, waiting for one; None if none came in time or the end did."""
        with self._changed:
            if not any(self._waiting.values()) and not self._ended:
                self._changed.wait(timeout_s)
            filled = [queue for queue in self._waiting.values() if queue]
            return min(filled, key=lambda queue: queue[0][0]).popleft()[1] if filled else None

    def end(self) -> None:
        """No more will be put."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """No more will be taken: what waits is dropped, sound is counted, and ``put`` refuses."""
        with self._changed:
            for modality, queue in self._waiting.items():
                if lost := sum(sample.rate is not None for _, sample in queue):
                    self._count_loss(f"{modality}.discarded", lost)
                queue.clear()
            self._closed = self._ended = True
            self._changed.notify_all()

    def losses(self) -> dict[str, int]:
        """Counts by "modality.cause"."""
        with self._changed:
            return dict(self._lost)

    def arrivals(self) -> dict[str, int]:
        """When the newest sample of each modality came, ns."""
        with self._changed:
            return dict(self._arrivals)

    def _count_loss(self, key: str, count: int = 1) -> None:
        self._lost[key] = self._lost.get(key, 0) + count
