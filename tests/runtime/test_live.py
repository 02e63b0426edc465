"""Live: what reaches the consumer, and that nothing outlives its ``with``."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_mbm
from edge_mbm import Live, Sample, SessionOptions
from edge_mbm.errors import EdgeMbmError, EngineError, InputError, SessionClosedError, SourceError
from edge_mbm.runtime.governor import Action, GovernorOptions
from edge_mbm.runtime.source import MEDIA, Timing
from edge_mbm.runtime.wall import WallClock
from edge_mbm.spec import Component, Head
from edge_mbm.testing import FakeClock, NullEngine, ScriptedSource, tiny_bundle

MS, SECOND = 1_000_000, 1_000_000_000
BLACK = np.zeros((8, 8, 3), np.uint8)


class GatedSource:
    """Gives what the test hands it, when the test hands it; ``give`` returns once the stream has it."""

    modalities = ("image", "audio")
    timing = MEDIA

    def __init__(self) -> None:
        self._queue: queue.Queue[Sample | BaseException | None] = queue.Queue()
        self._taken = threading.Semaphore(0)
        self.closes = 0

    def give(self, *samples: Sample) -> None:
        for sample in samples:
            self._queue.put(sample)
            assert self._taken.acquire(timeout=30)

    def end(self, error: BaseException | None = None) -> None:
        self._queue.put(error)

    def samples(self) -> Iterator[Sample]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            self._taken.release()

    def close(self) -> None:
        self.closes += 1
        self._queue.put(None)


class Engines:
    """A loader that remembers its engines; each computes with ``compute``."""

    def __init__(self, compute: Callable[[Mapping[str, Any], Mapping[str, Any]], None] | None = None) -> None:
        self.made: list[NullEngine] = []
        self._compute = compute

    def __call__(self, name: str, component: Component, graph: bytes) -> NullEngine:
        self.made.append(NullEngine(name, component, graph, compute=self._compute))
        return self.made[-1]


def frame(t: int) -> Sample:
    return Sample("image", BLACK, t)


def block(t: int, milliseconds: int = 100) -> Sample:
    return Sample("audio", np.zeros(milliseconds, np.float32), t, milliseconds * MS)


def live(
    source: Any, engines: Engines | None = None, *, realtime: bool = True, clock: Any = None, **options: Any
) -> Live:
    return edge_mbm.open(
        tiny_bundle(),
        source,
        options=SessionOptions(**{"heads": ("color",)} | options),
        realtime=realtime,
        clock=clock or FakeClock(50 * SECOND),
        load_engine=engines or Engines(),
    )


def left_behind() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("edge-mbm")]


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    assert not left_behind()
    yield
    assert not left_behind()


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("realtime", [True, False])
def test_it_ends_when_the_source_ends(realtime: bool) -> None:
    """Every result is handed out, then iteration stops, and stays stopped."""
    with live(ScriptedSource([frame(10 * MS)]), realtime=realtime) as stream:
        results = list(stream)
        assert [r.t_capture - stream.origin for r in results] == [10 * MS]
        assert list(stream) == []


def test_capture_times_are_shifted_to_the_clock() -> None:
    """The source's time 0 is the moment of entering; ages are measured on that clock."""
    source, clock = GatedSource(), FakeClock(50 * SECOND)
    with live(source, clock=clock) as stream:
        assert stream.origin == 50 * SECOND
        source.give(frame(40 * MS))
        assert clock.now() == 50 * SECOND + 40 * MS  # it was paced
        clock.advance(5 * MS)
        result = next(stream)
        assert result.t_capture == 50 * SECOND + 40 * MS
        assert result.age >= 5 * MS


def test_a_slow_consumer_gets_the_newest_frame_and_is_told_of_the_rest() -> None:
    """A hundred frames while it was busy: one result, the newest, with 99 dropped; nothing piled up."""
    source = GatedSource()
    with live(source) as stream:
        source.give(frame(0))
        assert next(stream).dropped == 0
        source.give(*(frame(k * MS) for k in range(1, 101)))
        result = next(stream)
        assert (result.t_capture - stream.origin, result.dropped, result.seq) == (100 * MS, 99, 1)
        assert stream.session.stats()["image.superseded"] == 99


