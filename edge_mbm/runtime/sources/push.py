"""What the program itself has: arrays, functions, texts and sensor values, as sources."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from edge_mbm.errors import InputError
from edge_mbm.preprocess.text import as_text
from edge_mbm.runtime.clock import Clock, MonotonicClock
from edge_mbm.runtime.source import Sample, Timing

__all__ = ["ArraySource", "CallableSource", "FixedTextSource", "SensorSource", "TextSource"]

_SECOND = 1_000_000_000
_LEAST_HZ = 1e-6
_WAIT_S = 0.1


class ArraySource:
    """Gives what an iterable gives: arrays, or pairs of an array and its monotonic time in ns.

    Args:
        modality: that they are.
        items: an array without a time was captured when it is drawn.
        audio_rate: if they are sound, its rate, Hz.
        uncertainty_ns: how far the times may be off.
        clock: monotonic time.
    """

    def __init__(
        self,
        modality: str,
        items: Iterable[Any],
        *,
        audio_rate: int | None = None,
        uncertainty_ns: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self.modalities = (modality,)
        self.timing = Timing("monotonic", uncertainty_ns)
        self._items = items
        self._rate = _audio_rate(audio_rate)
        self._clock = clock or MonotonicClock()
        self._closed = False

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        for item in self._items:
            if self._closed:
                return
            yield _sample(self.modalities[0], item, self._clock.now(), self._rate)

    def close(self) -> None:
        """See ``Source.close``: no item is given any more. An iterable that waits is not woken."""
        self._closed = True


class CallableSource:
    """Calls a function at a steady rate and gives what it returns.

    A function that takes longer than its turn skips turns; it is not called in a burst afterwards.

    Args:
        modality: that it gives.
        read: returns an array, a pair of an array and its monotonic time in ns, or None for nothing new. Without a
            time, what it returns was captured when it was called.
        rate_hz: calls a second, at most.
        audio_rate: if it gives sound, its rate, Hz.
        uncertainty_ns: how far the times may be off.
        clock: monotonic time.

    Raises:
        InputError: a rate that is not above 0.
    """

    def __init__(
        self,
        modality: str,
        read: Callable[[], Any],
        rate_hz: float,
        *,
        audio_rate: int | None = None,
        uncertainty_ns: int = 0,
        clock: Clock | None = None,
    ) -> None:
        if not rate_hz >= _LEAST_HZ:
            raise InputError(f"'{modality}' is read at {_LEAST_HZ:g} Hz or more, not {rate_hz:g}")
        self.modalities = (modality,)
        self.timing = Timing("monotonic", uncertainty_ns)
        self._read = read
        self._period = max(1, int(_SECOND / rate_hz))
        self._rate = _audio_rate(audio_rate)
        self._clock = clock or MonotonicClock()
        self._stop = threading.Event()

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        due = self._clock.now()
        while not self._clock.sleep_until(due, self._stop):
            now = self._clock.now()
            item = self._read()
            if item is not None:
                yield _sample(self.modalities[0], item, now, self._rate)
            missed = (self._clock.now() - due) // self._period
            due += (missed + 1) * self._period

    def close(self) -> None:
        """See ``Source.close``: the function is not called any more. One that waits is not woken."""
        self._stop.set()


class SensorSource(CallableSource):
    """Reads a sensor at a steady rate: numbers become float32[n].

    Args:
        modality: that it gives.
        read: returns a number or several, a pair of an array and its monotonic time in ns, or None for nothing new.
        rate_hz: readings a second, at most.
        uncertainty_ns: how far the times may be off.
        clock: monotonic time.

    Raises:
        InputError: a rate that is not above 0.
    """

    def __init__(
        self,
        modality: str,
        read: Callable[[], Any],
        rate_hz: float,
        *,
        uncertainty_ns: int = 0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(modality, read, rate_hz, uncertainty_ns=uncertainty_ns, clock=clock)

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        for sample in super().samples():
            values = np.atleast_1d(np.asarray(sample.data, np.float32))
            yield sample._replace(data=values)


class TextSource:
    """Gives the newest text that was set, from whichever thread.

    Args:
        modality: that it is.
        clock: monotonic time.
    """

    def __init__(self, modality: str = "text", *, clock: Clock | None = None) -> None:
        self.modalities = (modality,)
        self.timing = Timing("monotonic")
        self._clock = clock or MonotonicClock()
        self._changed = threading.Condition()
        self._waiting: Sample | None = None
        self._newest: int | None = None
        self._closed = False

    def set(self, text: str) -> None:
        """From now on the text is this; one that nobody has taken yet is replaced.

        Raises:
            InputError: it is not such a text as preprocessing takes.
        """
        text = as_text(text)
        with self._changed:
            now = self._clock.now()
            # Two in one tick of the clock are still one after the other.
            self._newest = now if self._newest is None else max(now, self._newest + 1)
            self._waiting = Sample(self.modalities[0], text, self._newest)
            self._changed.notify_all()

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        while not self._closed:
            with self._changed:
                if self._waiting is None and not self._closed:
                    self._changed.wait(_WAIT_S)
                sample, self._waiting = self._waiting, None
            if sample is not None and not self._closed:
                yield sample

    def close(self) -> None:
        """See ``Source.close``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class FixedTextSource:
    """Gives one text at a recording's beginning, for all of it.

    Args:
        modality: that it is.
        text: it.

    Raises:
        InputError: it is not such a text as preprocessing takes.
    """

    def __init__(self, modality: str, text: str) -> None:
        self.modalities = (modality,)
        self.timing = Timing("media")
        self._text = as_text(text)

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        yield Sample(self.modalities[0], self._text, 0)

    def close(self) -> None:
        """See ``Source.close``."""


def _sample(modality: str, item: Any, now: int, rate: int | None) -> Sample:
    # Two plain numbers are two values of a sensor: only an array can have a time beside it.
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], np.ndarray):
        item, now = item[0], operator.index(item[1])
    duration = 0 if rate is None else len(item) * _SECOND // rate
    return Sample(modality, item, now, duration, rate)


def _audio_rate(rate: int | None) -> int | None:
    if rate is not None and not 1_000 <= rate <= 768_000:
        raise InputError(f"a sample rate of {rate} Hz is not one that a microphone has")
    return rate
