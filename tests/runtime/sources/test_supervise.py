"""A supervised source: what its device may do to it, and what never reaches the one who iterates."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.errors import InputError, MissingDependencyError, SourceError
from edge_mbm.runtime.source import Sample, Source, Timing
from edge_mbm.runtime.sources.supervise import Supervised, Supervision
from edge_mbm.testing import FakeClock, ScriptedSource

MS, SECOND = 1_000_000, 1_000_000_000
LIVE = Timing("monotonic", 5 * MS)
BLACK = np.zeros((2, 2, 3), np.uint8)
PATIENCE = Supervision(jitter=0.0, close_timeout_s=0.05)


def frame(t: int) -> Sample:
    return Sample("image", BLACK, t)


def block(t: int) -> Sample:
    return Sample("audio", np.zeros((20, 1), np.float32), t, 20 * MS, 1000)


def scripted(*samples: Sample, error: Exception | None = None) -> ScriptedSource:
    return ScriptedSource(list(samples), modalities=("image", "audio"), error=error, timing=LIVE)


class Factory:
    """Gives the next of its sources at each opening; raises those that are errors, calls those that are functions."""

    def __init__(self, *sources: Any) -> None:
        self.waiting = list(sources)
        self.opened: list[Any] = []

    def __call__(self) -> Source:
        made = self.waiting.pop(0) if len(self.waiting) > 1 else self.waiting[0]
        self.opened.append(made)
        if isinstance(made, BaseException):
            raise made
        return made() if callable(made) else made


class Wedge:
    """A driver that hangs: moves the clock, so that a deadline passes, and waits to be freed by the test."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        self.freed = threading.Event()
        self._clock = clock
        self._seconds = seconds

    def __call__(self) -> None:
        self._clock.advance(int(self._seconds * SECOND))
        assert self.freed.wait(30)

    def after(self, *samples: Sample) -> Iterator[Sample]:
        yield from samples
        self()


def supervised(factory: Callable[[], Source], clock: FakeClock | None = None, **options: Any) -> Supervised:
    return Supervised(
        options.pop("name", "v4l2:///dev/video0"),
        factory,
        ("image", "audio"),
        audio_blocks=options.pop("audio_blocks", 100),
        options=options.pop("options", PATIENCE),
        clock=clock or FakeClock(SECOND),
        **options,
    )


def first(source: Supervised, count: int) -> list[Sample]:
    samples = source.samples()
    try:
        return [next(samples) for _ in range(count)]
    finally:
        samples.close()  # type: ignore[attr-defined]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("edge-mbm-source")]


def await_no_threads() -> None:
    for thread in threads():
        thread.join(30)
    assert not threads()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    assert not threads()
    yield
    await_no_threads()


# --- reconnecting ----------------------------------------------------------------------------------------------------


def test_an_error_opens_the_device_again_and_the_samples_go_on() -> None:
    """Two connections' frames come as one stream; the broken one is closed, and the pause and its reason are kept."""
    broken = scripted(frame(1), frame(2), error=OSError("cable"))
    source = supervised(Factory(broken, scripted(frame(3), frame(4))))
    times = [sample.t for sample in first(source, 2)]
    assert times[-1] >= 2
    assert times == sorted(set(times))
    assert broken.closed
    status = source.status()
    assert (status.state, status.samples, status.last) == ("ended", 2, times[-1])


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (scripted(block(1)), "it ended"),
        (scripted(block(1), error=SourceError("unplugged")), "unplugged"),
        (scripted(block(1), error=ValueError("strange")), "ValueError.*strange"),
    ],
)
def test_whatever_ends_a_live_source_is_mended(ending: ScriptedSource, reason: str) -> None:
    """Its end too: a live source has none. The status says what went wrong and that it was one reconnection."""
    source = supervised(Factory(ending, scripted(block(2))))
    samples = source.samples()
    assert [next(samples).t for _ in range(2)] == [1, 2]
    status = source.status()
    assert (status.state, status.reconnects, status.stalls) == ("live", 1, 0)
    assert re.search(reason, status.error or "")
    source.close()


