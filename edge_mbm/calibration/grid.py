"""The range whose 8-bit grid has the least expected squared error, over a histogram."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_mbm.calibration.histogram import BINS_PER_SIDE, Histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ASYMMETRIC_STEPS", "SYMMETRIC_STEPS", "expected_error", "least_error_range"]

ASYMMETRIC_STEPS = 255
"""Steps of U8 from its lowest code to its highest."""
SYMMETRIC_STEPS = 127
"""Steps of S8 from zero to its highest code."""

_OCTAVES = 10
_PER_OCTAVE = 6
_SHRUNK = 2.0 ** (-np.arange(_OCTAVES * _PER_OCTAVE + 1) / _PER_OCTAVE)
_AROUND = np.arange(-2, 3)
_FINEST = 1 / 96
"""Octaves between the candidates of the last round: 0.7 %."""


class _Density(NamedTuple):
    """Values spread evenly over each bin, a bin being 1 wide."""

    counts: NDArray[np.float64]
    """Without exact zeros, which have no error."""
    below: int
    """How many of the bins are below zero."""
    low: float
    """Distance of the extremes from zero, in bins."""
    high: float


class _Grids(NamedTuple):
    """Candidates: codes from ``bottom`` (below zero) to ``top``, ``scale`` apart."""

    scale: NDArray[np.float64]
    bottom: NDArray[np.float64]
    top: NDArray[np.float64]


def least_error_range(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """The range that minimises the mean of ``(x - dequantized(quantized(x))) ** 2``.

    Rounding and clipping are integrated exactly over each bin, exact zeros cost nothing, and the grids tried have their
    zero point where an integer code is: a wide search with rounding taken as noise of ``scale ** 2 / 12`` begins it,
    rounds of ever closer grids about the best end it. Never worse than minimum to maximum.

    Args:
        histogram: of at least one value.
        symmetric: S8 from ``-t`` to ``t`` instead of U8 with a zero point.

    Returns:
        (low, high); of a symmetric one ``low == -high``.
    """
    seen = histogram.magnitudes() if symmetric else histogram
    density = _density(seen)
    if not density.counts.size:
        return 0.0, 0.0
    steps = SYMMETRIC_STEPS if symmetric else ASYMMETRIC_STEPS
    low, high = _search(density, steps)
    grid = _grids(np.array([low]), np.array([high]), steps)
    scale = float(grid.scale[0]) * seen.bin_width
    if symmetric:
        return -steps * scale, steps * scale
    return float(grid.bottom[0]) * scale + 0.0, float(grid.top[0]) * scale  # no minus zero


def expected_error(histogram: Histogram, low: float, high: float, *, symmetric: bool = False) -> float:
    """Mean squared error of 8-bit codes over a range.

    Args:
        histogram: of at least one value.
        low: at most 0.
        high: at least 0.
        symmetric: S8 without a zero point; ``low`` counts for nothing then.
    """
    seen = histogram.magnitudes() if symmetric else histogram
    low_bins, high_bins = (0.0 if symmetric else -low / seen.bin_width), high / seen.bin_width
    steps = SYMMETRIC_STEPS if symmetric else ASYMMETRIC_STEPS
    errors = _errors(_density(seen), _grids(np.array([low_bins]), np.array([high_bins]), steps))
    return float(errors[0]) * seen.bin_width**2 / seen.count


def _density(histogram: Histogram) -> _Density:
    counts = histogram.nonzero_counts
    used = np.flatnonzero(counts)
    if not used.size:
        return _Density(np.zeros(0), 0, 0.0, 0.0)
    first, end = min(int(used[0]), BINS_PER_SIDE), max(int(used[-1]) + 1, BINS_PER_SIDE)
    least, greatest = (value / histogram.bin_width for value in histogram.minmax())
    inside = counts[first:end].astype(np.float64)
    return _Density(inside, BINS_PER_SIDE - first, max(0.0, -least), max(0.0, greatest))


def _search(density: _Density, steps: int) -> tuple[float, float]:
    low, high = _coarse(density, steps)
    reduced, width = _reduced(density, (low + high) / steps)
    octaves = 1 / (2 * _PER_OCTAVE)
    while octaves >= _FINEST:
        factors = 2.0 ** (_AROUND * octaves)
        lows, highs = _pairs(np.minimum(low * factors, density.low), np.minimum(high * factors, density.high))
        errors = _errors(reduced, _grids(lows / width, highs / width, steps))
        best = int(np.argmin(errors))
        low, high = float(lows[best]), float(highs[best])
        octaves /= 2
    lows, highs = np.array([density.low, low]), np.array([density.high, high])
    best = int(np.argmin(_errors(density, _grids(lows, highs, steps))))
    return float(lows[best]), float(highs[best])


def _pairs(lows: NDArray[np.float64], highs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every low with every high, each once: where one side has no values there is but one."""
    low, high = np.meshgrid(np.unique(lows), np.unique(highs))
    return low.ravel(), high.ravel()


