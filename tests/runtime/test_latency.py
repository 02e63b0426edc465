"""The histogram against numpy's exact percentiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.runtime.latency import LatencyHistogram

US, SECOND = 1_000, 1_000_000_000
durations = st.lists(st.integers(US, 1000 * SECOND), min_size=1, max_size=200)


def filled(values: list[int]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(durations, st.floats(0, 100))
def test_percentiles_are_numpys_within_half_a_percent(values: list[int], percent: float) -> None:
    """Of whatever between 1 us and 1000 s, at any percentile, by nearest rank."""
    # Where the rank is a whole number, rounding may put numpy on either side of it.
    around = [max(0.0, percent - 1e-9), min(100.0, percent + 1e-9)]
    least, greatest = np.percentile(values, around, method="inverted_cdf")
    assert least * 0.9949 <= filled(values).percentile(percent) <= greatest * 1.0051


@given(durations)
def test_count_least_and_greatest_are_exact(values: list[int]) -> None:
    """And the hundredth percentile is the greatest."""
    histogram = filled(values)
    assert (histogram.count, histogram.least, histogram.greatest) == (len(values), min(values), max(values))
    assert histogram.percentile(100) == max(values)


def test_a_long_tailed_run() -> None:
    """Two hundred thousand durations as a camera has them: every figure within 1 %."""
    values = (np.random.default_rng(1).lognormal(9.2, 0.8, 200_000) * US).astype(np.int64)
    figures = filled(values.tolist()).figures()
    exact = np.percentile(values, [50, 95, 99]) / 1e3
    assert [figures.p50_us, figures.p95_us, figures.p99_us] == pytest.approx(exact.tolist(), rel=0.01)
    assert (figures.count, figures.max_us) == (200_000, values.max() / 1e3)


def test_memory_does_not_grow() -> None:
    """As many bins after as before."""
    histogram = LatencyHistogram()
    size = len(histogram._bins)
    for value in range(0, 10_000_000, 997):
        histogram.add(value)
    assert len(histogram._bins) == size < 4096


def test_what_is_out_of_range_still_counts() -> None:
    """Below a microsecond, above 1000 s, and a clock that went back: within what was really seen."""
    histogram = filled([-5, 0, 3, 10**15])
    assert (histogram.count, histogram.least, histogram.greatest) == (4, 0, 10**15)
    assert 0 <= histogram.percentile(50) <= 1.01 * US
    assert histogram.percentile(100) == 10**15


def test_nothing_measured_is_zero() -> None:
    """Not an error: a head may give no result."""
    figures = LatencyHistogram().figures()
    assert (figures.count, figures.p50_us, figures.p99_us, figures.max_us) == (0, 0, 0, 0)
