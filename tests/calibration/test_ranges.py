"""Ranges of tensors: usable by a quantizer, and errors that name the tensor."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_mbm.calibration import MSE, CalibrationMethod, Entropy, MinMax, Percentile, TensorRanges
from edge_mbm.errors import CalibrationError, InputError

TENSORS = st.dictionaries(
    st.sampled_from("abc"), hnp.arrays(np.float32, st.integers(1, 8), elements=st.floats(-1e3, 1e3, width=32))
)


def collected(*batches: dict[str, np.ndarray]) -> TensorRanges:
    found = TensorRanges()
    for batch in batches:
        found.update(batch)
    return found


@given(batches=st.lists(TENSORS, max_size=6), cut=st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_merged_parts_are_the_whole(batches: list[dict[str, np.ndarray]], cut: int) -> None:
    """Two machines with half the recordings each know what one with all of them knows, in either order."""
    one, other = collected(*batches[:cut]), collected(*batches[cut:])
    assert one.merge(other) == other.merge(one) == collected(*batches)
    assert one == collected(*batches[:cut])


METHODS: list[CalibrationMethod] = [MinMax(), Percentile(99.0), Percentile(51.0), MSE(), Entropy()]


@given(tensors=TENSORS.filter(bool), method=st.sampled_from(METHODS), symmetric=st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_range_holds_zero_and_has_a_width(
    tensors: dict[str, np.ndarray], method: CalibrationMethod, symmetric: bool
) -> None:
    """A scale made from it is a positive normal float32, zero has a code, and it is no wider than the data."""
    found = collected(tensors)
    for name, (low, high) in found.ranges(method, symmetric=symmetric).items():
        assert type(low) is type(high) is float
        assert low <= 0 <= high
        assert not symmetric or low == -high
        if name not in found.all_zero:
            least, greatest = found.ranges(MinMax(), symmetric=symmetric)[name]
            assert high - low <= (greatest - least) * (1 + 1e-9)
        assert np.float32((high - low) / 255) >= np.finfo(np.float32).tiny


def test_minmax_is_exact() -> None:
    """With zero inside."""
    found = collected({"x": np.array([0.3, 0.7], np.float32), "y": np.array([-4.0, 2.0])}, {"x": np.array([0.2])})
    assert found.ranges(MinMax()) == {"x": (0.0, float(np.float32(0.7))), "y": (-4.0, 2.0)}
    assert list(found.histograms) == ["x", "y"]


def test_percentile_cuts_what_minmax_keeps() -> None:
    """One outlier in ten thousand values."""
    values = np.linspace(-1, 1, 10_000)
    values[0] = -100
    found = collected({"x": values})
    assert found.ranges(MinMax())["x"] == (-100, 1)
    assert found.ranges(Percentile(99.9))["x"] == pytest.approx((-1, 1), abs=0.04)


@pytest.mark.parametrize("method", [MinMax(), Percentile(), MSE(), Entropy()])
@pytest.mark.parametrize(
    ("value", "expected"), [(5.0, (0.0, 5.0)), (-5.0, (-5.0, 0.0)), (0.0, (0.0, 1.0)), (1e-40, (0.0, 1.0))]
)
def test_a_constant_has_a_usable_range(method: CalibrationMethod, value: float, expected: tuple[float, float]) -> None:
    """From zero to it; zero itself, and what is no more than that, gets the unit range."""
    found = collected({"x": np.full(100, value)})
    assert found.ranges(method) == {"x": expected}
    most = max(map(abs, expected))
    assert found.ranges(method, symmetric=True) == {"x": (-most, most)}


def test_a_percentile_does_not_count_exact_zeros() -> None:
    """One value in ten thousand is not zero, as of a detector's scores: all of them would clip it to nothing."""
    values = np.zeros(1_000_000)
    values[::10_000] = np.linspace(1, 2, 100)
    assert np.percentile(values, 99.5) == 0
    found = collected({"scores": values, "signed": np.concatenate([values, -3 * values])})
    assert found.ranges(Percentile(99.0))["scores"] == (0, pytest.approx(2, abs=0.03))
    assert found.ranges(Percentile(99.0))["signed"] == (pytest.approx(-6, abs=0.1), pytest.approx(2, abs=0.03))
    nonzero = collected({"scores": values[values != 0]})
    assert found.ranges(Percentile(99.0))["scores"][1] == nonzero.ranges(Percentile(99.0))["scores"][1]


