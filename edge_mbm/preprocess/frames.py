"""Windows of video frames to what an encoder takes, and which frames of a whole video are in each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec.structs import replace

from edge_mbm.errors import InputError
from edge_mbm.preprocess.audio import as_array
from edge_mbm.preprocess.image import ImagePreprocessor, as_frame
from edge_mbm.spec import ImageSteps, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FrameFitter", "FramesPreprocessor", "WindowFrames", "as_video", "frame_windows"]


class FrameFitter:
    """Makes frames as small as an encoder sees them, before they wait for their window.

    What comes out may go through the same steps again, which then only recolour it: fitting a frame that fits is no
    change, and gray made of three equal channels is that channel.

    Args:
        steps: of the encoder's input.
    """

    def __init__(self, steps: ImageSteps) -> None:
        self._fit = ImagePreprocessor(replace(steps, color="rgb"))

    def __call__(self, frame: object) -> NDArray[np.uint8]:
        """A new uint8[height, width, 3] RGB; arguments and errors as of ``ImagePreprocessor``."""
        fitted: NDArray[np.uint8] = self._fit(frame)[0]
        return fitted


class FramesPreprocessor:
    """Every frame of a window, prepared as ``ImagePreprocessor`` does it.

    Args:
        steps: target size, colour order and fit.
        length: frames in a window.
    """

    def __init__(self, steps: ImageSteps, length: int) -> None:
        self._frame = ImagePreprocessor(steps)
        self.shape: tuple[int, ...] = (1, length, *self._frame.shape[1:])

    def __call__(self, data: object, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Prepare one window.

        Args:
            data: its frames, oldest first: a sequence, or uint8[length, H, W, 3].
            out: uint8[1, length, height, width, channels] to write into, such as an engine's input buffer.

        Returns:
            uint8[1, length, height, width, channels]: ``out`` if given.

        Raises:
            InputError: not so many frames, or not frames.
            MissingDependencyError: see ``ImagePreprocessor``.
        """
        frames = data if isinstance(data, Sequence | np.ndarray) else ()
        if len(frames) != self.shape[1]:
            raise InputError(f"a window has {self.shape[1]} frames, got {len(frames)}")
        result = np.empty(self.shape, np.uint8) if out is None else out
        for index, frame in enumerate(frames):
            self._frame(frame, out=result[:, index])
        return result


def as_video(data: object) -> NDArray[np.uint8]:
    """Check a whole video without copying it.

    Args:
        data: uint8[T, H, W, 3] RGB, uint8[T, H, W, 1] or uint8[T, H, W] gray; at least one frame.

    Returns:
        The same array.

    Raises:
        InputError: says what came and what is expected.
    """
    frames = as_array(data)
    if frames.ndim not in (3, 4) or len(frames) == 0:
        raise InputError(f"a video is uint8[T, H, W, 3], at least one frame, got {frames.dtype}{list(frames.shape)}")
    as_frame(frames[0])
    return frames


class WindowFrames(NamedTuple):
    """Which frames of a video are in one window."""

    indices: tuple[int, ...]
    """Of the frames, one or several times each where the video's ends are padded."""
    first: int
    """The first frame that this window is to answer for."""
    end: int
    """The one after the last."""


def frame_windows(frames: int, window: Window) -> Iterator[WindowFrames]:
    """The windows of a whole video, as they come one after the other in a stream of it.

    Args:
        frames: of the video, at least 1.
        window: see ``spec.Window``.

    Raises:
        InputError: there is no padding, and fewer frames than a window has.
    """
    length, hop, margin = window.length, window.hop, window.margin
    if window.padding == "none" and frames < length:
        raise InputError(f"{frames} frames are fewer than one window of {length}")
    start, answered = (-margin if window.padding == "repeat" else 0), 0
    while start + length <= frames or (window.padding == "repeat" and max(answered, start + margin) < frames):
        indices = tuple(min(max(index, 0), frames - 1) for index in range(start, start + length))
        answered = min(start + length - margin, frames)
        yield WindowFrames(indices, start + margin, answered)
        start += hop
