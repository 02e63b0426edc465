"""Recordings cut from videos and MCAP files, split by time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import CalibrationError, RecipeError
from edge_mbm.export.recording_sources.clips import clip_recordings
from edge_mbm.export.recording_sources.record import Recording
from edge_mbm.export.recording_sources.split import Wanted
from edge_mbm.export.recording_sources.tables import McapRecordings, VideoRecordings
from edge_mbm.runtime.recording import Recorder, RecordOptions
from edge_mbm.spec import AudioModality, ImageModality, Modality, SensorModality, VideoModality

MS, SECOND = 1_000_000, 1_000_000_000
Clip = Callable[..., Path]
pytestmark = pytest.mark.needs("av")
MODALITIES: dict[str, Modality] = {"image": ImageModality(), "audio": AudioModality(sample_rate=8000)}
ALL = {"all": 1.0}
SPLITS = {"calibration": 0.5, "heldout": 0.5}


def cut(folder: Path, split: str = "all", samples: int = 1000, **table: Any) -> list[Recording]:
    options = {"path": "*.mkv", "every_s": 0.2, "window_s": 0.5, "splits": ALL} | table
    kinds = options.pop("modalities", MODALITIES)
    return list(clip_recordings(VideoRecordings(**options), folder, kinds, Wanted(split, samples)))


def moment(recording: Recording) -> int:
    return int(recording.id.split("@")[1])


def test_each_recording_is_a_frame_and_the_sound_before_it(tmp_path: Path, clip: Clip) -> None:
    """To the sample; frames before a whole window of sound are left out."""
    clip(tmp_path / "a.mkv")
    recordings = cut(tmp_path)
    assert [recording.id for recording in recordings][:2] == [f"a.mkv@{600 * MS}", f"a.mkv@{800 * MS}"]
    for recording in recordings:
        t = moment(recording)
        assert recording.inputs["image"].max() == t // (40 * MS)
        last = t * 8 // MS
        expected = np.arange(last - 4000, last, dtype=np.float32) / 32768
        np.testing.assert_array_equal(recording.inputs["audio"], expected)
        assert recording.label is None


@pytest.mark.parametrize("rate", [25.0, 12.5, 50.0])
def test_video_is_the_frames_of_a_window_at_the_modality_s_rate(tmp_path: Path, clip: Clip, rate: float) -> None:
    """The last is the pivot's own; each of the others is the nearest to its place, and one camera gives images too."""
    clip(tmp_path / "a.mkv")
    modalities = {"image": ImageModality(), "video": VideoModality(rate=rate)}
    recordings = cut(tmp_path, modalities=modalities, window_s=0.4)
    assert len(recordings) > 5
    for recording in recordings:
        t, frames = moment(recording), recording.inputs["video"]
        assert len(frames) == round(0.4 * rate)
        places = t / MS - np.arange(len(frames))[::-1] * 1000 / rate
        shown = frames.reshape(len(frames), -1).max(1) * 40.0
        assert np.abs(shown - places).max() <= 20
        np.testing.assert_array_equal(recording.inputs["image"], frames[-1])


def test_splits_are_parts_of_time_and_share_no_sample(tmp_path: Path, clip: Clip) -> None:
    """No frame, and no sample of sound, is in two; each part begins with a window of which nothing is given."""
    clip(tmp_path / "a.mkv")
    one, other = (cut(tmp_path, split, splits=SPLITS) for split in SPLITS)
    assert max(map(moment, one)) < 2 * SECOND < min(map(moment, other)) - 400 * MS
    heard = [np.concatenate([r.inputs["audio"] for r in recordings]) for recordings in (one, other)]
    assert heard[0].max() < heard[1].min()
    assert len(one) > 5
    assert len(other) > 5


def test_every_file_gives_its_part(tmp_path: Path, clip: Clip) -> None:
    """Two clips, the same split of each; ids are their paths from the set's folder."""
    for name in ("b/x.mkv", "a/x.mkv"):
        (tmp_path / name).parent.mkdir()
        clip(tmp_path / name)
    recordings = cut(tmp_path, "heldout", path="*/x.mkv", splits=SPLITS)
    assert list(dict.fromkeys(r.id.split("@")[0] for r in recordings)) == ["a/x.mkv", "b/x.mkv"]


