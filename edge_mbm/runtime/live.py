"""A session fed by sources: an iterator of results, bounded to whoever consumes them."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from msgspec import structs

from edge_mbm.errors import EngineError, InputError, SessionClosedError, SourceError
from edge_mbm.preprocess import as_lines, as_text
from edge_mbm.runtime.bundle import Bundle, load
from edge_mbm.runtime.capture import Capture
from edge_mbm.runtime.clock import Clock, MonotonicClock
from edge_mbm.runtime.engine import EngineLoader
from edge_mbm.runtime.failures import Failures
from edge_mbm.runtime.follower import Follower
from edge_mbm.runtime.log import warn
from edge_mbm.runtime.plan import choose_heads
from edge_mbm.runtime.result import Result
from edge_mbm.runtime.session import Session, SessionOptions
from edge_mbm.runtime.source import Sample, Source
from edge_mbm.runtime.status import LiveStatus
from edge_mbm.runtime.wall import WallClock
from edge_mbm.runtime.worker import Worker
from edge_mbm.spec import AudioModality, ImageModality, Manifest, TextModality, VideoModality

if TYPE_CHECKING:
    from asyncio import Future

    from typing_extensions import Self

    from edge_mbm.runtime.governor import Governor, GovernorOptions
    from edge_mbm.runtime.heat import HeatReader

__all__ = ["Live", "open_live"]

Address: TypeAlias = str | os.PathLike[str] | Source
"""A path, an address, or a source."""

_SECOND = 1_000_000_000
# Waiting is cut into pieces, so that Ctrl-C is noticed at once on every platform.
_WAIT_S = 0.1
_JOIN_S = 5.0


def open_live(
    bundle: str | os.PathLike[str] | Bundle,
    source: Address | Sequence[Source] | None = None,
    *,
    video: Address | None = None,
    audio: Address | None = None,
    text: str | Sequence[str] | None = None,
    options: SessionOptions | None = None,
    realtime: bool = True,
    clock: Clock | None = None,
    load_engine: EngineLoader | None = None,
    governor: GovernorOptions | None = None,
    isolation: Literal["thread", "process"] = "thread",
) -> Live:
    """Load a bundle and stream sources through it; use it in a ``with``, and iterate over it.

    Args:
        bundle: a path, or an opened bundle.
        source: what gives picture and sound together: a file's path, an address (``rtsp://...``, see
            ``edge_mbm.runtime.sources.open_source``), any ``Source``, or several that give different modalities.
        video: what gives the pictures: the same, or ``v4l2:///dev/video0``.
        audio: what gives the sound: the same, or ``mic://default``.
        text: what the bundle's text (a prompt) is from the beginning, or a list of prompts; in real time
            ``Live.say`` changes it. Leave it out where a source gives the text.
        options: of the session.
        realtime: play recordings at their own pace, dropping frames that come while the consumer or the model is busy.
            False runs through all of it as fast as possible, in this thread: nothing is dropped and every run gives
            the same results.
        clock: monotonic time, for tests.
        load_engine: see ``Bundle.session``.
        governor: see ``Live``.
        isolation: "process" opens each device in a process of its own: see ``open_source``.

    Raises:
        BundleError, InputError, EngineError, SourceError, MissingDependencyError: whatever cannot be opened.
    """
    with ExitStack() as reading, ExitStack() as undo:
        # The session has all that it needs of the files when it is made.
        opened = bundle if isinstance(bundle, Bundle) else reading.enter_context(load(bundle))
        sources: list[Source] = []
        opening = _Opening(opened.manifest, clock, isolation)
        for feed in opening.sources(source, video, audio):
            _check_is_source(feed)
            undo.callback(feed.close)
            sources.append(feed)
        sources[:0] = _texts(opened.manifest, sources, text, clock, realtime=realtime)
        session = opened.session(options, load_engine=load_engine)
        undo.callback(session.close)
        _check_feeds(session, sources, realtime=realtime)
        live = Live(session, sources, realtime=realtime, clock=clock, governor=governor)
        undo.pop_all()
    return live


class Live:
    """Results of a session as its sources feed it.

    In real time each source has a thread, and so has each encoder; heads run in the thread that iterates. Encoders
    whose output is a head's pivot work while a result is waited for, and once just before one is expected to be again,
    so nothing piles up behind a slow consumer: while it is busy, newer frames replace older ones (counted in
    ``Result.dropped``) and audio waits in a buffer of ``SessionOptions.audio_buffer_s``; what was ready and has been
    overtaken by then is dropped and counted too.

    A source that fails or ends holds up none of the others: heads go on without its modalities, if they can. An engine
    that fails costs one result; more than ``max_failures`` in a row end the stream. The first failure reaches the
    iterating thread, after the results of what came before.

    Args:
        session: it is closed with this.
        sources: they are closed with this.
        realtime: see ``open_live``.
        clock: monotonic time.
        max_failures: of one component in a row.
        governor: lowers the rates of less important encoders while there is too much to do, or it is too hot.
    """

    def __init__(
        self,
        session: Session,
        sources: Sequence[Source],
        *,
        realtime: bool = True,
        clock: Clock | None = None,
        max_failures: int = 10,
        governor: GovernorOptions | None = None,
    ) -> None:
        self.session = session
        self.sources = tuple(sources)
        self.origin = 0
        """The session's time of a recording's time 0, ns: ``result.t_capture - live.origin`` is media time."""
        self._clock = clock or MonotonicClock()
        self._realtime = realtime
        self._failures = Failures(max_failures)
        self._governing = _governing(session, governor) if realtime and governor is not None else None
        self._wall = WallClock()
        self._tick_at = 0
        self._tap: Callable[[Sample], None] | None = None
        self._changed = threading.Condition()
        self._news = False
        self._results: Iterator[Result] | None = None
        self._follower: Follower | None = None
        self._closed = False
        self._turn = threading.RLock()
        self._taker: int | None = None
        """The thread that takes a result, and has the turn."""
        self._asked: Future[Result | None] | None = None
        self._left: int | None = None
        self._absences: tuple[int | None, int | None] = (None, None)
        """How long the consumer was away the last two times, ns."""
        self._captures = [Capture(session, source, self._clock, self._pushed) for source in sources] if realtime else []
        self._workers = [self._make_worker(name) for name in session.encoders] if realtime else []

    # --- consuming ---------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        """The next result, waiting for it.

        Raises:
            StopIteration: the sources ended and everything was handed out.
            SourceError, EngineError: the first failure, with its cause.
            SessionClosedError: outside of its ``with``, or another thread waits for a result already.
        """
        if self._follower is not None:
            raise SessionClosedError("latest() consumes this stream: do not iterate over it too")
        if self._results is None:
            raise SessionClosedError("a live stream runs inside its with: 'with edge_mbm.open(...) as live: ...'")
        return self._take(self._results)

    async def __aiter__(self) -> AsyncIterator[Result]:
        """The same, for ``async for``: the event loop is not held up while waiting.

        Where that is cancelled, as by ``asyncio.wait_for``, no result is lost: the next ``async for`` begins with it.
        """
        while (result := await self._ask()) is not None:
            yield result

    def latest(self, head: str | None = None, *, max_age: float | None = None) -> Result | None:
        """The newest result, without waiting: for a control loop that asks at its own rate.

        The first call starts a thread that consumes the stream from then on, so do not iterate over it too.

        Args:
            head: whose; None for the newest of any.
            max_age: seconds since capture beyond which a result is not worth having.

        Returns:
            The newest result with its age now, or None if there is none, or none young enough.

        Raises:
            SourceError, EngineError: the stream has ended by a failure.
            SessionClosedError: outside of its ``with``, or it is being iterated over.
        """
        if self._results is None:
            raise SessionClosedError("a live stream runs inside its with: 'with edge_mbm.open(...) as live: ...'")
        if self._follower is None:
            if self._taker is not None:
                raise SessionClosedError("this stream is iterated over: take its results there, or by latest() alone")
            self._follower = Follower(self._results)
        result = self._follower.newest(head)
        if result is None:
            return None
        age = max(0, self._now() - result.t_capture)
        return None if max_age is not None and age > max_age * _SECOND else structs.replace(result, age=age)

    def status(self) -> LiveStatus:
        """What sources, encoders and heads are doing, and what was lost."""
        encoders, heads = self.session.status()
        return LiveStatus(
            t=self._now(),
            sources=tuple(capture.status() for capture in self._captures),
            encoders=encoders,
            heads=heads,
            losses=self.session.stats() | {"sources.refused": sum(capture.refused for capture in self._captures)},
            notes=() if self._governing is None else self._governing[0].notes,
        )

    def explain(self) -> dict[str, str]:
        """Per head, in words, why it has not fired, or when it last did."""
        return self.session.explain(self._now())

    def say(self, text: str | Sequence[str]) -> None:
        """From now on the bundle's text (a prompt) is this; results of what is captured afterwards follow it.

        Args:
            text: up to the number of characters that the text's preprocessing takes; where the bundle takes a list of
                prompts (``Manifest.lines``), with one on each line, or as a sequence of them.

        Raises:
            InputError: it is not such a text, or this stream's text comes from a recording or a source of its own.
        """
        from edge_mbm.runtime.sources import TextSource  # noqa: PLC0415 - a robot that pushes needs none of them

        source = next((source for source in self.sources if isinstance(source, TextSource)), None)
        if source is None:
            raise InputError(
                "this stream has no text to change: open it in real time, with the first one, as in "
                "edge_mbm.open(bundle, source, text='a red mug')"
            )
        source.set(_said(self.session.manifest, source.modalities[0], text))

    def tap(self, taker: Callable[[Sample], None]) -> None:
        """Give every sample that was pushed to ``taker`` too, such as a recorder.

        Args:
            taker: called in the capturing threads, with times on the session's clock; it must be quick, keep nothing
                of the data without a copy, and raise nothing: what it raises ends the source.
        """
        self._tap = taker

    def _now(self) -> int:
        """The session's time: of what is played as fast as possible, how far that is."""
        return self._clock.now() if self._realtime else self.session.newest

    # --- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._closed or self._results is not None:
            raise SessionClosedError("a live stream is entered once: open it again")
        given = {modality for source in self.sources for modality in source.modalities}
        for modality in set(self.session.modalities) - given:
            self.session.end(modality)
        self._results = self._follow() if self._realtime else self._play()
        if self._realtime:
            self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.close()
        finally:
            self._results = None

    def close(self) -> None:
        """Stop capturing, wait for the threads, free the engines; iteration ends. May be called twice.

        Any thread may call it. In the midst of taking a result, as a signal handler or what taps a file may, it ends
        the stream after that result, and leaves the rest to the end of the ``with``.
        """
        self._closed = True
        if self._taker == threading.get_ident():
            return
        with ExitStack() as closing:  # each of them, whatever another raises
            closing.callback(self.session.close)
            closing.callback(self._await_taker)
            if self._follower is not None:
                closing.callback(self._follower.close)
            for source in self.sources:
                closing.callback(source.close)
            for worker in self._workers:
                closing.callback(worker.close)
            for capture in self._captures:
                closing.callback(capture.close)
            with self._changed:
                self._changed.notify_all()

    def _take(self, results: Iterator[Result]) -> Result:
        if not self._turn.acquire(blocking=False) and not (self._closed and self._turn.acquire()):
            raise SessionClosedError("another thread waits for a result of this stream: let one take them for both")
        try:
            self._taker = threading.get_ident()
            return next(results)
        finally:
            self._taker = None
            self._turn.release()

    async def _ask(self) -> Result | None:
        """The next result, or None; what a cancelled call has asked for is the next call's."""
        import asyncio  # noqa: PLC0415 - only for those who use it

        if self._asked is None or self._asked.get_loop() is not asyncio.get_running_loop():
            self._asked = asyncio.ensure_future(asyncio.to_thread(next, self, None))
        asked = self._asked
        await asyncio.wait([asked])
        self._asked = None
        return asked.result()

    def _await_taker(self) -> None:
        """Its engines are not freed under whoever is computing a result."""
        if self._turn.acquire(timeout=_JOIN_S):
            self._turn.release()

    def _start(self) -> None:
        self.origin = self._clock.now()
        try:
            for worker in self._workers:
                worker.start()
            for capture in self._captures:
                capture.start(self.origin)
        except BaseException:  # Ctrl-C too: what was not entered is not left
            self.close()
            raise

    def _make_worker(self, encoder: str) -> Worker:
        return Worker(
            self.session,
            encoder,
            self._clock,
            on_encoded=lambda: self._encoded(encoder),
            failures=self._failures,
        )

    # --- as fast as possible -----------------------------------------------------------------------------------------

    def _play(self) -> Iterator[Result]:
        """Every sample is encoded before the next is read, so nothing can be dropped."""
        streams = [source.samples() for source in self.sources]
        for sample in heapq.merge(*streams, key=lambda sample: sample.t + sample.duration):
            if sample.modality not in self.session.manifest.modalities:
                continue  # a recording may hold more than the bundle wants
            if self._closed:
                return
            self.session.push(sample.modality, sample.data, sample.t, rate=sample.rate)
            if self._tap is not None:
                self._tap(sample)
            yield from self._polled(self.session.poll)
        if not self._closed:
            yield from self._polled(self.session.finish)

    def _polled(self, poll: Callable[[], list[Result]]) -> Iterator[Result]:
        while True:
            try:
                results = poll()
            except EngineError as error:
                self._failures.count("a component", error)
                continue
            if results:
                self._failures.clear("a component")
            yield from results
            return

    # --- at the sources' pace ----------------------------------------------------------------------------------------

    def _follow(self) -> Iterator[Result]:
        """Whenever a result is asked for, the newest of what has come."""
        while True:
            result = self._next()
            if result is None:
                break
            # The consumer may have been slow to come back, or the head slow to run.
            yield structs.replace(result, age=max(result.age, self._clock.now() - result.t_capture))
        for capture in () if self._closed else self._captures:
            capture.raise_failure()

    def _next(self) -> Result | None:
        """Wait for a result; None when no more can come."""
        now = self._clock.now()
        self._absences = (self._absences[1], None if self._left is None else now - self._left)
        self.session.keep_newest(now)
        self._wake(self.session.want_results())
        try:
            while not self._closed:
                self._tick()
                is_over = self.session.is_over()
                if (result := self._collect()) is not None:
                    return result
                if is_over:
                    return None
                self._wait()
            return None
        finally:
            self._leave()

    def _collect(self) -> Result | None:
        for worker in self._workers:
            if worker.failure is not None:
                raise worker.failure
        try:
            result = self.session.collect_one(self._clock.now())
        except EngineError as error:
            self._failures.count("a head", error)
            return None
        if result is not None:
            self._failures.clear("a head")
        return result

    def _leave(self) -> None:
        """The consumer is expected back no sooner than it was of late."""
        self._left = self._clock.now()
        first, second = self._absences
        self.session.leave_results(None if first is None or second is None else self._left + min(first, second))
        self._wake(self.session.encoders)

    def _wake(self, encoders: Collection[str]) -> None:
        for worker in self._workers:
            if worker.encoder in encoders:
                worker.wake()

    def _tick(self) -> None:
        """About once a second: a step of wall time is noted, and what the governor makes of the stream is done."""
        now = self._clock.now()
        if now < self._tick_at:
            return
        self._tick_at = now + _SECOND
        self._wall.check()
        if self._governing is None:
            return
        governor, heat = self._governing
        for action in governor.update(self.status(), heat.read()):
            self.session.hold_rate(action.encoder, action.min_interval_ns)
            warn(__name__, "%s", action.note)

    def _wait(self) -> None:
        deadline = self.session.deadline()
        patience = _WAIT_S if deadline is None else min(_WAIT_S, max(0.0, (deadline - self._clock.now()) / _SECOND))
        with self._changed:
            if not self._news:
                self._changed.wait(patience)
            self._news = False

    def _pushed(self, sample: Sample | None) -> None:
        for worker in self._workers:
            if sample is None or self.session.reads(worker.encoder, sample.modality):
                worker.wake()
        if sample is None or self.session.is_settling:
            self._notify()
        if sample is not None and self._tap is not None:
            self._tap(sample)

    def _encoded(self, encoder: str) -> None:
        self._wake(self.session.told_by(encoder))
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._news = True
            self._changed.notify()


