"""When network packets were captured, from when they arrived: what arrives can be late, never early."""

from __future__ import annotations

from collections import deque

__all__ = ["Envelope"]

_SECOND = 1_000_000_000
WINDOW_NS = 30 * _SECOND
"""Long enough to meet a packet that was not held up, short enough that 100 ppm of drift is 3 ms."""
JUMP_NS = _SECOND
"""Times that move by this much more or less than the arrivals do are on a new time base."""
_LATE_NS = 2 * _SECOND
"""All packets late by more than ``JUMP_NS`` for this long: the device's clock is slower than it says."""


class Envelope:
    """The least of (arrival - stamp) over a sliding window: what to add to a stamp for the moment of capture."""

    def __init__(self) -> None:
        self.jumps = 0
        """Times that the stamps moved to a new time base."""
        self._least: deque[tuple[int, int]] = deque()
        """(arrival, offset), offsets rising: the first is the least, the others are its heirs."""
        self._last: tuple[int, int] | None = None
        self._late_since: int | None = None

    @property
    def offset(self) -> int | None:
        """Nanoseconds to add to a stamp; None before the first."""
        return self._least[0][1] if self._least else None

    def add(self, stamp: int, arrival: int) -> None:
        """One packet.

        Args:
            stamp: its own time at the end of what it holds, ns.
            arrival: when it came, monotonic ns.
        """
        if self._has_jumped(stamp, arrival):
            self.jumps += 1
            self._least.clear()
            self._late_since = None
        self._last = stamp, arrival
        offset = arrival - stamp
        while self._least and self._least[-1][1] >= offset:
            self._least.pop()
        self._least.append((arrival, offset))
        while self._least[0][0] < arrival - WINDOW_NS:
            self._least.popleft()

    def _has_jumped(self, stamp: int, arrival: int) -> bool:
        if self._last is None:
            return False
        step, passed = stamp - self._last[0], arrival - self._last[1]
        return (abs(step) > JUMP_NS and abs(step - passed) > JUMP_NS) or self._is_slow(stamp, arrival)

    def _is_slow(self, stamp: int, arrival: int) -> bool:
        if arrival - stamp - self._least[0][1] <= JUMP_NS:
            self._late_since = None
            return False
        self._late_since = arrival if self._late_since is None else self._late_since
        return arrival - self._late_since > _LATE_NS