def test_audio_waits_up_to_its_bound() -> None:
    """Of a minute of sound for an encoder that is stuck ten seconds are held; what fell out is counted."""
    free = threading.Event()
    free.set()

    def stuck(inputs: Any, _: Any) -> None:
        assert "samples" not in inputs or free.wait(10)

    source = GatedSource()
    with live(source, Engines(stuck), heads=("event",), audio_buffer_s=10.0) as stream:
        source.give(block(0), frame(100 * MS))
        assert next(stream).missing == ()
        free.clear()
        source.give(*(block(t * 100 * MS) for t in range(1, 600)))
        assert stream.session.stats()["audio.lost_samples"] == pytest.approx(59_900 - 10_100, abs=100)
        free.set()


def test_a_silent_microphone_does_not_stop_the_picture() -> None:
    """With audio promised and never given, the deadline on the clock settles the frame."""
    source, clock = GatedSource(), FakeClock()
    with live(source, heads=("event",), clock=clock) as stream:
        source.give(frame(0))
        clock.advance(300 * MS)
        assert next(stream).missing == ("audio",)


def test_a_source_without_audio_is_not_waited_for() -> None:
    """What the source does not even promise is missing at once, on a clock that stands still."""
    source = ScriptedSource([frame(0), frame(MS)])
    with live(source, heads=("event",), realtime=False) as stream:
        assert [(r.missing, r.t_capture) for r in stream] == [(("audio",), 0), (("audio",), MS)]


def test_as_fast_as_possible_drops_nothing_and_repeats_itself() -> None:
    """Without pacing there is no thread, every frame is answered, and two runs agree."""

    def run() -> list[tuple[Any, ...]]:
        samples = [s for t in range(0, 2000, 20) for s in (block(t * MS, 20), frame(t * MS))]
        with live(ScriptedSource(samples), realtime=False, heads=("event", "color")) as stream:
            assert not left_behind()
            return [(r.head, r.seq, r.t_capture, r.missing, r.spread, r.dropped) for r in stream]

    first = run()
    assert len(first) == 200
    assert all(dropped == 0 for *_, dropped in first)
    assert first == run()


# --- what ends it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("broken cable"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_a_source_that_raises_reaches_the_consumer(error: BaseException) -> None:
    """After the results of what it gave before, as a SourceError with its cause; whatever it raised."""
    source, engines = GatedSource(), Engines()
    with live(source, engines) as stream:
        source.give(frame(0))
        source.end(error)
        assert next(stream).seq == 0
        with pytest.raises(SourceError, match=type(error).__name__) as caught:
            next(stream)
        assert caught.value.__cause__ is error
    assert all(engine.closed for engine in engines.made)


def test_our_own_errors_come_as_they_are() -> None:
    """A SourceError is not wrapped in another."""
    with (
        live(ScriptedSource([frame(0)], error=SourceError("unplugged"))) as stream,
        pytest.raises(SourceError, match=r"^unplugged$"),
    ):
        list(stream)


def test_a_source_that_raises_without_a_thread() -> None:
    """As fast as possible the error comes straight through, and the engines are closed."""
    engines = Engines()
    with (
        live(ScriptedSource([frame(0)], error=SourceError("unplugged")), engines, realtime=False) as stream,
        pytest.raises(SourceError, match="unplugged"),
    ):
        list(stream)
    assert all(engine.closed for engine in engines.made)


