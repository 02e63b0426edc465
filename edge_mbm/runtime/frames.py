"""Video that waits to be encoded: small frames on a grid of time, in windows. Lossless and bounded, as sound is."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from edge_mbm.errors import InputError
from edge_mbm.preprocess import FrameFitter, as_frame
from edge_mbm.runtime.result import Segment, SequenceOutput, TaskOutput
from edge_mbm.runtime.stream import AudioStream, FrameStream
from edge_mbm.spec import Component, Encoder, ImageSteps, Manifest, VideoModality, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MAX_STILL_NS",
    "FrameTimes",
    "FrameWindow",
    "FrameWindows",
    "Stream",
    "VideoStream",
    "frame_times",
    "video_stream",
    "watch_problem",
]

MAX_STILL_NS = 1_000_000_000
"""How long the last frame stands for what was not seen; after a longer pause the video begins anew."""

_SECOND = 1_000_000_000
_FOLLOW = 0.025
"""A frame moves the grid by at most this part of a period: fast enough for any camera's clock, slow against jitter."""


class FrameWindow(NamedTuple):
    """One window for its encoder."""

    frames: tuple[NDArray[np.uint8], ...]
    """uint8[height, width, 3] each, RGB, oldest first."""
    t: int
    """Time of its last place on the grid, ns."""
    segment: Segment
    """What of the stream it answers for."""


