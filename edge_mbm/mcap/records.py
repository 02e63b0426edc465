"""MCAP's records as bytes: an opcode, a length, and contents of integers, strings and maps, all little-endian."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from edge_mbm.errors import SourceError

__all__ = [
    "CHANNEL",
    "CHUNK",
    "CHUNK_INDEX",
    "DATA_END",
    "DESCRIBING",
    "FOOTER",
    "FRAME",
    "HEADER",
    "MAGIC",
    "MESSAGE",
    "MESSAGE_HEAD",
    "MESSAGE_INDEX",
    "METADATA",
    "METADATA_INDEX",
    "PASSED_OVER",
    "SCHEMA",
    "STATISTICS",
    "SUMMARY_OFFSET",
    "Channel",
    "Cursor",
    "Schema",
    "pack_map",
    "pack_string",
    "record",
]

MAGIC: Final = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = range(0x01, 0x09)
ATTACHMENT, ATTACHMENT_INDEX, STATISTICS, METADATA, METADATA_INDEX, SUMMARY_OFFSET, DATA_END = range(0x09, 0x10)
DESCRIBING: Final = frozenset({HEADER, SCHEMA, CHANNEL, METADATA, DATA_END, FOOTER})
"""Records that are small."""
PASSED_OVER: Final = frozenset(
    {MESSAGE_INDEX, ATTACHMENT, CHUNK_INDEX, ATTACHMENT_INDEX, STATISTICS, METADATA_INDEX, SUMMARY_OFFSET}
)
"""Records that say nothing about samples which is not said elsewhere."""
FRAME: Final = struct.Struct("<BQ")
"""What is before each record's contents: opcode and length."""
MESSAGE_HEAD: Final = struct.Struct("<HIQQ")
"""Channel, sequence, log time, publish time."""


class Schema(NamedTuple):
    """What the messages of some channels are."""

    id: int
    name: str
    encoding: str
    data: bytes


class Channel(NamedTuple):
    """A stream of messages of one kind."""

    id: int
    schema: int
    topic: str
    encoding: str
    metadata: Mapping[str, str]


def record(opcode: int, *contents: bytes) -> bytes:
    """One record."""
    return FRAME.pack(opcode, sum(map(len, contents))) + b"".join(contents)


def pack_string(text: str | bytes) -> bytes:
    """A string, or bytes with a 32-bit length."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<I", len(data)) + data


def pack_map(values: Mapping[str, str]) -> bytes:
    """A map from strings to strings."""
    return pack_string(b"".join(pack_string(key) + pack_string(value) for key, value in values.items()))


class Cursor:
    """Reads contents from their beginning, and never beyond their end.

    Raises:
        SourceError: every method does, where the contents are too short.
    """

    def __init__(self, contents: memoryview) -> None:
        self._rest = contents

    def __bool__(self) -> bool:
        return bool(self._rest)

    def take(self, length: int) -> memoryview:
        """So many bytes."""
        if length > len(self._rest):
            raise SourceError(f"a record is cut short: {length} bytes are announced, {len(self._rest)} are there")
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken

    def rest(self) -> memoryview:
        """All that is left."""
        return self.take(len(self._rest))

    def integer(self, size: int) -> int:
        """An unsigned integer of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def buffer(self) -> memoryview:
        """Bytes with a 32-bit length."""
        return self.take(self.integer(4))

    def string(self) -> str:
        """UTF-8 with a 32-bit length."""
        try:
            return str(self.buffer(), "utf-8")
        except UnicodeDecodeError as error:
            raise SourceError("a record has a text that is not UTF-8") from error

    def map(self) -> dict[str, str]:
        """A map from strings to strings."""
        inside, values = Cursor(self.buffer()), {}
        while inside:
            key = inside.string()
            values[key] = inside.string()
        return values

    def schema(self) -> Schema:
        """A schema."""
        return Schema(self.integer(2), self.string(), self.string(), bytes(self.buffer()))

    def channel(self) -> Channel:
        """A channel."""
        return Channel(self.integer(2), self.integer(2), self.string(), self.string(), self.map())
