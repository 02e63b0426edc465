"""The public fakes do what they promise, for tests outside this project lean on them."""

from __future__ import annotations

import threading

import pytest

import edge_mbm
from edge_mbm import Sample, Source
from edge_mbm.errors import SourceError
from edge_mbm.runtime import Clock, MonotonicClock
from edge_mbm.testing import FakeClock, NullEngine, ScriptedSource, tiny_bundle


def test_a_fake_clock_stands_still_until_it_is_told() -> None:
    """Only ``advance`` and sleepers move it, never backwards."""
    clock: Clock = FakeClock(5)
    assert clock.now() == clock.now() == 5
    stop = threading.Event()
    assert clock.sleep_until(100, stop) is False
    assert clock.now() == 100
    clock.sleep_until(50, stop)
    assert clock.now() == 100
    assert isinstance(clock, FakeClock)
    clock.advance(7)
    assert clock.now() == 107


@pytest.mark.parametrize("clock", [FakeClock(), MonotonicClock()])
def test_a_set_stop_ends_any_sleep(clock: Clock) -> None:
    """Both clocks return at once, and say why, however far the time is off."""
    stop = threading.Event()
    stop.set()
    assert clock.sleep_until(clock.now() + 10**15, stop) is True


def test_a_past_time_is_not_slept_for() -> None:
    """The system's clock returns at once for what is over, and never goes back."""
    clock = MonotonicClock()
    before = clock.now()
    assert clock.sleep_until(before - 10**9, threading.Event()) is False
    assert clock.now() >= before


def test_a_scripted_source_gives_its_list_and_then_its_error() -> None:
    """In order; the modalities are those of the list."""
    samples = [Sample("image", None, 0), Sample("audio", None, 1), Sample("image", None, 2)]
    source: Source = ScriptedSource(samples, error=SourceError("unplugged"))
    assert source.modalities == ("image", "audio")
    seen = []
    with pytest.raises(SourceError, match="unplugged"):
        seen.extend(source.samples())
    reader = source.samples()
    assert [next(reader) for _ in samples] == samples


def test_a_closed_scripted_source_ends() -> None:
    """After ``close`` nothing more comes, not even the error."""
    source = ScriptedSource([Sample("image", None, t) for t in range(9)], error=SourceError("unplugged"))
    reader = source.samples()
    next(reader)
    source.close()
    assert list(reader) == []


def test_a_generator_needs_its_modalities_said() -> None:
    """It is not read ahead to find them out."""
    source = ScriptedSource((Sample("image", None, t) for t in range(2)), modalities=("image",))
    assert [sample.t for sample in source.samples()] == [0, 1]


def test_the_tiny_bundle_runs_without_any_engine_library() -> None:
    """``NullEngine`` is a loader itself; all scores are equal, since it computes nothing."""
    with edge_mbm.load(tiny_bundle()).session(load_engine=NullEngine) as session:
        [result] = session.infer(audio=[0.0] * 100)
        assert result.output.as_json()["scores"] == [0.25] * 4
        assert result.provider == "NullEngine"
