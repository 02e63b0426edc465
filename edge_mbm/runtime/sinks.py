"""Where results go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from edge_mbm.errors import DeviceError
from edge_mbm.runtime.result import Result

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["JsonLines"]


class JsonLines:
    """One JSON object a line, each written out before the next result is asked for, so a kill loses none before it.

    Args:
        to: the file, where an existing one is replaced; or an open binary stream, which stays open.
        origin: subtracted from ``t_capture``, so that lines carry media time.

    Raises:
        DeviceError: the file cannot be written.
    """

    def __init__(self, to: str | os.PathLike[str] | BinaryIO, origin: int = 0) -> None:
        self._origin = origin
        self._encoder = msgspec.json.Encoder()
        self._owned = isinstance(to, str | os.PathLike)
        self._name = str(to) if isinstance(to, str | os.PathLike) else "the stream"
        self._file = self._open(Path(to)) if isinstance(to, str | os.PathLike) else to

    def write(self, result: Result) -> None:
        """Append one result.

        Raises:
            DeviceError: the disk is full or the file is gone.
            BrokenPipeError: nobody reads any more.
        """
        line = {**result.as_json(), "t_capture": result.t_capture - self._origin}
        if (segment := result.segment) is not None:
            line["segment"] |= {"start": segment.start - self._origin, "end": segment.end - self._origin}
        rest = memoryview(self._encoder.encode(line) + b"\n")
        try:
            # Unbuffered files may take a part at a time.
            while rest:
                rest = rest[self._file.write(rest) :]
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, path: Path) -> BinaryIO:
        try:
            return path.open("wb", buffering=0)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> DeviceError:
        return DeviceError(f"results cannot be written to {self._name}: {error.strerror or error}")