def test_symmetric_percentiles_are_those_of_magnitudes() -> None:
    """numpy's, within a bin."""
    values = np.random.default_rng(4).normal(0.5, 1, 50_000)
    _, high = collected({"x": values}).ranges(Percentile(98.0), symmetric=True)["x"]
    assert high == pytest.approx(np.percentile(np.abs(values), 99), abs=0.002)


def test_tensors_that_were_always_zero_are_told() -> None:
    """Their range means nothing, and a report can say so; one that woke once is not among them."""
    zeros = np.zeros(4, np.float32)
    found = collected({"dead": zeros, "alive": zeros, "unseen": zeros[:0]}, {"alive": np.ones(1, np.float32)})
    assert found.all_zero == ("dead",)


def test_a_bad_tensor_is_named_and_nothing_is_applied() -> None:
    """Not even the good tensors beside it; the recording is named too."""
    found = collected({"good": np.ones(2)})
    with pytest.raises(CalibrationError, match=r"^tensor 'bad' in recording calibration-0007: 1 of 2 values are NaN"):
        found.update({"good": np.full(2, 9.0), "bad": np.array([0, np.nan])}, where="recording calibration-0007")
    with pytest.raises(CalibrationError, match=r"^tensor 'codes': only float16"):
        found.update({"good": np.full(2, 9.0), "codes": np.zeros(2, np.int8)})
    assert found == collected({"good": np.ones(2)})


def test_no_data_is_said() -> None:
    """Nothing at all, or a tensor that only ever was empty."""
    with pytest.raises(CalibrationError, match="run at least one recording"):
        TensorRanges().ranges(MinMax())
    for method in METHODS:
        with pytest.raises(CalibrationError, match="tensor 'regions': no values were seen"):
            collected({"regions": np.zeros((0, 4))}).ranges(method)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"method": "minmax"}', MinMax()),
        ('{"method": "percentile"}', Percentile(99.99)),
        ('{"method": "percentile", "percentile": 99.9}', Percentile(99.9)),
        ('{"method": "percentile", "percentile": 100}', Percentile(100.0)),
        ('{"method": "mse"}', MSE()),
        ('{"method": "entropy"}', Entropy()),
    ],
)
def test_a_recipe_says_the_method(text: str, expected: CalibrationMethod) -> None:
    """By its tag, with the options that it has."""
    assert msgspec.json.decode(text, type=CalibrationMethod) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"method": "entropi"}', "entropi"),
        ('{"method": "mse", "percentile": 99}', "unknown field `percentile`"),
        ('{"method": "minmax", "percentile": 99}', "unknown field `percentile`"),
        ('{"method": "percentile", "percentil": 99}', "unknown field `percentil`"),
        ('{"method": "percentile", "percentile": 50}', "above 50 and at most 100, got 50"),
        ('{"method": "percentile", "percentile": 100.5}', "above 50 and at most 100, got 100.5"),
    ],
)
def test_a_wrong_method_is_refused(text: str, message: str) -> None:
    """An unknown method or key, or a percentile that would cut half the values."""
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.json.decode(text, type=CalibrationMethod)


@pytest.mark.parametrize("percentile", [50.0, 0.9999, 101.0, float("nan")])
def test_a_wrong_percentile_is_refused_in_code_too(percentile: float) -> None:
    """A fraction where a percentage is meant is the likely mistake."""
    with pytest.raises(InputError, match="above 50 and at most 100"):
        Percentile(percentile)