def test_the_same_frame_is_never_given_twice() -> None:
    """A connection that repeats what the one before gave is listened to from the first new moment on, per modality."""
    again = scripted(block(10), block(20), block(30), frame(25))
    source = supervised(Factory(scripted(block(10), block(20)), again, scripted(block(31))))
    assert [(s.modality, s.t) for s in first(source, 4)] == [
        ("audio", 10),
        ("audio", 20),
        ("audio", 30),
        ("image", 25),
    ]
    assert source.losses()["audio.repeated"] == 2


@given(connections=st.lists(st.lists(st.integers(0, 30), max_size=6), min_size=1, max_size=5))
def test_times_only_rise_whatever_connections_give(connections: list[list[int]]) -> None:
    """Any times in any connections: what comes out is the rising record of them, and nothing is uncounted."""
    opened = [scripted(*(block(t) for t in times)) for times in connections]
    source = supervised(Factory(*opened, MissingDependencyError("av", "the end", "nothing")))
    given: list[int] = []
    with pytest.raises(MissingDependencyError):
        given.extend(sample.t for sample in source.samples())
    flat = [t for times in connections for t in times]
    expected = [t for k, t in enumerate(flat) if t > max(flat[:k], default=-1)]
    assert given == expected
    assert source.losses().get("audio.repeated", 0) == len(flat) - len(expected)


def test_the_wait_doubles_up_to_its_bound_and_is_shortened_by_chance() -> None:
    """With a jitter of a half and a chance of 1, half of 0.2, 0.4, 0.8 ... 10 s; with a chance of 0, all of it."""
    options = Supervision(jitter=0.5)
    assert [options.delay(n, 0.0) for n in (1, 2, 3, 7, 5000)] == [0.2, 0.4, 0.8, 10.0, 10.0]
    assert [options.delay(n, 1.0) for n in (1, 2, 5000)] == [0.1, 0.2, 5.0]


def test_it_waits_on_its_clock_before_each_attempt() -> None:
    """Three failures cost 0.2 + 0.4 + 0.8 s; a sample resets the count."""
    clock = FakeClock(SECOND)
    error = SourceError("no route")
    source = supervised(Factory(error, error, error, scripted(block(1)), error, scripted(block(2))), clock)
    samples = source.samples()
    next(samples)
    assert clock.now() == SECOND + 1400 * MS
    next(samples)
    # The end of the connection was the first failure of a new row, the refusal the second.
    assert clock.now() == SECOND + 1400 * MS + 200 * MS + 400 * MS
    source.close()


def test_the_same_seed_waits_the_same() -> None:
    """Chance is the only thing that differs between two runs, and a seed takes that away."""

    def waited(seed: int) -> int:
        clock = FakeClock()
        error = SourceError("no route")
        first(supervised(Factory(*[error] * 5, scripted(frame(1))), clock, options=Supervision(seed=seed)), 1)
        return clock.now()

    assert waited(1) == waited(1) != waited(2)


# --- giving up -------------------------------------------------------------------------------------------------------


def test_after_so_many_failures_the_first_reaches_the_consumer() -> None:
    """As a SourceError that counts them, with the first as its cause."""
    reason = OSError("no such device")
    source = supervised(
        Factory(reason, SourceError("busy"), SourceError("busy")), options=Supervision(attempts=3, jitter=0)
    )
    with pytest.raises(SourceError, match=r"failed 3 times in a row.*no such device") as caught:
        list(source.samples())
    assert caught.value.__cause__ is reason
    assert source.status().state == "ended"


def test_what_was_given_before_the_failure_is_handed_on_first() -> None:
    """Sound that had come is not lost to the error after it."""
    broken = scripted(block(1), block(2), block(3), error=OSError("cable"))
    samples = supervised(Factory(broken), options=Supervision(attempts=1)).samples()
    assert [next(samples).t for _ in range(3)] == [1, 2, 3]
    with pytest.raises(SourceError, match="cable"):
        next(samples)


