"""Where what took long to find out is kept for the next export."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import onnx
import onnxruntime
import torch

__all__ = ["Store", "cache_folder", "key_of", "prune"]

T = TypeVar("T")
_SHA256_BYTES = 32
_MOST_BYTES = 2 << 30
"""Of results that are kept: graphs are as large as the model, and a search makes dozens."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/edge-mbm``, or the same under ``~/.cache``. Removing it is safe at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-mbm"


def key_of(parts: Iterable[Any]) -> str:
    """All that a result depends on, as 64 hexadecimal digits; a change in any part gives another key.

    Args:
        parts: what msgspec can write as JSON, bytes among them. The code of edge-mbm's own export, and the versions of
            the libraries that it makes and runs graphs with, are always part of it.
    """
    digest = hashlib.sha256()
    for part in (_code(), onnx.__version__, onnxruntime.__version__, str(torch.__version__), np.__version__, *parts):
        data = part if isinstance(part, bytes) else msgspec.json.encode(part, order="deterministic")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@cache
def _code() -> str:
    """Of what decides how graphs are made and judged: where that changes, what it found out before counts no more."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for room in ("export", "calibration", "preprocess", "training"):
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Store:
    """Results by key, a file each: whole or absent, whenever a process is killed, and whoever else writes.

    A file begins with the digest of the rest, so that damage is found. Where nothing can be written nothing is kept,
    and the next export finds out anew.

    Args:
        room: the kind of result: a folder in the cache.
    """

    def __init__(self, room: str) -> None:
        self._folder = _results() / room

    def load(self, key: str, kind: type[T]) -> T | None:
        """What was stored under a key, or None; a damaged file counts as absent."""
        data = self.load_bytes(key)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def store(self, key: str, value: Any) -> None:
        """Keep a value that msgspec can write as JSON."""
        self.store_bytes(key, msgspec.json.encode(value))

    def load_bytes(self, key: str) -> bytes | None:
        """As ``load``, of what ``store_bytes`` kept."""
        path = self._folder / key
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # what is of use is pruned last
        digest, rest = data[:_SHA256_BYTES], data[_SHA256_BYTES:]
        return rest if hashlib.sha256(rest).digest() == digest else None

    def store_bytes(self, key: str, data: bytes) -> None:
        """Keep bytes as they are."""
        part = self._folder / f".{key}.{os.getpid()}"
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(hashlib.sha256(data).digest() + data)
                part.replace(self._folder / key)
            finally:
                part.unlink(missing_ok=True)


def prune(most_bytes: int = _MOST_BYTES) -> None:
    """Remove results, those longest unused first, until the rest is within bounds; another export may be at work."""
    found = []
    for path in _results().rglob("*"):
        with suppress(OSError):
            if path.is_file():
                found.append((path.stat().st_atime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most_bytes:
            return
        with suppress(OSError):
            path.unlink()
        total -= size


def _results() -> Path:
    return cache_folder() / "export"
