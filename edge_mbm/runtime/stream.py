"""What has been pushed and not yet encoded, per modality: newest-first frames, lossless audio. Both are bounded."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_mbm.errors import InputError, MissingDependencyError
from edge_mbm.preprocess import as_waveform
from edge_mbm.runtime.result import Segment
from edge_mbm.runtime.ring import AudioRing, correction

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_RATE", "MAX_SLIP_NS", "AudioStream", "FrameSlot", "FrameStream", "Resampler", "Work"]

MAX_SLIP_NS = 50_000_000
"""How far a block's time may be from the sample count before samples count as lost."""

MAX_RATE = 768_000
"""The highest sample rate that a microphone has, Hz."""

_SECOND = 1_000_000_000


class Work(NamedTuple):
    """One item for one encoder: a frame, or a window of sound or of frames."""

    data: Any
    t: int
    pushed: int | None
    """perf_counter at the push of a frame; a window has waited for its own last sample."""
    segment: Segment | None = None
    """Of an utterance or a window of video: what of the stream it is."""


class FrameSlot:
    """What one encoder has not yet seen: a slot of one.

    A frame that waits is a frame that lies, so a newer one takes its place, and that is counted.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self.is_on = True
        """While it is not, what comes passes by."""
        self._frame: Work | None = None

    def push(self, frame: Work) -> None:
        """Put a frame in, by reference."""
        if self.is_on:
            self.dropped += self._frame is not None
            self._frame = frame

    def take(self) -> Work | None:
        """Empty it."""
        frame, self._frame = self._frame, None
        return frame

    @property
    def next_end(self) -> int | None:
        """The waiting frame's time, ns; None if none waits."""
        return None if self._frame is None else self._frame.t

    def waits(self, t: int) -> bool:
        """Whether something of time ``t`` or before is still in it."""
        return self._frame is not None and self._frame.t <= t

    def clear(self) -> None:
        """Forget the frame; the counter stays."""
        self._frame = None


class FrameStream:
    """A modality of which the newest matters, with one slot per encoder that watches.

    Args:
        name: the modality's.
        slots: of the encoders, in their order.
    """

    def __init__(self, name: str, slots: list[FrameSlot]) -> None:
        self.name = name
        self.parts = slots
        self.ended = False
        self.bound: int | None = None

    def push(self, data: object, t: int) -> None:
        """Hand a frame to every slot; it is kept by reference until all have taken or replaced it.

        Raises:
            InputError: its time is not after the previous one's.
        """
        if self.bound is not None and t <= self.bound:
            raise InputError(f"'{self.name}' at t = {t} ns is not after the previous one at {self.bound} ns")
        frame = Work(data, t, perf_counter_ns())
        for slot in self.parts:
            slot.push(frame)
        self.bound, self.ended = t, False

    def count_dropped(self, count: int) -> None:
        """Frames were lost before they could be pushed."""
        for slot in self.parts:
            slot.dropped += count

    def end(self) -> None:
        """No more will come."""
        self.ended = True

    def losses(self) -> dict[str, int]:
        """Counts by cause."""
        return {"superseded": max((slot.dropped for slot in self.parts), default=0)}

    def clear(self) -> None:
        """Forget frames and time; the counters stay."""
        self.bound, self.ended = None, False
        for slot in self.parts:
            slot.clear()


