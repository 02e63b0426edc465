"""Pictures and sound of media files, decoded by PyAV and OpenCV."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import CalibrationError, MissingDependencyError
from edge_mbm.export.recording_sources.cut import resampled
from edge_mbm.mcap import RecordedItem
from edge_mbm.preprocess import as_waveform

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["clip_items", "clip_length", "read_image", "read_sound", "streams"]

_SECOND = 1_000_000_000
_BLOCK_NS = 20_000_000
_MOST_SECONDS = 3600
"""Longest sound file that is one recording."""
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


def streams(path: Path) -> tuple[bool, bool]:
    """Whether a file has pictures, and whether it has sound.

    Raises:
        CalibrationError: it cannot be decoded.
        MissingDependencyError: PyAV is not installed.
    """
    with _opened(path) as container:
        return bool(container.streams.video), bool(container.streams.audio)


def clip_length(path: Path) -> int:
    """Time of the last picture, or of the last sound where there are none, ns; found without decoding.

    Raises:
        CalibrationError: it cannot be decoded.
        MissingDependencyError: PyAV is not installed.
    """
    with _opened(path) as container:
        stream = (container.streams.video or container.streams.audio)[0]
        times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
        return _nanoseconds(max(times), stream.time_base) - _start(container) if times else 0


def clip_items(path: Path, picture: str | None, sound: str | None) -> Iterator[RecordedItem]:
    """Frames and sound as a live source would have had them: by the time at which each is complete.

    Frames are uint8[H, W, 3] RGB, sound is float32[samples, channels] at the file's rate; times begin at 0, as those of
    the device's own file source do. One frame and one block of sound are in memory.

    Args:
        path: of a file.
        picture: modality of the frames of its first video stream; None leaves them out.
        sound: modality of its first audio stream, likewise.

    Raises:
        CalibrationError: it cannot be decoded; what was given before is whole.
        MissingDependencyError: PyAV is not installed.
    """
    parts = []
    if picture is not None:
        parts.append(_decoded(path, "video", picture))
    if sound is not None:
        parts.append(_decoded(path, "audio", sound))
    yield from heapq.merge(*parts, key=lambda item: item.t + item.duration)


def read_sound(path: Path, rate: int) -> NDArray[np.float32]:
    """A whole sound file, mono, at ``rate`` Hz.

    Raises:
        CalibrationError: it cannot be decoded, has no sound, or is longer than an hour.
        MissingDependencyError: PyAV, or soxr where the rate differs, is not installed.
    """
    if not streams(path)[1]:
        raise CalibrationError(f"{path} has no sound: leave it out, or export it with an audio track")
    blocks: list[NDArray[np.float32]] = []
    rates: set[int | None] = set()
    for item in _decoded(path, "audio", "audio"):
        blocks.append(as_waveform(item.data))
        rates.add(item.rate)
        if item.t > _MOST_SECONDS * _SECOND:
            raise CalibrationError(f"{path} is longer than {_MOST_SECONDS} s: cut it into recordings")
    if len(rates) != 1 or None in rates:
        raise CalibrationError(f"{path} has no sound of one rate ({len(blocks)} blocks): convert it, or leave it out")
    [found] = rates
    assert found is not None
    return resampled(np.concatenate(blocks), found, rate)


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file as uint8[H, W, 3] RGB, turned as its EXIF says.

    Raises:
        CalibrationError: it is no image, or damaged.
        MissingDependencyError: OpenCV is not installed.
    """
    try:
        import cv2  # noqa: PLC0415 - optional: other recordings need none
    except ImportError:
        raise MissingDependencyError("cv2", "reading image files", "pip install 'edge-mbm[video]'") from None
    data = path.read_bytes()
    # OpenCV decodes half a JPEG without a word, and fills the rest with gray.
    is_cut = data.startswith(_JPEG) and _JPEG_END not in data[-4096:]
    try:
        frame = None if is_cut or not data else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        frame = None
    if frame is None:
        raise CalibrationError(f"{path} is no image that can be read, or it is damaged: mend it, or leave it out")
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import av  # noqa: PLC0415 - optional: other recordings need none
    except ImportError:
        raise MissingDependencyError("av", f"reading {path.name}", "pip install 'edge-mbm[video]'") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video and not container.streams.audio:
                raise CalibrationError(f"{path} has neither pictures nor sound: leave it out")
            yield container
    except (av.FFmpegError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be decoded: {error}. Is it a media file, and whole?") from error


def _decoded(path: Path, kind: str, modality: str) -> Iterator[RecordedItem]:
    with _opened(path) as container:
        start, newest = _start(container), -1
        stream = getattr(container.streams, kind)[0]
        stream.thread_type = "SLICE"  # frame threads would hold several frames back
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            t = _nanoseconds(frame.pts, frame.time_base) - start
            for item in (_picture if kind == "video" else _blocks)(modality, frame, t):
                # A damaged file may repeat times or go back; time does not.
                if item.t > newest:
                    newest = item.t
                    yield item


def _picture(modality: str, frame: Any, t: int) -> Iterator[RecordedItem]:
    yield RecordedItem(modality, "image", frame.to_ndarray(format="rgb24"), t, 0, None)


def _blocks(modality: str, frame: Any, t: int) -> Iterator[RecordedItem]:
    """As short as the device's, so that what is cut off before the beginning is the same."""
    data, rate = frame.to_ndarray(), frame.sample_rate
    samples = _to_float(data.T if frame.format.is_planar else data.reshape(-1, len(frame.layout.channels)))
    length = max(1, rate * _BLOCK_NS // _SECOND)
    for first in range(0, len(samples), length):
        block = samples[first : first + length]
        begins = t + first * _SECOND // rate
        yield RecordedItem(modality, "audio", block, begins, len(block) * _SECOND // rate, rate)


def _to_float(samples: NDArray[Any]) -> NDArray[np.float32]:
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    return samples.astype(np.float32) / np.float32(np.iinfo(samples.dtype).max + 1)


def _start(container: Any) -> int:
    """Recordings start at 0, whatever number their container gives the first moment; what is before is priming."""
    return max(0, container.start_time or 0) * 1000


def _nanoseconds(ticks: int, time_base: Any) -> int:
    """Exact: a float of seconds would round differently from file to file."""
    return int(ticks * time_base * _SECOND)
