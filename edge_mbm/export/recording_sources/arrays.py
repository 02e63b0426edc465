"""Recordings from arrays: one row each, read from the file as they come."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import CalibrationError
from edge_mbm.export.recording_sources.files import matching, relative
from edge_mbm.export.recording_sources.record import Recording
from edge_mbm.export.recording_sources.split import Wanted, wanted_ids
from edge_mbm.export.recording_sources.tables import ArrayRecordings
from edge_mbm.spec import Modality

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["array_recordings"]

_LABEL = "label"
_MOST_ROW_BYTES = 1 << 30


def array_recordings(
    source: ArrayRecordings, folder: Path, modalities: Mapping[str, Modality], wanted: Wanted
) -> Iterator[Recording]:
    """A split's rows, in the order of the file; one of each array is in memory, compressed or not.

    Args:
        source: the table.
        folder: that its path begins at.
        modalities: the recipe's; arrays of other names are left out, except "label".
        wanted: which split.

    Raises:
        CalibrationError: there is no such file, it is damaged, or its arrays are not those of recordings.
    """
    paths = matching(folder, source.location(wanted.split))
    counts = {path: _count(path, modalities) for path in paths}
    names = {path: relative(path, folder) for path in paths}
    ids = [f"{names[path]}[{index}]" for path, count in counts.items() for index in range(count)]
    chosen = frozenset(wanted_ids(ids, source.shares(), wanted))
    for path in paths:
        for index, row in enumerate(_rows(path, modalities)):
            id_ = f"{names[path]}[{index}]"
            if id_ in chosen:
                yield _recording(id_, row)


def _recording(id_: str, row: Mapping[str, NDArray[Any]]) -> Recording:
    inputs = {name: str(value) if value.dtype.kind == "U" else value for name, value in row.items() if name != _LABEL}
    label = row.get(_LABEL)
    if label is not None and (label.shape or label.dtype.kind not in "iu"):
        raise CalibrationError(f"'{_LABEL}' of '{id_}' is {label.dtype}{list(label.shape)}: it is one whole number")
    return Recording(id_, inputs, None if label is None else int(label))


def _count(path: Path, modalities: Mapping[str, Modality]) -> int:
    with ExitStack() as held:
        arrays = _arrays(path, modalities, held)
        lengths = {name: array.length for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise CalibrationError(f"{path} has arrays of different lengths: {lengths}; row n of each is recording n")
        return next(iter(lengths.values()))


def _rows(path: Path, modalities: Mapping[str, Modality]) -> Iterator[dict[str, NDArray[Any]]]:
    with ExitStack() as held:
        arrays = _arrays(path, modalities, held)
        for _ in range(next(iter(arrays.values())).length):
            yield {name: array.next() for name, array in arrays.items()}


def _arrays(path: Path, modalities: Mapping[str, Modality], held: ExitStack) -> dict[str, _Rows]:
    try:
        archive = held.enter_context(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path} is no .npz file: {error}. numpy.savez writes them") from error
    members = [name.removesuffix(".npy") for name in archive.namelist()]
    used = [name for name in members if name in modalities or name == _LABEL]
    if not set(used) - {_LABEL}:
        raise CalibrationError(f"{path} has {members}, none of which is one of the modalities {list(modalities)}")
    return {name: _Rows(held.enter_context(archive.open(f"{name}.npy")), f"'{name}' of {path}") for name in used}


class _Rows:
    """One array, read row by row."""

    def __init__(self, stream: IO[bytes], where: str) -> None:
        self._stream = stream
        self._where = where
        shape, is_fortran, self._dtype = self._header()
        if not shape or (is_fortran and len(shape) > 1) or self._dtype.kind not in "biufU":
            raise CalibrationError(
                f"{where} is {self._dtype}{list(shape)}{' in Fortran order' if is_fortran else ''}: save numbers or "
                "text in C order (numpy.ascontiguousarray), one row per recording"
            )
        self.length, self._shape = shape[0], shape[1:]
        self._bytes = self._dtype.itemsize * math.prod(self._shape)
        if self._bytes > _MOST_ROW_BYTES:
            raise CalibrationError(f"{where} has rows of {self._bytes} bytes, more than {_MOST_ROW_BYTES}")

    def next(self) -> NDArray[Any]:
        """The next row; a copy."""
        try:
            data = self._stream.read(self._bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CalibrationError(f"{self._where} is damaged: {error}") from error
        if len(data) != self._bytes:
            raise CalibrationError(f"{self._where} is cut short: save it again")
        return np.frombuffer(data, self._dtype).reshape(self._shape).copy()

    def _header(self) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        try:
            version = np.lib.format.read_magic(self._stream)
            if version == (1, 0):
                return np.lib.format.read_array_header_1_0(self._stream)
            return np.lib.format.read_array_header_2_0(self._stream)
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CalibrationError(f"{self._where} is no array that numpy saved: {error}") from error
