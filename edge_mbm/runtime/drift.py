"""When a microphone's samples were captured: counted in samples, corrected for how fast its clock runs.

A block of sound can arrive late, never early. So of all arrivals the earliest ones tell the truth: plotted as delay
against audio time they lie on a line whose slope is the drift of the device's clock, and whose height is its offset.
That line is the edge of the lower convex hull above the mean time (Moon, Skelly and Towsley, "Estimation and removal
of clock skew from network delay measurements", INFOCOM 1999; minimum filtering after Paxson, SIGMETRICS 1998), here
over the lowest arrival of each two seconds of the last five minutes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from msgspec import Struct

from edge_mbm.errors import InputError

__all__ = ["ACQUIRE_NS", "ACQUIRE_PPM", "MAX_DRIFT_PPM", "SLEW_PPM", "AudioClock", "ClockReport"]

SLEW_PPM = 500
"""How fast times are moved towards what the arrivals say, on top of the drift itself."""
ACQUIRE_PPM = 20_000
"""The same in the first ``ACQUIRE_NS`` after an anchor, when the first block's own delay is still in them."""
ACQUIRE_NS = 10_000_000_000
MAX_DRIFT_PPM = 1000
"""No sound card is worse: a steeper line comes from delays that grow, not from a clock."""

_SECOND = 1_000_000_000
_JUMP_NS = 50_000_000
"""Further off than this, times are set, not slewed: samples were lost, or given twice."""
_EARLY_NS = 5_000_000
"""A block as early as this after the anchor has settled disproves the line."""
_PERSIST_NS = _SECOND
"""Late for this long, in samples and in arrivals, is lost samples: a backlog comes in a burst, and is caught up."""
_BACKLOG_NS = 2 * _SECOND
"""Later than this is lost samples at once: no driver's buffer holds more."""
_RISE_NS = 5_000_000
"""Three segments later than this, by the same amount, are lost samples too: load makes arrivals late and ragged."""
_SAME_NS = 500_000
_SEGMENT_NS = 2 * _SECOND
_SEGMENTS = 150
_FIRST_SPAN_NS = 10 * _SECOND
"""Arrivals needed for a first estimate of the drift."""
_SOUND_SPAN_NS = 60 * _SECOND
"""Arrivals needed to replace an estimate that was made from as much."""


class ClockReport(Struct, frozen=True, kw_only=True):
    """What an ``AudioClock`` has found."""

    ppm: float
    """How fast the device's clock runs against the monotonic one: above 0, more samples come than the rate says."""
    residual_ns: int
    """How far times may be off, as far as arrivals tell: what is still to be slewed, and the earliest ones' scatter."""
    re_anchors: int
    """Times that counting started anew; only then may times jump."""
    lost_samples: int
    """Told by the driver, or concluded from arrivals."""
    blocks: int


