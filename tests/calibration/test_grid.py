"""The range of least error against a search by brute force over the raw values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm.calibration.grid import expected_error, least_error_range
from edge_mbm.calibration.histogram import Histogram

N = 20_000


def data(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=N)
    return {
        "normal": normal,
        "laplace": rng.laplace(size=N),
        "rectified": np.maximum(normal, 0),
        "gelu": normal * 3 / (1 + np.exp(-1.702 * normal * 3)),
        "uniform": rng.uniform(-1, 3, N),
        "outliers": np.concatenate([normal, [60.0, -45.0]]),
        "heavy": rng.standard_t(3, N),
        "sparse": np.where(rng.random(N) < 0.99, 0, normal),
        "negative": -rng.lognormal(0, 1, N),
        "levels": rng.choice([0.0, 1.0, 5.0], N),
    }[kind]


KINDS = ("normal", "laplace", "rectified", "gelu", "uniform", "outliers", "heavy", "sparse", "negative", "levels")


def coded(values: np.ndarray, low: float, high: float, *, symmetric: bool) -> np.ndarray:
    """As QuantizeLinear and DequantizeLinear do it, in float64."""
    if symmetric:
        scale = high / 127
        return np.clip(np.rint(values / scale), -127, 127) * scale
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


def error(values: np.ndarray, low: float, high: float, *, symmetric: bool) -> float:
    return float(np.mean((values - coded(values, low, high, symmetric=symmetric)) ** 2))


def seen(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


@pytest.mark.parametrize("kind", KINDS)
def test_no_symmetric_range_is_better(kind: str) -> None:
    """Two hundred thresholds tried on the values themselves: none is more than 1 % better."""
    values = data(kind)
    low, high = least_error_range(seen(values), symmetric=True)
    assert low == -high
    most = np.abs(values).max()
    best = min(error(values, -t, t, symmetric=True) for t in most * np.geomspace(1 / 64, 1, 200))
    assert error(values, low, high, symmetric=True) <= best * 1.01 + 1e-15


@pytest.mark.parametrize("kind", KINDS)
def test_no_asymmetric_range_is_better(kind: str) -> None:
    """Six hundred pairs of ends tried on the values themselves: none is more than 2 % better."""
    values = data(kind)
    low, high = least_error_range(seen(values), symmetric=False)
    shares = np.concatenate([np.geomspace(1 / 32, 0.5, 5), np.linspace(0.55, 1, 20)])
    lows, highs = (max(0.0, -values.min()) * shares, max(0.0, values.max()) * shares)
    pairs = [(-a, b) for a in dict.fromkeys(lows) for b in dict.fromkeys(highs)]
    best = min(error(values, *pair, symmetric=False) for pair in pairs)
    assert error(values, low, high, symmetric=False) <= best * 1.02 + 1e-15


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["normal", "gelu", "heavy", "uniform", "outliers"])
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_the_expected_error_is_that_of_the_values(kind: str, share: float, symmetric: bool) -> None:
    """Rounding and clipping, within 3 %: the histogram stands for the data."""
    values = data(kind)
    low, high = values.min() * share, values.max() * share
    expected = expected_error(seen(values), low, high, symmetric=symmetric)
    assert expected == pytest.approx(error(values, low, high, symmetric=symmetric), rel=0.03)


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    exponent=st.integers(-20, 20),
    symmetric=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_it_is_never_worse_than_all_of_it(values: list[float], exponent: int, symmetric: bool) -> None:
    """By the histogram's own measure, and at every scale alike."""
    histogram, scaled = seen(np.array(values)), seen(np.array(values) * 2.0**exponent)
    low, high = least_error_range(histogram, symmetric=symmetric)
    if low == high == 0:
        assert not np.any(values)
        return
    least, greatest = histogram.minmax()
    most = max(-least, greatest)
    everything = (-most, most) if symmetric else (min(least, 0.0), max(greatest, 0.0))
    error_all = expected_error(histogram, *everything, symmetric=symmetric)
    assert expected_error(histogram, low, high, symmetric=symmetric) <= error_all * (1 + 1e-6) + 1e-30
    if np.abs(values).max() > 1e-3:  # where the finest bin is no limit
        expected = (low * 2.0**exponent, high * 2.0**exponent)
        assert least_error_range(scaled, symmetric=symmetric) == pytest.approx(expected, rel=1e-9)


def test_zero_has_a_code() -> None:
    """The zero point is a whole number, so that a quantizer that rounds it moves nothing."""
    low, high = least_error_range(seen(data("gelu")), symmetric=False)
    scale = (high - low) / 255
    assert low < 0
    assert -low / scale == pytest.approx(round(-low / scale), abs=1e-9)