def _coarse(density: _Density, steps: int) -> tuple[float, float]:
    """The best of a wide search, by clipping as it is and rounding as noise."""
    above, inside_above = _clipping(density.counts[density.below :], density.high)
    below, inside_below = _clipping(density.counts[: density.below][::-1], density.low)
    lows, highs = density.low * _SHRUNK, density.high * _SHRUNK
    noise = ((lows[:, None] + highs) / steps) ** 2 / 12
    errors = below[:, None] + above + noise * (inside_below[:, None] + inside_above)
    row, column = np.unravel_index(int(np.argmin(errors)), errors.shape)
    return float(lows[row]), float(highs[column])


def _clipping(counts: NDArray[np.float64], most: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of one side, by distance from zero: squared error of what is beyond each threshold, and how much is not."""
    thresholds = most * _SHRUNK
    centers = np.arange(len(counts)) + 0.5
    moments = [np.concatenate([np.cumsum((counts * centers**k)[::-1])[::-1], [0.0]]) for k in range(3)]
    first = np.ceil(np.maximum(thresholds - 0.5, 0)).astype(np.intp)
    beyond = [moment[first] for moment in moments]
    return beyond[2] - 2 * thresholds * beyond[1] + thresholds**2 * beyond[0], moments[0][0] - beyond[0]


def _reduced(density: _Density, scale: float) -> tuple[_Density, int]:
    """Fewer bins, a quarter of a step wide at the most, for the many candidates in between."""
    width = 1 << max(0, int(np.log2(max(scale / 4, 1.0))))
    padding = [-density.below % width, -(len(density.counts) - density.below) % width]
    counts = np.pad(density.counts, padding).reshape(-1, width).sum(axis=1)
    return _Density(counts, -(-density.below // width), density.low / width, density.high / width), width


def _grids(lows: NDArray[np.float64], highs: NDArray[np.float64], steps: int) -> _Grids:
    scale = (lows + highs) / steps
    below = np.rint(lows / scale)
    return _Grids(scale, -below, steps - below)


def _errors(density: _Density, grids: _Grids) -> NDArray[np.float64]:
    """Sum of squared errors per grid.

    The primitive of a saturating quantizer's squared error is ``n * scale**3 / 12 + r**3 / 3`` for the code ``n`` of
    ``x`` and the rest ``r = x - n * scale``; summing by parts leaves one product per bin edge.
    """
    weights = -np.diff(density.counts, prepend=0.0, append=0.0)
    used = np.flatnonzero(weights)
    edges = used.astype(np.float64) - density.below
    scale = grids.scale[:, None]
    codes = np.rint(edges / scale)
    np.clip(codes, grids.bottom[:, None], grids.top[:, None], out=codes)
    rest = edges - codes * scale
    primitive: NDArray[np.float64] = codes * (scale**3 / 12) + rest**2 * rest / 3
    errors: NDArray[np.float64] = primitive @ weights[used]
    return errors
