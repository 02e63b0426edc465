"""The histogram: what it counts depends on the data alone, in fixed memory."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_mbm.calibration.histogram import BINS_PER_SIDE, EXPONENT_FLOOR, Histogram
from edge_mbm.errors import CalibrationError, InputError

DTYPES = (np.float16, np.float32, np.float64)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
        elements=st.floats(width=np.dtype(dtype).itemsize * 8, allow_nan=False, allow_infinity=False),
    )
)
TINY, HUGE = np.float64(5e-324), np.finfo(np.float64).max


def histogram(*arrays: np.ndarray) -> Histogram:
    found = Histogram()
    for array in arrays:
        found.update(array)
    return found


def exact_bin(value: float, exponent: int) -> int:
    """The definition, in exact arithmetic."""
    steps = abs(Fraction(value)) // Fraction(2) ** exponent
    return BINS_PER_SIDE + int(steps) if value >= 0 else BINS_PER_SIDE - 1 - int(steps)


@given(arrays=st.lists(ARRAYS, max_size=6))
@settings(max_examples=300, deadline=None)
@example(arrays=[np.array([-TINY, HUGE]), np.array([TINY, -HUGE])])
@example(arrays=[np.array([-1e-30], np.float32), np.array([3e38], np.float32), np.array([-HUGE])])
def test_every_value_is_counted_in_the_bin_that_the_definition_says(arrays: list[np.ndarray]) -> None:
    """Rational arithmetic is the oracle, from the smallest subnormal to the largest float64, at any mix of dtypes."""
    found = histogram(*arrays)
    values = [float(value) for array in arrays for value in array.ravel()]
    magnitude = max(map(abs, values), default=0.0)
    needed = math.frexp(magnitude)[1] - 12 if magnitude else EXPONENT_FLOOR
    assert found.exponent == max(EXPONENT_FLOOR, needed)
    expected = np.zeros(2 * BINS_PER_SIDE, np.int64)
    for value in values:
        expected[exact_bin(value, found.exponent)] += 1
    assert np.array_equal(found.counts, expected)
    assert found.count == len(values)
    if values:
        assert found.minmax() == (min(values), max(values))


@given(arrays=st.lists(ARRAYS, min_size=1, max_size=6), seed=st.integers(0, 2**32), cut=st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_any_order_chunking_or_merging_gives_the_identical_histogram(
    arrays: list[np.ndarray], seed: int, cut: int
) -> None:
    """Array by array, value by value shuffled, or in parts merged either way round: the same in every field."""
    found = histogram(*arrays)
    values = np.concatenate([array.astype(np.float64).ravel() for array in arrays])
    shuffled = np.random.default_rng(seed).permutation(values)
    assert histogram(*np.array_split(shuffled, 1 + cut)) == found
    assert histogram(*shuffled[:, None]) == found
    one, other = histogram(*arrays[:cut]), histogram(*arrays[cut:])
    assert one.merge(other) == other.merge(one) == found


@given(parts=st.lists(ARRAYS, min_size=3, max_size=3))
@settings(max_examples=100, deadline=None)
def test_merging_is_associative_has_an_identity_and_leaves_its_parts_alone(parts: list[np.ndarray]) -> None:
    """So the ranges of many machines can be joined in any tree."""
    a, b, c = (histogram(part) for part in parts)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(Histogram()) == a
    a.merge(b).update(np.ones(5))
    assert (a, b, c) == tuple(histogram(part) for part in parts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_arrays_are_counted_as_their_parts(dtype: type) -> None:
    """Beyond one internal block, also transposed and strided, the counts are those of value by value."""
    values = np.random.default_rng(1).standard_normal((700, 300)).astype(dtype)
    found = histogram(values)
    assert found.count == 210_000
    assert histogram(values.T) == histogram(values[::-1, ::-1]) == histogram(*values) == found


def test_memory_is_fixed() -> None:
    """Whatever comes, and however far apart the magnitudes: the counts are the one array."""
    found = Histogram()
    for exponent in range(-1000, 1000, 50):
        found.update(np.full(1000, 2.0**exponent))
        assert found.counts.nbytes == 64 * 1024
        assert vars(found).keys() == vars(Histogram()).keys()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_not_finite_are_refused_whole(bad: float, dtype: type) -> None:
    """The message counts them; nothing of the array is applied, not even a wider bin."""
    found = histogram(np.array([1.0, -2.0]))
    before = histogram(np.array([1.0, -2.0]))
    with pytest.raises(CalibrationError, match="2 of 4 values are NaN or infinite"):
        found.update(np.array([[1e4, bad], [bad, 7]], dtype))
    assert found == before


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64, np.longdouble])
def test_other_dtypes_are_refused(dtype: type) -> None:
    """A quantized tensor's codes, say, are not values."""
    with pytest.raises(CalibrationError, match="only float16, float32 and float64"):
        Histogram().update(np.ones(3, dtype))


def test_nothing_seen_is_said() -> None:
    """Neither a new histogram nor one that only saw empty arrays has a range."""
    empty = histogram(np.zeros((0, 4), np.float32))
    assert empty == Histogram()
    for ask in (empty.minmax, lambda: empty.percentile(99)):
        with pytest.raises(CalibrationError, match="no values were seen"):
            ask()


def test_minus_zero_is_zero() -> None:
    """Else the minimum of 0.0 and -0.0 would depend on which came first."""
    found = histogram(np.array([-0.0, 0.0]))
    assert math.copysign(1, found.minmax()[0]) == math.copysign(1, found.minmax()[1]) == 1
    assert found.counts[BINS_PER_SIDE] == 2


VALUES = hnp.arrays(
    np.float64,
    st.integers(1, 200),
    elements=st.one_of(st.floats(-1e6, 1e6), st.floats(-1, 1), st.integers(-3, 3).map(float)),
)


