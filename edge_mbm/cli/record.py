"""``edge-mbm record``: write what cameras and microphones give to a file."""

from __future__ import annotations

import heapq
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from msgspec import Struct

from edge_mbm.cli.options import Json
from edge_mbm.cli.terminal import clean, size, write_json, write_line
from edge_mbm.errors import DeviceError, EdgeMbmError, InputError, SourceError
from edge_mbm.mcap import Kind
from edge_mbm.runtime.bundle import load
from edge_mbm.runtime.clock import MonotonicClock
from edge_mbm.runtime.recording import Recorder, RecordOptions
from edge_mbm.runtime.source import Sample, Source
from edge_mbm.runtime.sources import open_source
from edge_mbm.spec import AudioModality, ImageModality, Manifest

__all__ = ["RecordReport", "record", "room"]

_SECOND = 1_000_000_000
_LEFT_FREE = 1 << 30
"""What a recording without --max-mib leaves on the disk."""
_WAIT_S = 0.2
_MOST_S = 1e9
"""Some thirty years: its ns fit in the file's times, which those of infinity do not."""


class RecordReport(Struct, frozen=True, kw_only=True):
    """What ``edge-mbm record --json`` prints."""

    path: str
    bytes: int
    seconds: float
    """From the first sample's time to the last one's."""
    recorded: dict[str, int]
    """Modality -> samples in the file."""
    dropped: dict[str, int]
    """Modality -> samples for which the disk was too slow."""


