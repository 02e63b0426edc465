"""Recordings cut from a stream: what was known at one moment after another."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import MissingDependencyError
from edge_mbm.export.recording_sources.record import Recording
from edge_mbm.mcap import RecordedItem
from edge_mbm.preprocess import as_waveform
from edge_mbm.spec import AudioModality, Modality, VideoModality

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Cut", "Cutter", "resampled"]

_SECOND = 1_000_000_000
_SLIP_NS = 50_000_000
"""How far a block may be from the end of the one before, before sound counts as missing."""
_MOST_WAITING = 64
"""Pivots that wait for sound; a modality that fell silent must not collect pictures for ever."""


@dataclass(frozen=True)
class Cut:
    """Where to cut; all times are ns.

    Args:
        pivot: the modality whose samples say when.
        every: least time between two of them.
        window: length of sound and video, up to the pivot.
        start: no sound or video from before it.
        end: no pivot from there on.
    """

    pivot: str
    every: int
    window: int
    start: int = 0
    end: int | None = None


class Cutter:
    """Goes through a stream once, with the latest of each modality at hand.

    Args:
        name: of the stream, for ids.
        modalities: what is in it, and is wanted; the pivot among them.
        cut: where to cut.
    """

    def __init__(self, name: str, modalities: Mapping[str, Modality], cut: Cut) -> None:
        self._name = name
        self._cut = cut
        self._used = frozenset(modalities)
        self._latest: dict[str, Any] = {}
        self._sound = {
            key: _Sound(modality.sample_rate, cut.window)
            for key, modality in modalities.items()
            if isinstance(modality, AudioModality)
        }
        self._clips = {
            key: _Clip(modality.rate, cut.window)
            for key, modality in modalities.items()
            if isinstance(modality, VideoModality)
        }
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque(maxlen=_MOST_WAITING)

    def recordings(self, items: Iterable[RecordedItem]) -> Iterator[Recording]:
        """One after the other; the rest of the stream is not read once the end is reached.

        Args:
            items: in the order in which they came.
        """
        cut = self._cut
        # Sound of the part before is another split's: the first window begins where the part does.
        due = cut.start + cut.window if cut.start else cut.window if self._clips else 0
        for item in items:
            if item.modality not in self._used:
                continue
            moment = item.t + item.duration
            if cut.end is not None and moment >= cut.end + _SECOND and not self._waiting:
                return
            self._take(item)
            if item.modality == cut.pivot and moment >= due and (cut.end is None or moment < cut.end):
                due = moment + cut.every
                self._waiting.append(
                    (moment, self._latest | {n: clip.window(moment) for n, clip in self._clips.items()})
                )
            yield from self._settled()

    def _take(self, item: RecordedItem) -> None:
        if item.modality in self._sound:
            self._sound[item.modality].add(item)
        elif item.modality in self._clips:
            self._clips[item.modality].add(item)
        else:
            self._latest[item.modality] = item.data

    def _settled(self) -> Iterator[Recording]:
        """Those that wait for no more sound; sound that has not begun by then is none."""
        while self._waiting and all(sound.end >= self._waiting[0][0] for sound in self._sound.values()):
            t, inputs = self._waiting.popleft()
            windows = {name: sound.window(t) for name, sound in self._sound.items()}
            if all(window is not None for window in windows.values()):
                yield Recording(f"{self._name}@{t}", {**inputs, **windows}, None)


class _Sound:
    """The newest of one audio modality: enough for a window, and for the pivots that wait."""

    def __init__(self, rate: int, window: int) -> None:
        self.end = -1
        """Time up to which it has come, ns."""
        self._rate = rate
        self._window = window
        self._samples = rate * window // _SECOND
        self._blocks: deque[RecordedItem] = deque()

    def add(self, block: RecordedItem) -> None:
        last = self._blocks[-1] if self._blocks else None
        is_broken = last is not None and (last.rate != block.rate or abs(block.t - self.end) > _SLIP_NS)
        if is_broken:
            self._blocks.clear()
        self._blocks.append(block)
        self.end = block.t + block.duration
        # A pivot waits until sound has come up to it, so no more than one block more than a window is asked for.
        while self._blocks[0].t + self._blocks[0].duration < self.end - self._window - _SECOND:
            self._blocks.popleft()

    def window(self, end: int) -> NDArray[np.float32] | None:
        """The samples up to ``end``, or None if they are not all there."""
        oldest = self._blocks[0]
        if oldest.rate is None:
            return None
        joined = np.concatenate([as_waveform(block.data) for block in self._blocks])
        length = math.ceil(oldest.rate * self._window / _SECOND)
        # Counted from the newest block, whose time is nearest; others may be a little off, the count of samples is not.
        last = len(joined) - round((self.end - end) * oldest.rate / _SECOND)
        if last < length:
            return None
        return resampled(joined[last - length : last], oldest.rate, self._rate)[: self._samples]


class _Clip:
    """The newest frames of one video modality, as many as a window has: full size, so windows are to be short."""

    def __init__(self, rate: float, window: int) -> None:
        self._rate = rate
        self._window = window
        self._frames: deque[RecordedItem] = deque()

    def add(self, frame: RecordedItem) -> None:
        self._frames.append(frame)
        while len(self._frames) > 1 and self._frames[1].t <= frame.t - self._window:
            self._frames.popleft()

    def window(self, end: int) -> NDArray[np.uint8]:
        """uint8[frames, H, W, 3], the last at ``end``: of each place on the grid the frame that is nearest in time."""
        count = max(1, round(self._window * self._rate / _SECOND))
        times = np.array([frame.t for frame in self._frames])
        places = [end - round(back * _SECOND / self._rate) for back in reversed(range(count))]
        return np.stack([self._frames[int(np.abs(times - place).argmin())].data for place in places])


def resampled(samples: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    """A mono waveform at another rate, Hz; the same memory where it is that rate's already.

    Raises:
        MissingDependencyError: soxr is not installed, and the rates differ.
    """
    if rate == target:
        return samples
    try:
        import soxr  # noqa: PLC0415 - optional: not needed where the microphone has the model's rate
    except ImportError:
        remedy = "pip install soxr, or record at the model's rate"
        raise MissingDependencyError("soxr", f"resampling from {rate} to {target} Hz", remedy) from None
    result: NDArray[np.float32] = soxr.resample(samples, rate, target)
    return result