@pytest.mark.parametrize("realtime", [True, False])
def test_an_engine_that_always_raises_reaches_the_consumer(realtime: bool) -> None:
    """After ten times in a row; the source is closed and the threads gone, though it had more to give."""
    failed = threading.Semaphore(0)

    def fail(_: Any, __: Any) -> None:
        failed.release()
        raise EngineError("out of memory")

    def frames() -> Iterator[Sample]:
        for k in range(1000):
            yield frame(k)
            assert not realtime or k >= 10 or failed.acquire(timeout=10)

    engines, source = Engines(fail), ScriptedSource(frames(), modalities=("image",))
    with live(source, engines, realtime=realtime) as stream, pytest.raises(EngineError, match="out of memory"):
        next(stream)
    assert stream.session.stats()["image_encoder.failed"] == 11
    assert source.closed
    assert all(engine.closed for engine in engines.made)


@pytest.mark.parametrize("failing", ["image", "color"])
def test_an_engine_that_raises_once_costs_one_result(failing: str) -> None:
    """Of an encoder or a head: the next result says that one was dropped, and the counter says why."""
    runs = []

    def fail_second(inputs: Any, _: Any) -> None:
        if failing in inputs:
            runs.append(None)
            if len(runs) == 2:
                raise EngineError("a passing fault")

    with live(ScriptedSource([frame(k) for k in range(4)]), Engines(fail_second), realtime=False) as stream:
        assert [(r.t_capture, r.dropped) for r in stream] == [(0, 0), (2, 1), (3, 0)]
        name = "image_encoder" if failing == "image" else "color"
        assert stream.session.stats()[f"{name}.failed"] == 1


def test_the_loss_of_one_source_is_not_the_loss_of_all() -> None:
    """The microphone fails: pictures go on being answered without it, and its failure is raised at the end."""
    microphone = ScriptedSource([block(0)], error=OSError("unplugged"))
    camera = GatedSource()
    camera.modalities = ("image",)
    with live([camera, microphone], heads=("event",)) as stream:
        camera.give(frame(500 * MS))
        assert next(stream).missing == ("audio",)
        camera.give(frame(600 * MS))
        assert next(stream).missing == ("audio",)
        camera.end()
        with pytest.raises(SourceError, match="unplugged"):
            next(stream)


def test_a_sample_that_the_session_refuses_costs_that_sample() -> None:
    """NaN, a wrong shape, time that goes back: counted, and the stream goes on."""
    source = GatedSource()
    with live(source, heads=("event",)) as stream:
        source.give(Sample("audio", np.array([np.nan], np.float32), 0, MS), Sample("image", np.zeros(3), 0))
        source.give(block(0), frame(100 * MS), frame(90 * MS))
        assert next(stream).t_capture - stream.origin == 100 * MS
        assert until(lambda: stream.status().losses["sources.refused"] == 3)


def test_two_sources_of_one_modality_are_refused() -> None:
    """Which of two cameras is meant?"""
    with pytest.raises(SourceError, match="two sources give 'image'"):
        live([ScriptedSource([frame(0)]), ScriptedSource([frame(1)])])


def test_async_for_gives_the_same() -> None:
    """And the event loop is free while it waits."""

    async def consume() -> list[int]:
        with live(ScriptedSource([frame(k * MS) for k in range(3)]), realtime=False) as stream:
            return [result.t_capture async for result in stream]

    assert asyncio.run(consume()) == [0, MS, 2 * MS]


def test_it_says_why_a_head_has_not_fired() -> None:
    """In words: what it waits for, since when, and how long at most."""
    source, clock = GatedSource(), FakeClock()
    with live(source, heads=("event",), clock=clock) as stream:
        assert stream.explain() == {"event": "no 'image' has come yet"}


def test_data_the_session_refuses_reaches_the_consumer() -> None:
    """A source that gives NaN ends the stream with the session's InputError."""
    bad = Sample("audio", np.array([np.nan], np.float32), 0, 1)
    source = ScriptedSource([bad], modalities=("image", "audio"))
    with (
        live(source, heads=("event",), realtime=False) as stream,
        pytest.raises(InputError, match="NaN"),
    ):
        next(stream)


