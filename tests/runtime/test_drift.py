"""The audio clock, against simulated microphones of which the truth is known."""

from __future__ import annotations

import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm.errors import InputError
from edge_mbm.runtime.drift import ACQUIRE_NS, ACQUIRE_PPM, MAX_DRIFT_PPM, SLEW_PPM, AudioClock, ClockReport

MS, SECOND = 1_000_000, 1_000_000_000
RATE, BLOCK = 16_000, 320
BLOCKS_PER_SECOND = RATE // BLOCK
START = 7_000 * SECOND


class Recording(NamedTuple):
    """Blocks of sound: when the first sample of each was truly captured, and when the block arrived, ns."""

    truth: np.ndarray
    arrivals: np.ndarray

    def without(self, first: int, count: int) -> Recording:
        """Blocks lost without a word."""
        keep = np.r_[0:first, first + count : len(self.truth)]
        return Recording(self.truth[keep], self.arrivals[keep])

    def late_from(self, first: int, last: int, by: float) -> Recording:
        """Load: some blocks arrive later by ``by`` ns; none overtakes another."""
        arrivals = self.arrivals.copy()
        arrivals[first:last] += int(by)
        return Recording(self.truth, np.maximum.accumulate(arrivals))

    def stalled(self, second: float, seconds: float) -> Recording:
        """Nothing is handed over for a while, then all of it in one burst."""
        start, end = START + int(second * SECOND), START + int((second + seconds) * SECOND)
        held = (self.arrivals >= start) & (self.arrivals < end)
        return Recording(self.truth, np.where(held, end, self.arrivals))


def record(seconds: int, ppm: float, *, jitter_ms: float = 20, seed: int = 0) -> Recording:
    """A device whose clock is fast by ``ppm``, behind a queue that delays each block by an exponential time."""
    rng, count = np.random.default_rng(seed), seconds * BLOCKS_PER_SECOND
    block_ns = BLOCK * SECOND / RATE / (1 + ppm * 1e-6)
    truth = START + np.arange(count) * block_ns
    arrivals = truth + block_ns + rng.exponential(jitter_ms * MS, count)
    return Recording(truth.astype(np.int64), np.maximum.accumulate(arrivals).astype(np.int64))


def estimate(recording: Recording, clock: AudioClock | None = None) -> tuple[np.ndarray, ClockReport]:
    clock = clock or AudioClock(RATE)
    times = [clock.block(arrival, BLOCK) for arrival in recording.arrivals.tolist()]
    return np.array(times), clock.report()


def errors_ms(recording: Recording, times: np.ndarray, *, after: int = 30) -> np.ndarray:
    """|estimated - true| from ``after`` seconds on."""
    return np.abs(times - recording.truth)[after * BLOCKS_PER_SECOND :] / MS


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ppm", [-100.0, 0.0, 100.0])
def test_drift_and_jitter_leave_a_tenth_of_a_millisecond(ppm: float, seed: int) -> None:
    """Ten minutes at 100 ppm behind 20 ms of jitter: from 30 s on, 95 % of times are right to 0.2 ms, all to 1 ms."""
    recording = record(600, ppm, seed=seed)
    times, report = estimate(recording)
    errors = errors_ms(recording, times)
    assert np.percentile(errors, 95) < 0.2
    assert errors.max() < 1
    assert report.ppm == pytest.approx(ppm, abs=2)
    assert (report.re_anchors, report.lost_samples, report.blocks) == (0, 0, len(times))
    assert report.residual_ns < 1 * MS


def test_the_first_half_minute_is_already_usable() -> None:
    """The delay of the first block is gone after a few seconds: from 5 s to 30 s all times are right to 3 ms."""
    for seed in range(10):
        recording = record(30, 100, seed=seed)
        assert errors_ms(recording, estimate(recording)[0], after=5).max() < 3


def test_an_hour_is_no_harder_than_a_minute() -> None:
    """Everything is forgotten that is older than five minutes: the last minute is as exact as any."""
    recording = record(3600, 100)
    times, _ = estimate(recording)
    assert np.percentile(errors_ms(recording, times, after=3540), 95) < 0.2


