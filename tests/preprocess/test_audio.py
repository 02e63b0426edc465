"""Log-mel features and waveforms, against the textbook."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm.errors import InputError
from edge_mbm.preprocess import LogMel, as_waveform, mel_filterbank

RATE, WINDOW, HOP, FFT, MELS = 16000, 400, 160, 512, 40


def log_mel(**changes: object) -> LogMel:
    options = {"sample_rate": RATE, "window_length": WINDOW, "hop_length": HOP, "n_fft": FFT, "n_mels": MELS}
    return LogMel(**options | changes)  # type: ignore[arg-type]


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)


def hz_to_mel(hz: float) -> float:
    return 2595.0 * math.log10(1.0 + hz / 700.0)


def direct(waveform: np.ndarray, *, f_min: float, f_max: float, floor: float) -> np.ndarray:
    """Log-mel by the definitions in float64: a DFT as a sum, triangles one by one."""
    n, k = np.arange(WINDOW), np.arange(FFT // 2 + 1)
    hann = 0.5 * (1 - np.cos(2 * np.pi * n / WINDOW))
    basis = np.exp(-2j * np.pi * np.outer(n, k) / FFT)
    low, high = hz_to_mel(f_min), hz_to_mel(f_max)
    edges = [700 * (10 ** ((low + (high - low) * i / (MELS + 1)) / 2595) - 1) for i in range(MELS + 2)]
    rows = []
    for start in range(0, len(waveform) - WINDOW + 1, HOP):
        power = np.abs((waveform[start : start + WINDOW].astype(np.float64) * hann) @ basis) ** 2
        row = []
        for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for i, p in enumerate(power):
                hz = i * RATE / FFT
                if left < hz < right:
                    total += p * ((hz - left) / (centre - left) if hz <= centre else (right - hz) / (right - centre))
            row.append(math.log(total + floor))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("f_min", "f_max", "floor"), [(0.0, 8000.0, 1e-6), (80.0, 7000.0, 1e-3)])
def test_log_mel_is_what_the_definition_says(f_min: float, f_max: float, floor: float) -> None:
    """Against a direct DFT and triangles summed one by one in float64."""
    t = np.arange(3200) / RATE
    waveform = (0.3 * np.sin(2 * np.pi * 440 * t) + 0.1 * noise(3200)).astype(np.float32)
    got = log_mel(f_min=f_min, f_max=f_max, floor=floor)(waveform)
    expected = direct(waveform, f_min=f_min, f_max=f_max, floor=floor)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_silence_is_the_floor() -> None:
    """Zeros are finite: the logarithm of the floor in every band."""
    np.testing.assert_allclose(log_mel(floor=1e-4)(np.zeros(800, np.float32)), math.log(1e-4), rtol=1e-6)


def test_a_tone_is_loudest_in_its_band() -> None:
    """A pure tone's energy is in the band whose centre is nearest to it on the mel scale."""
    centres = np.array([hz_to_mel(8000) * (i + 1) / (MELS + 1) for i in range(MELS)])
    for hz in (500, 1000, 3000):
        tone = np.sin(2 * np.pi * hz * np.arange(1600) / RATE).astype(np.float32)
        loudest = log_mel()(tone).mean(axis=0).argmax()
        assert abs(loudest - np.abs(centres - hz_to_mel(hz)).argmin()) <= 1


@given(
    samples=st.integers(WINDOW, 4000),
    length=st.integers(WINDOW, 2000),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_chunking_gives_the_same_frames(samples: int, length: int, seed: int) -> None:
    """Cut into pieces that overlap by window minus hop, a waveform gives the frames of the whole."""
    whole, features = noise(samples, seed), log_mel()
    frames_each = features.frames(length)
    pieces = []
    for first in range(0, features.frames(samples), frames_each):
        start = first * HOP
        pieces.append(features(whole[start : start + (frames_each - 1) * HOP + WINDOW]))
    np.testing.assert_allclose(np.concatenate(pieces), features(whole), atol=1e-5)


@given(st.integers(0, 3000))
def test_frames_counts_what_comes_out(samples: int) -> None:
    """``frames`` is the length of the result for any number of samples, and 0 where the call is refused."""
    features = log_mel()
    if features.frames(samples):
        assert len(features(np.zeros(samples, np.float32))) == features.frames(samples)
    else:
        with pytest.raises(InputError, match=str(WINDOW)):
            features(np.zeros(samples, np.float32))


def test_the_filterbank_covers_the_band_evenly() -> None:
    """Between the first and the last centre the triangles sum to one at every frequency."""
    filters = mel_filterbank(RATE, 4096, 20, 0.0, 8000.0)
    hz = np.linspace(0, RATE / 2, 2049)
    mel = np.array([hz_to_mel(f) for f in hz])
    inside = (mel > hz_to_mel(8000) / 21) & (mel < hz_to_mel(8000) * 20 / 21)
    np.testing.assert_allclose(filters.sum(axis=1)[inside], 1, atol=1e-5)


# --- as_waveform -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_taken_as_they_are(dtype: object) -> None:
    """Any float type gives float32 of the same values."""
    got = as_waveform(np.array([0.5, -0.25, 1.5], dtype))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [0.5, -0.25, 1.5])


def test_int16_is_scaled_to_full_scale() -> None:
    """-32768 is -1, and half of it half."""
    got = as_waveform(np.array([-32768, 0, 16384], np.int16))
    np.testing.assert_array_equal(got, [-1, 0, 0.5])


def test_channels_are_averaged() -> None:
    """[samples, channels] becomes mono."""
    np.testing.assert_allclose(as_waveform(np.array([[0.0, 1.0], [0.5, -0.5]])), [0.5, 0.0])
    np.testing.assert_allclose(as_waveform(np.array([[16384, -16384]], np.int16)), [0.0])


def test_float32_mono_is_not_copied() -> None:
    """What is right already costs nothing."""
    samples = noise(10)
    assert as_waveform(samples) is samples


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 3, 4), np.float32),
        np.float32(1),
        np.zeros((5, 0), np.float32),
        np.zeros(5, np.int32),
        np.zeros(5, np.uint8),
        np.zeros(5, bool),
        np.zeros(5, complex),
        "hello",
        None,
        [[1.0], [1.0, 2.0]],
        [object()],
    ],
    ids=repr,
)
def test_what_is_not_audio_is_refused(data: object) -> None:
    """Other shapes and types, ragged lists and text are an InputError."""
    with pytest.raises(InputError):
        as_waveform(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_nan_and_infinity_are_refused(value: float) -> None:
    """One bad sample among good ones, and a double that float32 cannot hold, are an InputError."""
    samples = np.zeros(100)
    samples[40] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        as_waveform(samples)