@pytest.mark.parametrize("realtime", [True, False])
def test_a_consumer_may_leave_early(realtime: bool) -> None:
    """After one of a thousand results everything is closed: source, thread, engines."""
    engines, source = Engines(), ScriptedSource([frame(k) for k in range(1000)])
    with live(source, engines, realtime=realtime) as stream:
        next(stream)
    assert source.closed
    assert all(engine.closed for engine in engines.made)
    with pytest.raises(SessionClosedError):
        next(stream)


def test_a_source_that_waits_for_its_device_is_woken() -> None:
    """Leaving closes the source first, so that a thread stuck in a read ends instead of being left behind."""
    source = GatedSource()
    with live(source) as stream:
        source.give(frame(0))
        next(stream)
        assert {thread.name for thread in left_behind()} == {"edge-mbm-capture", "edge-mbm-image_encoder"}
    assert source.closes >= 1


@pytest.mark.parametrize("realtime", [True, False])
def test_ctrl_c_in_the_loop_frees_everything(realtime: bool) -> None:
    """KeyboardInterrupt goes through unchanged."""
    engines, source = Engines(), ScriptedSource([frame(k) for k in range(1000)])

    def consume() -> None:
        with live(source, engines, realtime=realtime) as stream:
            for _ in stream:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert source.closed
    assert all(engine.closed for engine in engines.made)


def test_ctrl_c_while_computing_frees_everything() -> None:
    """It comes out of the engine's run, in the thread that iterates."""

    def interrupt(_: Any, __: Any) -> None:
        raise KeyboardInterrupt

    engines, source = Engines(interrupt), GatedSource()

    def consume() -> None:
        with live(source, engines) as stream:
            source.give(frame(0))
            next(stream)

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert source.closes
    assert all(engine.closed for engine in engines.made)


class Stubborn(ScriptedSource):
    """Fails to close."""

    def close(self) -> None:
        super().close()
        raise OSError("device busy")


def test_a_source_that_fails_to_close_does_not_keep_the_engines() -> None:
    """The failure is seen, and thread and engines are gone all the same."""
    engines = Engines()

    def consume() -> None:
        with live(Stubborn([frame(0)]), engines) as stream:
            list(stream)

    with pytest.raises(OSError, match="device busy"):
        consume()
    assert all(engine.closed for engine in engines.made)


# --- asking, choosing, watching --------------------------------------------------------------------------------------


def until(done: Callable[[], Any]) -> Any:
    """What ``done`` gives as soon as it is something."""
    for _ in range(2000):
        if value := done():
            return value
        threading.Event().wait(0.005)
    raise AssertionError("it did not happen within 10 s")


def test_a_control_loop_asks_for_the_latest() -> None:
    """Without waiting: nothing yet, then the newest with its age now, then nothing young enough."""
    source, clock = GatedSource(), FakeClock()
    with live(source, clock=clock) as stream:
        assert stream.latest() is None
        source.give(frame(10 * MS))
        assert until(stream.latest).t_capture == 10 * MS
        clock.advance(60 * MS)
        assert stream.latest(max_age=0.05) is None
        found = stream.latest("color", max_age=0.1)
        assert found is not None
        assert found.age == 60 * MS
        assert stream.latest("event") is None
        with pytest.raises(SessionClosedError, match="latest"):
            next(stream)


def test_what_is_played_fast_has_the_recordings_time() -> None:
    """A recording's times are seconds, the clock's are days: ages and silences are told in the former."""
    samples = [block(0), frame(100 * MS), frame(140 * MS)]
    with live(ScriptedSource(samples), heads=("color",), realtime=False) as stream:
        assert [result.t_capture for result in stream] == [100 * MS, 140 * MS]
        assert stream.status().t == 140 * MS
        assert stream.explain() == {"color": "'image' has ended; last result about 0 ms ago"}
    with live(ScriptedSource(samples), heads=("color",), realtime=False) as stream:
        assert until(lambda: (found := stream.latest(max_age=0.01)) and found.t_capture == 140 * MS)


