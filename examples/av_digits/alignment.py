"""When a clip's picture and sound were captured, found in what was captured: each is compared with the clip itself."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from edge_mbm.errors import SourceError
from edge_mbm.runtime.source import Sample, Source, Timing
from edge_mbm.runtime.sources import Supervised, open_source
from edge_mbm.runtime.status import SourceStatus

__all__ = ["Clip", "Starts", "Tap", "picture_starts", "read_clip", "sound_starts"]

_SECOND = 1_000_000_000
_SIDE = 28
_ALIKE, _UNALIKE = 0.8, 0.1
"""A frame is found where the correlation is so high, and lower by so much at every other frame of the clip."""
_HEARD = 0.5
_REACH_S = 0.5
"""How far from where it should be a second of sound is looked for."""

Starts = NDArray[np.int64]
"""Monotonic ns at which the clip would have begun, one for each of its parts that was found."""


@dataclass(frozen=True)
class Clip:
    """A decoded clip.

    Args:
        pictures: uint8[frames, 28, 28].
        sound: float32[samples], mono.
        rate: of the sound, Hz.
        fps: frames a second.
    """

    pictures: NDArray[np.uint8]
    sound: NDArray[np.float32]
    rate: int
    fps: float

    @property
    def duration(self) -> float:
        """Of the pictures, s."""
        return len(self.pictures) / self.fps


def read_clip(path: Path, rate: int) -> Clip:
    """Decode a clip.

    Args:
        path: a recording with picture and sound.
        rate: to which its sound is resampled, Hz.

    Raises:
        SourceError: it cannot be read, or lacks one of both.
    """
    pictures: list[NDArray[np.uint8]] = []
    sound: list[NDArray[np.int16]] = []
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    try:
        with av.open(str(path)) as container:
            fps = float(container.streams.video[0].average_rate or 0)
            for frame in container.decode(video=0, audio=0):
                if isinstance(frame, VideoFrame):
                    pictures.append(_small(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)))
                elif isinstance(frame, AudioFrame):
                    sound += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    except (av.FFmpegError, IndexError) as error:
        raise SourceError(f"{path} is no clip with picture and sound: {error}") from error
    sound += [part.to_ndarray()[0] for part in resampler.resample(None)]
    return Clip(np.stack(pictures), (np.concatenate(sound) / 32768).astype(np.float32), rate, fps)


class Tap:
    """What an address gives, handed on as it is, and remembered.

    Args:
        address: see ``edge_mbm.runtime.sources.open_source``.
        modality: "image" or "audio": what to take of it.
        capacity: samples to remember; beyond it the oldest are forgotten.
    """

    def __init__(self, address: str, modality: str, capacity: int) -> None:
        image, audio = (modality, None) if modality == "image" else (None, modality)
        source: Source = open_source(address, image=image, audio=audio)
        assert isinstance(source, Supervised)
        self._source = source
        self._kept: deque[Sample] = deque(maxlen=capacity)
        self._lock = threading.Lock()

    @property
    def modalities(self) -> tuple[str, ...]:
        """See ``Source.modalities``."""
        return self._source.modalities

    @property
    def timing(self) -> Timing:
        """See ``Source.timing``."""
        return self._source.timing

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        for sample in self._source.samples():
            kept = sample._replace(data=_small(sample.data)) if sample.modality == "image" else sample
            with self._lock:
                self._kept.append(kept)
            yield sample

    def close(self) -> None:
        """See ``Source.close``."""
        self._source.close()

    def status(self) -> SourceStatus:
        """See ``Supervised.status``."""
        return self._source.status()

    def losses(self) -> dict[str, int]:
        """See ``Supervised.losses``."""
        return self._source.losses()

    def kept(self) -> list[Sample]:
        """What came, pictures as uint8[28, 28]."""
        with self._lock:
            return list(self._kept)


def picture_starts(seen: list[Sample], clip: Clip) -> Starts:
    """From each frame that is like one frame of the clip and like no other; still pictures do not tell."""
    if not seen:
        return np.empty(0, np.int64)
    alike = _normal(np.stack([sample.data for sample in seen])) @ _normal(clip.pictures).T
    rows, found = np.arange(len(alike)), alike.argmax(axis=1)
    best = alike[rows, found].copy()
    alike[rows, found] = -1
    certain = (best > _ALIKE) & (best - alike.max(axis=1) > _UNALIKE)
    times = np.array([sample.t for sample in seen], np.int64)
    starts: Starts = (times - np.round(found * _SECOND / clip.fps).astype(np.int64))[certain]
    return starts


def sound_starts(heard: list[Sample], clip: Clip, near: int) -> Starts:
    """From each second of the clip's sound, where it correlates best.

    Args:
        heard: blocks at the clip's rate.
        clip: what was played.
        near: about when it began, monotonic ns.
    """
    starts: list[int] = []
    times = np.array([sample.t for sample in heard], np.int64)
    begins = np.cumsum([0] + [len(sample.data) for sample in heard])
    sound = np.concatenate([sample.data[:, 0] for sample in heard]) if heard else np.empty(0, np.float32)
    reach = int(_REACH_S * clip.rate)
    for first in range(0, len(clip.sound) - clip.rate + 1, clip.rate):
        asked = near + first * _SECOND // clip.rate
        block = int(np.searchsorted(times, asked, side="right")) - 1
        if block < 0:
            continue
        at = int(begins[block]) + (asked - int(times[block])) * clip.rate // _SECOND
        low, high = at - reach, at + reach + clip.rate
        if low < 0 or high > len(sound):
            continue
        lag, likeness = _lag(sound[low:high], clip.sound[first : first + clip.rate])
        if likeness > _HEARD:
            index = low + lag
            block = int(np.searchsorted(begins, index, side="right")) - 1
            t = int(times[block]) + (index - int(begins[block])) * _SECOND // clip.rate
            starts.append(t - first * _SECOND // clip.rate)
    return np.array(starts, np.int64)


def _lag(sound: NDArray[np.float32], part: NDArray[np.float32]) -> tuple[int, float]:
    """Where a part begins, and its correlation with what is there."""
    size = 1 << (len(sound) + len(part)).bit_length()
    product = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(part, size)), size)
    lag = int(product[: len(sound) - len(part)].argmax())
    there = sound[lag : lag + len(part)]
    norms = float(np.linalg.norm(there) * np.linalg.norm(part))
    return lag, float(product[lag]) / norms if norms > 0 else 0.0


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture's green as uint8[28, 28]."""
    return np.asarray(
        cv2.resize(np.ascontiguousarray(picture[:, :, 1]), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.uint8
    )


def _normal(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows without mean and of length 1; a picture of one colour is like nothing."""
    rows = pictures.reshape(len(pictures), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    normal: NDArray[np.float32] = (rows / np.where(norms > _SIDE, norms, np.inf)).astype(np.float32)
    return normal
