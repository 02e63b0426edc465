"""Time that a test owns."""

from __future__ import annotations

import threading

__all__ = ["FakeClock"]


class FakeClock:
    """A ``Clock`` that stands still until it is told to move, or until somebody sleeps on it.

    Args:
        start: the first ``now``, ns.
    """

    def __init__(self, start: int = 0) -> None:
        self._now = start
        self._lock = threading.Lock()

    def now(self) -> int:
        """See ``Clock.now``."""
        with self._lock:
            return self._now

    def advance(self, nanoseconds: int) -> None:
        """Let time pass."""
        with self._lock:
            self._now += nanoseconds

    def sleep_until(self, t: int, stop: threading.Event) -> bool:
        """Jump to ``t`` at once."""
        with self._lock:
            self._now = max(self._now, t)
        return stop.is_set()
