"""Calibration recordings cut from what was recorded on the device."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import CalibrationError, InputError, MissingDependencyError, SourceError
from edge_mbm.export.recordings import Recording
from edge_mbm.mcap import ReadLimits, RecordedItem, RecordingReader
from edge_mbm.preprocess import as_waveform
from edge_mbm.spec import AudioModality, Modality

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["recordings_from"]

_SECOND = 1_000_000_000
_SLIP_NS = 50_000_000
"""How far a block may be from the end of the one before, before sound counts as missing."""
_MOST_WAITING = 64
"""Pivots that wait for sound; a modality that fell silent must not collect pictures for ever."""


def recordings_from(
    path: str | os.PathLike[str],
    modalities: Mapping[str, Modality],
    pivot: str,
    *,
    every_s: float,
    window_s: float,
    limits: ReadLimits | None = None,
) -> Iterator[Recording]:
    """What the sensors took in around one pivot sample after another: a split's ``recordings``, without labels.

    Each has the pivot's sample, the latest of every other frame, vector and text, and of audio the ``window_s`` up to
    the pivot's time at the manifest's rate, mono. A pivot for which sound is recorded but not whole is left out.

    Args:
        path: an MCAP file of ``edge-mbm record`` or ``Recorder``.
        modalities: the bundle's or the recipe's; what else was recorded is left out.
        pivot: the modality whose samples say when.
        every_s: least time between two of them, seconds.
        window_s: length of audio, seconds.
        limits: what the file may ask for; see ``ReadLimits``.

    Raises:
        CalibrationError: the file cannot be read, or the pivot is not recorded in it.
        InputError: a time that is not above 0.
        MissingDependencyError: OpenCV for JPEG, or soxr where audio has another rate.
    """
    if not (0 < every_s <= 3600 and 0 < window_s <= 3600):
        raise InputError("every_s and window_s are seconds above 0 and at most 3600")
    try:
        reader = RecordingReader(path, limits)
        try:
            yield from _Cutter(reader, modalities, pivot, every_s, window_s).recordings()
        finally:
            reader.close()
    except SourceError as error:
        raise CalibrationError(f"no calibration recordings: {error}") from error


class _Cutter:
    """Goes through a recording once, with the latest of each modality at hand."""

    def __init__(
        self, reader: RecordingReader, modalities: Mapping[str, Modality], pivot: str, every_s: float, window_s: float
    ) -> None:
        if pivot not in reader.modalities or pivot not in modalities:
            raise CalibrationError(f"{reader.path} has {list(reader.modalities)}, and not the pivot '{pivot}'")
        self._reader = reader
        self._pivot = pivot
        self._every_ns = round(every_s * _SECOND)
        self._used = set(reader.modalities) & set(modalities)
        self._latest: dict[str, Any] = {}
        self._sound = {
            name: _Sound(modality.sample_rate, round(window_s * _SECOND))
            for name, modality in modalities.items()
            if name in self._used and isinstance(modality, AudioModality)
        }
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque(maxlen=_MOST_WAITING)

    def recordings(self) -> Iterator[Recording]:
        due = 0
        for item in self._reader.items():
            if item.modality not in self._used:
                continue
            moment = item.t + item.duration
            self._take(item)
            if item.modality == self._pivot and moment >= due:
                due = moment + self._every_ns
                self._waiting.append((moment, dict(self._latest)))
            yield from self._settled()

    def _take(self, item: RecordedItem) -> None:
        if item.modality in self._sound:
            self._sound[item.modality].add(item)
        else:
            self._latest[item.modality] = item.data

    def _settled(self) -> Iterator[Recording]:
        """Those that wait for no more sound; sound that has not begun by then is none."""
        while self._waiting and all(sound.end >= self._waiting[0][0] for sound in self._sound.values()):
            t, inputs = self._waiting.popleft()
            windows = {name: sound.window(t) for name, sound in self._sound.items()}
            if all(window is not None for window in windows.values()):
                yield Recording(f"{self._reader.path.name}@{t}", {**inputs, **windows}, None)


class _Sound:
    """The newest of one audio modality: enough for a window, and for the pivots that wait."""

    def __init__(self, rate: int, window_ns: int) -> None:
        self.end = -1
        """Time up to which it has come, ns."""
        self._rate = rate
        self._window_ns = window_ns
        self._samples = rate * window_ns // _SECOND
        self._blocks: deque[RecordedItem] = deque()

    def add(self, block: RecordedItem) -> None:
        last = self._blocks[-1] if self._blocks else None
        is_broken = last is not None and (last.rate != block.rate or abs(block.t - self.end) > _SLIP_NS)
        if is_broken:
            self._blocks.clear()
        self._blocks.append(block)
        self.end = block.t + block.duration
        # A pivot waits until sound has come up to it, so no more than one block more than a window is asked for.
        while self._blocks[0].t + self._blocks[0].duration < self.end - self._window_ns - _SECOND:
            self._blocks.popleft()

    def window(self, end: int) -> NDArray[np.float32] | None:
        """The samples up to ``end``, or None if they are not all there."""
        oldest = self._blocks[0]
        if oldest.rate is None:
            return None
        joined = np.concatenate([as_waveform(block.data) for block in self._blocks])
        length = math.ceil(oldest.rate * self._window_ns / _SECOND)
        # Counted from the newest block, whose time is nearest; others may be a little off, the count of samples is not.
        last = len(joined) - round((self.end - end) * oldest.rate / _SECOND)
        if last < length:
            return None
        cut = joined[last - length : last]
        return (cut if oldest.rate == self._rate else _resampled(cut, oldest.rate, self._rate))[: self._samples]


def _resampled(samples: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    try:
        import soxr  # noqa: PLC0415 - optional: not needed where the microphone has the model's rate
    except ImportError:
        remedy = "pip install soxr, or record at the model's rate"
        raise MissingDependencyError("soxr", f"resampling from {rate} to {target} Hz", remedy) from None
    resampled: NDArray[np.float32] = soxr.resample(samples, rate, target)
    return resampled