def test_the_latest_raises_what_ended_the_stream() -> None:
    """A control loop must learn that its camera is gone."""
    source = ScriptedSource([frame(0)], error=OSError("unplugged"))
    with live(source) as stream, pytest.raises(SourceError, match="unplugged"):
        until(lambda: stream.latest() and None)


def test_a_disabled_head_rests_with_its_encoders() -> None:
    """Only what enabled heads need is run; enabled again it answers from what comes next."""
    engines = Engines()
    samples = [s for k in range(6) for s in (block(k * 100 * MS), frame((k + 1) * 100 * MS))]
    with live(ScriptedSource(samples), engines, realtime=False, heads=("event", "color")) as stream:
        audio = next(engine for engine in engines.made if engine.name == "audio_encoder")
        first = [next(stream).head for _ in range(2)]
        ran = audio.runs
        stream.session.disable("event")
        assert [next(stream).head for _ in range(2)] == ["color", "color"]
        assert audio.runs == ran
        stream.session.enable("event")
        assert sorted(first) == sorted({result.head for result in stream}) == ["color", "event"]
        assert audio.runs > ran
        with pytest.raises(InputError, match="no head 'smell'"):
            stream.session.disable("smell")


def test_a_stream_whose_only_head_is_disabled_goes_on() -> None:
    """It rests, to save power, and answers again when it is enabled; when its source ends, so does the stream."""
    source = GatedSource()
    with live(source, clock=FakeClock()) as stream:
        stream.session.disable("color")
        assert stream.latest() is None
        source.give(frame(0))
        assert not stream.session.is_over()
        stream.session.enable("color")
        source.give(frame(10 * MS))
        assert until(stream.latest).t_capture == 10 * MS
        stream.session.disable("color")
        source.end()
        assert until(stream.session.is_over)


def test_its_status_says_what_everything_does() -> None:
    """Sources with their state, encoders with their runs, heads with their last answer, and what was lost."""
    source = GatedSource()
    with live(source) as stream:
        source.give(frame(10 * MS))
        next(stream)
        status = stream.status()
        [camera], [encoder], [head] = status.sources, status.encoders, status.heads
        assert (camera.state, camera.samples, camera.last) == ("live", 1, stream.origin + 10 * MS)
        assert (encoder.name, encoder.runs, encoder.failed) == ("image_encoder", 1, 0)
        assert (head.name, head.results, head.last, head.enabled) == ("color", 1, stream.origin + 10 * MS, True)
        assert not any(status.losses.values())
        assert "last result" in stream.explain()["color"]


def test_a_step_of_wall_time_is_noted_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A minute forwards or back, by hand or by NTP, in the middle of a stream."""
    wall = [1_700_000_000 * SECOND]
    monkeypatch.setattr(
        edge_mbm.runtime.live, "WallClock", lambda: WallClock(wall=lambda: wall[0], monotonic=lambda: 0)
    )
    source, clock = GatedSource(), FakeClock()
    with live(source, clock=clock) as stream:
        ages = []
        for k, step in enumerate((0, 60, -120)):
            wall[0] += step * SECOND
            clock.advance(2 * SECOND - 40 * MS * (k > 0))
            source.give(frame(clock.now() + 40 * MS))
            ages.append(next(stream).age)
        assert max(ages) < SECOND
    assert [record.args for record in caplog.records] == [(60.0,), (-120.0,)]


class Strict:
    """In place of the governor, whose policy has tests of its own: holds the encoder at its second look."""

    def __init__(self, *_: Any) -> None:
        self.notes: tuple[str, ...] = ()
        self._looks = 0

    def update(self, *_: Any) -> list[Action]:
        self._looks += 1
        if self._looks != 2:
            return []
        self.notes = ("image_encoder held to 10 Hz: overload",)
        return [Action("image_encoder", 100 * MS, self.notes[0])]


def test_what_the_governor_says_is_done(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Asked once a second of the stream's clock; frames that come too soon are left out, and the status says why."""
    monkeypatch.setattr(edge_mbm.runtime.governor, "Governor", Strict)
    source, clock = GatedSource(), FakeClock()
    tiny = {"options": SessionOptions(heads=("color",)), "clock": clock, "load_engine": Engines()}
    with edge_mbm.open(tiny_bundle(), source, governor=GovernorOptions(), **tiny) as stream:
        source.give(frame(0))
        next(stream)
        assert stream.status().notes == ()
        clock.advance(SECOND)
        source.give(frame(SECOND))
        next(stream)
        source.give(frame(SECOND + 50 * MS), frame(SECOND + 100 * MS))
        result = next(stream)
        assert (result.t_capture, result.dropped) == (SECOND + 100 * MS, 1)
        assert stream.status().notes == ("image_encoder held to 10 Hz: overload",)
        assert [encoder.min_interval_ns for encoder in stream.status().encoders] == [100 * MS]
    assert "held to 10 Hz" in caplog.text


