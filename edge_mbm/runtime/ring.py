"""A lossless, bounded audio buffer addressed by sample index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AudioRing", "correction"]

_SECOND = 1_000_000_000
_FOLLOW_PPM = 25_000
"""A block's time moves the count's by at most 2.5 % of the block: fast enough for any clock, slow against jitter."""


def correction(off: int, samples: int, rate: int) -> int:
    """How much of ``off`` ns the time of a sample count moves for a block: so it drifts as the device's clock does."""
    bound = samples * _SECOND * _FOLLOW_PPM // (rate * 1_000_000)
    return min(max(off, -bound), bound)


class AudioRing:
    """Windows at a fixed hop over a stream, in time by sample count.

    Window ``k`` covers samples ``[k * hop, k * hop + length)`` counted from the last anchor. The first block sets the
    anchor; a block whose time is off by more than ``max_slip_ns`` sets a new one, because samples were lost on the way
    (what was unread before it is given up, and counted).

    Args:
        sample_rate: Hz.
        length: samples in a window.
        hop: samples from one window to the next.
        capacity: unread samples to hold; when more come, the oldest are dropped and counted.
        max_slip_ns: how far a block's time may be from the sample count before it counts as a gap.
    """

    def __init__(self, *, sample_rate: int, length: int, hop: int, capacity: int, max_slip_ns: int) -> None:
        self._rate = sample_rate
        self._length = length
        self._hop = hop
        self._max_slip_ns = max_slip_ns
        self.capacity = max(capacity, length, hop)
        # Twice the capacity, so that windows are plain slices and old samples move out of the way only now and then.
        self._data = np.zeros(2 * self.capacity, np.float32)
        self.is_on = True
        """While it is not, what comes passes by."""
        self.gaps = 0
        self.lost_samples = 0
        self.clear()

    def clear(self) -> None:
        """Forget samples and anchor; the counters stay."""
        self._begin = self._end = 0
        self._anchor: int | None = None
        self._index = 0  # samples since the anchor at self._begin

    @property
    def bound(self) -> int | None:
        """Time up to which samples have come, ns; None before the first."""
        return None if self._anchor is None else self._time(self._index + self._end - self._begin)

    @property
    def next_end(self) -> int | None:
        """Time at the end of the next window, whether it is complete or not, ns; None before the first sample."""
        return None if self._anchor is None else self._time(self._index + self._length)

    def passed(self, t: int) -> bool:
        """Whether every window that ends at ``t`` or before is complete, taken or not."""
        if self._anchor is None:
            return False
        unread = max(0, self._end - self._begin - self._length) // self._hop + 1 if self._is_complete() else 0
        return self._time(self._index + unread * self._hop + self._length) > t

    def waits(self, t: int) -> bool:
        """Whether a complete window that ends at ``t`` or before has not been taken."""
        return self._is_complete() and self._time(self._index + self._length) <= t

    def push(self, samples: NDArray[np.float32], t: int) -> bool:
        """Append a block.

        Args:
            samples: float32[n], mono.
            t: capture time of the first sample, ns.

        Returns:
            Whether continuity was broken (a gap or an overflow), so that a carried state must start anew.
        """
        if not self.is_on:
            return False
        broken = self._anchor is not None and abs(t - (self.bound or 0)) > self._max_slip_ns
        if broken:
            self.gaps += 1
            self.lost_samples += max(0, self._end - self._begin)
        if broken or self._anchor is None:
            self.clear()
            self._anchor = t
        else:
            # Never by more than half a hop: the next window ends after this one.
            self._anchor += correction(t - (self.bound or 0), min(len(samples), 20 * self._hop), self._rate)
        overflow = self._end - self._begin + len(samples) - self.capacity
        if overflow > 0:
            self._drop_oldest(overflow)
            samples = samples[-self.capacity :]
        self._append(samples)
        return broken or overflow > 0

    def next_window(self) -> tuple[NDArray[np.float32], int] | None:
        """The next whole window and the time at its end, ns; None if it is not complete yet.

        The window is a view: use it before the next push.
        """
        if not self._is_complete():
            return None
        window = self._data[self._begin : self._begin + self._length]
        end = self._time(self._index + self._length)
        self._begin += self._hop
        self._index += self._hop
        return window, end

    def _is_complete(self) -> bool:
        return self._anchor is not None and self._end - self._begin >= self._length

    def _append(self, samples: NDArray[np.float32]) -> None:
        if self._end + len(samples) > len(self._data):
            # With a hop beyond the window, the next one may begin after everything that has come.
            read = min(self._begin, self._end)
            self._data[: self._end - read] = self._data[read : self._end]
            self._begin, self._end = self._begin - read, self._end - read
        self._data[self._end : self._end + len(samples)] = samples
        self._end += len(samples)

    def _drop_oldest(self, count: int) -> None:
        """Give up ``count`` samples from the oldest unread one on, into the coming block if need be."""
        self.lost_samples += count
        # The grid starts anew at the first sample kept.
        self._anchor, self._index = self._time(self._index + count), 0
        self._begin = min(self._begin + count, self._end)

    def _time(self, index: int) -> int:
        assert self._anchor is not None
        return self._anchor + index * _SECOND // self._rate