@given(values=VALUES, p=st.floats(0.5, 100))
@settings(max_examples=500, deadline=None)
@example(values=np.array([-1.0, 5.0]), p=99.99)
def test_percentile_is_numpys_within_one_bin(values: np.ndarray, p: float) -> None:
    """Whatever gaps and repeats the data has; never wider than its extremes, and ordered."""
    found = histogram(values)
    low, high = found.percentile(p)
    least, greatest = found.minmax()
    assert least <= low <= high + 1e-9 * found.bin_width
    assert high <= greatest
    tail = (100 - p) / 2
    expected = np.percentile(values, [tail, 100 - tail])
    if least != 0:
        assert abs(low - expected[0]) <= found.bin_width * (1 + 1e-6)
    if greatest != 0:
        assert abs(high - expected[1]) <= found.bin_width * (1 + 1e-6)


@given(values=VALUES)
@settings(max_examples=100, deadline=None)
def test_all_of_it_is_the_extremes(values: np.ndarray) -> None:
    """percentile(100) is minmax(), exactly."""
    found = histogram(values)
    assert found.percentile(100) == found.minmax() == (values.min(), values.max())


def test_outliers_are_cut() -> None:
    """Ten wild values in a million do not widen the range that 99.99 percent need."""
    values = np.random.default_rng(2).uniform(-1, 1, 1_000_000)
    values[:5], values[5:10] = 50, -70
    low, high = histogram(values).percentile(99.99)
    assert low == pytest.approx(-1, abs=0.04)
    assert high == pytest.approx(1, abs=0.04)


@given(values=VALUES, p=st.floats(50, 100))
@settings(max_examples=150, deadline=None)
@example(values=np.array([0.0, 3.0]), p=99.0)
@example(values=np.array([0.0, -3.0, 0.0, -1.0]), p=51.0)
def test_percentiles_without_zeros_are_numpys_of_the_rest(values: np.ndarray, p: float) -> None:
    """Within one bin, except that an end at zero stays there."""
    found = histogram(values)
    low, high = found.percentile(p, nonzero=True)
    rest = values[values != 0]
    if not rest.size:
        assert (low, high) == (0, 0)
        return
    tail = (100 - p) / 2
    expected = np.percentile(rest, [tail, 100 - tail])
    assert found.zeros == values.size - rest.size
    if values.min() != 0:
        assert abs(low - expected[0]) <= found.bin_width * (1 + 1e-6)
    if values.max() != 0:
        assert abs(high - expected[1]) <= found.bin_width * (1 + 1e-6)


@given(arrays=st.lists(ARRAYS, max_size=3))
@settings(max_examples=100, deadline=None)
def test_magnitudes_are_those_of_the_values(arrays: list[np.ndarray]) -> None:
    """As if the absolute values had come; the least is known to a bin."""
    found, expected = histogram(*arrays).magnitudes(), histogram(*(np.abs(array) for array in arrays))
    assert np.array_equal(found.counts, expected.counts)
    assert (found.exponent, found.zeros, found.count) == (expected.exponent, expected.zeros, expected.count)
    if found.count:
        assert found.minmax()[1] == expected.minmax()[1]
        assert 0 <= expected.minmax()[0] - found.minmax()[0] <= found.bin_width


@pytest.mark.parametrize("p", [51, 90, 99.99])
def test_data_that_ends_at_zero_keeps_it(p: float) -> None:
    """After a ReLU the low end is zero itself, not a part of a bin above; mirrored, so is the high end."""
    values = np.maximum(np.random.default_rng(3).standard_normal(10_000), 0)
    low, high = histogram(values).percentile(p)
    assert low == 0
    assert histogram(-values).percentile(p) == (pytest.approx(-high), 0)


@pytest.mark.parametrize("value", [5.0, -1e-30, 0.0, -float(HUGE)])
def test_a_constant_is_its_own_range(value: float) -> None:
    """At any percentile, with no spread invented by the bins."""
    found = histogram(np.full(1000, value))
    assert found.percentile(51) == found.percentile(99.99) == found.minmax() == (value, value)


@pytest.mark.parametrize("p", [0, -1, 100.1, math.nan])
def test_a_percentile_out_of_range_is_refused(p: float) -> None:
    """With the range in the message."""
    with pytest.raises(InputError, match="above 0 and at most 100"):
        histogram(np.ones(3)).percentile(p)


@given(arrays=st.lists(ARRAYS, max_size=3))
@settings(max_examples=100, deadline=None)
def test_a_state_is_restored(arrays: list[np.ndarray]) -> None:
    """From the span in use alone."""
    found = histogram(*arrays)
    assert restored(found) == found


def restored(found: Histogram, **changes: object) -> Histogram:
    used = np.flatnonzero(found.counts)
    first, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
    low, high = found.minmax() if used.size else (math.inf, -math.inf)
    state = {"exponent": found.exponent, "first": first, "counts": found.counts[first:end], "zeros": found.zeros}
    return Histogram.restore(**({**state, "minimum": low, "maximum": high} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"exponent": 3},
        {"first": 0},
        {"first": -1},
        {"first": 2 * BINS_PER_SIDE},
        {"minimum": math.nan},
        {"maximum": math.inf},
        {"minimum": 2.5},
        {"counts": np.array([1, -1, 1])},
        {"counts": np.zeros(3, np.int64)},
        {"zeros": 1},
        {"zeros": -1},
    ],
)
def test_a_state_that_no_data_leads_to_is_refused(changes: dict[str, object]) -> None:
    """An altered field is noticed, not quietly turned into ranges."""
    with pytest.raises(CalibrationError, match="collect it anew"):
        restored(histogram(np.array([-1.0, 2.0, 2.5])), **changes)