@pytest.mark.parametrize("error", [InputError("no such option"), MissingDependencyError("cv2", "a camera", "pip")])
def test_what_trying_again_does_not_mend_is_raised_at_once(error: Exception) -> None:
    """A wrong option or a missing package, as it is: from the samples, and from preparing."""
    for use in (lambda source: list(source.samples()), Supervised.prepare):
        factory = Factory(error)
        with pytest.raises(type(error)) as caught:
            use(supervised(factory))
        assert caught.value is error
        assert len(factory.opened) == 1


def test_a_recording_is_not_supervised() -> None:
    """Its times would begin anew with every connection: refused with the reason."""
    source = supervised(Factory(ScriptedSource([frame(0)])), options=Supervision(attempts=1))
    with pytest.raises(SourceError, match="recording"):
        next(source.samples())


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_a_stall_is_told_from_silence_by_the_clock() -> None:
    """Two seconds without a frame from a device that hangs: closed, counted as a stall, and opened again."""
    clock = FakeClock(SECOND)
    wedge = Wedge(clock, 2.1)
    stuck = ScriptedSource(wedge.after(frame(1)), modalities=("image",), timing=LIVE)
    source = supervised(Factory(stuck, scripted(frame(2))), clock)
    assert [sample.t for sample in first(source, 2)] == [1, 2]
    status = source.status()
    assert (status.stalls, status.reconnects) == (1, 1)
    assert "no image for 2 s" in (status.error or "")
    assert stuck.closed
    wedge.freed.set()


def test_a_picture_that_stops_is_a_stall_though_the_sound_goes_on() -> None:
    """Each modality that has been coming has its own deadline."""
    clock = FakeClock(SECOND)

    def half_dead() -> Iterator[Sample]:
        yield frame(1)
        for k in range(1, 400):
            clock.advance(20 * MS)
            yield block(k * 20 * MS)

    endless = ScriptedSource(half_dead(), modalities=("image", "audio"), timing=LIVE)
    source = supervised(Factory(endless, scripted(frame(2))), clock, audio_blocks=1000)
    given = source.samples()
    while next(given).t != 2:
        pass
    assert source.status().stalls + source.status().reconnects >= 1
    source.close()


def test_opening_has_a_deadline(caplog: pytest.LogCaptureFixture) -> None:
    """A driver that hangs in open is left behind, named in the log, and the next attempt is made without it."""
    clock = FakeClock(SECOND)
    wedge = Wedge(clock, 10.1)
    late = scripted(frame(99))

    def hang() -> Source:
        wedge()
        return late

    source = supervised(Factory(hang, scripted(frame(1))), clock)
    with caplog.at_level(logging.WARNING):
        assert [sample.t for sample in first(source, 1)] == [1]
    assert "did not open within 10 s" in (source.status().error or "")
    assert any("edge-mbm-source-" in record.getMessage() for record in caplog.records)
    wedge.freed.set()
    await_no_threads()
    assert late.closed  # nobody wanted it any more


def test_a_device_that_opens_and_gives_nothing_is_not_waited_for() -> None:
    """The first sample has to come within the deadline for opening."""
    clock = FakeClock(SECOND)
    wedge = Wedge(clock, 10.1)
    source = supervised(
        Factory(ScriptedSource(wedge.after(), modalities=("image",), timing=LIVE), scripted(frame(1))), clock
    )
    assert [sample.t for sample in first(source, 1)] == [1]
    assert "gave nothing within 10 s" in (source.status().error or "")
    wedge.freed.set()


def test_closing_has_a_deadline(caplog: pytest.LogCaptureFixture) -> None:
    """A device that hangs in close holds nobody up: the log names the thread that is left behind."""
    freed = threading.Event()

    class Clinging(ScriptedSource):
        def close(self) -> None:
            assert freed.wait(30)

    source = supervised(Factory(Clinging([frame(1)], timing=LIVE)))
    with caplog.at_level(logging.WARNING):
        assert first(source, 1)[0].t == 1
    assert any("is left behind" in record.getMessage() for record in caplog.records)
    freed.set()


