"""Percentiles of any number of durations in fixed memory."""

from __future__ import annotations

import math
from array import array

from msgspec import Struct

__all__ = ["LatencyFigures", "LatencyHistogram"]

_LEAST, _MOST = 1_000, 1_000_000_000_000
"""1 us to 1000 s, in ns; what is outside counts in the first or the last bin."""
_STEP = math.log(1.01)
_BINS = math.ceil(math.log(_MOST / _LEAST) / _STEP) + 1


class LatencyFigures(Struct, frozen=True, kw_only=True):
    """What a histogram says, us; all zero when nothing was measured."""

    count: int
    p50_us: float
    p95_us: float
    p99_us: float
    max_us: float


class LatencyHistogram:
    """Counts durations in bins 1 % wide, so that a run of weeks takes as much memory as one of seconds.

    Count, least and greatest are exact; a percentile between 1 us and 1000 s is within 0.5 % of the duration at its
    rank.
    """

    def __init__(self) -> None:
        self.count = 0
        self.least = 0
        self.greatest = 0
        self._bins = array("Q", bytes(8 * _BINS))

    def add(self, nanoseconds: int) -> None:
        """Count one duration; a negative one as 0."""
        value = max(0, nanoseconds)
        self.least = min(self.least, value) if self.count else value
        self.greatest = max(self.greatest, value)
        self.count += 1
        self._bins[_bin(value)] += 1

    def percentile(self, percent: float) -> float:
        """The duration that ``percent`` of all do not exceed (nearest rank), ns; 0 when there is none."""
        rank, seen = max(1, math.ceil(self.count * percent / 100)), 0
        if rank >= self.count:
            return float(self.greatest)
        for index, count in enumerate(self._bins):
            seen += count
            if seen >= rank:
                return min(max(_middle(index), float(self.least)), float(self.greatest))
        raise AssertionError("the bins hold fewer than were counted")

    def figures(self) -> LatencyFigures:
        """Count, percentiles and maximum."""
        p50, p95, p99 = (self.percentile(percent) / 1e3 for percent in (50, 95, 99))
        return LatencyFigures(count=self.count, p50_us=p50, p95_us=p95, p99_us=p99, max_us=self.greatest / 1e3)


def _bin(nanoseconds: int) -> int:
    if nanoseconds <= _LEAST:
        return 0
    return min(_BINS - 1, int(math.log(nanoseconds / _LEAST) / _STEP))


def _middle(index: int) -> float:
    """The duration whose ratio to both edges of a bin is the same, ns."""
    return _LEAST * math.exp((index + 0.5) * _STEP)
