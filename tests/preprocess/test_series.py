"""A clip is its frames, a log is its vectors, and everything else is one item."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import InputError
from edge_mbm.preprocess import in_turn
from edge_mbm.spec import ImageSteps, Input, LogMelSteps, RawSteps, TensorSpec, TokenSteps

IMAGE = ImageSteps(height=4, width=4)
MEL = LogMelSteps(sample_rate=8000, window_length=200, hop_length=100, n_fft=256, n_mels=8)


def reads(steps: Any, *shape: int, source: str = "thing") -> Input:
    return Input(source=source, tensor=TensorSpec(dtype="float32", shape=("batch", *shape)), preprocess=steps)


@pytest.mark.parametrize(
    ("value", "shape", "count"),
    [
        (reads(IMAGE, 4, 4, 3), (5, 9, 7, 3), 5),
        (reads(IMAGE, 4, 4, 3), (1, 9, 7, 1), 1),
        (reads(RawSteps(), 6), (3, 6), 3),
        (reads(RawSteps(), 2, 2), (3, 2, 2), 3),
    ],
)
def test_a_series_is_taken_item_by_item(value: Input, shape: tuple[int, ...], count: int) -> None:
    """One axis more than an item has is time; the items are the rows, in order."""
    data = np.arange(np.prod(shape)).reshape(shape)
    items = in_turn(data, value)
    assert len(items) == count
    assert all(np.array_equal(item, row) for item, row in zip(items, data, strict=True))


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (reads(IMAGE, 4, 4, 3), np.zeros((9, 7, 3), np.uint8)),
        (reads(IMAGE, 4, 4, 3), np.zeros((9, 7), np.uint8)),
        (reads(RawSteps(), 6), np.zeros(6, np.float32)),
        (reads(MEL, 7, 8), np.zeros((800, 2), np.float32)),
        (reads(TokenSteps(asset="words", max_length=8), 8), "a red mug"),
        (reads(RawSteps(), 6, source="encoder.embedding"), np.zeros((1, 6), np.float32)),
    ],
)
def test_what_is_one_item_stays_one(value: Input, data: object) -> None:
    """A frame, a vector, stereo sound, a text, and what another component gave with its batch axis."""
    [item] = in_turn(data, value)
    assert item is data


def test_a_series_of_nothing_is_refused() -> None:
    """There would be no answer; the error says what came."""
    with pytest.raises(InputError, match=r"'thing' is a series of no items, uint8\[0, 9, 7, 3\]"):
        in_turn(np.zeros((0, 9, 7, 3), np.uint8), reads(IMAGE, 4, 4, 3))
