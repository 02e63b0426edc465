"""What the channels of a recording hold: Foxglove's own schemas where they fit, so that Foxglove shows them."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from edge_mbm.mcap.wire import Field, MessageType

__all__ = ["COMPRESSED_IMAGE", "INFO", "LOG", "RAW_AUDIO", "RAW_IMAGE", "RESULT_SCHEMA", "VECTOR", "Kind"]

Kind: TypeAlias = Literal["image", "audio", "text", "sensor"]
"""What a modality's samples are; a video's are images."""

_TIME = Field("timestamp", 1, "time")

RAW_IMAGE: Final = MessageType(
    "foxglove",
    "RawImage",
    (
        _TIME,
        Field("frame_id", 7, "string"),
        Field("width", 2, "fixed32"),
        Field("height", 3, "fixed32"),
        Field("encoding", 4, "string"),
        Field("step", 5, "fixed32"),
        Field("data", 6, "bytes"),
    ),
)
COMPRESSED_IMAGE: Final = MessageType(
    "foxglove",
    "CompressedImage",
    (_TIME, Field("frame_id", 4, "string"), Field("data", 2, "bytes"), Field("format", 3, "string")),
)
RAW_AUDIO: Final = MessageType(
    "foxglove",
    "RawAudio",
    (
        _TIME,
        Field("data", 2, "bytes"),
        # Foxglove plays "pcm-s16"; "pcm-f32" is ours, so that float samples keep every bit.
        Field("format", 3, "string"),
        Field("sample_rate", 4, "fixed32"),
        Field("number_of_channels", 5, "fixed32"),
    ),
)
LOG: Final = MessageType(
    "foxglove",
    "Log",
    (
        _TIME,
        Field("level", 2, "enum"),
        Field("message", 3, "string"),
        Field("name", 4, "string"),
        Field("file", 5, "string"),
        Field("line", 6, "fixed32"),
    ),
    levels=("UNKNOWN", "DEBUG", "INFO", "WARNING", "ERROR", "FATAL"),
)
INFO: Final = 2
VECTOR: Final = MessageType(
    "edge_mbm",
    "Vector",
    (_TIME, Field("values", 2, "floats"), Field("shape", 3, "uint32s")),
)

RESULT_SCHEMA: Final = msgspec.json.encode(
    {
        "title": "edge_mbm.Result",
        "type": "object",
        "properties": {
            "head": {"type": "string"},
            "seq": {"type": "integer"},
            "t_capture": {"type": "integer"},
            "outputs": {"type": "object"},
            "missing": {"type": "array", "items": {"type": "string"}},
            "spread": {"type": "integer"},
            "dropped": {"type": "integer"},
            "provider": {"type": "string"},
            "age": {"type": "integer"},
            "stage_ns": {"type": "object"},
        },
    }
)
