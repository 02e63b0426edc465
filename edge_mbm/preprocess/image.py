"""Camera frames to what an image encoder takes: uint8, one size, one colour order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import InputError, MissingDependencyError
from edge_mbm.preprocess.audio import as_array
from edge_mbm.spec import ImageSteps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ImagePreprocessor", "as_frame", "fit_of", "import_cv2", "recolor"]

# ITU-R BT.601 luma in 15-bit fixed point, rounded to nearest.
_LUMA = np.array([9798, 19235, 3735], dtype=np.uint32)


class ImagePreprocessor:
    """Fit, resize and recolour one frame; scaling to float happens in the graph, on the accelerator.

    Resizing averages areas when shrinking and interpolates linearly when growing. It needs OpenCV, whichever build
    is installed; a frame that already has the right size does not.

    Args:
        steps: target size, colour order and fit.
    """

    def __init__(self, steps: ImageSteps) -> None:
        self.steps = steps
        self.shape: tuple[int, ...] = (1, steps.height, steps.width, 1 if steps.color == "gray" else 3)

    def __call__(self, data: object, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Prepare one frame.

        Args:
            data: uint8[H, W, 3] in RGB, or uint8[H, W] or [H, W, 1] in gray; any size.
            out: uint8[1, height, width, channels] to write into, such as an engine's input buffer.

        Returns:
            uint8[1, height, width, channels]: ``out`` if given.

        Raises:
            InputError: not such a frame.
            MissingDependencyError: it must be resized and OpenCV is not installed.
        """
        result = np.empty(self.shape, np.uint8) if out is None else out
        recolor(self._fit(as_frame(data)), self.steps.color, result[0])
        return result

    def _fit(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = self.steps.height, self.steps.width
        if self.steps.fit == "crop":
            frame = _center_crop(frame, height, width)
        if frame.shape[:2] == (height, width):
            return frame
        if self.steps.fit == "letterbox":
            return _letterbox(frame, height, width)
        return _resize(frame, height, width)


def as_frame(data: object) -> NDArray[np.uint8]:
    """Check a camera frame without copying it.

    Args:
        data: uint8[H, W, 3] RGB, uint8[H, W, 1] or uint8[H, W] gray.

    Returns:
        uint8[H, W, 3] or uint8[H, W, 1].

    Raises:
        InputError: says what came and what is expected.
    """
    frame = as_array(data)
    if frame.ndim == 2:
        frame = frame[:, :, None]
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (1, 3) or 0 in frame.shape:
        raise InputError(
            f"a frame is uint8[H, W, 3] in RGB or uint8[H, W] in gray, got {frame.dtype}{list(frame.shape)}"
        )
    return frame


def _center_crop(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The largest centred part with the target's aspect ratio."""
    rows, columns = frame.shape[:2]
    keep_rows, keep_columns = _kept(rows, columns, height, width)
    top, left = (rows - keep_rows) // 2, (columns - keep_columns) // 2
    return frame[top : top + keep_rows, left : left + keep_columns]


def _kept(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a frame that a centre crop keeps."""
    return min(rows, max(1, round(columns * height / width))), min(columns, max(1, round(rows * width / height)))


def _letterbox(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The whole frame, centred, with black bars."""
    rows, columns = _filled(frame.shape[0], frame.shape[1], height, width)
    result = np.zeros((height, width, frame.shape[2]), np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    result[top : top + rows, left : left + columns] = _resize(frame, rows, columns)
    return result


def _filled(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a letterboxed image that the frame fills."""
    scale = min(height / rows, width / columns)
    return max(1, round(rows * scale)), max(1, round(columns * scale))


def fit_of(steps: ImageSteps, rows: int, columns: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where in a frame the pixels of the fitted image lie: frame = image * scale + shift.

    Args:
        steps: target size and fit.
        rows: of the frame.
        columns: of the frame.

    Returns:
        (scale, shift) along x, then along y, in pixels whose first begins at 0.
    """
    height, width = steps.height, steps.width
    if steps.fit == "letterbox":
        filled_rows, filled_columns = _filled(rows, columns, height, width)
        x, y = columns / filled_columns, rows / filled_rows
        return (x, -((width - filled_columns) // 2) * x), (y, -((height - filled_rows) // 2) * y)
    kept_rows, kept_columns = _kept(rows, columns, height, width) if steps.fit == "crop" else (rows, columns)
    return (kept_columns / width, (columns - kept_columns) // 2), (kept_rows / height, (rows - kept_rows) // 2)


def _resize(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    cv2 = import_cv2("resizing a frame")
    shrinking = height < frame.shape[0] or width < frame.shape[1]
    # OpenCV writes no numpy view of another layout, and drops a channel axis of 1.
    resized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8).reshape(height, width, frame.shape[2])


def import_cv2(purpose: str) -> Any:
    """OpenCV, whichever build the device has.

    Args:
        purpose: what it is needed for, for the message.

    Raises:
        MissingDependencyError: none is installed.
    """
    try:
        import cv2  # noqa: PLC0415 - optional: a device may feed frames of the right size
    except ImportError:
        remedy = "pip install 'edge-mbm[video]' (on a Jetson keep the system's: apt-get install python3-opencv)"
        raise MissingDependencyError("cv2", purpose, remedy) from None
    return cv2


def recolor(frame: NDArray[np.uint8], color: str, out: NDArray[np.uint8]) -> None:
    """Write uint8[H, W, 3] in RGB, or [H, W, 1] in gray, as "rgb", "bgr" or "gray"."""
    if color != "gray":
        out[...] = frame if color == "rgb" or frame.shape[2] == 1 else frame[:, :, ::-1]
    elif frame.shape[2] == 1:
        out[...] = frame
    else:
        out[:, :, 0] = (frame.astype(np.uint32) @ _LUMA + (1 << 14)) >> 15