class AudioStream:
    """One ring per encoder that listens, so that each reads at its own window and hop.

    Args:
        name: the modality's.
        sample_rate: that the encoders expect, Hz.
        rings: of the encoders, in their order.
    """

    def __init__(self, name: str, sample_rate: int, rings: list[AudioRing]) -> None:
        self.name = name
        self.sample_rate = sample_rate
        self.parts = rings
        self.ended = False
        self._newest: int | None = None
        self._resampler: Resampler | None = None

    @property
    def bound(self) -> int | None:
        """Time up to which samples have come, ns."""
        return max((ring.bound for ring in self.parts if ring.bound is not None), default=None)

    def push(self, data: object, t: int, rate: int | None) -> list[bool]:
        """Append a block to every ring.

        Args:
            data: see ``preprocess.as_waveform``.
            t: capture time of its first sample, ns.
            rate: its sample rate, Hz; None if it is the stream's own.

        Returns:
            Per ring: whether continuity was broken.

        Raises:
            InputError: as ``as_waveform``, or the block is older than the one before.
        """
        samples = as_waveform(data)
        if self._newest is not None and t < self._newest:
            raise InputError(f"'{self.name}' at t = {t} ns is before the previous block at {self._newest} ns")
        resampler = self._resampler_for(rate)
        self._newest, self.ended = t, False
        if resampler is not None:
            samples, t = resampler(samples, t)
        return [ring.push(samples, t) for ring in self.parts]

    def losses(self) -> dict[str, int]:
        """Counts by cause."""
        return {"gaps": self.parts[0].gaps, "lost_samples": max(ring.lost_samples for ring in self.parts)}

    def end(self) -> None:
        """No more will come: push what the resampler still holds."""
        self._flush()
        self.ended = True

    def clear(self) -> None:
        """Forget samples and time; the counters stay."""
        self._resampler = self._newest = None
        self.ended = False
        for ring in self.parts:
            ring.clear()

    def _resampler_for(self, rate: int | None) -> Resampler | None:
        """The one in use, or a new one after the old one's rest has been pushed: the rate has changed."""
        wanted = self.sample_rate if rate is None else rate
        if wanted != (self.sample_rate if self._resampler is None else self._resampler.rate):
            fresh = None if wanted == self.sample_rate else Resampler(wanted, self.sample_rate)
            self._flush()
            self._resampler = fresh
        return self._resampler

    def _flush(self) -> None:
        if self._resampler is not None:
            samples, t = self._resampler.finish()
            for ring in self.parts:
                ring.push(samples, t)
            self._resampler = None


class Resampler:
    """Streams mono audio from one rate to another with soxr, and keeps time by sample count.

    Args:
        rate: of what comes in, Hz.
        target: of what goes out, Hz.

    Raises:
        MissingDependencyError: soxr is not installed.
    """

    def __init__(self, rate: int, target: int) -> None:
        if not 1_000 <= rate <= MAX_RATE:
            raise InputError(f"a sample rate of {rate} Hz is not one that a microphone has")
        try:
            import soxr  # noqa: PLC0415 - optional: not needed where the microphone has the model's rate
        except ImportError:
            remedy = "pip install soxr, or push audio at the model's rate"
            raise MissingDependencyError("soxr", f"resampling from {rate} to {target} Hz", remedy) from None
        self.rate = rate
        self._target = target
        # Low quality is 16 bits with a wider roll-off, and half the delay: 11 ms instead of 20 from 48 to 16 kHz.
        self._new: Any = lambda: soxr.ResampleStream(rate, target, 1, dtype="float32", quality="LQ")
        self._begin(0)

    def __call__(self, samples: NDArray[np.float32], t: int) -> tuple[NDArray[np.float32], int]:
        """Resample a block.

        Returns:
            float32[m] and the time of its first sample; m lags behind by the filter's delay and may be 0.
        """
        expected = self._anchor + self._taken * _SECOND // self.rate
        if self._taken == 0 or abs(t - expected) > MAX_SLIP_NS:
            self._begin(t)
        else:
            self._anchor += correction(t - expected, len(samples), self.rate)
        self._taken += len(samples)
        return self._emit(self._stream.resample_chunk(samples))

    def finish(self) -> tuple[NDArray[np.float32], int]:
        """What the filter still holds."""
        return self._emit(self._stream.resample_chunk(np.zeros(0, np.float32), last=True))

    def _begin(self, t: int) -> None:
        self._stream = self._new()
        self._anchor, self._taken, self._given = t, 0, 0

    def _emit(self, samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
        t = self._anchor + self._given * _SECOND // self._target
        self._given += len(samples)
        return samples, t
