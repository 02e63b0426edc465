"""Collected ranges on disk, found again by all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_mbm.calibration.histogram import Histogram
from edge_mbm.calibration.ranges import TensorRanges
from edge_mbm.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RangeCache", "range_key"]

# Part of key and file name: count it up when the histogram or the file changes, and old files are never read.
_FORMAT = "ranges-1"
_KEY = re.compile(r"[0-9a-f]{64}")
_SHA256_BYTES = 32


def range_key(graph: bytes, data_sha256: str, steps: bytes) -> str:
    """What ranges depend on, as 64 hexadecimal digits; a change in any part gives another key.

    Args:
        graph: the ONNX model that was observed.
        data_sha256: ``DataDigest.hexdigest()`` of the recordings.
        steps: the preprocessing between recordings and graph, in any form that is the same for the same steps.
    """
    digest = hashlib.sha256()
    for part in (_FORMAT.encode(), graph, data_sha256.encode(), steps):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class RangeCache:
    """One small file per key in a folder. Nothing is ever removed: deleting files, or all of it, is safe at any time.

    A file is an ``.npz`` without pickles, followed by its sha256, so that damage is found before anything is parsed.

    Args:
        folder: where the files are; made on the first store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> TensorRanges | None:
        """The ranges stored under ``key``; None when there are none, or their file is damaged or cannot be read.

        Raises:
            InputError: the key is not one of ``range_key``.
        """
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        packed, digest = content[:-_SHA256_BYTES], content[-_SHA256_BYTES:]
        return _unpack(packed) if hashlib.sha256(packed).digest() == digest else None

    def store(self, key: str, ranges: TensorRanges) -> None:
        """Keep ranges under ``key``, in place of what was there; a reader sees the old file or the new, whole.

        Raises:
            InputError: the key is not one of ``range_key``.
            OSError: the folder cannot be written to.
        """
        path = self._path(key)
        packed = _pack(ranges)
        self._folder.mkdir(parents=True, exist_ok=True)
        _write_atomically(path, packed + hashlib.sha256(packed).digest())

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise InputError(f"a key of the range cache is 64 hexadecimal digits from range_key(), got '{key}'")
        return self._folder / f"{key}.{_FORMAT}.npz"


def _pack(ranges: TensorRanges) -> bytes:
    """Per tensor the span of bins in use; the names as JSON, because numpy's strings lose trailing NULs."""
    histograms = ranges.histograms.values()
    spans = [_span(histogram.counts) for histogram in histograms]
    counts = [histogram.counts[span] for histogram, span in zip(histograms, spans, strict=True)]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        names=np.frombuffer(msgspec.json.encode(list(ranges.histograms)), np.uint8),
        exponents=_integers(histogram.exponent for histogram in histograms),
        extremes=np.array([_extremes(histogram) for histogram in histograms], np.float64).reshape(-1, 2),
        firsts=_integers(span.start for span in spans),
        lengths=_integers(map(len, counts)),
        counts=np.concatenate([_integers(()), *counts]),
    )
    return buffer.getvalue()


def _unpack(packed: bytes) -> TensorRanges:
    with np.load(io.BytesIO(packed), allow_pickle=False) as stored:
        names = msgspec.json.decode(stored["names"].tobytes(), type=list[str])
        counts = np.split(stored["counts"], np.cumsum(stored["lengths"]))
        columns = zip(names, stored["exponents"], stored["firsts"], stored["extremes"], counts[:-1], strict=True)
        return TensorRanges(
            {
                name: Histogram.restore(
                    exponent=int(exponent), first=int(first), counts=span, minimum=float(low), maximum=float(high)
                )
                for name, exponent, first, (low, high), span in columns
            }
        )


def _span(counts: NDArray[np.int64]) -> slice:
    used = np.flatnonzero(counts)
    return slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0)


def _extremes(histogram: Histogram) -> tuple[float, float]:
    return histogram.minmax() if histogram.count else (np.inf, -np.inf)


def _integers(values: Iterable[int]) -> NDArray[np.int64]:
    return np.array(list(values), np.int64)


def _write_atomically(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