class AudioClock:
    """Gives each block of a device's sound the capture time of its first sample.

    Times are continuous within ``SLEW_PPM`` and never go back. Memory is fixed, a block costs a few microseconds, and
    all arithmetic that lasts is in whole nanoseconds, so that weeks do not wear it out. Not thread-safe.

    Args:
        rate: the nominal sample rate, Hz.
        latency_ns: from the capture of a sample to the earliest moment at which it can arrive, if it is known: arrivals
            do not tell it, and it is subtracted.

    Raises:
        InputError: a rate that no microphone has, or a negative latency.
    """

    def __init__(self, rate: int, *, latency_ns: int = 0) -> None:
        if not 1_000 <= rate <= 768_000:
            raise InputError(f"a sample rate of {rate} Hz is not one that a microphone has")
        if latency_ns < 0:
            raise InputError(f"a latency of {latency_ns} ns would be sound that arrives before it is heard")
        self.rate = rate
        self.latency_ns = latency_ns
        self._floor = _Floor()
        self._count = 0  # samples so far, with those that the driver said were lost
        self._begin = 0  # audio time of the newest block
        self._since = 0  # audio time of the anchor
        self._offset: int | None = None  # capture time less audio time, of the newest block
        self._newest: int | None = None
        self._late: _Late | None = None
        self._gap_is_open = False
        self._blocks = self._re_anchors = 0
        self._told_samples = self._lost_ns = self._losing_ns = 0

    def block(self, arrival_ns: int, samples: int) -> int:
        """Count a block in.

        Args:
            arrival_ns: monotonic time at which it was handed over, best taken in the driver's own callback.
            samples: how many it has, per channel.

        Returns:
            Capture time of its first sample, ns; never less than the one before.

        Raises:
            InputError: a negative number of samples.
        """
        if samples < 0:
            raise InputError(f"a block of {samples} samples")
        begin = self._audio_time(self._count)
        self._count += samples
        end = self._audio_time(self._count)
        self._observe(begin, end, arrival_ns, arrival_ns - self.latency_ns - end)
        t = begin + self._slewed(begin)
        self._newest = t if self._newest is None else max(t, self._newest)
        self._begin = begin
        self._blocks += 1
        return self._newest

    def gap(self, lost_samples: int | None) -> None:
        """The driver says that samples were lost before the next block.

        Args:
            lost_samples: how many; None if it does not say: then the next arrivals tell.

        Raises:
            InputError: a negative number of samples.
        """
        if lost_samples is not None and lost_samples < 0:
            raise InputError(f"a gap of {lost_samples} samples")
        if self._offset is None:
            return
        if lost_samples is None:
            self._gap_is_open = True
            return
        self._count += lost_samples
        self._told_samples += lost_samples
        self._re_anchors += 1

    def report(self) -> ClockReport:
        """What has been found so far."""
        line = self._floor.line
        unslewed = 0 if self._offset is None else abs(line.at(self._begin) - self._offset)
        lost_ns = self._lost_ns + self._losing_ns
        return ClockReport(
            ppm=(1 / (1 + line.slope) - 1) * 1e6,
            residual_ns=unslewed + self._floor.scatter(),
            re_anchors=self._re_anchors,
            lost_samples=self._told_samples + lost_ns * self.rate // _SECOND,
            blocks=self._blocks,
        )

    def _audio_time(self, count: int) -> int:
        return count * _SECOND // self.rate

    def _observe(self, begin: int, end: int, arrival: int, delay: int) -> None:
        """Learn from one arrival."""
        if self._offset is None:
            self._anchor(begin, end, delay, delay)
            return
        late = delay - self._floor.line.at(end)
        lost = late if self._gap_is_open else self._lost(arrival, end, late)
        if lost is not None:
            self._lose(begin, end, delay, lost)
        elif self._offset - delay > _JUMP_NS:
            self._regain(-late)
            self._re_anchors += 1
            self._anchor(begin, end, delay, delay)
        elif late < -_EARLY_NS and not self._is_acquiring(end):
            self._regain(-late)
            self._re_anchors += 1
            self._restart(end, delay, delay)
        else:
            if self._is_acquiring(end):
                self._regain(-late)
            if (rise := self._floor.add(end, delay)) > 0:
                self._lose(begin, end, delay, rise)

    def _lost(self, arrival: int, end: int, late: int) -> int | None:
        """How much sound must have been lost for blocks to be as late as they are, ns; None if they need not have."""
        if late <= _JUMP_NS:
            self._late = None
            return None
        if late > _BACKLOG_NS:
            return late
        if self._late is None:
            self._late = _Late(arrival, end, late)
        lasted = min(arrival - self._late.arrival, end - self._late.end)
        if lasted >= _PERSIST_NS // 2 and not self._late.is_certain:
            self._late = self._late._replace(least=late, is_certain=True)
        self._late = self._late._replace(least=min(late, self._late.least))
        return self._late.least if lasted >= _PERSIST_NS else None

    def _lose(self, begin: int, end: int, delay: int, lost: int) -> None:
        self._lost_ns += self._losing_ns
        self._losing_ns = max(0, lost)
        self._re_anchors += 1
        self._anchor(begin, end, delay, self._floor.line.at(end) + lost)

    def _regain(self, early: int) -> None:
        """A block was earlier than could be after the last loss: so much less was lost."""
        self._losing_ns = max(0, self._losing_ns - max(0, early))

    def _anchor(self, begin: int, end: int, delay: int, least: int) -> None:
        """Set times by the least delay that is known, without slewing; what is known of the drift stays."""
        self._restart(end, delay, least)
        self._offset = self._floor.line.at(begin)
        self._begin = begin

    def _restart(self, end: int, delay: int, least: int) -> None:
        self._floor.restart(_Point(end, delay), least)
        self._since = end
        self._late = None
        self._gap_is_open = False

    def _is_acquiring(self, end: int) -> bool:
        return end - self._since < ACQUIRE_NS

    def _slewed(self, begin: int) -> int:
        """The offset at a block: along the line, and towards it as fast as is allowed."""
        assert self._offset is not None
        passed = begin - self._begin
        bound = passed * (ACQUIRE_PPM if self._is_acquiring(begin) else SLEW_PPM) // 1_000_000
        line = self._floor.line
        offset = self._offset + round(line.slope * passed)
        self._offset = offset + min(max(line.at(begin) - offset, -bound), bound)
        return self._offset