def test_ten_years_wear_nothing_out() -> None:
    """At 44.1 kHz, whose sample is no whole number of ns: the times after 10^13 samples are those after none."""
    recording, fresh, old = record(600, 30), AudioClock(44_100), AudioClock(44_100)
    years = 44_100 * 86_400 * 365 * 10
    old._count = years
    for arrival in recording.arrivals.tolist():
        assert old.block(arrival, 882) == fresh.block(arrival, 882)
    assert old.report() == fresh.report()
    assert fresh.report().ppm == pytest.approx(30, abs=2)


def test_stalls_and_bursts_leave_no_trace() -> None:
    """Every minute nothing comes for 1.5 s, then 75 blocks at once: no anchor is set, and no time moves."""
    recording = record(600, 100)
    for second in range(60, 600, 60):
        recording = recording.stalled(second, 1.5)
    times, report = estimate(recording)
    assert report.re_anchors == 0
    assert errors_ms(recording, times).max() < 1


def test_load_that_comes_and_goes_leaves_no_trace() -> None:
    """A minute in which every block is late, by 5 to 30 ms and ever another, is neither drift nor loss."""
    recording, rng = record(600, 100, jitter_ms=1), np.random.default_rng(0)
    for second in range(200, 260):
        at = second * BLOCKS_PER_SECOND
        recording = recording.late_from(at, at + BLOCKS_PER_SECOND, by=rng.uniform(5, 30) * MS)
    times, report = estimate(recording)
    assert report.re_anchors == 0
    assert errors_ms(recording, times).max() < 1


@pytest.mark.parametrize(("blocks", "noticed_after_s"), [(1, 9), (3, 3), (10, 3), (150, 0.1)])
def test_silent_losses_are_found(blocks: int, noticed_after_s: float) -> None:
    """From one block of 20 ms up: counted to a millisecond, one anchor (or two), and right again after seconds."""
    at, settle = 100 * BLOCKS_PER_SECOND, int(noticed_after_s * BLOCKS_PER_SECOND)
    recording = record(200, 100).without(at, blocks)
    times, report = estimate(recording)
    errors = errors_ms(recording, times, after=0)
    assert errors[at - 1000 : at].max() < 1
    assert np.percentile(errors[at + settle :], 99) < 2
    assert 1 <= report.re_anchors <= 4
    assert report.lost_samples == pytest.approx(blocks * BLOCK, abs=3 * RATE / 1000)


def test_a_late_block_just_before_a_loss_does_not_hide_part_of_it() -> None:
    """100 ms are lost while blocks are 60 ms late anyway: not 60 but all 100 are found, within seconds."""
    at = 100 * BLOCKS_PER_SECOND
    for seed in range(5):
        recording = record(200, 100, seed=seed).late_from(at - 3, at, by=60 * MS).without(at, 5)
        times, report = estimate(recording)
        assert np.abs(times - recording.truth)[at + 4 * BLOCKS_PER_SECOND :].max() < 2 * MS
        assert report.lost_samples == pytest.approx(5 * BLOCK, abs=2 * RATE / 1000)


def test_losses_every_minute_for_an_hour() -> None:
    """One to seven blocks lost in each of 59 minutes: only the seconds until it is noticed are off, six at the mean."""
    recording, rng, lost = record(3600, -100), np.random.default_rng(1), 0
    for minute in range(59, 0, -1):
        count = int(rng.integers(1, 8))
        recording, lost = recording.without(minute * 60 * BLOCKS_PER_SECOND, count), lost + count
    times, report = estimate(recording)
    errors = errors_ms(recording, times)
    assert np.mean(errors > 1) < 6 / 60 + 0.01
    assert report.ppm == pytest.approx(-100, abs=10)
    assert report.lost_samples == pytest.approx(lost * BLOCK, rel=0.02)


def test_a_loss_that_the_driver_counts_is_exact() -> None:
    """Told 4800 lost samples, times jump by just these, at once; the estimate of the drift goes on."""
    at = 100 * BLOCKS_PER_SECOND
    recording, clock = record(200, 100).without(at, 15), AudioClock(RATE)
    before, _ = estimate(Recording(recording.truth[:at], recording.arrivals[:at]), clock)
    clock.gap(15 * BLOCK)
    after, report = estimate(Recording(recording.truth[at:], recording.arrivals[at:]), clock)
    assert errors_ms(recording, np.r_[before, after]).max() < 1
    assert (report.re_anchors, report.lost_samples) == (1, 15 * BLOCK)


