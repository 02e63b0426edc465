"""Samples as messages and back."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from edge_mbm.errors import InputError, SourceError
from edge_mbm.mcap.jpeg import JpegCodec
from edge_mbm.mcap.schemas import COMPRESSED_IMAGE, INFO, LOG, RAW_AUDIO, RAW_IMAGE, VECTOR, Kind
from edge_mbm.mcap.wire import Buffer, MessageType, read_varint, varint
from edge_mbm.preprocess import as_array, as_frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FrameFormat", "Payload", "SampleEncoder", "check_data", "decode", "schema_of"]

FrameFormat: TypeAlias = Literal["jpeg", "raw"]

_SECOND = 1_000_000_000
_MOST_BYTES = 128 << 20
"""Of one sample; ``ReadLimits.chunk_bytes`` is above it."""
_MOST_RATE, _MOST_CHANNELS, _MOST_DIMENSIONS = 768_000, 64, 8
_FORMATS: Final[Mapping[str, np.dtype[Any]]] = {"pcm-s16": np.dtype("<i2"), "pcm-f32": np.dtype("<f4")}
_ENCODINGS: Final = {"rgb8": 3, "mono8": 1}


class Payload(NamedTuple):
    """What a message says."""

    data: Any
    duration: int = 0
    rate: int | None = None


def schema_of(kind: Kind, frames: FrameFormat) -> MessageType:
    """The schema that a kind of modality is recorded with."""
    image = COMPRESSED_IMAGE if frames == "jpeg" else RAW_IMAGE
    return {"image": image, "audio": RAW_AUDIO, "text": LOG, "sensor": VECTOR}[kind]


# --- checking and writing --------------------------------------------------------------------------------------------


def check_data(kind: Kind, data: object, rate: int | None, name: str) -> Any:
    """Bring a sample to the form in which it is recorded, without copying where it is in that form already.

    Args:
        kind: of the modality.
        data: frame: uint8[H, W, 3] RGB, uint8[H, W] gray. Audio: int16 or float, [samples] or [samples, channels].
            Text: str. Sensor: numbers of any shape.
        rate: of audio, Hz.
        name: the modality, for messages.

    Returns:
        uint8[H, W, 3] or [H, W]; int16 or float32 [samples] or [samples, channels]; str; float32 of any shape.

    Raises:
        InputError: it is none of these, or too large.
    """
    if kind == "text":
        if not isinstance(data, str):
            raise InputError(f"'{name}' is text, got {type(data).__name__}")
        return data
    if kind == "image":
        frame = as_frame(data)
        array = frame[:, :, 0] if frame.shape[2] == 1 else frame
    else:
        array = _audio(as_array(data), rate, name) if kind == "audio" else _vector(as_array(data), name)
    if array.nbytes > _MOST_BYTES:
        raise InputError(f"'{name}' has a sample of {array.nbytes} bytes, more than the {_MOST_BYTES} that fit")
    return array


def _audio(samples: NDArray[Any], rate: int | None, name: str) -> NDArray[Any]:
    if samples.ndim == 2 and samples.shape[1] == 1:
        samples = samples[:, 0]
    is_known = samples.dtype == np.int16 or samples.dtype.kind == "f"
    if not is_known or samples.ndim not in (1, 2) or not 1 <= _channels(samples) <= _MOST_CHANNELS:
        shape = list(samples.shape)
        raise InputError(f"'{name}' is float or int16, [samples] or [samples, channels], got {samples.dtype}{shape}")
    if rate is None or not 1 <= rate <= _MOST_RATE:
        raise InputError(f"'{name}' has no sample rate that can be recorded ({rate} Hz): push it with rate=")
    with np.errstate(over="ignore"):  # as the session does: what is too large becomes infinite
        return samples if samples.dtype == np.int16 else samples.astype("<f4", copy=False)


def _vector(values: NDArray[Any], name: str) -> NDArray[Any]:
    if values.dtype.kind not in "fiu" or values.ndim > _MOST_DIMENSIONS or values.size == 0:
        shape = list(values.shape)
        raise InputError(f"'{name}' is numbers in 0 to {_MOST_DIMENSIONS} dimensions, got {values.dtype}{shape}")
    with np.errstate(over="ignore"):
        return values.astype("<f4", copy=False)


class SampleEncoder:
    """Samples to messages.

    Args:
        frames: how frames are kept.
        quality: of JPEG, 1 to 100.

    Raises:
        MissingDependencyError: JPEG is asked for and OpenCV not installed.
    """

    def __init__(self, frames: FrameFormat, quality: int) -> None:
        self._codec = JpegCodec() if frames == "jpeg" else None
        self._quality = quality

    def encode(self, kind: Kind, name: str, data: Any, t: int, rate: int | None) -> list[Buffer]:
        """A message in parts; ``data`` is as ``check_data`` gives it, and is referred to.

        Raises:
            InputError: a frame that JPEG cannot hold.
        """
        if kind == "image":
            return self._frame(name, data, t)
        if kind == "text":
            return LOG.encode({"timestamp": t, "level": INFO, "message": data, "name": name})
        if kind == "audio":
            form = "pcm-s16" if data.dtype == np.int16 else "pcm-f32"
            sound = {"sample_rate": rate or 0, "number_of_channels": _channels(data)}
            return RAW_AUDIO.encode({"timestamp": t, "data": _bytes(data), "format": form, **sound})
        shape = b"".join(map(varint, data.shape))
        return VECTOR.encode({"timestamp": t, "values": _bytes(data), "shape": shape})

    def _frame(self, name: str, frame: NDArray[np.uint8], t: int) -> list[Buffer]:
        if self._codec is not None:
            data = self._codec.encode(frame, self._quality)
            return COMPRESSED_IMAGE.encode({"timestamp": t, "frame_id": name, "data": data, "format": "jpeg"})
        height, width = frame.shape[:2]
        channels = 3 if frame.ndim == 3 else 1
        size = {"width": width, "height": height, "step": width * channels}
        encoding = "rgb8" if channels == 3 else "mono8"
        return RAW_IMAGE.encode({"timestamp": t, "frame_id": name, **size, "encoding": encoding, "data": _bytes(frame)})


def _channels(samples: NDArray[Any]) -> int:
    return 1 if samples.ndim == 1 else samples.shape[1]


def _bytes(array: NDArray[Any]) -> memoryview:
    if sys.byteorder == "big" or array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    # By way of bytes, since a memoryview of nothing cannot be cast.
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]


# --- reading ---------------------------------------------------------------------------------------------------------


def decode(schema: str, data: memoryview) -> Payload:
    """What a message says, read-only views into it where possible.

    Raises:
        SourceError: it is not of its schema.
        MissingDependencyError: a JPEG without OpenCV.
    """
    return _DECODERS[schema](data)


def _decode_jpeg(data: memoryview) -> Payload:
    values = COMPRESSED_IMAGE.parse(data)
    if _string(values, "format") not in ("jpeg", "jpg"):
        raise SourceError(f"a frame is compressed as {_string(values, 'format')!r}, which is not read here")
    return Payload(_codec().decode(_data(values, "data")))


def _decode_frame(data: memoryview) -> Payload:
    values = RAW_IMAGE.parse(data)
    channels = _ENCODINGS.get(_string(values, "encoding"), 0)
    width, height, pixels = _integer(values, "width"), _integer(values, "height"), _data(values, "data")
    is_whole = _integer(values, "step") == width * channels and len(pixels) == width * channels * height
    if not (width and height and channels and is_whole):
        raise SourceError("a frame is not rgb8 or mono8 without padding")
    shape = (height, width, 3) if channels == 3 else (height, width)
    return Payload(np.frombuffer(pixels, np.uint8).reshape(shape))


def _decode_audio(data: memoryview) -> Payload:
    values = RAW_AUDIO.parse(data)
    dtype, rate = _FORMATS.get(_string(values, "format")), _integer(values, "sample_rate")
    channels, sound = _integer(values, "number_of_channels"), _data(values, "data")
    in_range = 1 <= rate <= _MOST_RATE and 1 <= channels <= _MOST_CHANNELS
    if dtype is None or not in_range or len(sound) % (dtype.itemsize * channels):
        raise SourceError(f"a block of audio is not {' or '.join(_FORMATS)} at a rate that a microphone has")
    samples = np.frombuffer(sound, dtype)
    samples = samples if channels == 1 else samples.reshape(-1, channels)
    return Payload(samples, len(samples) * _SECOND // rate, rate)


def _decode_text(data: memoryview) -> Payload:
    return Payload(_string(LOG.parse(data), "message"))


def _decode_vector(data: memoryview) -> Payload:
    parsed = VECTOR.parse(data)
    values, shape = _data(parsed, "values"), _read_shape(_data(parsed, "shape"))
    if not values or 4 * math.prod(shape) != len(values) or len(shape) > _MOST_DIMENSIONS:
        raise SourceError(f"a vector has {len(values)} bytes, which is not float32{shape}")
    return Payload(np.frombuffer(values, "<f4").reshape(shape))


def _read_shape(data: memoryview) -> list[int]:
    shape: list[int] = []
    position = 0
    while position < len(data) and len(shape) <= _MOST_DIMENSIONS:
        size, position = read_varint(data, position)
        shape.append(size)
    return shape


def _string(values: Mapping[str, int | memoryview], name: str) -> str:
    try:
        return str(_data(values, name), "utf-8")
    except UnicodeDecodeError as error:
        raise SourceError("a message has a text that is not UTF-8") from error


def _data(values: Mapping[str, int | memoryview], name: str) -> memoryview:
    found = values.get(name, memoryview(b""))
    assert isinstance(found, memoryview)  # parse checks the wire types
    return found


def _integer(values: Mapping[str, int | memoryview], name: str) -> int:
    found = values.get(name, 0)
    assert isinstance(found, int)
    return found


@cache
def _codec() -> JpegCodec:
    return JpegCodec()


_DECODERS: Final[Mapping[str, Callable[[memoryview], Payload]]] = {
    COMPRESSED_IMAGE.full_name: _decode_jpeg,
    RAW_IMAGE.full_name: _decode_frame,
    RAW_AUDIO.full_name: _decode_audio,
    LOG.full_name: _decode_text,
    VECTOR.full_name: _decode_vector,
}
