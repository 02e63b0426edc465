"""Microphones on this machine, through PortAudio."""

from __future__ import annotations

import atexit
import difflib
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from edge_mbm.errors import InputError, MissingDependencyError, SourceError
from edge_mbm.runtime.clock import Clock, MonotonicClock
from edge_mbm.runtime.drift import AudioClock, ClockReport
from edge_mbm.runtime.source import Sample, Timing
from edge_mbm.runtime.sources.handoff import Handoff

__all__ = ["BlockClock", "MicrophoneOptions", "MicrophoneSource"]

_SECOND = 1_000_000_000
_WAIT_S = 0.1
_opening = threading.Lock()
_open: set[int] = set()
"""Our streams in this process; PortAudio must not begin anew under one of them."""


@dataclass(frozen=True)
class MicrophoneOptions:
    """How a microphone is read.

    Args:
        rate: samples a second.
        channels: to record.
        block_ms: sound in one block, ms.
        buffer_s: sound that may wait to be taken, s; beyond it the oldest is dropped and counted.
        latency_ns: from a sample's capture to the earliest moment at which it can arrive, if it was measured.

    Raises:
        InputError: a value that no microphone has.
    """

    rate: int = 16_000
    channels: int = 1
    block_ms: float = 20.0
    buffer_s: float = 10.0
    latency_ns: int = 0

    def __post_init__(self) -> None:
        if not 1_000 <= self.rate <= 768_000:
            raise InputError(f"a sample rate of {self.rate} Hz is not one that a microphone has")
        if not 1 <= self.channels <= 256:
            raise InputError(f"a microphone has 1 to 256 channels, not {self.channels}")
        if not 1 <= self.block_ms <= 1000 * self.buffer_s:
            raise InputError(f"a block is from 1 ms to the buffer's {self.buffer_s:g} s, not {self.block_ms:g} ms")

    @property
    def block(self) -> int:
        """Samples in one block."""
        return max(1, round(self.rate * self.block_ms / 1000))

    @property
    def capacity(self) -> int:
        """Blocks that may wait."""
        return max(1, int(self.buffer_s * self.rate / self.block))


class BlockClock(Protocol):
    """Times of sound by counting samples: ``edge_mbm.runtime.drift.AudioClock``, or a test's."""

    def block(self, arrival_ns: int, samples: int, /) -> int:
        """Capture time of the first sample of a block that has just come."""
        ...

    def gap(self, lost_samples: int | None, /) -> None:
        """Samples were lost before the next block; None for nobody knows how many."""
        ...

    def report(self) -> ClockReport:
        """What is known of the device's clock."""
        ...


