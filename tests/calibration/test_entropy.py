"""The Kullback-Leibler threshold against its description, written out bin by bin."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm.calibration import Entropy, MinMax, TensorRanges
from edge_mbm.calibration.entropy import divergences, least_divergence_range
from edge_mbm.calibration.histogram import Histogram


def described(counts: list[int], first: int, end: int, levels: int) -> float:
    """The reference and the quantized distribution, one bin after the other."""
    reference = [float(count) for count in counts[first:end]]
    inside = list(reference)
    reference[0] += sum(counts[:first])
    reference[-1] += sum(counts[end:])
    if not sum(inside):
        return math.inf
    quantized = [0.0] * len(inside)
    bounds = [(level * len(inside) + levels // 2) // levels for level in range(levels + 1)]
    for start, stop in itertools.pairwise(bounds):
        used = [k for k in range(start, stop) if reference[k] > 0]
        mass = sum(inside[start:stop]) / sum(inside)
        for k in used:
            quantized[k] = (mass or 1e-4) / len(used)
    total = sum(counts)
    return sum(p / total * math.log(p / total / q) for p, q in zip(reference, quantized, strict=True) if p > 0)


@given(counts=st.lists(st.integers(0, 9), min_size=8, max_size=30).filter(any), data=st.data())
@settings(max_examples=300, deadline=None)
def test_the_divergence_is_as_described(counts: list[int], data: st.DataObject) -> None:
    """For any counts and any interval, with bins that are empty, levels that are, and nothing inside."""
    levels = data.draw(st.integers(2, 6))
    first = data.draw(st.integers(0, len(counts) - levels))
    end = data.draw(st.integers(first + levels, len(counts)))
    [found] = divergences(np.array(counts), np.array([first]), np.array([end]), levels)
    assert found == pytest.approx(described(counts, first, end, levels), rel=1e-9, abs=1e-12)


def test_small_ones_by_hand() -> None:
    """As many levels as bins lose nothing; 1 and 3 of eight in one level lose half of ln 2 less their entropy."""
    counts = np.array([1, 3, 2, 2])
    zero = np.array([0])
    assert divergences(counts, zero, np.array([4]), 4)[0] == pytest.approx(0, abs=1e-12)
    expected = 0.5 * (math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert divergences(counts, zero, np.array([4]), 2)[0] == pytest.approx(expected)


def seen(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=200_000)


@pytest.mark.parametrize("symmetric", [True, False])
def test_far_outliers_are_cut(symmetric: bool) -> None:
    """Three values at twelve deviations cost the other two hundred thousand nothing."""
    values = np.concatenate([NORMAL, [12.0, -12.0, 12.0]])
    low, high = least_divergence_range(seen(values), symmetric=symmetric)
    assert 3 < high < 6
    assert -6 < low < -3


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_even_spread_is_kept(symmetric: bool) -> None:
    """What has no tail has nothing to cut."""
    values = RNG.uniform(-2, 2, 200_000)
    assert least_divergence_range(seen(values), symmetric=symmetric) == pytest.approx((-2, 2), rel=0.02)


def test_each_side_has_its_own_threshold() -> None:
    """A long tail above does not widen the side below."""
    values = np.concatenate([-np.abs(NORMAL) / 10, np.abs(NORMAL), [9.0] * 3])
    low, high = least_divergence_range(seen(values), symmetric=False)
    assert -0.5 < low < -0.2
    assert 3 < high < 6


def test_zeros_have_no_say() -> None:
    """A ReLU's zeros are represented at any range; with them it is what it is without."""
    positive = np.abs(NORMAL)
    padded = np.concatenate([positive, np.zeros(2_000_000)])
    without = least_divergence_range(seen(positive), symmetric=False)
    assert least_divergence_range(seen(padded), symmetric=False) == without
    assert least_divergence_range(seen(np.zeros(3)), symmetric=False) == (0, 0)


def test_it_is_not_minmax_under_another_name() -> None:
    """As an entropy calibration is that has no more bins than codes: the widest candidate loses nothing then."""
    found = TensorRanges()
    found.update({"x": RNG.laplace(size=200_000)})
    for symmetric in (True, False):
        narrow, wide = (found.ranges(method, symmetric=symmetric)["x"][1] for method in (Entropy(), MinMax()))
        assert narrow < 0.97 * wide


@pytest.mark.parametrize("levels", [[1.0, 8.0], [-3.0, 1.0, 5.0], [0.5]])
def test_a_few_values_are_all_kept(levels: list[float]) -> None:
    """Each has a level of its own in the widest range, so nothing is gained by cutting."""
    histogram = seen(np.repeat(levels, 100))
    assert least_divergence_range(histogram, symmetric=False) == (min(0.0, *levels), max(levels))