def record(
    *,
    video: Annotated[
        str | None,
        typer.Option("--video", metavar="ADDRESS", help="Camera, stream or file with pictures.", show_default=False),
    ] = None,
    audio: Annotated[
        str | None,
        typer.Option(
            "--audio",
            metavar="ADDRESS",
            help="Microphone, stream or file with sound; the same as --video for both from one.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="A new .mcap file.", show_default=False)
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", "-b", metavar="BUNDLE", help="Name the modalities as this bundle does.", show_default=False
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds", min=0.001, max=_MOST_S, help="How much; else until Ctrl-C or the end.", show_default=False
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Keep every bit of each frame: 2.8 MB at 720p instead of some 0.2 MB.")
    ] = False,
    jpeg_quality: Annotated[int, typer.Option("--jpeg-quality", min=1, max=100, help="Of frames without --raw.")] = 90,
    zstd: Annotated[bool, typer.Option("--zstd", help="Compress; of use with --raw and still scenes.")] = False,
    max_mib: Annotated[
        int | None,
        typer.Option(
            "--max-mib",
            min=1,
            help="Stop before the file is larger. Without it, 1 GiB of the disk is left free.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Record cameras and microphones to an MCAP file, for edge-mbm replay, for calibration, and for Foxglove.

    The file is whole after every second: a kill or a power cut loses no more. Ctrl-C finishes it properly.

    Example: edge-mbm record --video v4l2:///dev/video0 --audio mic://default -o session.mcap --seconds 60
    """
    asked = RecordOptions(
        max_bytes=room(output) if max_mib is None else max_mib << 20,
        frames="raw" if raw else "jpeg",
        jpeg_quality=jpeg_quality,
        compression="zstd" if zstd else "none",
    )
    manifest = _manifest(bundle)
    with ExitStack() as closing:
        feed = _Feed(video, audio, manifest, closing)
        recorder = Recorder(output, manifest or feed.kinds, asked, only=feed.kinds, timing=feed.clock)
        taking = _Taking(recorder, None if seconds is None else round(seconds * _SECOND), wait=feed.clock == "media")
        try:
            with recorder:
                (_record_files if feed.clock == "media" else _record_devices)(feed.sources, taking)
        finally:
            taking.progress.end()
            _report(output, taking, as_json=as_json)


# --- what is recorded ------------------------------------------------------------------------------------------------


class _Feed:
    """The sources, and what they give; a file that has both picture and sound is opened once."""

    def __init__(self, video: str | None, audio: str | None, manifest: Manifest | None, closing: ExitStack) -> None:
        if video is None and audio is None:
            raise InputError("there is nothing to record: give --video, --audio, or both")
        image, sound = _names(manifest)
        apart = [(video, image, None), (audio, None, sound)]
        self.sources: list[Source] = []
        for uri, image_name, audio_name in [(video, image, sound)] if video == audio else apart:
            if uri is not None:
                self.sources.append(open_source(uri, image=image_name, audio=audio_name))
                closing.callback(self.sources[-1].close)
        known: dict[str | None, Kind] = {image: "image", sound: "audio"}
        given = [name for source in self.sources for name in source.modalities]
        strangers = sorted(set(given) - set(known))
        if strangers:
            raise InputError(f"{strangers} are neither the pictures '{image}' nor the sound '{sound}' to record")
        self.kinds = {name: known[name] for name in given}
        if len({source.timing.clock for source in self.sources}) > 1:
            raise InputError("a file and a device go by different clocks: record one after the other")
        self.clock = self.sources[0].timing.clock


def _manifest(bundle: Path | None) -> Manifest | None:
    if bundle is None:
        return None
    with load(bundle) as opened:
        return opened.manifest


def _names(manifest: Manifest | None) -> tuple[str | None, str | None]:
    """What pictures and sound are called."""
    if manifest is None:
        return "image", "audio"
    modalities = manifest.modalities
    images = [name for name, modality in modalities.items() if isinstance(modality, ImageModality)]
    sounds = [name for name, modality in modalities.items() if isinstance(modality, AudioModality)]
    return next(iter(images), None), next(iter(sounds), None)


def room(output: Path) -> int:
    """Bytes that a recording may take: all that is free but 1 GiB."""
    try:
        return max(1, shutil.disk_usage(output.absolute().parent).free - _LEFT_FREE)
    except OSError as error:
        raise DeviceError(f"{output} cannot be written: {error.strerror or error}") from error


# --- recording -------------------------------------------------------------------------------------------------------


class _Taking:
    """Hands samples to the recorder until there are enough; for several threads.

    Args:
        recorder: that writes them.
        limit_ns: how much; None for no end.
        wait: for the disk rather than dropping.
    """

    def __init__(self, recorder: Recorder, limit_ns: int | None, *, wait: bool) -> None:
        self.recorder = recorder
        self.limit_ns = limit_ns
        self.stop = threading.Event()
        self.failure: BaseException | None = None
        self.progress = _Progress(self)
        self._wait = wait
        self._lock = threading.Lock()
        self._first: int | None = None
        self._last = 0

    @property
    def length_ns(self) -> int:
        """From the first sample to the last."""
        return 0 if self._first is None else self._last - self._first

    def take(self, samples: Iterator[Sample]) -> None:
        """All of a source's samples, or until there are enough, or ``stop``."""
        for sample in samples:
            if self.stop.is_set() or not self._note(sample):
                return
            self.recorder.push(sample.modality, sample.data, sample.t, rate=sample.rate, wait=self._wait)
            if self._wait:
                self.progress.show()

    def follow(self, source: Source) -> None:
        """``take`` as a thread: what it raises is kept, and ends the others."""
        try:
            self.take(source.samples())
        except BaseException as error:  # noqa: BLE001 - whatever a driver raises must reach the command
            self.failure = self.failure or error
            self.stop.set()

    def _note(self, sample: Sample) -> bool:
        with self._lock:
            self._first = sample.t if self._first is None else min(self._first, sample.t)
            is_wanted = self.limit_ns is None or sample.t < self._first + self.limit_ns
            if is_wanted:
                self._last = max(self._last, sample.t + sample.duration)
            return is_wanted


def _record_files(sources: list[Source], taking: _Taking) -> None:
    """As fast as possible, in the order in which a camera and a microphone would have given it."""
    taking.take(heapq.merge(*(source.samples() for source in sources), key=lambda sample: sample.t + sample.duration))


def _record_devices(sources: list[Source], taking: _Taking) -> None:
    """Each in a thread of its own, since either may be waiting for its device."""
    threads = [threading.Thread(target=taking.follow, args=(source,), name="edge-mbm-record") for source in sources]
    clock = MonotonicClock()
    end = None if taking.limit_ns is None else clock.now() + taking.limit_ns
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) and not taking.stop.wait(_WAIT_S):
            taking.progress.show()
            if end is not None and clock.now() >= end:
                break
    finally:
        taking.stop.set()
        for source in sources:
            source.close()
        for thread in threads:
            thread.join()
    if isinstance(taking.failure, EdgeMbmError):
        raise taking.failure
    if taking.failure is not None:
        raise SourceError(f"a source failed: {taking.failure!r}") from taking.failure


# --- for people ------------------------------------------------------------------------------------------------------


class _Progress:
    """One line on a terminal that is written over a few times a second; nothing elsewhere."""

    def __init__(self, taking: _Taking) -> None:
        self._taking = taking
        self._clock = MonotonicClock()
        self._due = 0
        self._width = 0
        self._is_shown = sys.stderr.isatty()

    def show(self) -> None:
        """The line as it is now, if the last one has stood for a while."""
        if self._is_shown and self._clock.now() >= self._due:
            line = _line(self._taking)
            sys.stderr.write("\r" + line.ljust(self._width))
            sys.stderr.flush()
            self._due, self._width = self._clock.now() + int(_WAIT_S * _SECOND), len(line)

    def end(self) -> None:
        """Leave the line."""
        if self._width:
            write_line("\r" + " " * self._width + "\r", sys.stderr)


def _line(taking: _Taking) -> str:
    recorder = taking.recorder
    counts = "".join(f"  {name} {count}" for name, count in recorder.recorded.items())
    dropped = "".join(f"  {name} dropped {count}" for name, count in recorder.dropped.items())
    return clean(f"{taking.length_ns / _SECOND:.1f} s{counts}{dropped}  {size(recorder.size)}")


def _report(output: Path, taking: _Taking, *, as_json: bool) -> None:
    if not as_json:
        write_line(f"{clean(output)}: {_line(taking)}", sys.stdout)
        return
    recorder = taking.recorder
    write_json(
        RecordReport(
            path=str(output),
            bytes=recorder.size,
            seconds=taking.length_ns / _SECOND,
            recorded=recorder.recorded,
            dropped=recorder.dropped,
        )
    )
