"""The range whose 8-bit codes keep most of a distribution's information, over a histogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_mbm.calibration.histogram import BINS_PER_SIDE, Histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["divergences", "least_divergence_range"]

_SYMMETRIC_LEVELS = 128
_ASYMMETRIC_LEVELS = 256
_CANDIDATES = 256
_SMOOTHING = 1e-4
"""Share of the quantized distribution that a level gets that holds nothing but what was clipped: its divergence would
be infinite otherwise."""


def least_divergence_range(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """The range with the least Kullback-Leibler divergence from the clipped to the quantized distribution.

    As NVIDIA described it for TensorRT (S. Migacz, "8-bit inference with TensorRT", GTC 2017), and MXNet built it. For
    each threshold, what lies beyond is counted in the last bin inside: the reference. The bins inside, without that,
    are joined into as many levels as there are codes, and each level's mass is spread evenly over those of its bins
    that are not empty: the quantized distribution. Levels here differ by at most one bin in width, and exact zeros are
    left out: they are represented whatever the range is.

    Without symmetry there are two thresholds; the upper one is moved, then the lower one, twice.

    Args:
        histogram: of at least one value.
        symmetric: S8: one threshold for the magnitudes, 128 levels; else U8 with 256.

    Returns:
        (low, high); of a symmetric one ``low == -high``.
    """
    if symmetric:
        _, high = _one_sided(histogram.magnitudes(), _SYMMETRIC_LEVELS)
        return -high, high
    low, high = histogram.minmax()
    if low >= 0:
        return _one_sided(histogram, _ASYMMETRIC_LEVELS)
    return _two_sided(histogram)


def divergences(
    counts: NDArray[np.int64], first: NDArray[np.intp], end: NDArray[np.intp], levels: int
) -> NDArray[np.float64]:
    """Kullback-Leibler divergence for each candidate interval of bins.

    Args:
        counts: int64[n], at least one above zero.
        first: per candidate, the first bin inside.
        end: per candidate, the bin after the last; at least ``levels`` after ``first``.
        levels: codes.

    Returns:
        float64 per candidate, in nats; infinite where nothing is inside.
    """
    mass = _summed(counts)
    used = _summed(counts > 0)
    information = _summed(_xlogx(counts.astype(np.float64)))
    bounds = first[:, None] + (np.arange(levels + 1) * (end - first)[:, None] + levels // 2) // levels
    inside, bins = np.diff(mass[bounds], axis=1), np.diff(used[bounds], axis=1)
    below, above = mass[first], mass[-1] - mass[end]
    reference, entropy = inside.copy(), information[end] - information[first]
    for bin_, level, clipped in ((first, 0, below), (end - 1, -1, above)):
        alone = counts[bin_].astype(np.float64)
        entropy = entropy + _xlogx(alone + clipped) - _xlogx(alone)
        reference[:, level] += clipped
        bins[:, level] += (alone == 0) & (clipped > 0)
    kept = inside.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Per bin in use; a level without such bins has no mass in the reference either.
        quantized = np.where(inside > 0, inside / kept[:, None], _SMOOTHING) / bins
        crossed = np.where(bins > 0, reference * np.log(quantized), 0.0).sum(axis=1)
    total = mass[-1]
    return np.where(kept > 0, (entropy - crossed) / total - np.log(total), np.inf)


def _one_sided(histogram: Histogram, levels: int) -> tuple[float, float]:
    _, greatest = histogram.minmax()
    counts = histogram.nonzero_counts[BINS_PER_SIDE:]
    if not counts.any():
        return 0.0, greatest
    ends = _lengths(_reach(counts), levels)
    end = _best(counts, np.zeros_like(ends), ends, levels)[1]
    return 0.0, min(end * histogram.bin_width, greatest)


def _two_sided(histogram: Histogram) -> tuple[float, float]:
    least, greatest = histogram.minmax()
    counts, levels = histogram.nonzero_counts, _ASYMMETRIC_LEVELS
    above, below = _reach(counts[BINS_PER_SIDE:]), _reach(counts[:BINS_PER_SIDE][::-1])
    first, end = BINS_PER_SIDE - below, BINS_PER_SIDE + above
    for _ in range(2):
        ends = BINS_PER_SIDE + _lengths(above, max(1, levels - (BINS_PER_SIDE - first)))
        first, end = _best(counts, np.full_like(ends, first), ends, levels)
        firsts = BINS_PER_SIDE - _lengths(below, max(1, levels - (end - BINS_PER_SIDE)))
        first, end = _best(counts, firsts, np.full_like(firsts, end), levels)
    width = histogram.bin_width
    return max((first - BINS_PER_SIDE) * width, least), min((end - BINS_PER_SIDE) * width, max(greatest, 0.0))


def _best(counts: NDArray[np.int64], first: NDArray[np.intp], end: NDArray[np.intp], levels: int) -> tuple[int, int]:
    """The widest comes first, so that of equals it is taken."""
    best = int(np.argmin(np.round(divergences(counts, first, end, levels), 12)))
    return int(first[best]), int(end[best])


def _reach(counts: NDArray[np.int64]) -> int:
    """Bins up to the last in use."""
    used = np.flatnonzero(counts)
    return int(used[-1]) + 1 if used.size else 0


def _lengths(longest: int, shortest: int) -> NDArray[np.intp]:
    """Candidates from the longest down, about evenly spaced in their logarithm."""
    if longest <= shortest:
        return np.array([longest], np.intp)
    return np.unique(np.rint(np.geomspace(shortest, longest, _CANDIDATES)).astype(np.intp))[::-1]


def _summed(values: NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sums up to each edge."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _xlogx(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = values * np.log(np.maximum(values, 1.0))
    return result
