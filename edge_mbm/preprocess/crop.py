"""Regions of a frame, one by one, to what an encoder of crops takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_mbm.errors import EngineError, InputError
from edge_mbm.preprocess.image import as_frame, import_cv2, recolor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_mbm.spec import CropSteps

__all__ = ["Crop", "CropPreprocessor", "crops_of"]

_BOX = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
_SMALLEST = 1e-6  # pixels of the frame for one of the crop; smaller is a region of no size


class Crop(NamedTuple):
    """One region, and the frame that it is of."""

    frame: NDArray[np.uint8]
    """uint8[H, W, C], as ``as_frame`` gives."""
    region: NDArray[np.float32]
    """float32[5 + 2 * landmarks]: x0, y0, x1, y1 in the frame's pixels, score, then x, y of each landmark."""


def crops_of(frame: object, regions: NDArray[np.float32]) -> Iterator[Crop]:
    """The regions that there are, each with its frame.

    Args:
        frame: uint8[H, W, 3] RGB or uint8[H, W] gray; of a series, uint8[T, H, W, C], the last one.
        regions: float32[1, max_regions, 5 + 2 * landmarks] with zeros after the last, as ``find_regions`` gives.

    Raises:
        InputError: no such frame.
    """
    series = isinstance(frame, np.ndarray) and frame.ndim == 4 and len(frame)
    picture = as_frame(frame[-1] if series else frame)  # type: ignore[index]
    return (Crop(picture, region) for region in regions[0] if region[4] > 0)


class CropPreprocessor:
    """Cut one region out of its frame, turned and scaled by its landmarks if the steps say where they belong.

    Shrinking averages areas first, so that a large face does not become a coarse one. It needs OpenCV.

    Args:
        steps: size, colour order, margin or places of landmarks.
    """

    def __init__(self, steps: CropSteps) -> None:
        self.steps = steps
        self.shape: tuple[int, ...] = (1, steps.height, steps.width, 1 if steps.color == "gray" else 3)
        self._places = np.array(steps.landmarks, float).reshape(-1, 2) * (steps.width, steps.height)

    def __call__(self, data: object, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Prepare one crop.

        Args:
            data: a ``Crop``.
            out: uint8[1, height, width, channels] to write into, such as an engine's input buffer.

        Returns:
            uint8[1, height, width, channels]: ``out`` if given.

        Raises:
            InputError: no crop, or another number of landmarks.
            EngineError: a region of no size, which a detector should not give.
            MissingDependencyError: OpenCV is not installed.
        """
        if not isinstance(data, Crop):
            raise InputError(f"crops are cut from a frame and a region, got {type(data).__name__}")
        result = np.empty(self.shape, np.uint8) if out is None else out
        recolor(self._cut(data), self.steps.color, result[0])
        return result

    def _cut(self, crop: Crop) -> NDArray[np.uint8]:
        to_frame = self._to_frame(crop.region)
        scale = math.hypot(to_frame[0, 0], to_frame[1, 0])
        if not np.isfinite(to_frame).all() or scale < _SMALLEST:
            raise EngineError(f"the detector gave a region of no size: {crop.region.tolist()}")
        return _sampled(crop.frame, to_frame, scale, (self.steps.height, self.steps.width))

    def _to_frame(self, region: NDArray[np.float32]) -> NDArray[np.float64]:
        """Where the crop's pixels lie in the frame, [2, 3]: frame = matrix @ (x, y, 1)."""
        if len(self._places):
            return _similarity(self._places, region[5:].reshape(-1, 2).astype(float))
        x0, y0, x1, y1 = region[:4].astype(float)
        height, width = self.steps.height, self.steps.width
        scale = max((x1 - x0) / width, (y1 - y0) / height) * (1 + 2 * self.steps.margin)
        middle = (x0 + x1) / 2 - scale * width / 2, (y0 + y1) / 2 - scale * height / 2
        return np.array([[scale, 0, middle[0]], [0, scale, middle[1]]])


def _similarity(points: NDArray[np.float64], onto: NDArray[np.float64]) -> NDArray[np.float64]:
    """The turn, scale and shift, [2, 3], that bring points, [n, 2], nearest to others in the sense of least squares.

    Umeyama 1991, in the plane, where it is a division of complex numbers.
    """
    if len(onto) != len(points):
        raise InputError(f"the region has {len(onto)} landmarks, the steps place {len(points)}")
    centre, target = points.mean(0), onto.mean(0)
    x, y = (points - centre).T
    u, v = (onto - target).T
    size = (x * x + y * y).sum()
    a, b = (x @ u + y @ v) / size, (x @ v - y @ u) / size
    turn = np.array([[a, -b], [b, a]])
    return np.column_stack([turn, target - turn @ centre])


def _sampled(
    frame: NDArray[np.uint8], to_frame: NDArray[np.float64], scale: float, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The crop's pixels; of a frame much finer than it, from one that was shrunk by a whole number."""
    cv2 = import_cv2("cutting regions out of a frame")
    rows, columns = size
    shrink = max(1, int(scale))
    corners = to_frame @ np.column_stack([_BOX * (columns, rows), np.ones(4)]).T
    part, origin = _around(frame, corners, shrink)
    height, width = part.shape[0] // shrink, part.shape[1] // shrink
    if not height or not width:
        return np.zeros((rows, columns, frame.shape[2]), np.uint8)
    if shrink > 1:
        part = part[: height * shrink, : width * shrink]
        part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    moved = to_frame.copy()
    moved[:, 2] -= origin
    moved /= shrink
    # Pixels begin at whole numbers here; OpenCV's have their centres there.
    moved[:, 2] += moved[:, :2] @ (0.5, 0.5) - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(part, moved, (columns, rows), flags=flags, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(cut, np.uint8).reshape(rows, columns, frame.shape[2])


def _around(
    frame: NDArray[np.uint8], corners: NDArray[np.float64], more: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The part of the frame that holds the corners, [2, 4], with some pixels around, and where it begins."""
    size = np.array([frame.shape[1], frame.shape[0]])
    first = (np.floor(corners.min(1)) - more).clip(0, size).astype(int)
    last = (np.ceil(corners.max(1)) + more).clip(0, size).astype(int)
    return frame[first[1] : last[1], first[0] : last[0]], first.astype(float)
