"""Ranges of named tensors, collected recording by recording."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import Struct

from edge_mbm.calibration.entropy import least_divergence_range
from edge_mbm.calibration.grid import least_error_range
from edge_mbm.calibration.histogram import EXPONENT_FLOOR, Histogram
from edge_mbm.errors import CalibrationError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MSE", "CalibrationMethod", "Entropy", "MinMax", "Percentile", "TensorRanges"]

# Narrower than the finest bin is zero for every purpose, and a scale made from it may not be a normal float32.
_NARROWEST = 2.0**EXPONENT_FLOOR
_ZERO_RANGE = (0.0, 1.0)


class MinMax(Struct, frozen=True, kw_only=True, tag_field="method", tag="minmax", forbid_unknown_fields=True):
    """Everything that was seen is inside."""


class Percentile(Struct, frozen=True, tag_field="method", tag="percentile", forbid_unknown_fields=True):
    """The central ``percentile`` percent of the values is inside, the rest saturates.

    Of the values that are not exactly zero: a grid always has a zero, and where a ReLU or padding leaves 99.99 % zeros
    a percentile of all of them would clip everything that matters.

    Raises:
        InputError: not above 50 and at most 100.
    """

    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise InputError(
                f"percentile is above 50 and at most 100, got {self.percentile}: 99.99 keeps all but 0.01 %"
            )


class MSE(Struct, frozen=True, kw_only=True, tag_field="method", tag="mse", forbid_unknown_fields=True):
    """The least expected squared error of the 8-bit grid; see ``calibration.grid``."""


class Entropy(Struct, frozen=True, kw_only=True, tag_field="method", tag="entropy", forbid_unknown_fields=True):
    """The least Kullback-Leibler divergence of the quantized distribution; see ``calibration.entropy``."""


CalibrationMethod: TypeAlias = MinMax | Percentile | MSE | Entropy
"""How a histogram becomes a range; in a recipe ``{method = "percentile", percentile = 99.99}``."""


class TensorRanges:
    """One histogram per tensor name, in the order in which the names first came.

    Args:
        histograms: what to begin with; never changed, updates put new ones in their place.
    """

    def __init__(self, histograms: Mapping[str, Histogram] | None = None) -> None:
        self._histograms = dict(histograms or {})

    @property
    def histograms(self) -> Mapping[str, Histogram]:
        """Name -> histogram, for reading."""
        return MappingProxyType(self._histograms)

    @property
    def all_zero(self) -> tuple[str, ...]:
        """Tensors that were zero wherever they were seen: no recording woke them, and their range means nothing."""
        return tuple(name for name, histogram in self._histograms.items() if histogram.count and _is_zero(histogram))

    def update(self, tensors: Mapping[str, NDArray[Any]], *, where: str = "") -> None:
        """Count the values of every tensor.

        Args:
            tensors: name -> float16, float32 or float64, any shape.
            where: what they were computed from, for messages ("recording calibration-0007").

        Raises:
            CalibrationError: NaN or infinite values, or another dtype; no tensor is counted then.
        """
        fresh = {name: _measured(name, array, where) for name, array in tensors.items()}
        for name, histogram in fresh.items():
            self._histograms[name] = self._histograms.get(name, Histogram()).merge(histogram)

    def merge(self, other: TensorRanges) -> TensorRanges:
        """The ranges of both data together; a tensor may be known to one side only."""
        names = dict.fromkeys([*self._histograms, *other._histograms])
        nothing = Histogram()
        return TensorRanges(
            {name: self._histograms.get(name, nothing).merge(other._histograms.get(name, nothing)) for name in names}
        )

    def ranges(self, method: CalibrationMethod, *, symmetric: bool = False) -> dict[str, tuple[float, float]]:
        """Name -> (low, high), such that ``low <= 0 <= high`` and ``low < high``.

        Zero is always inside, because padding and ReLU need it to be exact. A tensor that was always zero gets
        (0, 1), or (-1, 1): any scale represents it, and one of zero would be divided by; ``all_zero`` tells which these
        are.

        Args:
            method: how a histogram becomes a range.
            symmetric: for S8 without a zero point: the method is applied to the magnitudes, and ``low == -high``. Else
                for U8 with one.

        Raises:
            CalibrationError: nothing was collected, or no values of a tensor were.
        """
        if not self._histograms:
            raise CalibrationError("no tensors were collected: run at least one recording before asking for ranges")
        return {
            name: _range(name, histogram, method, symmetric=symmetric) for name, histogram in self._histograms.items()
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorRanges):
            return NotImplemented
        return self._histograms == other._histograms

    __hash__ = None  # type: ignore[assignment]  # it changes with every update

    def __repr__(self) -> str:
        return f"<TensorRanges of {len(self._histograms)} tensors>"


def _measured(name: str, array: NDArray[Any], where: str) -> Histogram:
    histogram = Histogram()
    try:
        histogram.update(array)
    except CalibrationError as error:
        raise CalibrationError(f"tensor '{name}'{f' in {where}' if where else ''}: {error}") from error
    return histogram


def _range(name: str, histogram: Histogram, method: CalibrationMethod, *, symmetric: bool) -> tuple[float, float]:
    try:
        histogram.minmax()
    except CalibrationError as error:
        raise CalibrationError(f"tensor '{name}': {error}") from error
    low, high = _chosen(histogram, method, symmetric=symmetric)
    low, high = min(low, 0.0), max(high, 0.0)
    low, high = (low, high) if high - low >= _NARROWEST else _ZERO_RANGE
    return (-max(-low, high), max(-low, high)) if symmetric else (low, high)


def _chosen(histogram: Histogram, method: CalibrationMethod, *, symmetric: bool) -> tuple[float, float]:
    if isinstance(method, MSE):
        return least_error_range(histogram, symmetric=symmetric)
    if isinstance(method, Entropy):
        return least_divergence_range(histogram, symmetric=symmetric)
    seen = histogram.magnitudes() if symmetric else histogram
    return seen.minmax() if isinstance(method, MinMax) else seen.percentile(method.percentile, nonzero=True)


def _is_zero(histogram: Histogram) -> bool:
    low, high = histogram.minmax()
    return max(-low, high) < _NARROWEST