def test_a_loss_that_the_driver_does_not_count_is_measured() -> None:
    """Told of a loss, the next arrivals say how much it was: two seconds later the times are right, and the count."""
    at = 100 * BLOCKS_PER_SECOND
    recording, clock = record(200, 100).without(at, 15), AudioClock(RATE)
    estimate(Recording(recording.truth[:at], recording.arrivals[:at]), clock)
    clock.gap(None)
    after, report = estimate(Recording(recording.truth[at:], recording.arrivals[at:]), clock)
    assert np.abs(after - recording.truth[at:])[2 * BLOCKS_PER_SECOND :].max() < 2 * MS
    assert report.re_anchors >= 1
    assert report.lost_samples == pytest.approx(15 * BLOCK, abs=2 * RATE / 1000)
    assert report.ppm == pytest.approx(100, abs=10)


def test_a_device_that_comes_back_after_a_minute_is_on_time_at_once() -> None:
    """Unplugged for 60 s: the first block already has a time of now, and the drift is still known."""
    at = 100 * BLOCKS_PER_SECOND
    recording = record(300, 100).without(at, 60 * BLOCKS_PER_SECOND)
    times, report = estimate(recording)
    errors = np.abs(times - recording.truth)[at:]
    assert errors[0] < 100 * MS
    assert errors[10 * BLOCKS_PER_SECOND :].max() < 1 * MS
    assert report.ppm == pytest.approx(100, abs=5)


def test_a_start_with_a_full_buffer_is_put_right() -> None:
    """Half a second of old blocks in one burst at the start: soon after it times are the sound's, not the burst's."""
    recording = record(60, 0, jitter_ms=1).stalled(0, 0.5)
    times, _ = estimate(recording)
    assert np.abs(times - recording.truth)[2 * BLOCKS_PER_SECOND :].max() < 60 * MS
    assert errors_ms(recording, times, after=6).max() < 1


def test_a_loss_of_the_driver_s_that_never_was_is_taken_back() -> None:
    """Told of 4800 lost samples when there were none: blocks are too early for that, and times hold until they fit."""
    recording, clock, at = record(200, 0), AudioClock(RATE), 100 * BLOCKS_PER_SECOND
    before, _ = estimate(Recording(recording.truth[:at], recording.arrivals[:at]), clock)
    clock.gap(15 * BLOCK)
    after, report = estimate(Recording(recording.truth[at:], recording.arrivals[at:]), clock)
    assert (np.diff(np.r_[before, after]) >= 0).all()
    assert np.abs(after - recording.truth[at:])[10 * BLOCKS_PER_SECOND :].max() < 1 * MS
    assert report.re_anchors >= 2


def test_the_device_s_latency_is_subtracted() -> None:
    """A constant delay looks like capture time to anyone who only sees arrivals: told of it, the clock takes it off."""
    recording = record(60, 50)
    plain, _ = estimate(recording)
    told, _ = estimate(recording, AudioClock(RATE, latency_ns=35 * MS))
    assert (plain - told == 35 * MS).all()


Blocks = st.lists(
    st.tuples(
        st.integers(1, 4 * BLOCK), st.integers(0, 300 * MS), st.sampled_from([0] * 30 + [BLOCK, RATE, 90 * RATE])
    ),
    min_size=1,
    max_size=200,
)
"""Samples of a block, its delay, and samples that are lost before it."""


