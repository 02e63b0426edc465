"""One thread per source: it paces what is played, and pushes what comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from edge_mbm.errors import EdgeMbmError, InputError, SourceError
from edge_mbm.runtime.clock import Clock
from edge_mbm.runtime.log import warn
from edge_mbm.runtime.session import Session
from edge_mbm.runtime.source import Sample, Source
from edge_mbm.runtime.status import SourceStatus

__all__ = ["Capture"]

_JOIN_S = 5.0


class Capture:
    """Pushes a source's samples into a session as they come.

    The session bounds what waits: one frame per encoder, audio up to ``SessionOptions.audio_buffer_s``. Data that the
    session refuses (NaN, a wrong shape, time that goes back) costs that sample, and is counted.

    Args:
        session: to push into.
        source: a recording's times are shifted by ``origin``; a device's are taken as they are.
        clock: to pace with.
        on_push: told of each sample that was pushed, its time as the session has it; None when the source has ended.
    """

    def __init__(
        self, session: Session, source: Source, clock: Clock, on_push: Callable[[Sample | None], None]
    ) -> None:
        self.source = source
        self.origin = 0
        self.samples = self.refused = 0
        self.last: int | None = None
        self.ended = False
        self.failure: BaseException | None = None
        self._session = session
        self._clock = clock
        self._on_push = on_push
        self._since = clock.now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edge-mbm-capture", daemon=True)

    def start(self, origin: int) -> None:
        """Start the thread; a recording's time 0 is ``origin``."""
        self.origin = origin if self.source.timing.clock == "media" else 0
        self._thread.start()

    def raise_failure(self) -> None:
        """Raise what ended the source, if it was a failure.

        Raises:
            SourceError: with its cause.
        """
        if isinstance(self.failure, EdgeMbmError):
            raise self.failure
        if self.failure is not None:
            raise SourceError(f"the source failed: {self.failure!r}") from self.failure

    def status(self) -> SourceStatus:
        """What it is doing: the source's own word, if it keeps one."""
        own = getattr(self.source, "status", None)
        if own is not None:
            found: SourceStatus = own()
            return found
        return SourceStatus(
            name=type(self.source).__name__,
            state="ended" if self.ended else "live" if self.samples else "starting",
            since=self._since,
            modalities=self.source.modalities,
            samples=self.samples,
            last=self.last,
            stalls=0,
            reconnects=0,
            error=None if self.failure is None else str(self.failure),
            uncertainty_ns=self.source.timing.uncertainty_ns,
        )

    def close(self) -> None:
        """Stop the thread, close the source, which may be waiting for its device, and wait for the thread."""
        self._stop.set()
        try:
            self.source.close()
        finally:
            if self._thread is not threading.current_thread():  # what taps the stream may end it
                self._join()

    def _join(self) -> None:
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            warn(__name__, "the source did not stop within %.0f s; its thread is left behind", _JOIN_S)

    def _run(self) -> None:
        try:
            for sample in self.source.samples():
                due = self.origin + sample.t + sample.duration
                if self._stop.is_set() or (self._is_played() and self._clock.sleep_until(due, self._stop)):
                    return
                self._push(sample)
        except BaseException as error:  # noqa: BLE001 - whatever a driver raises must reach the consumer, not die here
            self.failure = error
            warn(__name__, "the source of %s failed: %r", list(self.source.modalities), error)
        finally:
            self._end()

    def _is_played(self) -> bool:
        return self.source.timing.clock == "media"

    def _push(self, sample: Sample) -> None:
        if sample.modality not in self._session.manifest.modalities:
            return
        sample = sample._replace(t=self.origin + sample.t)
        try:
            self._session.push(sample.modality, sample.data, sample.t, rate=sample.rate)
        except InputError as error:
            self._refuse(sample, error)
            return
        if self.samples == 0:
            self._since = self._clock.now()
        self.samples, self.last = self.samples + 1, sample.t
        self._on_push(sample)

    def _refuse(self, sample: Sample, error: Any) -> None:
        self.refused += 1
        if self.refused.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...: a broken driver must not fill the disk
            warn(__name__, "sample %d of '%s' was refused: %s", self.refused, sample.modality, error)

    def _end(self) -> None:
        if not self._stop.is_set():
            # A recording may hold more than the bundle wants.
            for modality in self.source.modalities:
                if modality in self._session.manifest.modalities:
                    self._session.end(modality)
        self.ended, self._since = True, self._clock.now()
        self._on_push(None)