def test_fewer_are_spread_over_all_of_it(tmp_path: Path, clip: Clip) -> None:
    """Ten of two clips are not the first ten of the first."""
    for name in ("a.mkv", "b.mkv"):
        clip(tmp_path / name)
    recordings = cut(tmp_path, samples=10)
    assert [sum(r.id.startswith(name) for r in recordings) for name in ("a", "b")] == [5, 5]
    assert max(map(moment, recordings)) > 3 * SECOND
    assert np.diff([moment(r) for r in recordings if r.id.startswith("a")]).min() >= 680 * MS


def test_a_split_may_have_a_path_of_its_own(tmp_path: Path, clip: Clip) -> None:
    """Then all of it is that split's."""
    clip(tmp_path / "a.mkv")
    clip(tmp_path / "b.mkv", seconds=2)
    table = {"path": {"one": "a.mkv", "two": "b.mkv"}, "splits": {}}
    assert {r.id.split("@")[0] for r in cut(tmp_path, "one", **table)} == {"a.mkv"}
    assert max(map(moment, cut(tmp_path, "two", **table))) >= 1800 * MS
    with pytest.raises(RecipeError, match="no split 'three'"):
        cut(tmp_path, "three", **table)


def test_a_video_without_sound_gives_pictures(tmp_path: Path, clip: Clip) -> None:
    """From the first frame on; the recordings lack the sound, as a device's would."""
    clip(tmp_path / "a.mkv", audio=None)
    recordings = cut(tmp_path)
    assert [recording.inputs.keys() for recording in recordings] == [{"image"}] * 20
    assert moment(recordings[0]) == 0


def test_sound_alone_may_be_cut(tmp_path: Path, clip: Clip) -> None:
    """Where the recipe has no pictures, blocks of sound say when."""
    clip(tmp_path / "a.wav", video=None)
    recordings = cut(tmp_path, path="a.wav", modalities={"audio": MODALITIES["audio"]})
    assert len(recordings) > 5
    assert all(np.array_equal(np.diff(r.inputs["audio"] * 32768), np.ones(3999)) for r in recordings)


@pytest.mark.parametrize(
    ("clip_of", "modalities", "says"),
    [
        (("a.wav", None), MODALITIES, "a.wav has no pictures, which 'image' needs"),
        (("a.mkv", "ffv1"), {"imu": SensorModality(shape=(2,))}, r"a.mkv has nothing of .* which are \['imu'\]"),
        (("b.mkv", "ffv1"), MODALITIES, "there is no file .*a.*: paths begin at the calibration set's folder"),
    ],
)
def test_the_wrong_files_are_told(
    tmp_path: Path, clip: Clip, clip_of: tuple[str, str | None], modalities: dict[str, Modality], says: str
) -> None:
    """What they lack, and which they are."""
    clip(tmp_path / clip_of[0], video=clip_of[1])
    with pytest.raises(CalibrationError, match=says):
        cut(tmp_path, path="a.*", modalities=modalities)


def test_a_session_is_split_by_time_too(tmp_path: Path) -> None:
    """MCAP: the pivot's samples of each part, from the end of its first window of sound on."""
    kinds: dict[str, Any] = {"image": "image", "audio": "audio"}
    with Recorder(tmp_path / "s.mcap", kinds, RecordOptions(max_bytes=1 << 26, frames="raw")) as recorder:
        for k in range(200):
            recorder.push("image", np.full((2, 2, 3), k, np.uint8), 7 * SECOND + k * 20 * MS, wait=True)
            samples = np.arange(k * 160, (k + 1) * 160, dtype=np.int16)
            recorder.push("audio", samples, 7 * SECOND + k * 20 * MS, rate=8000, wait=True)
    table = McapRecordings(path="s.mcap", pivot="image", every_s=0.1, window_s=0.3, splits=SPLITS)
    one, other = (list(clip_recordings(table, tmp_path, MODALITIES, Wanted(split, 100))) for split in SPLITS)
    assert [moment(one[0]), moment(one[-1])] == [300 * MS, 1900 * MS]
    assert moment(other[0]) == pytest.approx(2290 * MS, abs=20 * MS)
    assert max(r.inputs["audio"].max() for r in one) < min(r.inputs["audio"].min() for r in other)
    assert len(other) == pytest.approx(17, abs=1)