class FrameWindows:
    """Windows at a fixed hop over frames at a fixed rate, whatever the times at which frames come.

    Each frame takes the place on the grid of time, from the first frame on, that is nearest to its capture time. Of
    several for one place the first stays; an empty place gets the nearer of its neighbours. The grid follows the
    camera's clock. A pause of more than ``max_still_ns`` ends the video and begins a new one, with its own grid.

    Memory is bounded by the capacity and one window: frames are held by reference, so overlapping windows and repeats
    cost nothing.

    Args:
        rate: frames a second.
        window: in frames, see ``spec.Window``.
        capacity: frames that may wait; beyond it the oldest window is given up and counted.
        max_still_ns: the longest pause that repeats bridge.
    """

    def __init__(self, *, rate: float, window: Window, capacity: int, max_still_ns: int = MAX_STILL_NS) -> None:
        self._window = window
        self._period = _SECOND / rate
        self._max_still_ns = max_still_ns
        self._most = max(1, capacity // window.hop)
        self._is_padded = window.padding == "repeat"
        self.is_on = True
        """While it is not, what comes passes by."""
        self.gaps = self.repeated = self.superseded = 0
        self.dropped = 0
        """Windows that were given up."""
        self._newest = 0
        self.clear()

    def clear(self) -> None:
        """Forget frames and grid; the counters stay."""
        self._ready: deque[FrameWindow] = deque()
        self._begin(None)

    @property
    def held(self) -> int:
        """Frames that it keeps in memory, at most one for each place on the grid."""
        waiting = {id(frame) for window in self._ready for frame in window.frames}
        return len(waiting | {id(frame) for frame in self._frames})

    @property
    def bound(self) -> int | None:
        """Time up to which frames have come, ns; None before the first."""
        return None if self._anchor is None else self._newest

    def push(self, frame: NDArray[np.uint8], t: int) -> bool:
        """Put a frame in its place.

        Args:
            frame: uint8[height, width, 3] RGB, kept by reference.
            t: capture time, ns, after the one before.

        Returns:
            Whether continuity was broken (a pause or an overflow), so that a carried state must start anew.
        """
        if not self.is_on:
            return False
        is_broken = self._anchor is not None and t - self._newest > self._max_still_ns
        if is_broken:
            self.gaps += 1
            self.finish()
        lost = self.dropped
        if self._anchor is None:
            self._begin(t)
            for _ in range(self._window.margin if self._is_padded else 0):
                self._append(frame)
            self._place(frame)
        else:
            self._add(frame, t)
        self._newest = t
        return is_broken or self.dropped > lost

    def finish(self) -> None:
        """No more comes: with padding, what has no answer yet gets one."""
        while self._is_padded and max(self._answered, self._start + self._window.margin) < self._count:
            self._append(self._last)
        self._begin(None)

    @property
    def next_end(self) -> int | None:
        """Time of the last frame of the next window, complete or not, ns; None before the first frame."""
        if self._ready:
            return self._ready[0].t
        return None if self._anchor is None else self._time(self._start + self._window.length - 1)

    def waits(self, t: int) -> bool:
        """Whether a window that ends at ``t`` or before has not been taken."""
        return bool(self._ready) and self._ready[0].t <= t

    def passed(self, t: int) -> bool:
        """Whether every window that ends at ``t`` or before is complete, taken or not."""
        return self._anchor is not None and self._time(self._start + self._window.length - 1) > t

    def next_window(self) -> FrameWindow | None:
        """The oldest window that was not taken."""
        return self._ready.popleft() if self._ready else None

    def _begin(self, anchor: int | None) -> None:
        self._anchor = anchor
        self._offset = 0.0
        """How far the grid has moved since, ns."""
        if anchor is not None:
            self._newest = anchor
        self._frames: deque[NDArray[np.uint8]] = deque()
        """From the next window's first place on; frames to come may be skipped first."""
        self._skip = 0
        self._last: Any = None
        self._count = 0
        """Places that are filled, without padding."""
        self._start = -self._window.margin if self._is_padded else 0
        self._answered = 0

    def _add(self, frame: NDArray[np.uint8], t: int) -> None:
        assert self._anchor is not None
        exact = (t - self._anchor - self._offset) / self._period
        place = round(exact)
        missing = place - self._count
        if missing < 0:
            self.superseded += 1
            return
        before = self._last
        for index in range(missing):
            self.repeated += 1
            self._place(before if 2 * index < missing - 1 else frame)
        self._place(frame)
        # Towards where this frame is, so that a clock that is a little off does not make its frames fall between.
        self._offset += min(max(exact - place, -_FOLLOW), _FOLLOW) * self._period

    def _place(self, frame: NDArray[np.uint8]) -> None:
        self._last = frame
        self._count += 1
        self._append(frame)

    def _append(self, frame: NDArray[np.uint8]) -> None:
        if self._skip:
            self._skip -= 1
            return
        self._frames.append(frame)
        if len(self._frames) == self._window.length:
            self._complete()

    def _complete(self) -> None:
        length, hop, margin = self._window.length, self._window.hop, self._window.margin
        first, self._answered = self._start + margin, min(self._start + length - margin, self._count)
        segment = Segment(self._time(first), self._time(self._answered), is_final=True)
        if len(self._ready) >= self._most:
            self._ready.popleft()
            self.dropped += 1
        self._ready.append(FrameWindow(tuple(self._frames), self._time(self._start + length - 1), segment))
        self._start += hop
        for _ in range(min(hop, length)):
            self._frames.popleft()
        self._skip = max(0, hop - length)

    def _time(self, place: int) -> int:
        assert self._anchor is not None
        return self._anchor + round(self._offset + place * self._period)


class VideoStream:
    """A modality of which each frame counts, with windows of its own for every encoder that watches.

    Args:
        name: the modality's.
        parts: of the encoders, in their order.
        fitters: likewise; each makes frames as small as its encoder sees them.
    """

    def __init__(self, name: str, parts: list[FrameWindows], fitters: list[FrameFitter]) -> None:
        self.name = name
        self.parts = parts
        self.ended = False
        self.bound: int | None = None
        self._fitters = fitters
        self._unseen = 0

    def fit(self, data: object) -> list[NDArray[np.uint8]]:
        """What each encoder is to see of a frame, for ``push``; this takes time, and touches nothing.

        Raises:
            InputError, MissingDependencyError: see ``ImagePreprocessor``.
        """
        frame = as_frame(data)
        return [fit(frame) for fit in self._fitters]

    def push(self, fitted: list[NDArray[np.uint8]], t: int) -> list[bool]:
        """Give a frame to every encoder's windows.

        Args:
            fitted: of ``fit``.
            t: capture time, ns.

        Returns:
            Per encoder: whether continuity was broken.

        Raises:
            InputError: its time is not after the previous one's.
        """
        if self.bound is not None and t <= self.bound:
            raise InputError(f"'{self.name}' at t = {t} ns is not after the previous one at {self.bound} ns")
        self.bound, self.ended = t, False
        return [part.push(frame, t) for part, frame in zip(self.parts, fitted, strict=True)]

    def count_dropped(self, count: int) -> None:
        """Frames were lost before they could be pushed; repeats stand for them."""
        self._unseen += count

    def end(self) -> None:
        """No more will come: pad what has no answer yet."""
        for part in self.parts:
            part.finish()
        self.ended = True

    def losses(self) -> dict[str, int]:
        """Counts by cause."""
        return {
            "gaps": max((part.gaps for part in self.parts), default=0),
            "lost_windows": max((part.dropped for part in self.parts), default=0),
            "repeated": max((part.repeated for part in self.parts), default=0),
            "superseded": self._unseen + max((part.superseded for part in self.parts), default=0),
        }

    def clear(self) -> None:
        """Forget frames and time; the counters stay."""
        self.bound, self.ended = None, False
        for part in self.parts:
            part.clear()


Stream: TypeAlias = FrameStream | AudioStream | VideoStream


def video_stream(name: str, modality: VideoModality, encoders: Sequence[Component], ahead_s: float) -> VideoStream:
    """A stream of frames in windows.

    Args:
        name: the modality's.
        modality: at what rate.
        encoders: that watch, see ``watch_problem``.
        ahead_s: video that may wait to be encoded, seconds.
    """
    parts, fitters = [], []
    for encoder in encoders:
        assert isinstance(encoder, Encoder)
        assert encoder.window is not None  # Manifest.check demands one for a stream
        steps = next(iter(encoder.inputs.values())).preprocess  # the same for all: see watch_problem
        assert isinstance(steps, ImageSteps)
        parts.append(FrameWindows(rate=modality.rate, window=encoder.window, capacity=int(ahead_s * modality.rate)))
        fitters.append(FrameFitter(steps))
    return VideoStream(name, parts, fitters)


def watch_problem(encoder: Component, modality: str) -> str | None:
    """Why frames cannot wait for this encoder, or None: they do so in one size."""
    steps: list[Any] = [value.preprocess for value in encoder.inputs.values() if value.source == modality]
    if not isinstance(encoder, Encoder) or encoder.window is None:
        return f"reads '{modality}' without a window"
    if any(not isinstance(step, ImageSteps) or step != steps[0] for step in steps):
        return f"reads '{modality}' by {steps}: frames of video go through 'image' steps, the same for all its inputs"
    return None


class FrameTimes:
    """Which steps of an output count for what a window answers, and when each was.

    Args:
        window: of the encoder.
        rate: frames a second.
    """

    def __init__(self, window: Window, rate: float) -> None:
        self._window = window
        self._period = _SECOND / rate

    def timed(self, outputs: Mapping[str, TaskOutput], segment: Segment | None) -> Mapping[str, TaskOutput]:
        """Outputs of one step per frame without margins and padding; others, and one shot's, as they are.

        Args:
            outputs: of a head.
            segment: what of the stream the window answers for.
        """
        return outputs if segment is None else {key: self._timed(value, segment) for key, value in outputs.items()}

    def _timed(self, output: TaskOutput, segment: Segment) -> TaskOutput:
        if not isinstance(output, SequenceOutput) or output.values.shape[:1] != (self._window.length,):
            return output
        count = round((segment.end - segment.start) / self._period)
        times = segment.start + np.round(np.arange(count) * self._period).astype(np.int64)
        return SequenceOutput(output.values[self._window.margin :][:count], times)


def frame_times(manifest: Manifest, name: str) -> FrameTimes | None:
    """Of what gives results: of the window of video that it is about, if there is one."""
    pending = [name]
    while pending:
        component = manifest.components[pending.pop()]
        for value in component.inputs.values():
            modality = manifest.modalities.get(value.source)
            if isinstance(modality, VideoModality) and isinstance(component, Encoder) and component.window is not None:
                return FrameTimes(component.window, modality.rate)
            if modality is None:
                pending.append(value.source.partition(".")[0])
    return None
