"""Frames, audio streams and the resampler."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm.errors import InputError, MissingDependencyError
from edge_mbm.runtime.ring import AudioRing
from edge_mbm.runtime.stream import AudioStream, FrameSlot, FrameStream, Resampler

MS, SECOND = 1_000_000, 1_000_000_000


def test_the_newest_frame_takes_the_slot() -> None:
    """Three pushed, one taken: the last; the other two are counted."""
    stream = FrameStream("image", [FrameSlot()])
    for t in (1, 2, 3):
        stream.push(f"frame {t}", t)
    frame = stream.parts[0].take()
    assert frame is not None
    assert (frame.data, frame.t) == ("frame 3", 3)
    assert stream.parts[0].take() is None
    assert stream.losses() == {"superseded": 2}


@pytest.mark.parametrize("t", [4, 5])
def test_time_does_not_stand_still_or_go_back(t: int) -> None:
    """A frame not after the one before is refused, and the slot keeps what it had."""
    stream = FrameStream("image", [FrameSlot()])
    stream.push("good", 5)
    with pytest.raises(InputError, match="'image' at t"):
        stream.push("late", t)
    frame = stream.parts[0].take()
    assert frame is not None
    assert frame.data == "good"


def audio_stream(rate: int = 1000) -> AudioStream:
    ring = AudioRing(sample_rate=rate, length=100, hop=100, capacity=100_000, max_slip_ns=50 * MS)
    return AudioStream("audio", rate, [ring])


def windows(stream: AudioStream) -> Iterator[tuple[np.ndarray, int]]:
    while (window := stream.parts[0].next_window()) is not None:
        yield window[0].copy(), window[1]


def test_audio_that_goes_back_is_refused() -> None:
    """A block older than the one before is an InputError and changes nothing."""
    stream = audio_stream()
    stream.push(np.ones(100, np.float32), 500 * MS, None)
    with pytest.raises(InputError, match="before the previous block"):
        stream.push(np.ones(100, np.float32), 400 * MS, None)
    stream.push(np.ones(100, np.float32), 600 * MS, None)
    assert [end for _, end in windows(stream)] == [600 * MS, 700 * MS]
    assert stream.losses() == {"gaps": 0, "lost_samples": 0}


def sine(rate: int, seconds: float, hz: float = 40.0, start: float = 0.0) -> np.ndarray:
    return np.sin(2 * np.pi * hz * (start + np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.needs("soxr")
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_a_resampled_sine_is_the_sine_at_its_time(rate: int) -> None:
    """Against the sine computed at the target rate: level and phase agree, so time is right to a part of a sample."""
    resampler, out, times = Resampler(rate, 1000), [], []
    source, block = sine(rate, 2.0), rate // 100
    for k in range(0, len(source), block):
        samples, t = resampler(source[k : k + block], 7 * SECOND + k * SECOND // rate)
        out.append(samples.copy())
        times.append(t)
    samples, t = resampler.finish()
    out.append(samples.copy())
    got = np.concatenate(out)
    assert abs(len(got) - 2000) <= 1
    np.testing.assert_allclose(got[100:1900], sine(1000, 2.0)[100:1900], atol=2e-3)
    # One sample late or early would be off by a quarter of full scale.
    assert np.abs(got[101:1900] - sine(1000, 2.0)[100:1899]).max() > 0.2
    given_before = np.cumsum([0] + [len(piece) for piece in out[:-1]])
    assert [*times, t] == [7 * SECOND + int(n) * MS for n in given_before]


@pytest.mark.needs("soxr")
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_any_chunking_resamples_the_same(chunks: list[int]) -> None:
    """How a driver cuts its blocks leaves no trace in the samples or their times."""
    source = sine(48000, 0.5)
    whole = Resampler(48000, 1000)
    expected = np.concatenate([whole(source, 0)[0].copy(), whole.finish()[0].copy()])
    resampler, got, position = Resampler(48000, 1000), [], 0
    while position < len(source):
        size = chunks[len(got) % len(chunks)]
        got.append(resampler(source[position : position + size], position * SECOND // 48000)[0].copy())
        position += size
    got.append(resampler.finish()[0].copy())
    np.testing.assert_allclose(np.concatenate(got), expected, atol=1e-6)


@pytest.mark.needs("soxr")
def test_a_change_of_rate_loses_nothing() -> None:
    """A microphone that switches from 16 kHz to 8 kHz to the model's own rate leaves one unbroken stream."""
    stream, t = audio_stream(), 0
    for rate in (16000, 8000, 1000):
        for _ in range(10):
            stream.push(sine(rate, 0.1, start=t / SECOND), t, None if rate == 1000 else rate)
            t += 100 * MS
    stream.end()
    assert stream.losses() == {"gaps": 0, "lost_samples": 0}
    got = list(windows(stream))
    assert [end for _, end in got] == [k * 100 * MS for k in range(1, 31)]
    # The filters know nothing before their first sample, so the seams are less exact.
    whole = np.concatenate([samples for samples, _ in got])
    middle = np.r_[100:900, 1100:1900, 2100:3000]
    np.testing.assert_allclose(whole[middle], sine(1000, 3.0)[middle], atol=2e-3)


@pytest.mark.needs("soxr")
def test_a_gap_in_resampled_audio_is_a_gap() -> None:
    """A lost quarter of a second at 16 kHz is counted once, and what follows has its own time."""
    stream = audio_stream()
    stream.push(sine(16000, 0.5), 0, 16000)
    list(windows(stream))
    assert stream.push(sine(16000, 0.5), 750 * MS, 16000) == [True]
    stream.end()
    assert stream.losses()["gaps"] == 1
    assert [end for _, end in windows(stream)] == [(750 + 100 * k) * MS for k in range(1, 6)]


def test_a_rate_that_no_microphone_has_is_refused() -> None:
    """Zero, negative and absurd rates are an InputError, before any library is asked."""
    for rate in (0, -1, 999, 10**7):
        with pytest.raises(InputError, match=str(rate)):
            audio_stream().push(np.zeros(10, np.float32), 0, rate)


def test_without_soxr_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resampling names the module and the line to type; audio at the model's rate needs nothing."""
    monkeypatch.setitem(sys.modules, "soxr", None)
    stream = audio_stream()
    with pytest.raises(MissingDependencyError, match=r"48000 to 1000 Hz.*'soxr'.*pip install"):
        stream.push(np.zeros(10, np.float32), 0, 48000)
    stream.push(np.zeros(10, np.float32), 0, None)
    stream.push(np.zeros(10, np.float32), 10 * MS, 1000)
    assert stream.bound == 20 * MS