# --- ending it from elsewhere ----------------------------------------------------------------------------------------


class HeadEngines(Engines):
    """As ``Engines``, but heads alone compute: they run in the thread that takes the result."""

    def __call__(self, name: str, component: Component, graph: bytes) -> NullEngine:
        computing = self._compute if isinstance(component, Head) else None
        self.made.append(NullEngine(name, component, graph, compute=computing))
        return self.made[-1]


class Held:
    """A computation that begins and stays unfinished until it is released."""

    def __init__(self) -> None:
        self.begun, self._released = threading.Event(), threading.Event()

    def __call__(self, _inputs: Any, _outputs: Any) -> None:
        self.begun.set()
        assert self._released.wait(30)

    def release(self) -> None:
        self._released.set()


def in_thread(call: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


@pytest.mark.parametrize("realtime", [True, False])
def test_another_thread_may_close_it_while_a_result_is_computed(realtime: bool) -> None:
    """The result comes, iteration ends, and no engine is freed under the computation."""
    held, results = Held(), list[Any]()
    engines, source = HeadEngines(held), ScriptedSource([frame(k) for k in range(1000)])
    with live(source, engines, realtime=realtime) as stream:
        consumer = in_thread(lambda: results.extend(stream))
        assert held.begun.wait(30)
        closer = in_thread(stream.close)
        closer.join(0.1)
        assert closer.is_alive()
        assert not any(engine.closed for engine in engines.made)
        held.release()
        consumer.join(30)
        closer.join(30)
        assert len(results) == 1
        assert all(engine.closed for engine in engines.made)


@pytest.mark.parametrize("realtime", [True, False])
def test_a_signal_handler_may_close_it(realtime: bool) -> None:
    """It runs in the midst of whatever the thread does, a computation too: the stream ends after that result."""
    streams: list[Live] = []
    engines = HeadEngines(lambda _inputs, _outputs: streams[0].close())
    with live(ScriptedSource([frame(k) for k in range(1000)]), engines, realtime=realtime) as stream:
        streams.append(stream)
        assert len(list(stream)) == 1
    assert all(engine.closed for engine in engines.made)


@pytest.mark.parametrize("realtime", [True, False])
def test_the_loop_itself_may_close_it(realtime: bool) -> None:
    """It was the last turn, without an error."""
    taken = 0
    with live(ScriptedSource([frame(k) for k in range(1000)]), realtime=realtime) as stream:
        for _ in stream:
            taken += 1
            stream.close()
    assert taken == 1


def test_what_taps_it_may_close_it() -> None:
    """A recorder that has enough, in the thread that captures."""
    source = GatedSource()
    with live(source) as stream:
        stream.tap(lambda _sample: stream.close())
        consumer = in_thread(lambda: list(stream))
        source.give(frame(0))
        consumer.join(30)
    assert source.closes


def test_ctrl_c_while_it_is_entered_frees_everything() -> None:
    """Nobody leaves a ``with`` that was not entered, so what had started by then ends at once."""

    class Interrupted(ScriptedSource):
        @property
        def timing(self) -> Timing:
            if left_behind():
                raise KeyboardInterrupt
            return MEDIA

        @timing.setter
        def timing(self, _timing: Timing) -> None:
            pass

    engines, source = Engines(), Interrupted([frame(0)])
    with pytest.raises(KeyboardInterrupt):
        live(source, engines).__enter__()
    assert source.closed
    assert all(engine.closed for engine in engines.made)


def test_two_threads_cannot_take_results_at_once() -> None:
    """The second is told so, whichever way it asks, and the first goes on."""
    held, results = Held(), list[Any]()
    with live(ScriptedSource([frame(0)]), HeadEngines(held)) as stream:
        consumer = in_thread(lambda: results.extend(stream))
        assert held.begun.wait(30)
        with pytest.raises(SessionClosedError, match="another thread"):
            next(stream)
        with pytest.raises(SessionClosedError, match="iterated over"):
            stream.latest()
        held.release()
        consumer.join(30)
    assert len(results) == 1


def test_a_cancelled_wait_loses_no_result() -> None:
    """What was asked for when ``async for`` was cancelled is what the next one begins with."""
    held = Held()

    async def consume() -> list[int]:
        with live(ScriptedSource([frame(k * MS) for k in range(3)]), HeadEngines(held), realtime=False) as stream:
            waiting = asyncio.ensure_future(anext(aiter(stream)))
            await asyncio.to_thread(held.begun.wait, 30)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            held.release()
            return [result.t_capture async for result in stream]

    assert asyncio.run(consume()) == [0, MS, 2 * MS]


# --- opening ---------------------------------------------------------------------------------------------------------


def test_a_head_that_could_never_answer_is_refused() -> None:
    """A source without the head's pivot is a SourceError on opening, and it is closed."""
    source, engines = ScriptedSource([block(0)]), Engines()
    with pytest.raises(SourceError, match=r"\['audio'\].*'color' needs \['image'\]"):
        live(source, engines)
    assert source.closed
    assert all(engine.closed for engine in engines.made)


@pytest.mark.parametrize("given", [0, BLACK, [ScriptedSource([frame(0)]), "clip.mp4"]])
def test_what_is_no_source_is_refused_with_a_hint(given: Any) -> None:
    """A number, as other libraries name cameras, a frame, addresses in a list; what was a source is closed again."""
    with pytest.raises(SourceError, match=r"is no source.*one address"):
        live(given)
    assert not isinstance(given, list) or given[0].closed


def test_the_source_is_closed_when_the_bundle_does_not_load() -> None:
    """An unknown head, or an engine that fails, leaves no open camera."""
    source = ScriptedSource([frame(0)])
    with pytest.raises(EdgeMbmError):
        live(source, heads=("smell",))
    assert source.closed


def test_the_source_is_closed_when_the_governor_is_told_nonsense() -> None:
    """An encoder that is not there: the camera and the engines that were opened by then are free again."""
    source, engines = ScriptedSource([frame(0)]), Engines()
    with pytest.raises(InputError, match="nose"):
        edge_mbm.open(tiny_bundle(), source, load_engine=engines, governor=GovernorOptions(importance={"nose": 1.0}))
    assert source.closed
    assert all(engine.closed for engine in engines.made)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_opening_by_a_path_keeps_no_file_open() -> None:
    """A robot that opens a stream for each task would run out of handles; neither success nor failure keeps one."""
    before = open_files()
    with live(ScriptedSource([frame(0)])) as stream:
        assert len(list(stream)) == 1
        assert open_files() == before
    with pytest.raises(EdgeMbmError):
        live(ScriptedSource([frame(0)]), heads=("smell",))
    assert open_files() == before


def test_it_is_used_in_a_with_and_once() -> None:
    """Outside of it, twice within it, or after it: each says what to do."""
    stream = live(ScriptedSource([frame(0)]))
    with pytest.raises(SessionClosedError, match="with"):
        next(stream)
    with stream, pytest.raises(SessionClosedError, match="once"):
        stream.__enter__()
    with pytest.raises(SessionClosedError):
        stream.__enter__()
    stream.close()
