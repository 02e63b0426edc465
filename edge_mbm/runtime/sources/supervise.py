"""Keeps a live source alive: deadlines on everything it does, and a new connection whenever one breaks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from random import Random

from edge_mbm.errors import InputError, MissingDependencyError, SourceError
from edge_mbm.runtime.clock import Clock, MonotonicClock
from edge_mbm.runtime.source import Sample, Source, Timing
from edge_mbm.runtime.sources.connection import Connection, warn
from edge_mbm.runtime.sources.mask import mask
from edge_mbm.runtime.status import SourceState, SourceStatus

__all__ = ["Supervised", "Supervision"]

_SECOND = 1_000_000_000
# Waiting is cut into pieces, so that a clock that a test owns is looked at, and Ctrl-C noticed.
_WAIT_S = 0.05
# Trying again mends neither.
_PERMANENT = (InputError, MissingDependencyError)


@dataclass(frozen=True)
class Supervision:
    """How patient a supervisor is.

    Args:
        open_timeout_s: for opening the device and its first sample.
        stall_s: without a sample of a modality that has been coming; longer is a stall.
        close_timeout_s: for closing the device, in real time; a thread that has not ended then is left behind.
        backoff_s: before the first new attempt, and at most; doubled after each failure in a row.
        jitter: share of the waiting that is drawn by chance, so that a fleet does not come back in step.
        attempts: failures in a row that end it; None for never.
        max_abandoned: threads stuck in a driver that may be left behind; with so many no new attempt is made.
        seed: of the chance; None for another one each time.

    Raises:
        InputError: a value makes no sense.
    """

    open_timeout_s: float = 10.0
    stall_s: float = 2.0
    close_timeout_s: float = 3.0
    backoff_s: tuple[float, float] = (0.2, 10.0)
    jitter: float = 0.5
    attempts: int | None = None
    max_abandoned: int = 4
    seed: int | None = None

    def __post_init__(self) -> None:
        if not min(self.open_timeout_s, self.stall_s, self.close_timeout_s) > 0:
            raise InputError(f"a supervision's time limits are above 0 s, not {self}")
        if not 0 <= self.backoff_s[0] <= self.backoff_s[1]:
            raise InputError(f"backoff_s is (first, longest) wait in seconds, not {self.backoff_s}")
        if not 0 <= self.jitter <= 1:
            raise InputError(f"jitter is a share from 0 to 1, not {self.jitter}")
        if self.max_abandoned < 1 or (self.attempts is not None and self.attempts < 1):
            raise InputError("attempts and max_abandoned are at least 1")

    def delay(self, failures: int, chance: float) -> float:
        """Seconds to wait after so many failures in a row; ``chance`` is from 0 to 1."""
        first, longest = self.backoff_s
        # No backoff needs more doublings than this, and a float has no more than 1024.
        return min(longest, first * 2.0 ** min(failures - 1, 60)) * (1 - self.jitter * chance)


class Supervised:
    """A ``Source`` that goes on when its device does not.

    An inner thread opens the device, reads it and closes it, so none of these can hold up the one who iterates. On an
    error, a stall or the end, the device is closed and, after a jittered and growing wait, opened again. Per modality
    capture times only rise: what a new connection repeats is dropped and counted.

    Args:
        name: for people; accounts in addresses are hidden.
        open_device: opens the device and gives its source; called again for every connection.
        modalities: that the device is expected to give.
        audio_blocks: blocks of sound that may wait for the one who iterates; beyond it the oldest is dropped, counted.
        options: how patient it is.
        clock: monotonic time.
        random: gives numbers from 0 to 1; for tests.
    """

    def __init__(
        self,
        name: str,
        open_device: Callable[[], Source],
        modalities: tuple[str, ...],
        *,
        audio_blocks: int,
        options: Supervision | None = None,
        clock: Clock | None = None,
        random: Callable[[], float] | None = None,
    ) -> None:
        self.name = mask(name)
        self.options = options or Supervision()
        self._open_device = open_device
        self._expected = modalities
        self._audio_blocks = audio_blocks
        self._clock = clock or MonotonicClock()
        # Not NumPy's: it takes 5 ms to import, and a Ctrl-C that falls into that is lost (its Cython clears it).
        self._random = random or Random(self.options.seed).random  # noqa: S311
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._connection: Connection | None = None
        self._source: Source | None = None
        self._abandoned: list[Connection] = []
        self._first_failure: BaseException | None = None
        self._failed = 0
        self._state: SourceState = "starting"
        self._since = self._clock.now()
        self._error: str | None = None
        self._samples = self._stalls = self._reconnects = 0
        self._newest: dict[str, int] = {}
        self._lost: dict[str, int] = {}

    @property
    def modalities(self) -> tuple[str, ...]:
        """See ``Source.modalities``: what the device was last seen to give; before that, what it is expected to."""
        return self._expected if self._source is None else self._source.modalities

    @property
    def timing(self) -> Timing:
        """See ``Source.timing``."""
        return Timing("monotonic") if self._source is None else self._source.timing

    def prepare(self) -> None:
        """Open the device now and wait for it, so that ``modalities`` are those it has; ``samples`` begins with it.

        A device that does not open is left to ``samples``, which tries again.

        Raises:
            InputError, MissingDependencyError: what trying again does not mend.
        """
        connection = self._connect()
        deadline = self._clock.now() + int(self.options.open_timeout_s * _SECOND)
        while not connection.opened.wait(_WAIT_S) and self._clock.now() < deadline and not self._stop.is_set():
            pass
        self._source = connection.source or self._source
        if connection.failure is not None:
            self._error = _words(connection.failure)
        if isinstance(connection.failure, _PERMANENT):
            self.close()
            raise connection.failure

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``; they end with ``close`` only.

        Raises:
            SourceError: it failed ``attempts`` times in a row; its cause is the first of these failures.
            InputError, MissingDependencyError: what trying again does not mend.
        """
        try:
            while not self._stop.is_set():
                failure = yield from self._read(self._connect())
                if failure is not None and not self._stop.is_set():
                    self._recover(failure)
        finally:
            self.close()

    def close(self) -> None:
        """See ``Source.close``; waits at most ``close_timeout_s`` for the device."""
        self._stop.set()
        self._disconnect()
        self._enter("ended")

    def status(self) -> SourceStatus:
        """What it is doing, from any thread."""
        with self._lock:
            return SourceStatus(
                name=self.name,
                state=self._state,
                since=self._since,
                modalities=self.modalities,
                samples=self._samples,
                last=max(self._newest.values(), default=None),
                stalls=self._stalls,
                reconnects=self._reconnects,
                error=self._error,
                uncertainty_ns=self.timing.uncertainty_ns,
                drift_ppm=getattr(self._source, "drift_ppm", None),
            )

    def losses(self) -> dict[str, int]:
        """Everything lost since the start, "modality.cause" -> count.

        Causes: ``superseded`` frames, blocks in ``overflow``, blocks ``discarded`` with their connection, what was
        ``repeated`` by a new one, and those of the source itself.
        """
        with self._lock:
            current = {} if self._connection is None else self._connection.losses()
            return {key: self._lost.get(key, 0) + current.get(key, 0) for key in self._lost | current}

    def _connect(self) -> Connection:
        """The connection that ``prepare`` made, or a new one."""
        with self._lock:
            self._abandoned = [connection for connection in self._abandoned if not connection.done]
            if self._connection is None:
                stuck = len(self._abandoned) >= self.options.max_abandoned
                opening = self._refuse if stuck else self._open_device
                self._connection = Connection(self.name, opening, self._audio_blocks, self._clock)
            return self._connection

    def _refuse(self) -> Source:
        names = ", ".join(connection.thread_name for connection in self._abandoned)
        raise SourceError(f"the threads {names} are stuck in its driver: replug the device, or restart the program")

    def _read(self, connection: Connection) -> Generator[Sample, None, BaseException | None]:
        """Hand its samples on; returns what ended it."""
        connection.read()
        try:
            while not self._stop.is_set():
                sample = connection.handoff.take(_WAIT_S)
                self._source = connection.source or self._source
                if sample is None and connection.handoff.ended:
                    return connection.failure or SourceError("it ended")
                if sample is not None and self._is_new(sample):
                    yield sample
                if connection.handoff.empty and (failure := self._overdue(connection)) is not None:
                    return failure
            return None
        finally:
            self._disconnect()

    def _is_new(self, sample: Sample) -> bool:
        with self._lock:
            if sample.t <= self._newest.get(sample.modality, sample.t - 1):
                key = f"{sample.modality}.repeated"
                self._lost[key] = self._lost.get(key, 0) + 1
                return False
            self._newest[sample.modality] = sample.t
            self._samples += 1
        self._first_failure, self._failed = None, 0
        self._enter("live")
        return True

    def _overdue(self, connection: Connection) -> SourceError | None:
        """The deadline that has passed, if one has."""
        now, options = self._clock.now(), self.options
        arrivals = connection.handoff.arrivals()
        if not arrivals and now - connection.begun > options.open_timeout_s * _SECOND:
            what = "gave nothing" if connection.opened.is_set() else "did not open"
            return SourceError(f"it {what} within {options.open_timeout_s:g} s")
        late = [modality for modality, came in arrivals.items() if now - came > options.stall_s * _SECOND]
        if not late:
            return None
        self._stalls += 1
        self._enter("stalled")
        return SourceError(f"no {' and no '.join(late)} for {options.stall_s:g} s")

    def _recover(self, failure: BaseException) -> None:
        """Wait before the next attempt, or give up."""
        self._failed += 1
        self._first_failure = self._first_failure or failure
        self._error = _words(failure)
        if isinstance(failure, _PERMANENT):
            raise failure
        if self.options.attempts is not None and self._failed >= self.options.attempts:
            first = self._first_failure
            raise SourceError(
                f"{self.name} failed {self._failed} times in a row, first with: {_words(first)}"
            ) from first
        self._enter("reconnecting")
        delay = self.options.delay(self._failed, self._random())
        warn("%s: %s; trying again in %.1f s", self.name, self._error, delay)
        self._clock.sleep_until(self._clock.now() + int(delay * _SECOND), self._stop)
        self._reconnects += 1

    def _disconnect(self) -> None:
        connection = self._connection
        if connection is None:
            return
        ended = connection.retire(self.options.close_timeout_s)
        with self._lock:
            if self._connection is not connection:  # another thread was faster
                return
            self._connection = None
            for key, count in connection.losses().items():
                self._lost[key] = self._lost.get(key, 0) + count
            if not ended:
                self._abandoned.append(connection)
        if not ended:
            limit = self.options.close_timeout_s
            warn("%s did not close within %g s; its thread %s is left behind", self.name, limit, connection.thread_name)

    def _enter(self, state: SourceState) -> None:
        with self._lock:
            if self._state not in (state, "ended"):
                self._state, self._since = state, self._clock.now()


def _words(failure: BaseException) -> str:
    return mask(str(failure) if isinstance(failure, SourceError) else repr(failure))
