"""Protocol Buffers, as much of them as Foxglove's schemas use: messages of scalars, written, described and read."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from edge_mbm.errors import SourceError

__all__ = ["Buffer", "Field", "FieldType", "MessageType", "Value", "read_varint", "varint"]

FieldType: TypeAlias = Literal["bytes", "string", "fixed32", "enum", "time", "floats", "uint32s"]
"""What this project's messages are made of; the last two are packed arrays."""
Buffer: TypeAlias = bytes | memoryview
Value: TypeAlias = int | str | Buffer

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIRE: Final = dict.fromkeys(("bytes", "string", "time", "floats", "uint32s"), _BYTES) | {
    "fixed32": _FIXED32,
    "enum": _VARINT,
}
# The numbers of descriptor.proto.
_TYPE: Final = {"floats": 2, "fixed32": 7, "string": 9, "time": 11, "bytes": 12, "uint32s": 13, "enum": 14}
_OPTIONAL, _REPEATED = 1, 3
_SECOND = 1_000_000_000
_MOST_FIELDS = 32
"""In one message: an array is one field here, so more is an attempt to keep a reader busy."""


class Field(NamedTuple):
    """One field of a message."""

    name: str
    number: int
    type: FieldType


class MessageType:
    """One message type.

    Args:
        package: "foxglove".
        name: "RawImage".
        fields: of it.
        levels: names of its enumeration ``Level``, from 0; empty if it has none.
    """

    def __init__(self, package: str, name: str, fields: Sequence[Field], levels: Sequence[str] = ()) -> None:
        self.package = package
        self.name = name
        self.full_name = f"{package}.{name}"
        self._fields = {field.name: field for field in fields}
        self._by_number = {field.number: field for field in fields}
        self._levels = levels

    def encode(self, values: Mapping[str, Value]) -> list[Buffer]:
        """A message in parts, so that large data need not be copied; what has no value is left out.

        Args:
            values: by field: ns for a time, packed bytes for an array.
        """
        parts: list[Buffer] = []
        for name, value in values.items():
            parts += _encode(self._fields[name], value)
        return parts

    def parse(self, payload: memoryview) -> dict[str, int | memoryview]:
        """The fields of a message; views into it, and numbers. One that is not known is passed over.

        Raises:
            SourceError: it is not of this type.
        """
        values: dict[str, int | memoryview] = {}
        position = count = 0
        while position < len(payload):
            count += 1
            key, position = read_varint(payload, position)
            value, position = _read_value(payload, position, key & 7)
            field = self._by_number.get(key >> 3)
            if count > _MOST_FIELDS or (field is not None and _WIRE[field.type] != key & 7):
                raise SourceError(f"a message is not a {self.full_name}")
            if field is not None:
                values[field.name] = value
        return values

    def descriptor(self) -> bytes:
        """The type as a FileDescriptorSet: what a reader needs to decode the messages."""
        times = any(field.type == "time" for field in self._fields.values())
        own = _text(1, f"{self.package}/{self.name}.proto") + _text(2, self.package)
        own += _text(3, _TIME_FILE) if times else b""
        own += _nested(4, self._described()) + _text(12, "proto3")
        return (_nested(1, _time_file()) if times else b"") + _nested(1, own)

    def _described(self) -> bytes:
        fields = b"".join(_nested(2, _described(field, self.full_name)) for field in self._fields.values())
        values = [_text(1, name) + _number(2, number) for number, name in enumerate(self._levels)]
        level = _text(1, "Level") + b"".join(_nested(2, value) for value in values)
        return _text(1, self.name) + fields + (_nested(4, level) if values else b"")


# --- writing ---------------------------------------------------------------------------------------------------------


def _encode(field: Field, value: Value) -> tuple[Buffer, ...]:
    if isinstance(value, int):
        return (_encode_number(field, value),)
    data = value.encode() if isinstance(value, str) else value
    return varint(field.number << 3 | _BYTES) + varint(len(data)), data


def _encode_number(field: Field, value: int) -> bytes:
    if field.type == "time":
        seconds, nanoseconds = divmod(value, _SECOND)
        return _nested(field.number, _number(1, seconds) + _number(2, nanoseconds))
    if field.type == "fixed32":
        return varint(field.number << 3 | _FIXED32) + struct.pack("<I", value)
    return _number(field.number, value)


def varint(value: int) -> bytes:
    """A whole number from 0 on, seven bits a byte."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return varint(number << 3 | _VARINT) + varint(value)


def _nested(number: int, data: bytes) -> bytes:
    return varint(number << 3 | _BYTES) + varint(len(data)) + data


def _text(number: int, text: str) -> bytes:
    return _nested(number, text.encode())


# --- describing ------------------------------------------------------------------------------------------------------

_TIME_FILE = "google/protobuf/timestamp.proto"


def _time_file() -> bytes:
    int64, int32 = 3, 5
    fields = [("seconds", 1, int64), ("nanos", 2, int32)]
    described = b"".join(
        _nested(2, _text(1, name) + _number(3, number) + _number(4, _OPTIONAL) + _number(5, kind))
        for name, number, kind in fields
    )
    message = _text(1, "Timestamp") + described
    return _text(1, _TIME_FILE) + _text(2, "google.protobuf") + _nested(4, message) + _text(12, "proto3")


def _described(field: Field, owner: str) -> bytes:
    label = _REPEATED if field.type in ("floats", "uint32s") else _OPTIONAL
    described = _text(1, field.name) + _number(3, field.number) + _number(4, label) + _number(5, _TYPE[field.type])
    named = {"time": ".google.protobuf.Timestamp", "enum": f".{owner}.Level"}.get(field.type)
    return described if named is None else described + _text(6, named)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_varint(payload: memoryview, position: int) -> tuple[int, int]:
    """The number at ``position``, and where the next byte is.

    Raises:
        SourceError: it does not end.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(payload):
            break
        byte = payload[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise SourceError("a message has a number that does not end")


def _read_value(payload: memoryview, position: int, wire: int) -> tuple[int | memoryview, int]:
    if wire == _VARINT:
        return read_varint(payload, position)
    if wire == _BYTES:
        length, position = read_varint(payload, position)
    elif wire in (_FIXED32, _FIXED64):
        length = 4 if wire == _FIXED32 else 8
    else:
        raise SourceError(f"a message has a field of the unknown wire type {wire}")
    end = position + length
    if end > len(payload):
        raise SourceError("a message has a field that is longer than itself")
    data = payload[position:end]
    return (data if wire == _BYTES else int.from_bytes(data, "little")), end