class _Opening:
    """Opens what is addressed, under the bundle's names for picture and sound."""

    def __init__(self, manifest: Manifest, clock: Clock | None, isolation: Literal["thread", "process"]) -> None:
        pictures = [
            next((name for name, m in manifest.modalities.items() if isinstance(m, kind)), None)
            for kind in (ImageModality, VideoModality)
        ]
        named = [name for name in pictures if name is not None]
        self._image = named[0] if named else None
        self._also = named[1:]
        self._audio = next((name for name, m in manifest.modalities.items() if isinstance(m, AudioModality)), None)
        self._clock = clock
        self._isolation = isolation

    def sources(
        self, source: Address | Sequence[Source] | None, video: Address | None, audio: Address | None
    ) -> Iterator[Source]:
        """One after the other, so that those before can be closed if one fails to open."""
        if source is None and video is None and audio is None:
            raise SourceError("nothing to stream: give a source, or video and audio")
        if video is not None and video == audio:
            source, video, audio = video, None, None
        if isinstance(source, list | tuple):
            yield from source
        elif source is not None:
            yield self._open(source, self._image, self._audio)
        if video is not None:
            yield self._open(video, self._image, None)
        if audio is not None:
            yield self._open(audio, None, self._audio)

    def _open(self, source: Any, image: str | None, audio: str | None) -> Source:
        from edge_mbm.runtime.sources import SharedSource, open_source  # noqa: PLC0415 - a robot that pushes needs none of them

        opened = open_source(source, image=image, audio=audio, clock=self._clock, isolation=self._isolation)
        also = tuple(name for name in self._also if name not in opened.modalities)
        return opened if image is None or not also else SharedSource(opened, image, also)


