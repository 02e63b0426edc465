"""A stranger's ONNX file, read whole: data beside it only where it may lie, and nothing above what a graph can hold."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto

from edge_mbm.errors import RecipeError
from edge_mbm.export.graph import first_line

__all__ = ["LARGEST", "read_onnx"]

LARGEST = 2**31 - 1
"""Bytes of a protobuf message."""
_KEYS = {"location", "offset", "length", "checksum"}


def read_onnx(path: Path, where: str) -> ModelProto:
    """Read a model and embed its external data.

    The onnx package's own loader has followed links and paths out of the model's folder (CVE-2022-25882,
    CVE-2024-27318, CVE-2025-51480) and has set attributes by what the file says (CVE-2026-34445), so it is not used:
    all entries are checked before the first byte of data is read.

    Args:
        path: of the ``.onnx`` file.
        where: the recipe's key, for messages.

    Raises:
        RecipeError: it is not there, no ONNX model, above 2 GB with its data, or its data lies anywhere but in regular
            files in its own folder.
    """
    where = f"{where}.path: {path}"
    size = _size(path, where)
    _check_total(size, where)
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's exceptions share no base with ours
        raise RecipeError(f"{where} is not an ONNX model: {first_line(error)}") from error
    external = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
    pieces = [_piece(tensor, path.parent, where) for tensor in external]
    _check_total(size + sum(length for _, _, length in pieces), where)
    for tensor, piece in zip(external, pieces, strict=True):
        tensor.raw_data = _read(*piece, where)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
    return model


def _size(path: Path, where: str) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise RecipeError(f"{where}: {error.strerror}") from error


def _check_total(size: int, where: str) -> None:
    if size > LARGEST:
        raise RecipeError(
            f"{where} has {size / 2**30:.1f} GB with its data: an ONNX graph holds 2 GB, and a bundle's graphs keep "
            "their weights inside. Take a smaller model, or cut it into components"
        )


def _tensors(message: Any) -> Iterator[TensorProto]:
    """Every tensor at any depth: weights, attributes, inner graphs, functions."""
    if isinstance(message, TensorProto):
        yield message
        return
    for _, value in message.ListFields():
        for item in [value] if _is_message(value) else value if _is_many(value) else []:
            yield from _tensors(item)


def _is_message(value: Any) -> bool:
    return hasattr(value, "ListFields")


def _is_many(value: Any) -> bool:
    return not isinstance(value, str | bytes | int | float) and len(value) > 0 and _is_message(value[0])


def _piece(tensor: TensorProto, folder: Path, where: str) -> tuple[Path, int, int]:
    """(file, offset, length) of a tensor's data, if it may be read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    told = f"{where}: the data of '{tensor.name}' is in '{location}'"
    if strangers := sorted(entries.keys() - _KEYS):
        raise RecipeError(f"{told} with the keys {strangers}, which no ONNX version has")
    path = folder.resolve() / location
    if not location or Path(location).is_absolute() or path.resolve() != path:
        raise RecipeError(
            f"{told}, which leads out of the model's folder or through a link: put the data beside the model and save "
            "it anew with relative paths"
        )
    return path, *_span(path, entries, told)


def _span(path: Path, entries: dict[str, str], told: str) -> tuple[int, int]:
    try:
        status = path.lstat()
    except OSError as error:
        raise RecipeError(f"{told}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise RecipeError(f"{told}, which is no regular file")
    with suppress(ValueError):
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(status.st_size - offset)))
        if offset >= 0 and length >= 0 and offset + length <= status.st_size:
            return offset, length
    raise RecipeError(f"{told} at {entries}, which is outside the file's {status.st_size} bytes: it is truncated")


def _read(path: Path, offset: int, length: int, where: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    except OSError as error:
        raise RecipeError(f"{where}: {path}: {error.strerror}") from error
