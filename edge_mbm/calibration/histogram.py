"""A streaming histogram of fixed memory whose result does not depend on how the data came."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import CalibrationError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BINS_PER_SIDE", "EXPONENT_FLOOR", "Histogram"]

BINS_PER_SIDE = 4096
"""Bins on each side of zero; a power of two, so that adding neighbours never joins the two sides."""
EXPONENT_FLOOR = -100
"""log2 of the finest bin: all zeros need some width, and float32 must be able to hold its inverse."""
_LOG2_BINS = BINS_PER_SIDE.bit_length() - 1
# Elements at a time: the temporaries stay in the processor's cache, and small whatever is handed in.
_BLOCK = 1 << 16


class Histogram:
    """Counts in bins of width ``2**exponent``, aligned to zero, as fine as the largest magnitude seen allows.

    When a value does not fit, the bins get wider: neighbours are added in pairs. The exponent is a function of the
    largest magnitude alone, so any order, chunking or merging of the same data gives the identical histogram.

    ``counts[BINS_PER_SIDE + k]`` holds ``k * width <= x < (k + 1) * width``, zero included; below zero it is the mirror
    image, ``counts[BINS_PER_SIDE - 1 - k]`` for ``k * width <= -x < (k + 1) * width`` without zero. Minimum, maximum,
    count and the number of zeros are exact. 64 KiB, always.
    """

    def __init__(self) -> None:
        self._exponent = EXPONENT_FLOOR
        self._counts = np.zeros(2 * BINS_PER_SIDE, np.int64)
        self._zeros = 0
        self._min = math.inf
        self._max = -math.inf

    @classmethod
    def restore(
        cls, *, exponent: int, first: int, counts: NDArray[np.int64], zeros: int, minimum: float, maximum: float
    ) -> Histogram:
        """The histogram that had this state.

        Args:
            exponent: log2 of the bin width.
            first: the bin where ``counts`` begins.
            counts: int64[n]; every bin outside is zero.
            zeros: how many values were exactly zero.
            minimum: the least value; ``inf`` when there was none.
            maximum: the greatest value; ``-inf`` when there was none.

        Raises:
            CalibrationError: no data leads to this state.
        """
        restored = cls()
        if not 0 <= first <= first + len(counts) <= restored._counts.size:
            raise CalibrationError(
                f"a histogram has {restored._counts.size} bins, got {len(counts)} from bin {first} on: collect it anew"
            )
        restored._counts[first : first + len(counts)] = counts
        restored._exponent, restored._zeros, restored._min, restored._max = exponent, zeros, minimum, maximum
        if not restored._is_consistent():
            raise CalibrationError(f"no data gives this histogram, so it was altered: collect it anew ({restored!r})")
        return restored

    @property
    def exponent(self) -> int:
        """log2 of the bin width."""
        return self._exponent

    @property
    def bin_width(self) -> float:
        """Width of every bin, a power of two."""
        return 2.0**self._exponent

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64[2 * BINS_PER_SIDE], a read-only view; zero lies between the halves."""
        view = self._counts.view()
        view.flags.writeable = False
        return view

    @property
    def count(self) -> int:
        """Values seen."""
        return int(self._counts.sum())

    @property
    def zeros(self) -> int:
        """How many of them were exactly zero."""
        return self._zeros

    @property
    def nonzero_counts(self) -> NDArray[np.int64]:
        """``counts`` without the exact zeros, which every quantization grid represents without error."""
        counts = self._counts.copy()
        counts[BINS_PER_SIDE] -= self._zeros
        return counts

    def update(self, array: NDArray[Any]) -> None:
        """Count every value of an array; one without values changes nothing.

        Args:
            array: float16, float32 or float64, any shape.

        Raises:
            CalibrationError: NaN or infinite values, or another dtype; nothing is counted then.
        """
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise CalibrationError(
                f"only float16, float32 and float64 are counted, got {array.dtype}: convert it first"
            )
        if array.size == 0:
            return
        low, high = _extremes(array)
        exponent = max(self._exponent, _exponent_for(low, high))
        fresh = _count_bins(np.ravel(array, order="K"), exponent)
        self._coarsen(exponent)
        self._counts += fresh
        self._zeros += array.size - int(np.count_nonzero(array))
        self._min, self._max = min(self._min, low), max(self._max, high)

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both data together: a new one, the same whichever side is asked."""
        merged = Histogram()
        merged._exponent = exponent = max(self._exponent, other._exponent)
        mine = _coarser(self._counts, exponent - self._exponent)
        merged._counts = mine + _coarser(other._counts, exponent - other._exponent)
        merged._zeros = self._zeros + other._zeros
        merged._min, merged._max = min(self._min, other._min), max(self._max, other._max)
        return merged

    def magnitudes(self) -> Histogram:
        """The histogram of the absolute values, for ranges that are symmetric about zero.

        Its minimum is known to a bin only, where both signs were seen.
        """
        folded = Histogram()
        folded._exponent, folded._zeros = self._exponent, self._zeros
        below = self._counts[:BINS_PER_SIDE][::-1]
        folded._counts[BINS_PER_SIDE:] = self._counts[BINS_PER_SIDE:] + below
        if self.count:
            first = int(np.flatnonzero(folded._counts)[0]) - BINS_PER_SIDE
            folded._min = max(self._min, -self._max, first * self.bin_width)
            folded._max = max(-self._min, self._max)
        return folded

    def minmax(self) -> tuple[float, float]:
        """The least and the greatest value, exactly.

        Raises:
            CalibrationError: nothing was seen.
        """
        if self._min > self._max:
            raise CalibrationError("no values were seen: give recordings with data in them")
        return self._min, self._max

    def percentile(self, p: float, *, nonzero: bool = False) -> tuple[float, float]:
        """Low and high with the central ``p`` percent between them; 99.99 cuts 0.005 % at each side.

        Each is within one bin width of ``numpy.percentile`` of the data and never outside ``minmax()``. Data that ends
        at zero keeps zero as that end (after a ReLU), where interpolating would move it by a part of a bin.

        Args:
            p: above 0, at most 100.
            nonzero: of the values that are not exactly zero; if all are, both are zero.

        Raises:
            CalibrationError: nothing was seen.
            InputError: ``p`` is out of range.
        """
        if not 0 < p <= 100:
            raise InputError(f"a percentile is above 0 and at most 100, got {p}")
        least, greatest = self.minmax()
        ranks = _Ranks(self.nonzero_counts if nonzero else self._counts, self.bin_width, least, greatest)
        position = ranks.last * (100 - p) / 200
        low = 0.0 if least == 0 else ranks.at(position)
        high = 0.0 if greatest == 0 else ranks.at(ranks.last - position)
        return low, high

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self._state() == other._state() and np.array_equal(self._counts, other._counts)

    __hash__ = None  # type: ignore[assignment]  # it changes with every update

    def __repr__(self) -> str:
        return f"<Histogram: {self.count} values from {self._min} to {self._max}, bins of 2**{self._exponent}>"

    def _coarsen(self, exponent: int) -> None:
        self._counts = _coarser(self._counts, exponent - self._exponent)
        self._exponent = exponent

    def _state(self) -> tuple[int, int, float, float]:
        """All but the counts."""
        return self._exponent, self._zeros, self._min, self._max

    def _is_consistent(self) -> bool:
        """Whether the outermost bins in use are the extremes' own, at the exponent that these ask for."""
        used = np.flatnonzero(self._counts)
        if not used.size:
            return self._state() == (EXPONENT_FLOOR, 0, math.inf, -math.inf)
        ends = np.array([self._min, self._max])
        return bool(
            np.isfinite(ends).all()
            and (self._counts >= 0).all()
            and 0 <= self._zeros <= self._counts[BINS_PER_SIDE]
            and self._exponent == _exponent_for(self._min, self._max)
            and np.array_equal(_bins(ends, self._exponent), used[[0, -1]])
            and self._min <= self._max
        )


