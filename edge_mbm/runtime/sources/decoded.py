"""PyAV's frames as samples: pictures as RGB bytes, sound in short blocks of float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edge_mbm.errors import MissingDependencyError
from edge_mbm.runtime.source import Sample

__all__ = ["audio_samples", "frame_samples", "import_av", "nanoseconds"]

_SECOND = 1_000_000_000
_BLOCK_NS = 20_000_000
"""Longest block of sound handed out at once."""


def frame_samples(modality: str, frame: Any, t: int) -> Iterator[Sample]:
    """A picture as uint8[H, W, 3] RGB.

    Args:
        modality: that it is.
        frame: a decoded ``av.VideoFrame``.
        t: its time, ns.
    """
    yield Sample(modality, frame.to_ndarray(format="rgb24"), t)


def audio_samples(modality: str, frame: Any, t: int) -> Iterator[Sample]:
    """Sound as float32[samples, channels] in blocks as short as a microphone's.

    A codec's first sample may otherwise have to wait 128 ms for its last.

    Args:
        modality: that it is.
        frame: a decoded ``av.AudioFrame``.
        t: time of its first sample, ns.
    """
    data, rate = frame.to_ndarray(), frame.sample_rate
    samples = _to_float(data.T if frame.format.is_planar else data.reshape(-1, len(frame.layout.channels)))
    length = max(1, rate * _BLOCK_NS // _SECOND)
    for first in range(0, frame.samples, length):
        block = samples[first : first + length]
        yield Sample(modality, block, t + first * _SECOND // rate, len(block) * _SECOND // rate, rate)


def nanoseconds(ticks: int, time_base: Any) -> int:
    """A time of FFmpeg's in ns; exact: a float of seconds would round differently from file to file."""
    return int(ticks * time_base * _SECOND)


def import_av(purpose: str) -> Any:
    """PyAV.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import av  # noqa: PLC0415 - optional: a robot with its own cameras needs no files
    except ImportError:
        raise MissingDependencyError("av", purpose, "pip install 'edge-mbm[video]'") from None
    return av


def _to_float(samples: Any) -> Any:
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    return samples.astype(np.float32) / float(np.iinfo(samples.dtype).max + 1)