def _texts(
    manifest: Manifest,
    sources: Sequence[Source],
    text: str | Sequence[str] | None,
    clock: Clock | None,
    *,
    realtime: bool,
) -> list[Source]:
    """What says the bundle's text, if it is given."""
    if text is None:
        return []
    from edge_mbm.runtime.sources import FixedTextSource, TextSource  # noqa: PLC0415 - most streams have no text

    name = next((name for name, m in manifest.modalities.items() if isinstance(m, TextModality)), None)
    if name is None:
        shown = text if isinstance(text, str) else ", ".join(text)
        raise InputError(f"the text {shown[:40]!r} has no place: '{manifest.name}' takes no text")
    if any(name in source.modalities for source in sources):
        raise InputError(f"a source gives '{name}' already: leave out the text")
    first = _said(manifest, name, text)
    if not realtime:
        return [FixedTextSource(name, first)]
    source = TextSource(name, clock=clock)
    source.set(first)
    return [source]


def _said(manifest: Manifest, modality: str, text: str | Sequence[str]) -> str:
    """A text as a source gives it, checked where it is said and not only where it is read.

    Args:
        manifest: of the bundle that it is for.
        modality: that it is.
        text: one, or several prompts.

    Raises:
        InputError: it is no text, or not as many prompts as the bundle takes.
    """
    lines = manifest.lines(modality)
    if isinstance(text, list | tuple):
        if lines == 1 and len(text) != 1:
            raise InputError(f"'{manifest.name}' takes one prompt at a time, and there are {len(text)}")
        text = "\n".join(as_text(line) for line in text)
    as_lines(text, lines)
    return as_text(text)


