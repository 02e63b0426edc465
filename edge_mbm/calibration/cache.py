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
from edge_mbm.errors import CalibrationError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RangeCache", "load_ranges", "pack_ranges", "range_key", "save_ranges", "unpack_ranges"]

# Part of key and file name: count it up when the histogram or the file changes, and old files are never read.
_FORMAT = "ranges-2"
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
            return unpack_ranges(self._path(key).read_bytes())
        except (OSError, CalibrationError):
            return None

    def store(self, key: str, ranges: TensorRanges) -> None:
        """Keep ranges under ``key``, in place of what was there; a reader sees the old file or the new, whole.

        Raises:
            InputError: the key is not one of ``range_key``.
            OSError: the folder cannot be written to.
        """
        save_ranges(self._path(key), ranges)

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise InputError(f"a key of the range cache is 64 hexadecimal digits from range_key(), got '{key}'")
        return self._folder / f"{key}.{_FORMAT}.npz"


def save_ranges(path: Path, ranges: TensorRanges) -> None:
    """Write ranges to a file, whole or not at all: what one machine saw of a part of the recordings.

    ::

        save_ranges(Path("part-0.npz"), collector.ranges)  # on each machine
        parts = [load_ranges(path) for path in sorted(folder.glob("part-*.npz"))]  # on one
        whole = functools.reduce(TensorRanges.merge, parts)

    Raises:
        OSError: it cannot be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(path, pack_ranges(ranges))


def load_ranges(path: Path) -> TensorRanges:
    """What ``save_ranges`` wrote.

    Raises:
        CalibrationError: there is no such file, or it is damaged.
    """
    try:
        return unpack_ranges(path.read_bytes())
    except OSError as error:
        raise CalibrationError(f"no calibrated ranges at {path}: {error.strerror}") from error
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from error


def pack_ranges(ranges: TensorRanges) -> bytes:
    """As bytes: an ``.npz`` without pickles, followed by its sha256; the same ranges give the same bytes."""
    packed = _pack(ranges)
    return packed + hashlib.sha256(packed).digest()


def unpack_ranges(content: bytes) -> TensorRanges:
    """What ``pack_ranges`` made.

    Raises:
        CalibrationError: it is damaged.
    """
    packed, digest = content[:-_SHA256_BYTES], content[-_SHA256_BYTES:]
    if hashlib.sha256(packed).digest() != digest:
        raise CalibrationError("these are no calibrated ranges of edge-mbm, or they are damaged: collect them anew")
    return _unpack(packed)


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
        zeros=_integers(histogram.zeros for histogram in histograms),
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
        fields = (stored[field] for field in ("exponents", "zeros", "firsts", "extremes"))
        columns = zip(names, *fields, counts[:-1], strict=True)
        return TensorRanges(
            {
                name: Histogram.restore(
                    exponent=int(exponent),
                    first=int(first),
                    counts=span,
                    zeros=int(zeros),
                    minimum=float(low),
                    maximum=float(high),
                )
                for name, exponent, zeros, first, (low, high), span in columns
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