class MicrophoneSource:
    """A microphone's sound as float32[samples, channels] in -1..1.

    Times come from counting samples against the arrival of blocks; PortAudio's own times are never used, because
    they are wrong on too many drivers.

    Args:
        device: part of its name, its number, or None for the system's default.
        modality: that the sound is.
        options: how it is read.
        clock: monotonic time.
        block_clock: gives blocks their times.
        portaudio: the module ``sounddevice``, or a test's.

    Raises:
        MissingDependencyError: sounddevice or PortAudio is not installed.
        SourceError: there is no such microphone, or it refuses the rate or the channels.
    """

    def __init__(
        self,
        device: str | int | None = None,
        *,
        modality: str = "audio",
        options: MicrophoneOptions | None = None,
        clock: Clock | None = None,
        block_clock: BlockClock | None = None,
        portaudio: Any = None,
    ) -> None:
        self.modalities = (modality,)
        self.name = f"microphone {'default' if device is None else device}"
        self._options = options or MicrophoneOptions()
        self._clock = clock or MonotonicClock()
        self._times = block_clock or AudioClock(self._options.rate, latency_ns=self._options.latency_ns)
        self._sd = portaudio or _import_sounddevice()
        self._handoff = Handoff(self._options.capacity)
        self._counting = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False
        self._overflows = 0
        self._stream = self._open_stream(device)

    @property
    def timing(self) -> Timing:
        """See ``Source.timing``: off by the scatter of the arrivals, and by a block where nothing is known yet."""
        report = self._report()
        return Timing("monotonic", report.residual_ns if report.blocks else int(self._options.block_ms * 1e6))

    @property
    def drift_ppm(self) -> float:
        """How fast the device's clock runs against the monotonic one."""
        return self._report().ppm

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        try:
            if not self._closed:
                self._stream.start()
        except self._sd.PortAudioError as error:
            raise SourceError(f"{self.name} does not start: {error}") from error
        while not self._closed:
            sample = self._handoff.take(_WAIT_S)
            if sample is not None:
                yield sample
            elif self._handoff.ended and not self._closed:
                raise SourceError(f"{self.name} stopped: was it unplugged?")

    def close(self) -> None:
        """See ``Source.close``."""
        self._closed = True
        self._handoff.close()
        with self._closing:  # to the end: whoever closes it second may end the process next
            stream, self._stream = self._stream, None
            if stream is None:
                return
            _open.discard(id(stream))
            with _without_exit_handler(self._sd):
                # Not abort(): that cancels PortAudio's thread, sometimes while it holds the sound server's lock.
                stream.stop(ignore_errors=True)
                stream.close(ignore_errors=True)

    def losses(self) -> dict[str, int]:
        """Counts by "modality.cause": ``dropped_blocks`` here, ``driver_overflows`` there, all ``lost_samples``."""
        counts = {
            "dropped_blocks": sum(self._handoff.losses().values()),
            "driver_overflows": self._overflows,
            "lost_samples": self._report().lost_samples,
        }
        return {f"{self.modalities[0]}.{cause}": n for cause, n in counts.items() if n}

    def _heard(self, data: Any, frames: int, _: Any, status: Any) -> None:
        """PortAudio's callback, on its own thread: ``data`` is its buffer, used again after this."""
        arrival = self._clock.now()
        with self._counting:
            if status.input_overflow:
                self._overflows += 1
                self._times.gap(None)
            t = self._times.block(arrival, frames)
        duration = frames * _SECOND // self._options.rate
        self._handoff.put(Sample(self.modalities[0], data.copy(), t, duration, self._options.rate), arrival)

    def _report(self) -> ClockReport:
        with self._counting:
            return self._times.report()

    def _open_stream(self, device: str | int | None) -> Any:
        with _opening:
            try:
                stream = self._new_stream(device)
            except (self._sd.PortAudioError, ValueError) as error:
                if _open:
                    raise SourceError(f"{self.name} cannot be opened: {error}. {self._advice(device)}") from error
                stream = self._look_again(device)
            _open.add(id(stream))
            return stream

    def _look_again(self, device: str | int | None) -> Any:
        """PortAudio makes its list of devices once: begin it anew, for a microphone that was plugged in since."""
        self._sd._terminate()  # noqa: SLF001 - sounddevice has no public way
        self._sd._initialize()  # noqa: SLF001
        try:
            return self._new_stream(device)
        except (self._sd.PortAudioError, ValueError) as error:
            raise SourceError(f"{self.name} cannot be opened: {error}. {self._advice(device)}") from error

    def _new_stream(self, device: str | int | None) -> Any:
        return self._sd.InputStream(
            device=device,
            samplerate=self._options.rate,
            channels=self._options.channels,
            blocksize=self._options.block,
            dtype="float32",
            latency="low",
            callback=self._heard,
            finished_callback=self._handoff.end,
        )

    def _advice(self, device: str | int | None) -> str:
        names = [entry["name"] for entry in self._sd.query_devices() if entry["max_input_channels"] > 0]
        if not names:
            return "There is no microphone: plug one in, and see that a sound server or ALSA knows it ('arecord -l')"
        near = difflib.get_close_matches(str(device), names, 1, 0.5)
        return f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(names)}"


@contextmanager
def _without_exit_handler(sounddevice: Any) -> Iterator[None]:
    """Takes back sounddevice's handler at exit, which waits for ever for a stream that does not stop, until it does."""
    handler = getattr(sounddevice, "_exit_handler", None)
    if handler is not None:
        atexit.unregister(handler)
    yield
    if handler is not None:
        atexit.register(handler)


def _import_sounddevice() -> Any:
    try:
        return importlib.import_module("sounddevice")  # optional, and without types
    except ImportError:
        remedy = "pip install 'edge-mbm[audio]', and apt-get install libportaudio2"
        raise MissingDependencyError("sounddevice", "reading a microphone", remedy) from None
    except OSError:
        remedy = "apt-get install libportaudio2"
        raise MissingDependencyError("sounddevice with PortAudio", "reading a microphone", remedy) from None
