"""Made and fetched data in the user's cache directory: written whole or not at all, checked when read back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

__all__ = ["Arrays", "cache_dir", "cached", "read_arrays", "write_arrays", "write_whole"]

Arrays = dict[str, NDArray[np.generic]]

_CONSOLE = Console(stderr=True, highlight=False)


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/edge-mbm/av_digits``, or the same under ``~/.cache``; made if need be."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "edge-mbm" / "av_digits"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached(name: str, make: Callable[[], Arrays]) -> Arrays:
    """Arrays from the cache's ``name``.npz, made the first time; a damaged file is made again, and that is said."""
    path = cache_dir() / f"{name}.npz"
    if path.exists():
        try:
            return read_arrays(path)
        except (OSError, ValueError, BadZipFile) as error:
            _CONSOLE.print(f"{path} is damaged ({error}): making it again")
    arrays = make()
    write_arrays(path, arrays)
    return arrays


def read_arrays(path: Path) -> Arrays:
    """Arrays that ``write_arrays`` wrote.

    Raises:
        OSError: the file or its checksum is not there.
        ValueError: the checksum is another, or the file is not an ``.npz``.
    """
    if _sha256(path) != path.with_suffix(".sha256").read_text().strip():
        raise ValueError("its checksum is wrong")
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def write_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write an ``.npz`` and beside it its sha256. Arrays of objects are not allowed."""
    write_whole(path, lambda part: _save(part, arrays))
    digest = _sha256(path)
    write_whole(path.with_suffix(".sha256"), lambda part: part.write_text(digest + "\n"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place; on failure nothing is left."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _save(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    for key, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"{key} holds Python objects, which would need pickle")
    with path.open("wb") as stream:
        # A mapping of names, which numpy's types confuse with its own keyword.
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
