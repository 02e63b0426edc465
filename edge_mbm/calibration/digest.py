"""The identity of calibration data: which recordings, and every byte of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import CalibrationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DataDigest"]


class DataDigest:
    """A sha256 over recordings, one at a time, in their order.

    Every part is preceded by its length, so that no two data sets share the same bytes. The order counts, because a
    state may be carried from one recording to the next; that of the modalities, byte order and memory layout do not.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._entries: dict[str, str] = {}

    @property
    def samples(self) -> int:
        """Recordings added."""
        return len(self._entries)

    @property
    def entries(self) -> list[tuple[str, str]]:
        """(id, sha256 of that recording in hex), in order."""
        return list(self._entries.items())

    def add(self, id: str, inputs: Mapping[str, NDArray[Any] | str]) -> None:  # noqa: A002 - a recording's id is its id
        """Add one recording.

        Args:
            id: its name in the calibration set.
            inputs: modality -> boolean, integer or float array of any shape, or text.

        Raises:
            CalibrationError: the id was added before, or an input is neither numbers nor text; nothing is added then.
        """
        if id in self._entries:
            raise CalibrationError(f"recording '{id}' is there twice: give every recording an id of its own")
        digest = hashlib.sha256()
        _feed(digest, id.encode())
        for modality, data in sorted(inputs.items()):
            _feed(digest, modality.encode())
            for part in _parts(data, f"'{modality}' of recording '{id}'"):
                _feed(digest, part)
        self._entries[id] = digest.hexdigest()
        self._hash.update(digest.digest())

    def hexdigest(self) -> str:
        """sha256 of all recordings so far, 64 hexadecimal digits; more may be added afterwards."""
        return self._hash.hexdigest()


def _parts(data: NDArray[Any] | str, what: str) -> Iterator[memoryview | bytes]:
    """Always three: dtype, shape, values."""
    if isinstance(data, str):
        yield from (b"text", b"", data.encode())
        return
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "biuf":
        found = data.dtype if isinstance(data, np.ndarray) else type(data).__name__
        raise CalibrationError(f"{what} is {found}: calibration data is numpy arrays of numbers, or text")
    little = np.ascontiguousarray(data, data.dtype.newbyteorder("<"))
    yield little.dtype.str.encode()
    yield np.array(data.shape, "<i8").tobytes()
    yield little.reshape(-1).view(np.uint8).data


def _feed(digest: hashlib._Hash, part: memoryview | bytes) -> None:
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)
