"""Monotonic time, injectable so that tests and replays own it."""

from __future__ import annotations

import threading
import time
from typing import Protocol

__all__ = ["Clock", "MonotonicClock"]


class Clock(Protocol):
    """Where "now" comes from. Never wall time: that steps."""

    def now(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back."""
        ...

    def sleep_until(self, t: int, stop: threading.Event) -> bool:
        """Wait until ``t`` or until ``stop`` is set; returns whether ``stop`` is set."""
        ...


class MonotonicClock:
    """The system's monotonic clock."""

    def now(self) -> int:
        """See ``Clock.now``."""
        return time.monotonic_ns()

    def sleep_until(self, t: int, stop: threading.Event) -> bool:
        """See ``Clock.sleep_until``."""
        remaining = t - self.now()
        return stop.wait(remaining / 1e9) if remaining > 0 else stop.is_set()
