"""Record and replay: what was captured, without ever holding the capture up, and as a source again, bit for bit."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np

from edge_mbm.errors import DeviceError, EdgeMbmError, InputError, SourceError
from edge_mbm.mcap import (
    FORMAT,
    LOSSES,
    RECORDING,
    RESULTS,
    Compression,
    FrameFormat,
    Kind,
    McapWriter,
    ReadLimits,
    RecordingReader,
    SampleEncoder,
    check_data,
    describe,
)
from edge_mbm.runtime.clock import Clock, MonotonicClock
from edge_mbm.runtime.result import Result
from edge_mbm.runtime.source import MEDIA, Sample, Timing
from edge_mbm.spec import AudioModality, Manifest, SensorModality, TextModality, encode_manifest

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RecordOptions", "Recorder", "ReplaySource"]

_SECOND = 1_000_000_000
# Waiting is cut into pieces, so that the clock of a test is looked at.
_WAIT_S = 0.1
_SMALL = 256
"""What a queued item costs beside its data, bytes."""


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """How a recording is made.

    Args:
        max_bytes: what the file may not exceed; there is no default, since a disk that is full stops more than this.
        frames: "jpeg" for some 0.2 MB a 720p frame, or "raw" for every bit of its 2.8 MB.
        jpeg_quality: 1 to 100.
        compression: of chunks. "zstd" shrinks raw frames of still scenes, at some ms a frame.
        queue_bytes: what may wait for the disk, in memory; beyond it samples are dropped and counted.
        chunk_bytes: a chunk is written when it holds so much,
        flush_s: or when its oldest message has waited so long, seconds: what a kill may lose. As often the disk is told
            to keep what it has, so that a power cut loses hardly more.
    """

    max_bytes: int
    frames: FrameFormat = "jpeg"
    jpeg_quality: int = 90
    compression: Compression = "none"
    queue_bytes: int = 64 << 20
    chunk_bytes: int = 4 << 20
    flush_s: float = 1.0

    def __post_init__(self) -> None:
        """Raise InputError for a number out of range."""
        if not 1 <= self.jpeg_quality <= 100 or not 0 < self.flush_s <= 3600:
            raise InputError("jpeg_quality is 1 to 100, flush_s is above 0 and at most 3600")
        if self.max_bytes < 1 or self.queue_bytes < 1 or not 1 <= self.chunk_bytes <= 64 << 20:
            raise InputError("max_bytes, queue_bytes and chunk_bytes are at least 1, chunk_bytes at most 64 MiB")


class _Waiting(NamedTuple):
    """One item on its way to the disk."""

    name: str
    data: Any
    t: int
    rate: int | None
    size: int


class Recorder:
    """Writes an MCAP file that Foxglove shows and ``ReplaySource`` plays; use it in a ``with``.

    One thread encodes and writes. ``push`` only copies; when the disk cannot keep up, frames are dropped before
    anything else, and counted. Whatever ends the process, the file can be read up to its last chunk. May be used from
    several threads.

    Args:
        path: of a file that is not there yet.
        modalities: a bundle's manifest, or name -> "image", "audio", "text" or "sensor".
        options: see ``RecordOptions``.
        only: the modalities that will come, so that a replay does not wait for others; None for all.
        timing: the clock of the times pushed: "monotonic", or "media" for a recording's own.
        clock: monotonic time, for tests.

    Raises:
        DeviceError: the file is there already, or cannot be written.
        MissingDependencyError: OpenCV (for JPEG) or zstandard is asked for and not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        modalities: Manifest | Mapping[str, Kind],
        options: RecordOptions,
        *,
        only: Collection[str] | None = None,
        timing: Literal["media", "monotonic"] = "monotonic",
        clock: Clock | None = None,
    ) -> None:
        manifest = modalities if isinstance(modalities, Manifest) else None
        self._kinds = {name: k for name, k in _kinds_of(modalities).items() if only is None or name in only}
        self._rates = {} if manifest is None else _rates_of(manifest)
        self._options = options
        self._clock = clock or MonotonicClock()
        self._encoder = SampleEncoder(options.frames, options.jpeg_quality)
        self._json = msgspec.json.Encoder()
        schemas, channels, self._channels = describe(self._kinds, options.frames)
        self._file = McapWriter(
            path,
            schemas,
            channels,
            {RECORDING: _about(manifest, timing)},
            max_bytes=options.max_bytes,
            compression=options.compression,
        )
        self._changed = threading.Condition()
        self._queue: OrderedDict[int, _Waiting] = OrderedDict()
        self._frames: deque[int] = deque()
        self._queued_bytes = self._count = 0
        self._newest: dict[str, int] = {}
        self._recorded: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._failure: EdgeMbmError | None = None
        self._told = self._stopping = False
        self._thread = threading.Thread(target=self._run, name="edge-mbm-recorder", daemon=True)
        self._thread.start()

    # --- handing in --------------------------------------------------------------------------------------------------

    def push(self, modality: str, data: object, t: int, *, rate: int | None = None, wait: bool = False) -> None:
        """Record one sample; it is copied, and written soon.

        Args:
            modality: its name.
            data: as for ``Session.push``; sensors are kept as float32.
            t: capture time, ns, of the first sample for audio. Must not go back.
            rate: audio: its sample rate, Hz, if it is not the manifest's.
            wait: for room in the queue instead of dropping: where there is time, as with files.

        Raises:
            InputError: an unknown modality, wrong data, or time that goes back.
            DeviceError: the recording has failed or is closed; the capture may go on without it.
        """
        kind = self._kinds.get(modality)
        if kind is None:
            raise InputError(f"'{modality}' is not recorded here; {list(self._kinds)} are")
        rate = (self._rates.get(modality) if rate is None else rate) if kind == "audio" else None
        checked = check_data(kind, data, rate, modality)
        # The camera's buffer may be used again before the thread comes to it.
        own = checked if isinstance(checked, str) else np.array(checked)
        size = len(own) * 4 if isinstance(own, str) else own.nbytes
        with self._changed:
            self._check_open()
            self._check_time(modality, kind, t)
            self._put(_Waiting(modality, own, int(t), rate, size + _SMALL), is_frame=kind == "image", wait=wait)

    def write(self, result: Result) -> None:
        """Record one result, at the time at which it was handed out.

        Raises:
            DeviceError: as ``push``.
        """
        data = self._json.encode(result.as_json())
        t = max(0, result.t_capture + result.age)
        with self._changed:
            self._check_open()
            self._put(_Waiting(RESULTS, data, t, None, len(data) + _SMALL), is_frame=False, wait=False)

    # --- what it is doing --------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._file.size

    @property
    def recorded(self) -> dict[str, int]:
        """Modality -> samples on the disk or in the chunk that comes next."""
        with self._changed:
            return {name: count for name, count in self._recorded.items() if name != RESULTS and count}

    @property
    def dropped(self) -> dict[str, int]:
        """Modality -> samples that are not in the file, because the disk was slow or full."""
        with self._changed:
            return {name: count for name, count in self._dropped.items() if count}

    # --- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write what waits and finish the file. May be called twice; the second time nothing is raised.

        Raises:
            DeviceError: the recording had failed, and nobody has been told yet, or the end could not be written.
        """
        with self._changed:
            if self._stopping:
                return
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        if self._failure is not None and not self._told:
            raise self._told_failure()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- the queue ---------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._told_failure()
        if self._stopping:
            raise DeviceError(f"the recording {self._file.path} is closed")

    def _told_failure(self) -> DeviceError:
        """A fresh exception each time: one that is raised over and over grows."""
        self._told = True
        return DeviceError(str(self._failure))

    def _check_time(self, modality: str, kind: Kind, t: int) -> None:
        newest = self._newest.get(modality)
        if not 0 <= t < 1 << 63 or (newest is not None and t < newest + (kind != "audio")):
            raise InputError(f"'{modality}' at t = {t} ns is not after the previous one at {newest} ns, or no time")
        self._newest[modality] = int(t)

    def _put(self, item: _Waiting, *, is_frame: bool, wait: bool) -> None:
        while wait and self._queue and self._is_full(item):
            self._changed.wait(_WAIT_S)
            self._check_open()
        while self._is_full(item) and not is_frame and self._frames:
            self._drop(self._queue.pop(self._frames.popleft()))
        if self._is_full(item) and self._queue:
            self._dropped[item.name] += 1
            return
        self._queue[self._count] = item
        if is_frame:
            self._frames.append(self._count)
        self._count += 1
        self._queued_bytes += item.size
        self._changed.notify_all()

    def _is_full(self, item: _Waiting) -> bool:
        return self._queued_bytes + item.size > self._options.queue_bytes

    def _drop(self, item: _Waiting) -> None:
        self._queued_bytes -= item.size
        self._dropped[item.name] += 1

    def _take(self, deadline: int | None) -> _Waiting | None:
        """The next item; None when the chunk is due or everything has been written."""
        with self._changed:
            while not self._queue:
                if self._stopping or (deadline is not None and self._clock.now() >= deadline):
                    return None
                self._changed.wait(_WAIT_S)
            number, item = self._queue.popitem(last=False)
            if self._frames and self._frames[0] == number:
                self._frames.popleft()
            self._queued_bytes -= item.size
            self._recorded[item.name] += 1
            self._changed.notify_all()
            return item

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._follow()
        except EdgeMbmError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller hears of it, and the file is finished
            self._fail(DeviceError(f"the recording {self._file.path} failed: {error!r}"))
        try:
            self._file.close({LOSSES: {name: str(count) for name, count in self.dropped.items()}})
        except EdgeMbmError as error:
            self._failure = self._failure or error

    def _follow(self) -> None:
        deadline: int | None = None
        patience = math.ceil(self._options.flush_s * _SECOND)
        synced = self._clock.now()
        while True:
            item = self._take(deadline)
            if item is not None:
                self._add(item)
                deadline = deadline or self._clock.now() + patience
            if item is None or self._is_due(deadline):
                self._file.flush()
                deadline = None
                if self._clock.now() >= synced + patience:
                    self._file.sync()
                    synced = self._clock.now()
            if item is None and self._stopping and not self._queue:
                return

    def _is_due(self, deadline: int | None) -> bool:
        is_large = self._file.pending_bytes >= self._options.chunk_bytes
        return is_large or (deadline is not None and self._clock.now() >= deadline)

    def _add(self, item: _Waiting) -> None:
        kind = self._kinds.get(item.name)
        parts = [item.data] if kind is None else self._encoder.encode(kind, item.name, item.data, item.t, item.rate)
        self._file.add(self._channels[item.name], item.t, parts)

    def _fail(self, error: EdgeMbmError) -> None:
        names = {channel: name for name, channel in self._channels.items()}
        with self._changed:
            self._failure = error
            for channel, count in self._file.pending.items():
                self._dropped[names[channel]] += count
                self._recorded[names[channel]] -= count
            for item in self._queue.values():
                self._dropped[item.name] += 1
            self._queue.clear()
            self._frames.clear()
            self._queued_bytes = 0
            self._changed.notify_all()


class ReplaySource:
    """Plays what a ``Recorder`` wrote.

    Audio and raw frames are what was pushed, bit for bit; JPEG frames are what is left of them, the same at every
    replay. Arrays are read-only.

    Args:
        path: the recording.
        modalities: which to play; None for all.
        limits: what the file may ask for; see ``ReadLimits``.

    Raises:
        SourceError: there is no such file, or it is no recording, or it has none of these modalities.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        modalities: Collection[str] | None = None,
        limits: ReadLimits | None = None,
    ) -> None:
        self._reader = RecordingReader(path, limits)
        recorded = self._reader.modalities
        self.modalities = tuple(name for name in recorded if modalities is None or name in modalities)
        if not self.modalities:
            self._reader.close()
            raise SourceError(f"{path} has {list(recorded)}, and none of {sorted(modalities or ())} to play")
        self._lock = threading.Lock()
        self._playing = self._closed = False

    @property
    def timing(self) -> Timing:
        """See ``Source.timing``: from the recording's earliest sample on."""
        return MEDIA

    @property
    def origin(self) -> int:
        """The recorder's time that is 0 here, ns."""
        return self._reader.origin

    @property
    def losses(self) -> dict[str, int]:
        """Modality -> samples that the recorder could not write."""
        return self._reader.losses

    @property
    def cut(self) -> str | None:
        """In words, what the recording lacks at its end; None if it is whole."""
        return self._reader.cut

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``: in recorded order."""
        with self._lock:
            if self._closed:
                return
            self._playing = True
        try:
            for item in self._reader.items():
                if self._closed:
                    return
                if item.modality in self.modalities:
                    yield Sample(item.modality, item.data, item.t, item.duration, item.rate)
        finally:
            with self._lock:
                self._playing = False
                if self._closed:
                    self._reader.close()

    def close(self) -> None:
        """See ``Source.close``."""
        with self._lock:
            self._closed = True
            # The file is read in another thread: that one closes it then.
            if not self._playing:
                self._reader.close()


def _kinds_of(modalities: Manifest | Mapping[str, Kind]) -> dict[str, Kind]:
    if not isinstance(modalities, Manifest):
        return dict(modalities)
    kinds: dict[str, Kind] = {}
    for name, modality in modalities.modalities.items():
        if isinstance(modality, AudioModality):
            kinds[name] = "audio"
        elif isinstance(modality, TextModality):
            kinds[name] = "text"
        else:
            kinds[name] = "sensor" if isinstance(modality, SensorModality) else "image"
    return kinds


def _rates_of(manifest: Manifest) -> dict[str, int]:
    return {name: m.sample_rate for name, m in manifest.modalities.items() if isinstance(m, AudioModality)}


def _about(manifest: Manifest | None, timing: Literal["media", "monotonic"]) -> dict[str, str]:
    about = {"format": FORMAT, "clock": timing}
    if timing == "monotonic":
        # For display only: what to add to a time to know the hour, as the wall clock had it at the start.
        about["wall_offset_ns"] = str(time.time_ns() - time.monotonic_ns())
    if manifest is not None:
        about |= {"bundle": manifest.name, "manifest_sha256": hashlib.sha256(encode_manifest(manifest)).hexdigest()}
    return about
