"""Where results go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_mbm.errors import DeviceError
from edge_mbm.runtime.result import Result

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["JsonLines"]


class JsonLines:
    """One JSON object a line, each written out before the next result is asked for, so a kill loses none before it.

    Args:
        path: the file; an existing one is replaced.
        origin: subtracted from ``t_capture``, so that lines carry media time.

    Raises:
        DeviceError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], origin: int = 0) -> None:
        self._path = Path(path)
        self._origin = origin
        self._encoder = msgspec.json.Encoder()
        try:
            self._file = self._path.open("wb", buffering=0)
        except OSError as error:
            raise DeviceError(f"results cannot be written to {self._path}: {error.strerror}") from error

    def write(self, result: Result) -> None:
        """Append one result.

        Raises:
            DeviceError: the disk is full or the file is gone.
        """
        line = {**result.as_json(), "t_capture": result.t_capture - self._origin}
        try:
            self._file.write(self._encoder.encode(line) + b"\n")
        except OSError as error:
            raise DeviceError(f"results cannot be written to {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
