"""Regions lie where the frame has what they are about, each once, and nothing is left out without a word."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.errors import EngineError, InputError
from edge_mbm.preprocess import ImagePreprocessor
from edge_mbm.preprocess.regions import RegionRules, find_regions
from edge_mbm.spec import ImageSteps

SAME = ImageSteps(height=100, width=100)
CORNER, SIZE = st.integers(0, 60), st.integers(1, 40)
BOXES = st.lists(st.tuples(CORNER, CORNER, SIZE, SIZE, st.floats(0, 1, width=32)), max_size=20)


@pytest.mark.needs("cv2")
@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("shape", [(240, 320), (320, 200), (128, 96)])
def test_a_box_is_mapped_to_where_the_frame_was_bright(
    fit: Literal["stretch", "crop", "letterbox"], shape: tuple[int, int]
) -> None:
    """The oracle is the preprocessor: a bright square is looked for in what it gives, and found again in the frame."""
    frame = np.zeros((*shape, 3), np.uint8)
    y, x = shape[0] // 2 - 5, shape[1] // 2 + 3
    frame[y : y + 32, x : x + 24] = 255
    steps = ImageSteps(height=128, width=96, fit=fit)
    rows, columns = np.nonzero(ImagePreprocessor(steps)(frame)[0, :, :, 0] > 127)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    raw = np.array([[*box, 0.9, box[0], box[3]]], np.float32)
    found = find_regions(raw, RegionRules(max_regions=2), steps, shape)
    assert (found.count, found.left_out) == (1, 0)
    pixel = 0.75 * max(shape[0] / 128, shape[1] / 96, 1) + 0.5
    np.testing.assert_allclose(found.regions[0, :4], [x, y, x + 24, y + 32], atol=pixel)
    np.testing.assert_allclose(found.regions[0, 5:], [x, y + 32], atol=pixel)
    assert not found.regions[1].any()


@given(BOXES, st.integers(1, 5))
def test_who_counts_is_sure_apart_and_the_best(boxes: list[tuple[int, int, int, int, float]], most: int) -> None:
    """Sorted, padded with zeros; no two kept overlap by the threshold; each one dropped overlaps a surer one kept."""
    raw = np.array([[x, y, x + w, y + h, s] for x, y, w, h, s in boxes], np.float32).reshape(-1, 5)
    everything = find_regions(raw, RegionRules(max_regions=20), SAME, (100, 100))
    kept = everything.regions[: everything.count]
    assert everything.left_out == 0
    assert all(one[4] >= two[4] for one, two in pairwise(kept))
    assert all(_iou(one, two) < 0.3 for i, one in enumerate(kept) for two in kept[:i])
    for candidate in raw[raw[:, 4] >= 0.5]:
        assert any(_iou(candidate, one) >= 0.3 and one[4] >= candidate[4] for one in kept)
    few = find_regions(raw, RegionRules(max_regions=most), SAME, (100, 100))
    np.testing.assert_array_equal(few.regions[: few.count], kept[:most])
    assert not few.regions[few.count :].any()
    assert few.count + few.left_out == everything.count


def _iou(one: np.ndarray, two: np.ndarray) -> float:
    """Counted pixel by pixel."""
    a, b = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
    for mask, (x0, y0, x1, y1) in ((a, one[:4].astype(int)), (b, two[:4].astype(int))):
        mask[y0:y1, x0:x1] = True
    return float((a & b).sum() / (a | b).sum())


def test_a_partial_face_is_cut_off_at_the_edge_and_one_outside_is_none() -> None:
    """Its landmarks stay where they are."""
    raw = np.array([[-20, 10, 30, 50, 0.9, -5, 20], [120, 10, 150, 50, 0.8, 125, 20]], np.float32)
    found = find_regions(raw, RegionRules(max_regions=3), SAME, (100, 100))
    assert found.count == 1
    np.testing.assert_allclose(found.regions[0], [0, 10, 30, 50, 0.9, -5, 20])


@pytest.mark.parametrize("place", [0, 4, 6])
def test_what_is_not_finite_is_an_error(place: int) -> None:
    """Whichever number it is; a region that is not sure may hold anything."""
    raw = np.array([[1, 1, 9, 9, 0.9, 2, 2], [np.inf, 1, 9, 9, 0.1, 2, 2]], np.float32)
    assert find_regions(raw, RegionRules(max_regions=3), SAME, (100, 100)).count == 1
    raw[0, place] = np.nan
    with pytest.raises(EngineError, match="not finite"):
        find_regions(raw, RegionRules(max_regions=3), SAME, (100, 100))


@pytest.mark.parametrize("shape", [(3, 4), (3, 6), (15,), (1, 3, 15)])
def test_another_form_is_an_error(shape: tuple[int, ...]) -> None:
    """It says which form it should be."""
    with pytest.raises(EngineError, match="candidates, 5"):
        find_regions(np.zeros(shape, np.float32), RegionRules(max_regions=3), SAME, (100, 100))


def test_rules_that_nothing_can_fulfil_are_refused() -> None:
    """No region at all, or none that may stand beside another."""
    for rules in ({"max_regions": 0}, {"max_regions": 1, "iou_threshold": 0.0}):
        with pytest.raises(InputError, match="at least 1"):
            RegionRules(**rules)
