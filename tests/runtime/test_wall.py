"""Wall time that steps: one logged event, and nothing else."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.runtime.drift import AudioClock
from edge_mbm.runtime.wall import WallClock

MS, SECOND = 1_000_000, 1_000_000_000


class Machine:
    """Both clocks of a machine, to be set by a test."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1_700_000_000 * SECOND, 5 * SECOND

    def advance(self, nanoseconds: int, step: int = 0) -> None:
        self.monotonic += nanoseconds
        self.wall += nanoseconds + step

    def watch(self) -> WallClock:
        return WallClock(wall=lambda: self.wall, monotonic=lambda: self.monotonic)


@pytest.mark.parametrize("step", [-60 * SECOND, -501 * MS, 501 * MS, 60 * SECOND])
def test_a_step_is_one_event(step: int, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, as a warning with its size; time that runs on after it is no other step."""
    machine = Machine()
    watch = machine.watch()
    machine.advance(SECOND, step)
    with caplog.at_level(logging.INFO):
        assert [watch.check(), watch.check()] == [step, None]
        machine.advance(3600 * SECOND)
        assert watch.check() is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{step / SECOND:+.3f} s" in record.getMessage()
    assert watch.steps == 1


@given(st.lists(st.tuples(st.integers(0, 60 * SECOND), st.integers(-SECOND // 2, SECOND // 2)), max_size=30))
def test_small_corrections_are_no_event(moves: list[tuple[int, int]]) -> None:
    """Up to half a second between two checks, however often, is a clock being kept right."""
    machine = Machine()
    watch = machine.watch()
    for passed, step in moves:
        machine.advance(passed, step)
        assert watch.check() is None
    assert watch.steps == 0


@pytest.mark.parametrize("step", [-60 * SECOND, 60 * SECOND])
def test_a_step_changes_no_time(step: int, caplog: pytest.LogCaptureFixture) -> None:
    """A microphone heard across a step of a minute has the very times that it has without it; there is one event."""

    def listen(steps: dict[int, int]) -> tuple[list[int], int]:
        machine, clock, times = Machine(), AudioClock(16_000), []
        watch = machine.watch()
        for k in range(600):
            machine.advance(20 * MS, steps.get(k, 0))
            times.append(clock.block(machine.monotonic, 320))
            watch.check()
        return times, watch.steps

    (with_step, events), (without, _) = listen({300: step}), listen({})
    assert with_step == without
    assert events == len(caplog.records) == 1
