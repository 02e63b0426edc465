"""The audio ring: windows by sample index, whatever the chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm.runtime.ring import AudioRing

RATE = 1000
MS = 1_000_000


def ring(length: int = 10, hop: int = 5, capacity: int = 1000) -> AudioRing:
    return AudioRing(sample_rate=RATE, length=length, hop=hop, capacity=capacity, max_slip_ns=50 * MS)


def ramp(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32)


def drain(source: AudioRing) -> list[tuple[list[float], int]]:
    found = []
    while (window := source.next_window()) is not None:
        found.append((window[0].tolist(), window[1]))
    return found


@given(
    length=st.integers(1, 40),
    hop=st.integers(1, 90),
    chunks=st.lists(st.integers(0, 120), max_size=40),
    reads=st.randoms(use_true_random=False),
    start=st.integers(-(10**15), 10**15),
)
@settings(max_examples=300, deadline=None)
def test_any_chunking_gives_the_windows_of_the_whole(
    length: int, hop: int, chunks: list[int], reads: object, start: int
) -> None:
    """Slicing the whole is the oracle: same samples, same times, with hops beyond the window and reads in between."""
    buffer, total, got = ring(length, hop, capacity=5000), 0, []
    for chunk in chunks:
        assert not buffer.push(ramp(total, chunk), start + total * MS)
        total += chunk
        if reads.random() < 0.5:  # type: ignore[attr-defined]
            got += drain(buffer)
    got += drain(buffer)
    starts = range(0, total - length + 1, hop) if chunks else ()
    assert got == [(ramp(k, length).tolist(), start + (k + length) * MS) for k in starts]
    assert buffer.lost_samples == buffer.gaps == 0


@given(
    length=st.integers(1, 30),
    hop=st.integers(1, 60),
    capacity=st.integers(1, 80),
    chunks=st.lists(st.tuples(st.integers(0, 200), st.booleans()), max_size=30),
)
@settings(max_examples=300, deadline=None)
def test_overflow_is_counted_and_what_stays_is_right(
    length: int, hop: int, capacity: int, chunks: list[tuple[int, bool]]
) -> None:
    """However much is pushed unread: every window is a true slice at its own time, in order, and memory is bounded."""
    buffer, total, last = ring(length, hop, capacity), 0, 0
    for count, is_read in chunks:
        lost = buffer.lost_samples
        broken = buffer.push(ramp(total, count), total * MS)
        assert broken == (buffer.lost_samples > lost)
        total += count
        for samples, end in drain(buffer) if is_read else ():
            first = int(samples[0])
            assert samples == ramp(first, length).tolist()
            assert end == (first + length) * MS > last
            last = end
        assert buffer._data.size == 2 * buffer.capacity
    if chunks:
        assert buffer.bound == total * MS


def test_overflow_counts_every_sample_given_up() -> None:
    """What is lost is what came, less what can still be read."""
    buffer = ring(length=10, hop=10, capacity=50)
    buffer.push(ramp(0, 130), 0)
    assert buffer.lost_samples == 80
    assert [end for _, end in drain(buffer)] == [(80 + 10 * k) * MS for k in range(1, 6)]


def test_a_gap_starts_a_new_grid_and_counts_what_it_gives_up() -> None:
    """After 60 ms of silence on the line windows start at the new block; the unread rest before it is counted."""
    buffer = ring(length=10, hop=10)
    buffer.push(ramp(0, 14), 0)
    assert [end for _, end in drain(buffer)] == [10 * MS]
    assert buffer.push(ramp(100, 20), 74 * MS)
    assert (buffer.gaps, buffer.lost_samples) == (1, 4)
    assert drain(buffer) == [(ramp(100, 10).tolist(), 84 * MS), (ramp(110, 10).tolist(), 94 * MS)]


@pytest.mark.parametrize("slip", [-50, -7, 0, 7, 50])
def test_jitter_is_not_a_gap(slip: int) -> None:
    """Within 50 ms the sample count is the clock: a block's time moves it by at most 2.5 % of the block."""
    buffer = ring(length=10, hop=10)
    buffer.push(ramp(0, 100), 0)
    drain(buffer)
    assert not buffer.push(ramp(100, 10), (100 + slip) * MS)
    moved = 250_000 * (slip > 0) - 250_000 * (slip < 0)
    assert drain(buffer) == [(ramp(100, 10).tolist(), 110 * MS + moved)]


def test_a_clock_that_drifts_is_followed() -> None:
    """An hour of a microphone that runs 200 ppm slow, 0.72 s in all: no gap, and times stay with the blocks'."""
    buffer = ring(length=100, hop=100, capacity=1000)
    for k in range(36_000):
        t = k * 100_020_000  # 100 samples take that long
        assert not buffer.push(ramp(0, 100), t)
        [(_, end)] = drain(buffer)
        assert abs(end - t - 100_020_000) <= 20_000
    assert buffer.gaps == 0


def test_times_do_not_drift_at_rates_that_do_not_divide_a_second() -> None:
    """After ten minutes at 44.1 kHz the time is the sample count's to the nanosecond, with no error summed up."""
    buffer = AudioRing(sample_rate=44100, length=441, hop=441, capacity=44100, max_slip_ns=50 * MS)
    block = np.zeros(44100, np.float32)
    for second in range(600):
        buffer.push(block, second * 1_000_000_000)
        ends = [end for _, end in drain(buffer)]
    assert ends[-1] == 600 * 1_000_000_000
    assert buffer.gaps == 0


def test_bounds_before_the_first_sample() -> None:
    """Nothing is known then; an empty block sets the time."""
    buffer = ring()
    assert buffer.bound is None
    assert buffer.next_end is None
    assert buffer.next_window() is None
    buffer.push(ramp(0, 0), 5)
    assert (buffer.bound, buffer.next_end) == (5, 5 + 10 * MS)
