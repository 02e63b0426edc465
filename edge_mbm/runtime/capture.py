"""The one thread of a live stream: it paces a source and keeps the newest of what it gives."""

from __future__ import annotations

import threading
from collections import deque

from edge_mbm.errors import EdgeMbmError, SourceError
from edge_mbm.runtime.clock import Clock
from edge_mbm.runtime.session import Session
from edge_mbm.runtime.source import Sample, Source
from edge_mbm.spec import AudioModality

__all__ = ["Capture"]

_SECOND = 1_000_000_000
_JOIN_S = 5.0
# Waiting is cut into pieces, so that Ctrl-C is noticed at once on every platform.
_WAIT_S = 0.1


class Capture:
    """Runs a source in a thread and holds its samples until ``deliver``: one frame per modality, audio up to a bound.

    Args:
        session: tells which modalities are audio, and how much of it may wait.
        source: its times are shifted by ``origin``.
        clock: to pace with.
    """

    def __init__(self, session: Session, source: Source, clock: Clock) -> None:
        self.origin = 0
        self._source = source
        self._clock = clock
        self._is_audio = {name: isinstance(m, AudioModality) for name, m in session.manifest.modalities.items()}
        self._audio_limit_ns = int(session.options.audio_buffer_s * _SECOND)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edge-mbm-capture", daemon=True)
        self._changed = threading.Condition()
        self._frames: dict[str, Sample] = {}
        self._superseded: dict[str, int] = {}
        self._audio: dict[str, deque[Sample]] = {}
        self._ended = False
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Start the thread; the source's time 0 is now."""
        self.origin = self._clock.now()
        self._thread.start()

    def deliver(self, session: Session) -> bool:
        """Wait for something to do, then push what has come.

        Returns:
            Whether that was all: the source has ended.
        """
        deadline = session.deadline()
        with self._changed:
            if not self._has_work(deadline):
                self._changed.wait(self._patience(deadline))
            frames, self._frames = self._frames, {}
            superseded, self._superseded = self._superseded, {}
            audio, self._audio = self._audio, {}
            ended = self._ended
        for modality, count in superseded.items():
            session.count_dropped(modality, count)
        for sample in [*(s for blocks in audio.values() for s in blocks), *frames.values()]:
            session.push(sample.modality, sample.data, self.origin + sample.t, rate=sample.rate)
        return ended

    def raise_failure(self) -> None:
        """Raise what ended the source, if it was a failure.

        Raises:
            SourceError: with its cause.
        """
        if isinstance(self._failure, EdgeMbmError):
            raise self._failure
        if self._failure is not None:
            raise SourceError(f"the source failed: {self._failure!r}") from self._failure

    def close(self) -> None:
        """Stop the thread, close the source, which may be waiting for its device, and wait for the thread."""
        self._stop.set()
        try:
            self._source.close()
        finally:
            if self._thread.is_alive():
                self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                import logging  # noqa: PLC0415 - takes longer to import than this module; rarely needed

                message = "the source did not stop within %.0f s; its thread is left behind"
                logging.getLogger(__name__).error(message, _JOIN_S)

    def _has_work(self, deadline: int | None) -> bool:
        due = deadline is not None and self._clock.now() >= deadline
        return bool(self._frames or self._audio or self._ended or due)

    def _patience(self, deadline: int | None) -> float:
        if deadline is None:
            return _WAIT_S
        return min(_WAIT_S, max(0.0, (deadline - self._clock.now()) / _SECOND))

    def _run(self) -> None:
        try:
            for sample in self._source.samples():
                if self._clock.sleep_until(self.origin + sample.t + sample.duration, self._stop):
                    return
                self._put(sample)
        except BaseException as error:  # noqa: BLE001 - whatever a driver raises must reach the consumer, not die here
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _put(self, sample: Sample) -> None:
        with self._changed:
            if self._is_audio.get(sample.modality):
                self._put_audio(sample)
            else:
                lost = sample.modality in self._frames
                self._superseded[sample.modality] = self._superseded.get(sample.modality, 0) + lost
                self._frames[sample.modality] = sample
            self._changed.notify()

    def _put_audio(self, sample: Sample) -> None:
        blocks = self._audio.setdefault(sample.modality, deque())
        blocks.append(sample)
        # The session sees the hole in time, counts it as a gap, and starts its carried states anew.
        while sample.t + sample.duration - blocks[0].t > self._audio_limit_ns and len(blocks) > 1:
            blocks.popleft()
