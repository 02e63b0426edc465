"""Regions cut out of frames: by their box, or turned and scaled by their landmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.errors import EngineError, InputError
from edge_mbm.preprocess import Crop, CropPreprocessor, crops_of
from edge_mbm.spec import CropSteps

pytestmark = pytest.mark.needs("cv2")
RNG = np.random.default_rng(5)


def crop(frame: np.ndarray, region: Any, **steps: Any) -> np.ndarray:
    [cut] = CropPreprocessor(CropSteps(**steps))(Crop(frame, np.array(region, np.float32)))
    return cut


def smooth(rows: int, columns: int) -> np.ndarray:
    """A frame without fine detail, so that a place in it shows: red is x, green is y, in steps of less than 1."""
    y, x = np.mgrid[:rows, :columns].astype(float)
    return np.stack([x * 250 / columns, y * 250 / rows, np.full_like(x, 128)], 2).astype(np.uint8)


def test_a_box_of_the_crops_size_is_cut_out_as_it_is() -> None:
    """Pixel by pixel, in the colour order asked for."""
    frame = RNG.integers(0, 256, (60, 80, 3), np.uint8)
    region = [12, 7, 32, 27, 0.9]
    assert np.array_equal(crop(frame, region, height=20, width=20), frame[7:27, 12:32])
    assert np.array_equal(crop(frame, region, height=20, width=20, color="bgr"), frame[7:27, 12:32, ::-1])
    assert crop(frame, region, height=20, width=20, color="gray").shape == (20, 20, 1)


def test_a_margin_is_a_share_of_the_box() -> None:
    """A quarter more on each side of 20 pixels is 5."""
    frame = RNG.integers(0, 256, (60, 80, 3), np.uint8)
    assert np.array_equal(crop(frame, [12, 7, 32, 27, 0.9], height=30, width=30, margin=0.25), frame[2:32, 7:37])


def test_half_a_face_has_black_where_the_frame_has_ended() -> None:
    """On the left of it, and below; one that lies wholly outside is black."""
    frame = np.full((40, 40, 3), 200, np.uint8)
    cut = crop(frame, [-10, 30, 10, 50, 0.9], height=20, width=20)
    assert not cut[:, :9].any()
    assert not cut[11:].any()
    assert (cut[:9, 11:] == 200).all()
    assert not crop(frame, [100, 100, 120, 120, 0.9], height=20, width=20).any()


@pytest.mark.parametrize("times", [2, 3, 8])
def test_a_large_face_is_averaged_not_sampled(times: int) -> None:
    """Noise on a grey frame becomes quieter by the number of pixels that each of the crop's stands for."""
    frame = RNG.integers(0, 256, (400, 400, 3), np.uint8)
    side = 24 * times
    cut = crop(frame, [40, 60, 40 + side, 60 + side, 0.9], height=24, width=24)
    averaged = frame[60 : 60 + side, 40 : 40 + side].reshape(24, times, 24, times, 3).mean((1, 3))
    assert np.abs(cut - averaged).max() <= 1


@given(st.floats(-180, 180), st.floats(0.5, 4), st.floats(60, 140), st.floats(60, 140))
def test_landmarks_come_to_their_places(degrees: float, scale: float, x: float, y: float) -> None:
    """However the face is turned, large and placed, what was at its landmarks is where the steps want it."""
    frame = smooth(200, 200)
    places = ((0.3, 0.35), (0.7, 0.35), (0.5, 0.7))
    turn = scale * np.exp(1j * np.radians(degrees))
    points = turn * (np.array(places) @ (24, 24j) - (12 + 12j)) + (x + 1j * y)
    region = [0, 0, 1, 1, 0.9, *np.column_stack([points.real, points.imag]).ravel()]
    cut = crop(frame, region, height=24, width=24, landmarks=places)
    middle = cut[11:13, 11:13].reshape(-1, 3).mean(0)
    assert middle[:2] == pytest.approx(np.array([x, y]) * 250 / 200 - 0.6, abs=2)


def test_landmarks_that_do_not_fit_come_as_near_as_they_can() -> None:
    """The least squares fit of a turn, a scale and a shift: that of numpy's general solver."""
    places, seen = RNG.random((5, 2)), RNG.random((5, 2)) * 50 + 20
    # [u, v] = [[a, -b], [b, a]] [x, y] + [c, d], in the unknowns a, b, c, d, for crops of 40 x 40 pixels.
    x, y = (places * 40).T
    ones, zeros = np.ones(5), np.zeros(5)
    rows = np.vstack([np.column_stack([x, -y, ones, zeros]), np.column_stack([y, x, zeros, ones])])
    (a, b, c, d), *_ = np.linalg.lstsq(rows, np.concatenate([seen[:, 0], seen[:, 1]]), rcond=None)
    steps = CropSteps(height=40, width=40, landmarks=tuple(map(tuple, places.tolist())))
    region = np.array([0, 0, 1, 1, 1, *seen.ravel()], np.float32)
    found = CropPreprocessor(steps)._to_frame(region)
    assert found == pytest.approx(np.array([[a, -b, c], [b, a, d]]), abs=1e-4)


def test_a_region_of_no_size_is_an_error_of_the_detector() -> None:
    """Landmarks that all lie on one point say no scale."""
    with pytest.raises(EngineError, match="a region of no size"):
        crop(smooth(50, 50), [0, 0, 9, 9, 0.9, 5, 5, 5, 5], height=8, width=8, landmarks=((0.2, 0.5), (0.8, 0.5)))
    with pytest.raises(EngineError, match="a region of no size"):
        crop(smooth(50, 50), [5, 5, 5, 5, 0.9], height=8, width=8)


def test_what_is_no_crop_is_refused() -> None:
    """A frame by itself, and a region with another number of landmarks."""
    with pytest.raises(InputError, match="from a frame and a region, got ndarray"):
        CropPreprocessor(CropSteps(height=8, width=8))(smooth(50, 50))
    with pytest.raises(InputError, match="1 landmarks, the steps place 2"):
        crop(smooth(50, 50), [0, 0, 9, 9, 0.9, 5, 5], height=8, width=8, landmarks=((0.2, 0.5), (0.8, 0.5)))


def test_rows_without_a_region_give_no_crop() -> None:
    """Zeros after the last; of a clip the last frame is cut, and a grey one has one channel."""
    regions = np.zeros((1, 3, 5), np.float32)
    regions[0, 0] = [1, 2, 9, 9, 0.8]
    [only] = crops_of(np.stack([smooth(30, 30), smooth(30, 30)[::-1]]), regions)
    assert np.array_equal(only.frame, smooth(30, 30)[::-1])
    assert only.region.tolist() == pytest.approx([1, 2, 9, 9, 0.8])
    [grey] = crops_of(np.zeros((20, 20), np.uint8), regions)
    assert crop(*grey, height=8, width=8).shape == (8, 8, 3)