def arrivals_of(blocks: list[tuple[int, int, int]], ppm: int) -> list[tuple[int, int]]:
    """(arrival, samples) of each; none overtakes another."""
    found, count, newest = [], 0, 0
    for samples, delay, lost in blocks:
        count += samples + lost
        newest = max(newest, START + count * SECOND * (1_000_000 - ppm) // (RATE * 1_000_000) + delay)
        found.append((newest, samples))
    return found


@given(blocks=Blocks, ppm=st.integers(-300, 300), tell=st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_times_never_go_back_nor_jump_without_an_anchor(
    blocks: list[tuple[int, int, int]], ppm: int, tell: int
) -> None:
    """Whatever comes: monotone always; and a step beyond the slew's bound is one that the report counts."""
    clock, last, samples_before, anchored = AudioClock(RATE), None, 0, 0
    for k, (arrival, samples) in enumerate(arrivals_of(blocks, ppm)):
        if tell and k % 17 == 16:
            clock.gap([None, 0, BLOCK][tell - 1])
        t = clock.block(arrival, samples)
        if last is not None:
            assert t >= last
            bound = samples_before * (SECOND + (ACQUIRE_PPM + MAX_DRIFT_PPM) * 1000) // RATE + 3
            assert t - last <= bound or clock.report().re_anchors > anchored
        last, samples_before, anchored = t, samples, clock.report().re_anchors


@given(jitter=st.lists(st.integers(0, 5 * MS), min_size=10, max_size=50), ppm=st.integers(-300, 300))
@settings(max_examples=30, deadline=None)
def test_a_settled_clock_slews_slowly(jitter: list[int], ppm: int) -> None:
    """Behind jitter that proves nothing, a second is never off by more than the drift and the slew allow, both ways."""
    clock, seconds, last = AudioClock(RATE), 120, None
    for k in range(seconds * 10):
        arrival = START + (k + 1) * 100 * MS * (1_000_000 - ppm) // 1_000_000 + jitter[k % len(jitter)]
        t = clock.block(arrival, RATE // 10)
        if last is not None:
            allowed = SLEW_PPM if k * 100 * MS > ACQUIRE_NS + 100 * MS else ACQUIRE_PPM
            assert abs(t - last - 100 * MS) <= (allowed + MAX_DRIFT_PPM) * 100 + 3
        last = t
    assert clock.report().re_anchors == 0


@given(blocks=Blocks, ppm=st.integers(-300, 300), offset=st.integers(0, 10**17))
@settings(max_examples=100, deadline=None)
def test_where_time_starts_does_not_matter(blocks: list[tuple[int, int, int]], ppm: int, offset: int) -> None:
    """All arrivals later by the same are all times later by it, to the nanosecond."""
    here, there = AudioClock(RATE), AudioClock(RATE)
    for arrival, samples in arrivals_of(blocks, ppm):
        assert there.block(arrival + offset, samples) == here.block(arrival, samples) + offset
    assert here.report() == there.report()


@pytest.mark.parametrize("pieces", [2, 5, 20])
def test_how_blocks_are_cut_does_not_matter(pieces: int) -> None:
    """The same sound handed over in smaller pieces at the same moments has the same times, to a tenth of a ms."""
    recording = record(120, 100)
    whole, _ = estimate(recording)
    clock, each = AudioClock(RATE), np.repeat(recording.arrivals, pieces).tolist()
    cut = np.array([clock.block(arrival, BLOCK // pieces) for arrival in each])
    assert np.abs(cut[::pieces] - whole)[15 * BLOCKS_PER_SECOND :].max() < MS // 10


def test_memory_does_not_grow() -> None:
    """A simulated hour takes no more than its first quarter."""
    clock, arrival = AudioClock(RATE), START

    def run(seconds: int) -> int:
        nonlocal arrival
        for k in range(seconds):
            arrival += SECOND
            clock.block(arrival + k % 7 * MS, RATE)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first, last = run(900), run(2700)
    finally:
        tracemalloc.stop()
    assert last - first < 10_000


def test_before_the_first_block_there_is_nothing_to_report() -> None:
    """All zero; and a gap before it is none."""
    clock = AudioClock(RATE)
    clock.gap(100)
    clock.gap(None)
    assert clock.report() == ClockReport(ppm=0.0, residual_ns=0, re_anchors=0, lost_samples=0, blocks=0)
    assert clock.block(START, BLOCK) == START - 20 * MS
    assert clock.block(START, 0) == START


@pytest.mark.parametrize("rate", [0, -1, 999, 10**7])
def test_a_rate_that_no_microphone_has_is_refused(rate: int) -> None:
    """As everywhere else: an InputError that names it."""
    with pytest.raises(InputError, match=str(rate)):
        AudioClock(rate)


def test_numbers_that_cannot_be_are_refused() -> None:
    """A negative block, gap or latency is an InputError, and nothing has changed."""
    clock = AudioClock(RATE)
    with pytest.raises(InputError, match="-1 samples"):
        clock.block(START, -1)
    with pytest.raises(InputError, match="-2 samples"):
        clock.gap(-2)
    with pytest.raises(InputError, match="latency"):
        AudioClock(RATE, latency_ns=-1)
    assert clock.report().blocks == 0