class _Ranks:
    """Values by their rank, as if those of a bin were spread evenly over it; the two ends are exact."""

    def __init__(self, counts: NDArray[np.int64], width: float, least: float, greatest: float) -> None:
        self._counts = counts
        self._above = np.cumsum(counts)
        self._width = width
        self._least, self._greatest = least, greatest
        self.last = int(self._above[-1]) - 1

    def at(self, position: float) -> float:
        """The value at a position among the sorted values, which may lie between two of them."""
        left = math.floor(position)
        share = position - left
        value = self._ranked(left)
        if share > 0:
            value = value * (1 - share) + self._ranked(left + 1) * share
        return min(max(value, self._least), self._greatest)

    def _ranked(self, rank: int) -> float:
        # An end at zero may be one that was left out: what is first then is known to a bin only.
        if rank == 0 and self._least != 0:
            return self._least
        if rank == self.last and self._greatest != 0:
            return self._greatest
        index = int(np.searchsorted(self._above, rank, side="right"))
        inside = int(self._counts[index])
        before = int(self._above[index]) - inside
        value = (index - BINS_PER_SIDE + (rank - before + 0.5) / inside) * self._width
        return min(max(value, self._least), self._greatest)


def _extremes(array: NDArray[Any]) -> tuple[float, float]:
    """Least and greatest value; NaN and infinities show up in them, so looking for them costs no pass of its own."""
    with np.errstate(invalid="ignore"):
        low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        raise CalibrationError(
            f"{bad} of {array.size} values are NaN or infinite: repair or leave out what they were computed from"
        )
    return low + 0.0, high + 0.0  # minus zero becomes zero, or the result would depend on the order


def _exponent_for(low: float, high: float) -> int:
    """log2 of the finest bin width with which every value from ``low`` to ``high`` fits."""
    _, beyond = math.frexp(max(-low, high, 2.0**EXPONENT_FLOOR))  # of zero it would say 0
    return max(EXPONENT_FLOOR, beyond - _LOG2_BINS)


def _bins(block: NDArray[Any], exponent: int) -> NDArray[np.intp]:
    """The bin of each value; they fit.

    Multiplying by a power of two is exact, or underflows to something below one whose bin is the same. The sign is
    the value's own, because a product may have lost it to zero.
    """
    scaled = block * block.dtype.type(2.0**-exponent)
    bins: NDArray[np.intp] = scaled.astype(np.intp)  # towards zero
    bins -= block < 0
    bins += BINS_PER_SIDE
    return bins


def _count_bins(values: NDArray[Any], exponent: int) -> NDArray[np.int64]:
    dtype = np.float64 if values.dtype.itemsize == 8 else np.float32
    counts = np.zeros(2 * BINS_PER_SIDE, np.int64)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK].astype(dtype, copy=False)
        counts += np.bincount(_bins(block, exponent), minlength=counts.size)
    return counts


def _coarser(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """The same counts in bins wider by ``2**doublings``; from some width on, each side is in one bin."""
    if doublings == 0:
        return counts
    joined = 1 << min(doublings, _LOG2_BINS)
    half = BINS_PER_SIDE // joined
    result = np.zeros_like(counts)
    result[BINS_PER_SIDE - half : BINS_PER_SIDE + half] = counts.reshape(2 * half, joined).sum(axis=1)
    return result
