"""A session fed by a source: an iterator of results, bounded to whoever consumes them."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from msgspec import structs

from edge_mbm.errors import SessionClosedError, SourceError
from edge_mbm.runtime.bundle import Bundle, load
from edge_mbm.runtime.capture import Capture
from edge_mbm.runtime.clock import Clock, MonotonicClock
from edge_mbm.runtime.engine import EngineLoader
from edge_mbm.runtime.file_source import FileSource
from edge_mbm.runtime.result import Result
from edge_mbm.runtime.session import Session, SessionOptions
from edge_mbm.runtime.source import Source
from edge_mbm.spec import AudioModality, ImageModality, Manifest

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Live", "open_live"]


def open_live(
    bundle: str | os.PathLike[str] | Bundle,
    source: str | os.PathLike[str] | Source,
    *,
    options: SessionOptions | None = None,
    realtime: bool = True,
    clock: Clock | None = None,
    load_engine: EngineLoader | None = None,
) -> Live:
    """Load a bundle and stream a source through it; use it in a ``with``, and iterate over it.

    Args:
        bundle: a path, or an opened bundle.
        source: a video file's path, or any ``Source``.
        options: of the session.
        realtime: play the source at its own pace, dropping frames that come while the consumer or the model is busy.
            False runs through all of it as fast as possible, in this thread: nothing is dropped and every run gives
            the same results.
        clock: monotonic time, for tests.
        load_engine: see ``Bundle.session``.

    Raises:
        BundleError, InputError, EngineError, SourceError, MissingDependencyError: whatever cannot be opened.
    """
    opened = bundle if isinstance(bundle, Bundle) else load(bundle)
    feed = _file_source(opened.manifest, source) if isinstance(source, str | os.PathLike) else source
    try:
        session = opened.session(options, load_engine=load_engine)
        try:
            _check_feeds(session, feed)
        except BaseException:
            session.close()
            raise
    except BaseException:
        feed.close()
        raise
    return Live(session, feed, realtime=realtime, clock=clock)


class Live:
    """Results of a session as a source feeds it.

    In real time one thread captures; encoding and heads run in the thread that iterates. So nothing piles up behind a
    slow consumer: while it is busy, newer frames replace older ones (counted in ``Result.dropped``) and audio waits in
    a buffer of ``SessionOptions.audio_buffer_s``. The first failure of the source reaches the iterating thread, after
    the results of what it gave before.

    Args:
        session: it is closed with this.
        source: it is closed with this.
        realtime: see ``open_live``.
        clock: monotonic time.
    """

    def __init__(self, session: Session, source: Source, *, realtime: bool = True, clock: Clock | None = None) -> None:
        self.session = session
        self.source = source
        self.origin = 0
        """The session's time of the source's time 0, ns: ``result.t_capture - live.origin`` is media time."""
        self._clock = clock or MonotonicClock()
        self._capture = Capture(session, source, self._clock) if realtime else None
        self._results: Generator[Result] | None = None
        self._closed = False

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        """The next result, waiting for it.

        Raises:
            StopIteration: the source ended and everything was handed out.
            SourceError, EngineError: the first failure, with its cause.
            SessionClosedError: outside of its ``with``.
        """
        if self._results is None:
            raise SessionClosedError("a live stream runs inside its with: 'with edge_mbm.open(...) as live: ...'")
        return next(self._results)

    def __enter__(self) -> Self:
        if self._closed or self._results is not None:
            raise SessionClosedError("a live stream is entered once: open it again")
        for modality in set(self.session.modalities) - set(self.source.modalities):
            self.session.end(modality)
        if self._capture is None:
            self._results = self._play()
        else:
            self._capture.start()
            self.origin = self._capture.origin
            self._results = self._follow(self._capture)
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop capturing, wait for the thread, free the engines. May be called twice."""
        self._closed, results, self._results = True, self._results, None
        with ExitStack() as closing:  # each of them, whatever another raises
            closing.callback(self.session.close)
            closing.callback(self.source.close)
            if self._capture is not None:
                closing.callback(self._capture.close)
            if results is not None:
                closing.callback(results.close)

    def _play(self) -> Generator[Result]:
        """As fast as possible: every sample is encoded before the next is read, so nothing can be dropped."""
        for sample in self.source.samples():
            self.session.push(sample.modality, sample.data, sample.t, rate=sample.rate)
            yield from self.session.poll()
        yield from self.session.finish()

    def _follow(self, capture: Capture) -> Generator[Result]:
        """At the source's pace: whenever a result is asked for, encode the newest of what has come."""
        ended = False
        while not ended:
            ended = capture.deliver(self.session)
            now = self._clock.now()
            for result in self.session.finish(now) if ended else self.session.poll(now):
                # The consumer may have been slow with the ones before.
                yield structs.replace(result, age=max(result.age, self._clock.now() - result.t_capture))
        capture.raise_failure()


def _file_source(manifest: Manifest, path: str | os.PathLike[str]) -> FileSource:
    """A file's picture and sound as the bundle's first image and first audio modality."""
    images = [name for name, modality in manifest.modalities.items() if isinstance(modality, ImageModality)]
    audios = [name for name, modality in manifest.modalities.items() if isinstance(modality, AudioModality)]
    return FileSource(path, image=images[0] if images else None, audio=audios[0] if audios else None)


def _check_feeds(session: Session, source: Source) -> None:
    """Refuse a source that some head could never work with, rather than waiting for ever."""
    for planned in session.plan:
        head = session.manifest.heads().get(planned.name)
        if head is None:
            continue
        lacking = [m for m in session.manifest.modalities_of(planned.name) if m not in source.modalities]
        if head.pivot in lacking or (lacking and head.present is None):
            raise SourceError(
                f"the source gives {list(source.modalities)}, but head '{planned.name}' needs "
                f"{[head.pivot] if head.pivot in lacking else lacking}: use another source, or another head"
            )
