"""Frames as JPEG, by OpenCV: baseline only, and looked at before they are decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import InputError, MissingDependencyError, SourceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["JpegCodec"]

_MOST_PIXELS = 1 << 26
_STUFFING = 0xFF
_START, _SCAN = 0xD8, 0xDA
_BASELINE = (0xC0, 0xC1)
"""Progressive JPEG may ask for thousands of passes over the picture; cameras do not make it."""
_NO_FRAME = (0xC4, 0xC8, 0xCC)


class JpegCodec:
    """RGB or gray frames to JPEG and back.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        try:
            import cv2  # noqa: PLC0415 - optional: raw frames need none
        except ImportError:
            remedy = "pip install 'edge-mbm[video]', or record raw frames"
            raise MissingDependencyError("cv2", "recording frames as JPEG", remedy) from None
        self._cv2: Any = cv2

    def encode(self, frame: NDArray[np.uint8], quality: int) -> memoryview:
        """A frame, uint8[H, W, 3] RGB or uint8[H, W], as JPEG of quality 1 to 100.

        Raises:
            InputError: it is larger than JPEG allows.
        """
        picture = self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2BGR) if frame.ndim == 3 else frame
        try:
            done, data = self._cv2.imencode(".jpg", picture, [self._cv2.IMWRITE_JPEG_QUALITY, quality])
        except self._cv2.error as error:
            raise InputError(f"a frame of {frame.shape} cannot be made a JPEG: {error}") from error
        if not done:
            raise InputError(f"a frame of {frame.shape} cannot be made a JPEG")
        return memoryview(data)

    def decode(self, data: memoryview) -> NDArray[np.uint8]:
        """The frame of a JPEG: uint8[H, W, 3] RGB or uint8[H, W].

        Raises:
            SourceError: it is not a baseline JPEG, or too large.
        """
        height, width, channels = _shape(data)
        if height * width > _MOST_PIXELS:
            raise SourceError(f"a JPEG of {width}x{height} is larger than the {_MOST_PIXELS} pixels allowed")
        try:
            frame = self._cv2.imdecode(np.frombuffer(data, np.uint8), self._cv2.IMREAD_UNCHANGED)
        except self._cv2.error as error:
            raise SourceError(f"a JPEG cannot be decoded: {error}") from error
        if frame is None or frame.shape != ((height, width) if channels == 1 else (height, width, 3)):
            raise SourceError("a JPEG cannot be decoded: it is damaged")
        decoded: NDArray[np.uint8] = frame if channels == 1 else self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)
        return decoded


def _shape(data: memoryview) -> tuple[int, int, int]:
    """Height, width and channels from the markers in front, without decoding."""
    position = 2
    while bytes(data[:2]) == bytes((_STUFFING, _START)) and position + 10 <= len(data):
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position] != _STUFFING or length < 2 or marker == _SCAN:
            break
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            head = data[position + 5 : position + 10]
            shape = int.from_bytes(head[:2], "big"), int.from_bytes(head[2:4], "big"), head[4]
            if marker not in _BASELINE or 0 in shape[:2] or shape[2] not in (1, 3):
                break
            return shape
        position += 2 + length
    raise SourceError("a frame is not a baseline JPEG in gray or colour")