def _governing(session: Session, options: GovernorOptions) -> tuple[Governor, HeatReader]:
    """Imported here: most streams go without, and all would start later."""
    from edge_mbm.runtime.governor import Governor, levers  # noqa: PLC0415 - see above
    from edge_mbm.runtime.heat import HeatReader  # noqa: PLC0415

    return Governor(levers(session), options), HeatReader()


def _check_is_source(given: object) -> None:
    lacking = [name for name in ("modalities", "timing", "samples", "close") if not hasattr(given, name)]
    if lacking:
        raise SourceError(
            f"{str(given)[:40]!r} is no source, it has no {', '.join(lacking)}: give one address as text, such as "
            "'v4l2:///dev/video0', or objects as edge_mbm.runtime.sources has them, such as CallableSource"
        )


def _check_feeds(session: Session, sources: Sequence[Source], *, realtime: bool) -> None:
    """Refuse sources that some head could never work with, rather than waiting for ever."""
    if not realtime and any(source.timing.clock != "media" for source in sources):
        raise SourceError("a device cannot be played as fast as possible: leave out realtime=False (--fast)")
    given = [modality for source in sources for modality in source.modalities]
    for modality in given:
        if given.count(modality) > 1:
            raise SourceError(f"two sources give '{modality}': name their modalities apart")
    for name in choose_heads(session.manifest, session.options.heads):
        timing = session.manifest.results()[name]
        lacking = [m for m in session.manifest.modalities_of(name) if m not in given]
        if needed := timing.needs(lacking) or tuple({timing.pivot} & set(lacking)):
            raise SourceError(
                f"the source gives {given}, but head '{name}' needs "
                f"{[timing.pivot] if timing.pivot in lacking else list(needed)}: use another source, or another head"
            )
