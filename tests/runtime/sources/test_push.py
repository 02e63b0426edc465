"""Sources of what the program itself has."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import InputError
from edge_mbm.runtime.sources import ArraySource, CallableSource, SensorSource, TextSource
from edge_mbm.testing import FakeClock

MS, SECOND = 1_000_000, 1_000_000_000
FRAME = np.zeros((2, 2, 3), np.uint8)


def test_arrays_have_the_time_at_which_they_were_drawn() -> None:
    """Unless they bring one."""
    clock = FakeClock(SECOND)

    def script() -> Any:
        yield FRAME
        clock.advance(MS)
        yield FRAME
        yield FRAME, 42

    source = ArraySource("image", script(), clock=clock)
    assert [(s.modality, s.t, s.duration, s.rate) for s in source.samples()] == [
        ("image", SECOND, 0, None),
        ("image", SECOND + MS, 0, None),
        ("image", 42, 0, None),
    ]
    assert source.timing.clock == "monotonic"


def test_arrays_of_sound_have_a_rate_and_a_length() -> None:
    """So that the session can resample them and knows when they end."""
    source = ArraySource("audio", [(np.zeros((160, 1), np.float32), 5)], audio_rate=16_000)
    assert [(s.t, s.duration, s.rate) for s in source.samples()] == [(5, 10 * MS, 16_000)]
    with pytest.raises(InputError, match="3 Hz"):
        ArraySource("audio", [], audio_rate=3)


def test_a_closed_source_of_arrays_gives_no_more() -> None:
    """Also in the middle of an endless iterable."""
    source = ArraySource("image", itertools.repeat(FRAME), clock=FakeClock())
    samples = iter(source.samples())
    next(samples)
    source.close()
    assert list(samples) == []


def test_a_function_is_called_at_its_rate() -> None:
    """On the clock, from now on; each result has the time of its call."""
    clock = FakeClock(SECOND)
    source = CallableSource("image", lambda: FRAME, 10, clock=clock)
    assert [s.t - SECOND for s in itertools.islice(source.samples(), 4)] == [0, 100 * MS, 200 * MS, 300 * MS]


def test_a_slow_function_skips_turns() -> None:
    """250 ms for a turn of 100: every third, on the grid, without a burst to catch up."""
    clock = FakeClock()

    def read() -> Any:
        clock.advance(250 * MS)
        return FRAME

    source = CallableSource("image", read, 10, clock=clock)
    assert [s.t for s in itertools.islice(source.samples(), 3)] == [0, 300 * MS, 600 * MS]


def test_nothing_new_is_no_sample() -> None:
    """None is skipped; a pair brings its own time."""
    results = iter([None, (FRAME, 7), None, FRAME])
    source = CallableSource("image", lambda: next(results), 1, clock=FakeClock())
    assert [s.t for s in itertools.islice(source.samples(), 2)] == [7, 3 * SECOND]


def test_a_failing_function_is_heard() -> None:
    """Its error comes through as it is; the stream around it wraps it."""

    def read() -> Any:
        raise OSError("bus error")

    with pytest.raises(OSError, match="bus error"):
        next(iter(CallableSource("image", read, 1, clock=FakeClock()).samples()))


def test_closing_wakes_a_source_that_waits_for_its_turn() -> None:
    """From another thread, on the real clock, with a turn an hour away."""
    source = CallableSource("image", lambda: FRAME, 1 / 3600)
    samples = iter(source.samples())
    next(samples)
    threading.Thread(target=source.close).start()
    assert list(samples) == []


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 1e-300])
def test_a_rate_is_above_zero(rate: float) -> None:
    """Anything else is refused on construction."""
    with pytest.raises(InputError, match="'imu'"):
        CallableSource("imu", lambda: None, rate)


def test_a_sensor_gives_numbers() -> None:
    """One, several, or an array with a time become float32; two numbers are never a value and its time."""
    readings = iter([1.5, (2, 3), (np.array([4.0, 5.0]), 77)])
    source = SensorSource("imu", lambda: next(readings), 1, clock=FakeClock())
    taken = list(itertools.islice(source.samples(), 3))
    assert [s.data.tolist() for s in taken] == [[1.5], [2.0, 3.0], [4.0, 5.0]]
    assert {s.data.dtype.name for s in taken} == {"float32"}
    assert [s.t for s in taken] == [0, SECOND, 77]


def test_of_texts_the_newest_is_given() -> None:
    """What nobody took is replaced; each has the time at which it was set, and times rise on a clock that stands."""
    clock = FakeClock(SECOND)
    source = TextSource("prompt", clock=clock)
    samples = iter(source.samples())
    source.set("a red mug")
    source.set("a blue mug")
    first = next(samples)
    source.set("a spoon")
    second = next(samples)
    assert [(s.modality, s.data) for s in (first, second)] == [("prompt", "a blue mug"), ("prompt", "a spoon")]
    assert SECOND <= first.t < second.t
    with pytest.raises(InputError, match="int"):
        source.set(3)  # type: ignore[arg-type]


def test_a_text_may_be_set_while_the_source_waits() -> None:
    """From any thread; closing ends the waiting too."""
    source = TextSource()
    samples = iter(source.samples())
    threading.Thread(target=source.set, args=("now",)).start()
    assert next(samples).data == "now"
    threading.Thread(target=source.close).start()
    assert list(samples) == []