class _Late(NamedTuple):
    """A stretch of blocks that were all late; those of its first half may have come before the loss."""

    arrival: int
    end: int
    least: int
    is_certain: bool = False


class _Point(NamedTuple):
    """Delay ``y`` of an arrival at audio time ``x``, ns."""

    x: int
    y: int


class _Line(NamedTuple):
    """Through (x, y): the numbers that are multiplied stay small, however long it runs."""

    x: int
    y: int
    slope: float

    def at(self, x: int) -> int:
        return self.y + round(self.slope * (x - self.x))


class _Floor:
    """The line under the lowest points, from the lowest of each segment. Points come in order of time."""

    def __init__(self) -> None:
        self.line = _Line(0, 0, 0.0)
        self._is_sound = False
        self._minima: deque[_Point] = deque(maxlen=_SEGMENTS)
        self._lowest: _Point | None = None
        self._segment_end = 0

    def restart(self, point: _Point, least: int) -> None:
        """Forget all points but this one, and put the line at ``least`` there; the slope stays."""
        self._minima.clear()
        self._begin_segment(point)
        self.line = _Line(point.x, least, self.line.slope)

    def add(self, x: int, y: int) -> int:
        """One point; one that lies below the line takes it down at once.

        Returns:
            By how much the points have risen for good, ns; 0 for not at all.
        """
        point = _Point(x, y)
        if y < self.line.at(x):
            self.line = _Line(x, y, self.line.slope)
        if x >= self._segment_end:
            rise = self._close_segment()
            self._begin_segment(point)
            return rise
        if self._lowest is None or self._height(point) < self._height(self._lowest):
            self._lowest = point
        return 0

    def scatter(self) -> int:
        """How high the minima are above the line, at the median, ns."""
        heights = sorted(self._height(point) for point in self._minima)
        return max(0, heights[len(heights) // 2]) if heights else 0

    def _height(self, point: _Point) -> int:
        return point.y - self.line.at(point.x)

    def _begin_segment(self, point: _Point) -> None:
        self._lowest = point
        self._segment_end = point.x + _SEGMENT_NS

    def _close_segment(self) -> int:
        """Fit the line anew, unless points have risen; returns by how much they have."""
        assert self._lowest is not None
        self._minima.append(self._lowest)
        span = self._minima[-1].x - self._minima[0].x
        if span >= _FIRST_SPAN_NS and (rise := self._rise()) > 0:
            return rise
        slope = self.line.slope
        if span >= (_SOUND_SPAN_NS if self._is_sound else _FIRST_SPAN_NS):
            self._is_sound |= span >= _SOUND_SPAN_NS
            slope = _slope_under(self._minima)
        self.line = _line_under(self._minima, slope)
        return 0

    def _rise(self) -> int:
        heights = [self._height(self._minima[k]) for k in (-3, -2, -1)]
        low, high, scatter = min(heights), max(heights), self.scatter()
        is_same = high - low < max(_SAME_NS, 4 * scatter)
        return low if is_same and low > max(_RISE_NS, 8 * scatter) else 0


def _slope_under(points: Sequence[_Point]) -> float:
    """Of the line that is below all points and nearest to them in sum: it lies along the hull's edge at their mean."""
    mean = sum(point.x for point in points) // len(points)
    left, right = next((a, b) for a, b in pairwise(_lower_hull(points)) if b.x >= mean)
    limit = MAX_DRIFT_PPM / 1e6
    return min(max((right.y - left.y) / (right.x - left.x), -limit), limit)


def _line_under(points: Sequence[_Point], slope: float) -> _Line:
    """The highest line of this slope that is above no point."""
    x = points[-1].x
    return _Line(x, min(point.y + round(slope * (x - point.x)) for point in points), slope)


def _lower_hull(points: Iterable[_Point]) -> list[_Point]:
    """Corners of the lower convex hull, left to right (Andrew's monotone chain)."""
    hull: list[_Point] = []
    for point in points:
        while len(hull) > 1 and not _is_below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _is_below(left: _Point, middle: _Point, right: _Point) -> bool:
    """Whether ``middle`` is below the line from ``left`` to ``right``."""
    return (middle.y - left.y) * (right.x - left.x) < (right.y - left.y) * (middle.x - left.x)