def test_closing_is_waited_for_to_its_end() -> None:
    """A second close is quick, while the first is still at work: the device counts as closed after both."""
    closed: list[str] = []
    turn = threading.Lock()

    class Slow(ScriptedSource):
        def close(self) -> None:
            if turn.acquire(blocking=False):
                super().close()
                freed.set()
                assert read.wait(30)
                closed.append("to the end")

        def samples(self) -> Iterator[Sample]:
            yield frame(1)
            assert freed.wait(30)
            read.set()

    freed, read = threading.Event(), threading.Event()
    source = supervised(Factory(Slow([], modalities=("image",), timing=LIVE)), options=Supervision(close_timeout_s=30))
    samples = source.samples()
    next(samples)
    source.close()
    assert closed == ["to the end"]


def test_a_device_that_fails_to_close_is_opened_again() -> None:
    """The failure is logged, and no reason to stop."""

    class Stubborn(ScriptedSource):
        def close(self) -> None:
            raise OSError("device busy")

    source = supervised(Factory(Stubborn([frame(1)], timing=LIVE), scripted(frame(2))))
    assert [sample.t for sample in first(source, 2)] == [1, 2]


def test_threads_that_are_left_behind_are_bounded() -> None:
    """With two stuck in the driver no third is started: the failure says so, until one of them comes back."""
    clock = FakeClock(SECOND)
    wedges = [Wedge(clock, 10.1) for _ in range(2)]
    opened = Factory(*wedges, scripted(frame(1)))
    options = Supervision(jitter=0, attempts=4, max_abandoned=2, close_timeout_s=0.05)
    with pytest.raises(SourceError, match="failed 4 times"):
        list(supervised(opened, clock, options=options).samples())
    assert len(opened.opened) == 2
    for wedge in wedges:
        wedge.freed.set()


# --- what waits ------------------------------------------------------------------------------------------------------


def test_of_frames_the_newest_waits_and_of_sound_all_up_to_the_bound() -> None:
    """While nobody took anything, five frames and five blocks came: one frame and three blocks are left."""
    given = threading.Event()

    def script() -> Iterator[Sample]:
        for k in range(1, 6):
            yield block(k * 20 * MS)
            yield frame(k)
        given.set()
        yield frame(6)

    source = supervised(Factory(ScriptedSource(script(), modalities=("image", "audio"), timing=LIVE)), audio_blocks=3)
    connection = source._connect()
    connection.read()
    assert given.wait(30)
    assert connection._done.wait(30)
    samples = source.samples()
    taken = [next(samples) for _ in range(4)]
    assert [(s.modality, s.t) for s in taken] == [("audio", k * 20 * MS) for k in (3, 4, 5)] + [("image", 6)]
    assert source.losses() == {"image.superseded": 5, "audio.overflow": 2}
    source.close()
    assert source.losses() == {"image.superseded": 5, "audio.overflow": 2}


def test_losses_of_the_device_itself_are_added_up_over_its_connections() -> None:
    """A source that counts is asked, before and after it was replaced."""

    class Counting(ScriptedSource):
        def losses(self) -> dict[str, int]:
            return {"audio.undecodable": 2}

    devices = [Counting([block(t)], timing=LIVE) for t in (1, 2)]
    source = supervised(Factory(*devices))
    samples = source.samples()
    next(samples)
    next(samples)
    assert source.losses() == {"audio.undecodable": 4}
    source.close()
    assert source.losses() == {"audio.undecodable": 4}


# --- opening and closing ---------------------------------------------------------------------------------------------


