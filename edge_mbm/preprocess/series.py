"""Clips: several items of one modality in the order of time, where one is usual."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_mbm.errors import InputError
from edge_mbm.spec import ImageSteps, Input, RawSteps

__all__ = ["in_turn"]


def in_turn(data: object, value: Input) -> Sequence[object]:
    """The items that a component's input takes one after the other.

    A recording, and one shot, may hold a series in place of one frame or one vector: uint8[T, H, W, C] for an image,
    float32[T, *shape] for a sensor. An encoder takes it item by item from a zero state, and what it says last counts.

    Args:
        data: of one modality, as a source would push it, or a series of that.
        value: the input that reads it.

    Returns:
        The series' items, or ``data`` alone.

    Raises:
        InputError: a series of nothing.
    """
    if not isinstance(data, np.ndarray) or data.ndim != _rank(value):
        return (data,)
    if not len(data):
        raise InputError(f"'{value.source}' is a series of no items, {data.dtype}{list(data.shape)}: it needs one")
    return list(data)


def _rank(value: Input) -> int | None:
    """Of a series; None where there is none. A grey frame without a channel axis has no clips: give it the axis."""
    if "." in value.source:  # another component's output, with a batch axis of its own
        return None
    if isinstance(value.preprocess, ImageSteps):
        return 4
    return len(value.tensor.shape) if isinstance(value.preprocess, RawSteps) else None
