"""Refuse ONNX graphs that reach outside themselves, without the onnx package.

A graph may say that a tensor's data lies in another file; loaders have followed such paths out of the model's folder
(CVE-2022-25882, CVE-2024-27318), so a bundle's graphs must carry their weights. This walks the protobuf wire format
(https://protobuf.dev/programming-guides/encoding/) down the few fields of onnx.proto that can hold a tensor, and
reads no tensor data.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge_mbm.errors import BundleIntegrityError

__all__ = ["refuse_external_data"]

# onnx.proto: message -> field number -> message inside. A "tensor" is where the answer lies.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_DATA_LOCATION, _EXTERNAL_DATA = 14, 13
_MAX_DEPTH = 32


def refuse_external_data(graph: bytes, where: str) -> None:
    """Check that every tensor of an ONNX model is inside it.

    Args:
        graph: a serialized ModelProto.
        where: the graph's name in messages.

    Raises:
        BundleIntegrityError: a tensor refers to another file, or the bytes are not an ONNX model.
    """
    try:
        _walk(memoryview(graph), "model", where, 0)
    except (IndexError, ValueError) as error:
        raise BundleIntegrityError(f"{where} is not an ONNX model: {error}. Export the bundle again.") from error


def _walk(message: memoryview, kind: str, where: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs are nested too deeply")
    for number, value in _fields(message):
        if kind == "tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                raise BundleIntegrityError(
                    f"{where} keeps a tensor in another file: a bundle's graphs carry their weights"
                )
        elif number in _INSIDE[kind] and isinstance(value, memoryview):
            _walk(value, _INSIDE[kind][number], where, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of each field; fixed-width values are skipped over as 0."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag >> 32:
            # Other readers keep the low 32 bits, and would see another field than we do.
            raise ValueError("a field number is too large")
        wire_type = tag & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
        elif wire_type == 2:
            size, position = _varint(message, position)
            if position + size > len(message):
                raise ValueError("a field is cut short")
            yield tag >> 3, message[position : position + size]
            position += size
        elif wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
            if position > len(message):
                raise ValueError("a field is cut short")
        else:
            raise ValueError(f"unknown wire type {wire_type}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
