"""Calibration recordings cut from what was recorded on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.calibration import DataDigest
from edge_mbm.errors import CalibrationError, InputError
from edge_mbm.export.mcap_recordings import recordings_from
from edge_mbm.runtime.recording import Recorder, RecordOptions
from edge_mbm.spec import AudioModality, ImageModality, Modality, SensorModality, TextModality

MS, SECOND = 1_000_000, 1_000_000_000
MODALITIES: dict[str, Modality] = {
    "image": ImageModality(),
    "audio": AudioModality(sample_rate=1000),
    "prompt": TextModality(),
    "imu": SensorModality(shape=(2,)),
}


def write(path: Path, *, seconds: float = 2.0, rate: int = 1000, hole: range = range(0), audio: bool = True) -> Path:
    """Frames at 25 Hz whose value is their number, and sound whose samples count up, 20 ms behind."""
    kinds: dict[str, Any] = {"image": "image", "prompt": "text", "imu": "sensor", "depth": "image"}
    kinds |= {"audio": "audio"} if audio else {}
    block = rate // 50
    with Recorder(path, kinds, RecordOptions(max_bytes=1 << 26, frames="raw")) as recorder:
        recorder.push("prompt", "first", 5 * SECOND)
        for k in range(int(seconds * 50)):
            t = 5 * SECOND + k * 20 * MS
            if k % 2 == 0:
                recorder.push("image", np.full((2, 2, 3), k // 2, np.uint8), t, wait=True)
                recorder.push("depth", np.zeros((2, 2), np.uint8), t, wait=True)
                recorder.push("imu", np.array([k, -k], np.float32), t, wait=True)
            if audio and k not in hole:
                samples = np.arange(k * block, (k + 1) * block, dtype=np.int16)
                recorder.push("audio", np.stack([samples, samples], 1), t, rate=rate, wait=True)
        recorder.push("prompt", "last", 5 * SECOND + int(seconds * SECOND))
    return path


def cut(path: Path, **changes: Any) -> list[Any]:
    options: dict[str, Any] = {"modalities": MODALITIES, "pivot": "image", "every_s": 0.2, "window_s": 0.1} | changes
    return list(recordings_from(path, options.pop("modalities"), options.pop("pivot"), **options))


def test_each_pivot_has_what_was_known_then(tmp_path: Path) -> None:
    """Its frame, the window of sound that ends at its time, to the sample, and the latest of the rest."""
    recordings = cut(write(tmp_path / "a.mcap"))
    assert [r.id for r in recordings] == [f"a.mcap@{k * 200 * MS}" for k in range(1, 10)]
    for k, recording in enumerate(recordings, start=1):
        assert set(recording.inputs) == set(MODALITIES)
        assert recording.label is None
        assert recording.inputs["image"].max() == 5 * k
        np.testing.assert_array_equal(
            recording.inputs["audio"], np.arange(200 * k - 100, 200 * k, dtype=np.float32) / 32768
        )
        assert recording.inputs["imu"][0] in (10 * k, 10 * k - 2)
        assert recording.inputs["prompt"] == "first"


def test_the_same_file_gives_the_same_data(tmp_path: Path) -> None:
    """Byte for byte: a bundle calibrated on it is reproducible."""

    path = write(tmp_path / "a.mcap")

    def digest() -> list[Any]:
        taken = DataDigest()
        for recording in cut(path):
            taken.add(recording.id, recording.inputs)
        return taken.entries

    assert digest() == digest()


@pytest.mark.needs("soxr")
def test_sound_comes_at_the_model_s_rate(tmp_path: Path) -> None:
    """Resampled from 8 kHz, of the right length, and near to what a ramp is."""
    recordings = cut(write(tmp_path / "a.mcap", rate=8000))
    assert {recording.inputs["audio"].shape for recording in recordings} == {(100,)}
    middle = recordings[1].inputs["audio"][50] * 32768
    assert abs(middle - (400 - 50) * 8) < 20


def test_a_hole_in_the_sound_costs_the_pivots_behind_it(tmp_path: Path) -> None:
    """Such a window would be made up: none has samples from before and after the hole, and the others are as before."""
    whole = {r.id: r.inputs["audio"] for r in cut(write(tmp_path / "a.mcap"))}
    (tmp_path / "a.mcap").unlink()
    broken = {r.id: r.inputs["audio"] for r in cut(write(tmp_path / "a.mcap", hole=range(24, 28)), every_s=0.04)}
    times = [int(key.split("@")[1]) // MS for key in broken]
    assert [t for t in times if t <= 700] == [*range(120, 481, 40), 680]
    for key in broken.keys() & whole.keys():
        np.testing.assert_array_equal(broken[key], whole[key])
    assert all((np.diff(window) * 32768 == 1).all() for window in broken.values())


def test_a_recording_shorter_than_a_window_gives_none(tmp_path: Path) -> None:
    """The caller says what that means."""
    assert cut(write(tmp_path / "a.mcap", seconds=0.05)) == []


def test_without_sound_there_is_none(tmp_path: Path) -> None:
    """Pictures alone are recordings too, from the first on."""
    recordings = cut(write(tmp_path / "a.mcap", audio=False))
    assert [recording.inputs["image"].max() for recording in recordings] == list(range(0, 50, 5))
    assert all(set(recording.inputs) <= {"image", "imu", "prompt"} for recording in recordings)


def test_sound_may_be_the_pivot(tmp_path: Path) -> None:
    """Then it is cut where a block ends."""
    recordings = cut(write(tmp_path / "a.mcap"), pivot="audio", every_s=0.5)
    assert [int(r.id.split("@")[1]) // MS for r in recordings] == [520, 1020, 1520]
    assert all(len(recording.inputs["audio"]) == 100 for recording in recordings)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"pivot": "smell"}, CalibrationError, "not the pivot 'smell'"),
        ({"modalities": {"audio": MODALITIES["audio"]}}, CalibrationError, "not the pivot 'image'"),
        ({"every_s": 0}, InputError, "above 0"),
        ({"window_s": -1}, InputError, "above 0"),
    ],
)
def test_what_makes_no_sense_is_said(tmp_path: Path, changes: Any, error: Any, says: str) -> None:
    """With what there is."""
    with pytest.raises(error, match=says):
        cut(write(tmp_path / "a.mcap", seconds=0.1), **changes)


def test_a_file_that_cannot_be_read_is_a_calibration_error(tmp_path: Path) -> None:
    """With its path."""
    with pytest.raises(CalibrationError, match=r"there is no file .*a\.mcap"):
        cut(tmp_path / "a.mcap")