def test_prepare_finds_out_what_the_device_gives() -> None:
    """Before it, what is expected; after it, what is there, with its uncertainty; and it is not opened twice."""
    factory = Factory(ScriptedSource([frame(1)], timing=LIVE))
    source = supervised(factory)
    assert source.modalities == ("image", "audio")
    source.prepare()
    assert (source.modalities, source.timing) == (("image",), LIVE)
    assert first(source, 1)[0].t == 1
    assert len(factory.opened) == 1


def test_a_device_that_is_not_there_yet_is_waited_for() -> None:
    """Preparing leaves it at that, with the reason in the status; the samples come once it is there."""
    source = supervised(Factory(SourceError("no route to host"), scripted(frame(1))))
    source.prepare()
    assert source.status().error == "no route to host"
    assert first(source, 1)[0].t == 1


def test_closing_from_another_thread_ends_the_samples() -> None:
    """Also while the device waits; what had been opened is closed, and nothing is given afterwards."""
    clock, freed = FakeClock(SECOND), threading.Event()

    class Waiting(ScriptedSource):
        def close(self) -> None:
            super().close()
            freed.set()

    def script() -> Iterator[Sample]:
        yield frame(1)
        assert freed.wait(30)

    device = Waiting(script(), modalities=("image",), timing=LIVE)
    source = supervised(Factory(device), clock, options=Supervision())
    samples = source.samples()
    next(samples)
    threading.Thread(target=source.close, name="edge-mbm-source-test").start()
    assert list(samples) == []
    await_no_threads()
    assert device.closed
    source.close()
    assert list(source.samples()) == []


def test_one_that_was_never_read_is_closed() -> None:
    """After preparing alone, closing frees device and thread."""
    device = scripted(frame(1))
    source = supervised(Factory(device))
    source.prepare()
    source.close()
    assert device.closed


def test_closing_cuts_a_backoff_short() -> None:
    """The wait before the next attempt ends with the source."""
    source: Supervised

    class Closing(FakeClock):
        def sleep_until(self, t: int, stop: threading.Event) -> bool:
            source.close()
            assert stop.is_set()
            return True

    factory = Factory(SourceError("no route"))
    source = supervised(factory, Closing(SECOND))
    assert list(source.samples()) == []
    assert len(factory.opened) == 1


# --- what people see -------------------------------------------------------------------------------------------------


def test_passwords_are_in_no_message_status_or_log(caplog: pytest.LogCaptureFixture) -> None:
    """Neither from the name nor from what a library said."""
    secret = "s3cr3t"
    url = f"rtsp://admin:{secret}@10.0.0.5/live?token={secret}"
    options = Supervision(attempts=2, jitter=0)
    source = supervised(Factory(OSError(f"refused: '{url}'")), name=url, options=options)
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceError) as caught:
        list(source.samples())
    seen = [str(caught.value), repr(source.status()), caplog.text, *(thread.name for thread in threading.enumerate())]
    assert "rtsp://***@10.0.0.5/live?***" in seen[1]
    assert not [text for text in seen if secret in text]


def test_states_are_dated_by_the_clock() -> None:
    """Starting from the beginning, live since the first sample, and it does not change with the second."""
    clock = FakeClock(SECOND)

    def script() -> Iterator[Sample]:
        clock.advance(SECOND)
        yield block(1)
        yield block(2)
        assert done.wait(30)

    done = threading.Event()
    source = supervised(Factory(ScriptedSource(script(), modalities=("audio",), timing=LIVE)), clock)
    assert (source.status().state, source.status().since) == ("starting", SECOND)
    samples = source.samples()
    next(samples)
    clock.advance(SECOND)
    next(samples)
    status = source.status()
    assert (status.state, status.since, status.uncertainty_ns) == ("live", 2 * SECOND, 5 * MS)
    done.set()
    source.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"open_timeout_s": 0},
        {"stall_s": -1},
        {"backoff_s": (2, 1)},
        {"jitter": 1.5},
        {"attempts": 0},
        {"max_abandoned": 0},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    """With what they mean."""
    with pytest.raises(InputError):
        Supervision(**wrong)
