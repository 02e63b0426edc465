"""Media files: decoded as the device decodes them, and what is damaged is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import CalibrationError
from edge_mbm.export.recording_sources.media import clip_items, clip_length, read_image, read_sound, streams
from edge_mbm.runtime.sources import FileSource

MS, SECOND = 1_000_000, 1_000_000_000
Clip = Callable[..., Path]
pytestmark = pytest.mark.needs("av", "cv2")


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("a.mkv", {"video": "ffv1", "audio": "pcm_s16le", "rate": 8000}),
        ("a.mp4", {"video": "mpeg4", "audio": "aac", "rate": 48000}),
        ("a.ts", {"video": "mpeg2video", "audio": "aac", "rate": 44100}),
        ("a.mkv", {"video": "mpeg4", "audio": "flac", "rate": 16000}),
        ("a.avi", {"video": "mpeg4", "audio": "pcm_u8", "rate": 8000}),
    ],
)
def test_a_clip_is_what_the_device_would_play(tmp_path: Path, clip: Clip, name: str, codecs: dict[str, Any]) -> None:
    """Every frame and every sample of sound, at the same times, byte for byte."""
    path = clip(tmp_path / name, **codecs)
    source = FileSource(path)
    played = list(source.samples())
    source.close()
    items = list(clip_items(path, "image", "audio"))
    for modality in ("image", "audio"):
        ours = [item for item in items if item.modality == modality]
        theirs = [sample for sample in played if sample.modality == modality]
        np.testing.assert_array_equal(
            np.concatenate([item.data for item in ours]), np.concatenate([sample.data for sample in theirs])
        )
        assert ours[0].t == theirs[0].t
        assert {item.rate for item in ours} == {sample.rate for sample in theirs}
    assert [i.t for i in items if i.modality == "image"] == [s.t for s in played if s.modality == "image"]


def test_items_come_when_they_are_complete(tmp_path: Path, clip: Clip) -> None:
    """Sound at its block's end, frames at once; whatever order they have in the file."""
    available = [item.t + item.duration for item in clip_items(clip(tmp_path / "a.mkv"), "image", "audio")]
    assert available == sorted(available)


def test_length_is_the_last_frame_s_time(tmp_path: Path, clip: Clip) -> None:
    """Or the last sound's, where there are no pictures."""
    assert clip_length(clip(tmp_path / "a.mkv")) == 3960 * MS
    assert clip_length(clip(tmp_path / "a.wav", video=None)) == pytest.approx(4 * SECOND, abs=600 * MS)


def test_a_video_without_sound_has_pictures_only(tmp_path: Path, clip: Clip) -> None:
    """And sound alone has none."""
    silent = clip(tmp_path / "a.mkv", audio=None)
    assert streams(silent) == (True, False)
    assert {item.modality for item in clip_items(silent, "image", None)} == {"image"}
    assert streams(clip(tmp_path / "a.wav", video=None)) == (False, True)


@pytest.mark.parametrize(("suffix", "codec"), [(".wav", "pcm_s16le"), (".flac", "flac")])
def test_sound_files_are_read_whole(tmp_path: Path, clip: Clip, suffix: str, codec: str) -> None:
    """Every sample, at full scale 1."""
    sound = read_sound(clip(tmp_path / f"a{suffix}", video=None, audio=codec), 8000)
    np.testing.assert_array_equal(sound, np.arange(32000, dtype=np.float32) / 32768)


@pytest.mark.needs("soxr")
def test_sound_files_come_at_the_model_s_rate(tmp_path: Path, clip: Clip) -> None:
    """Half the rate is half the samples of the same ramp; MP3 is read too."""
    sound = read_sound(clip(tmp_path / "a.wav", video=None), 4000)
    assert sound.shape == (16000,)
    assert sound[8000] == pytest.approx(16000 / 32768, abs=1e-3)
    assert len(read_sound(clip(tmp_path / "a.mp3", video=None, audio="mp3"), 4000)) == pytest.approx(16000, abs=1200)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp"])
def test_images_are_rgb(tmp_path: Path, image: Callable[[Path, int], Path], name: str) -> None:
    """uint8, red first, within what compression changes."""
    pixels = read_image(image(tmp_path / name, 100))
    assert (pixels.shape, pixels.dtype) == ((6, 8, 3), np.uint8)
    assert np.abs(pixels.astype(int) - (100, 0, 255)).max() <= (0 if name.endswith(("png", "bmp")) else 6)


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.95])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_corrupt_image_is_told(tmp_path: Path, name: str, keep: float) -> None:
    """Empty, cut after its head, half-way or near its end: never a picture that is gray below."""
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / name
    assert cv2.imwrite(str(path), noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    with pytest.raises(CalibrationError, match=r"a\.(png|jpg) is no image that can be read, or it is damaged"):
        read_image(path)


def test_what_is_no_media_file_is_told(tmp_path: Path, clip: Clip) -> None:
    """With its path, whichever way it is read."""
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    for read in (streams, clip_length, lambda p: list(clip_items(p, "image", None)), lambda p: read_sound(p, 8000)):
        with pytest.raises(CalibrationError, match=r"a\.mp4 cannot be decoded: .* Is it a media file, and whole\?"):
            read(tmp_path / "a.mp4")
    with pytest.raises(CalibrationError, match="has no sound"):
        read_sound(clip(tmp_path / "silent.mkv", audio=None), 8000)
