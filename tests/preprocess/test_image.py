"""Frames: fit, size and colour, against numpy."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edge_mbm.errors import InputError, MissingDependencyError
from edge_mbm.preprocess import ImagePreprocessor, as_frame
from edge_mbm.spec import ImageSteps


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def prepare(frame: object, **steps: object) -> np.ndarray:
    return ImagePreprocessor(ImageSteps(**steps))(frame)  # type: ignore[arg-type]


def areas(frame: np.ndarray, factor: int) -> np.ndarray:
    """Each output pixel is the mean of a square of the input."""
    height, width, channels = frame.shape
    squares = frame.reshape(height // factor, factor, width // factor, factor, channels).astype(np.float64)
    return squares.mean(axis=(1, 3))


def test_a_frame_of_the_right_size_is_only_copied() -> None:
    """No resampling, no colour change."""
    frame = picture(6, 7)
    np.testing.assert_array_equal(prepare(frame, height=6, width=7), frame[None])


def test_bgr_is_rgb_backwards() -> None:
    """The channel order is the one the steps ask for."""
    frame = picture(4, 4)
    np.testing.assert_array_equal(prepare(frame, height=4, width=4, color="bgr")[0], frame[:, :, ::-1])


def test_gray_is_bt601_luma() -> None:
    """Within one level of the standard's weights in float64, for all corners of the colour cube and random colours."""
    frame = picture(32, 32)
    frame[0, :8] = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    luma = frame @ np.array([0.299, 0.587, 0.114])
    got = prepare(frame, height=32, width=32, color="gray")[0, :, :, 0]
    assert np.abs(got - luma).max() <= 0.51


def test_gray_frames_fill_every_channel() -> None:
    """[H, W] and [H, W, 1] are gray: as RGB each channel is the same."""
    gray = picture(5, 5)[:, :, 0]
    for frame in (gray, gray[:, :, None]):
        np.testing.assert_array_equal(prepare(frame, height=5, width=5)[0], np.repeat(gray[:, :, None], 3, axis=2))
        np.testing.assert_array_equal(prepare(frame, height=5, width=5, color="gray")[0, :, :, 0], gray)


@pytest.mark.needs("cv2")
@pytest.mark.parametrize("factor", [2, 4, 5])
def test_shrinking_averages_areas(factor: int) -> None:
    """By a whole factor each pixel is the mean of what it covers, so no detail aliases."""
    frame = picture(20, 40)
    got = prepare(frame, height=20 // factor, width=40 // factor)[0]
    assert np.abs(got - areas(frame, factor)).max() <= 1


@pytest.mark.needs("cv2")
def test_growing_interpolates() -> None:
    """A ramp grows into a ramp: monotone, within the original's range."""
    ramp = np.repeat(np.repeat(np.array([[0, 100, 200]], np.uint8), 2, axis=0)[:, :, None], 3, axis=2)
    got = prepare(ramp, height=4, width=12)[0, :, :, 0].astype(int)
    assert (np.diff(got, axis=1) >= 0).all()
    assert got.min() == 0
    assert got.max() == 200


@pytest.mark.needs("cv2")
def test_crop_keeps_the_centre() -> None:
    """The largest centred part of the target's shape, nothing else, is what is resized."""
    frame = picture(16, 40)
    frame[:, :12] = 255
    frame[:, 28:] = 255
    expected = areas(frame[:, 12:28], 2)
    assert np.abs(prepare(frame, height=8, width=8, fit="crop")[0] - expected).max() <= 1


@pytest.mark.needs("cv2")
def test_letterbox_shows_everything_between_black_bars() -> None:
    """A wide frame keeps its shape in the middle; above and below is black."""
    frame = picture(16, 32)
    got = prepare(frame, height=16, width=16, fit="letterbox")[0]
    assert not got[:4].any()
    assert not got[12:].any()
    assert np.abs(got[4:12] - areas(frame, 2)).max() <= 1


@pytest.mark.needs("cv2")
@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (7, 5), (480, 640), (8, 8)])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_any_size_becomes_the_asked_one(fit: str, height: int, width: int, color: str) -> None:
    """However thin or small the frame, the result has the manifest's size and type."""
    got = prepare(picture(height, width), height=8, width=6, fit=fit, color=color)
    assert got.shape == (1, 8, 6, 3 if color == "rgb" else 1)
    assert got.dtype == np.uint8


@pytest.mark.needs("cv2")
def test_views_are_as_good_as_copies() -> None:
    """A mirrored, cropped or strided view gives what its contiguous copy gives."""
    frame = picture(40, 60)
    for view in (frame[:, ::-1], frame[::2, 3:50], frame[::-1, ::-1], frame.transpose(1, 0, 2), frame[:, :, ::-1]):
        for size in ((8, 8), view.shape[:2]):
            steps = {"height": size[0], "width": size[1]}
            np.testing.assert_array_equal(prepare(view, **steps), prepare(view.copy(), **steps))


def test_it_writes_into_the_given_buffer() -> None:
    """With ``out``, such as an engine's input, no array is made."""
    frame, out = picture(4, 4), np.zeros((1, 4, 4, 3), np.uint8)
    assert ImagePreprocessor(ImageSteps(height=4, width=4))(frame, out) is out
    np.testing.assert_array_equal(out[0], frame)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        "frame.png",
        None,
        [[1, 2], [3]],
    ],
    ids=repr,
)
def test_what_is_not_a_frame_is_refused(data: object) -> None:
    """Other types, layouts and channel counts are an InputError that says what a frame is."""
    with pytest.raises(InputError):
        as_frame(data)


def test_without_opencv_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resizing names the module and the line to type; a frame of the right size needs no OpenCV at all."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependencyError, match=r"cv2.*pip install 'edge-mbm\[video\]'"):
        prepare(picture(9, 9), height=8, width=8)
    prepare(picture(8, 8), height=8, width=8)
