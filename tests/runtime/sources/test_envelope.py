"""Capture times from arrivals: the network's jitter does not move them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.runtime.sources.envelope import Envelope

MS, SECOND = 1_000_000, 1_000_000_000
BASE = 1000 * SECOND


def run(envelope: Envelope, stamps: list[int], delays: list[int], base: int = BASE) -> None:
    for stamp, delay in zip(stamps, delays, strict=True):
        envelope.add(stamp, base + stamp + delay)


@given(st.lists(st.integers(0, 900 * MS), min_size=1, max_size=200))
def test_the_offset_is_the_least_delay_so_far(delays: list[int]) -> None:
    """Against a plain minimum, for any jitter below a second: packets are late, never early."""
    envelope = Envelope()
    stamps = [k * 40 * MS for k in range(len(delays))]
    # Over one connection nothing overtakes.
    arrivals, last = [], 0
    for stamp, delay in zip(stamps, delays, strict=True):
        last = max(last, BASE + stamp + delay)
        arrivals.append(last)
    for k, (stamp, arrival) in enumerate(zip(stamps, arrivals, strict=True)):
        envelope.add(stamp, arrival)
        assert envelope.offset == min(a - s for s, a in zip(stamps[: k + 1], arrivals, strict=False))
    assert envelope.jumps == 0


def test_what_has_left_the_window_is_forgotten() -> None:
    """A least delay of more than half a minute ago no longer counts: clocks drift."""
    envelope = Envelope()
    envelope.add(0, BASE)
    for k in range(1, 80):
        envelope.add(k * 500 * MS, BASE + k * 500 * MS + 7 * MS)
    assert envelope.offset == BASE + 7 * MS


def test_a_stall_of_the_network_is_no_jump() -> None:
    """Three seconds of nothing, then all of it in a burst: the stamps went on evenly, so the offset stays."""
    envelope = Envelope()
    stamps = [k * 40 * MS for k in range(200)]
    run(envelope, stamps, [max(0, 3 * SECOND - (k - 100) * 40 * MS) if k >= 100 else 0 for k in range(200)])
    assert (envelope.offset, envelope.jumps) == (BASE, 0)


def test_a_pause_of_the_camera_is_no_jump() -> None:
    """Stamps and arrivals both leave five seconds out."""
    envelope = Envelope()
    run(envelope, [0, 40 * MS, 5 * SECOND, 5040 * MS], [0, 0, 0, 0])
    assert (envelope.offset, envelope.jumps) == (BASE, 0)


def test_a_new_time_base_is_taken_at_once_and_counted() -> None:
    """Forwards or back by more than a second: the old least delay means nothing any more."""
    for leap in (-700 * SECOND, 90_000 * SECOND):
        envelope = Envelope()
        run(envelope, [0, 40 * MS, 80 * MS], [5 * MS] * 3)
        envelope.add(120 * MS + leap, BASE + 120 * MS)
        assert (envelope.offset, envelope.jumps) == (BASE - leap, 1)


def test_stamps_that_run_slow_are_followed() -> None:
    """A camera of 10 frames a second that claims 25: never off by more than some three seconds, each step counted."""
    envelope = Envelope()
    for k in range(600):
        arrival = BASE + k * 100 * MS
        envelope.add(k * 40 * MS, arrival)
        assert envelope.offset is not None
        assert arrival - (k * 40 * MS + envelope.offset) <= 3200 * MS
    assert envelope.jumps > 3
