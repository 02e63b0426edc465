"""Rows of arrays, read as they come."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import CalibrationError
from edge_mbm.export.recording_sources.arrays import array_recordings
from edge_mbm.export.recording_sources.record import Recording
from edge_mbm.export.recording_sources.split import Wanted
from edge_mbm.export.recording_sources.tables import ArrayRecordings
from edge_mbm.spec import ImageModality, Modality, SensorModality, TextModality

MODALITIES: dict[str, Modality] = {
    "imu": SensorModality(shape=(3,)),
    "prompt": TextModality(),
    "image": ImageModality(),
}


def read(folder: Path, split: str = "all", samples: int = 10**6, **table: Any) -> list[Recording]:
    source = ArrayRecordings(**({"path": "data.npz", "splits": {"all": 1.0}} | table))
    return list(array_recordings(source, folder, MODALITIES, Wanted(split, samples)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_each_row_is_a_recording(tmp_path: Path, save: Any) -> None:
    """numpy reads the same; other arrays in the file are nobody's."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "imu": rng.normal(size=(50, 3)).astype(np.float32),
        "image": rng.integers(0, 255, (50, 4, 5, 3), np.uint8),
        "prompt": np.array([f"wörd {k}" for k in range(50)]),
        "label": np.arange(50) % 7,
        "notes": np.zeros(3),
    }
    save(tmp_path / "data.npz", **arrays)
    recordings = read(tmp_path)
    assert [r.id for r in recordings] == [f"data.npz[{k}]" for k in range(50)]
    for k, recording in enumerate(recordings):
        assert recording.label == k % 7
        assert recording.inputs["prompt"] == arrays["prompt"][k]
        for name in ("imu", "image"):
            np.testing.assert_array_equal(recording.inputs[name], arrays[name][k])
            assert recording.inputs[name].dtype == arrays[name].dtype


def test_labels_may_be_absent_and_splits_share_no_row(tmp_path: Path) -> None:
    """Of two files, all rows are in one of the two splits; the fewer that are wanted come from both files."""
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, imu=np.zeros((30, 3), np.float32))
    shares = {"one": 0.5, "two": 0.5}
    one, two = ([r.id for r in read(tmp_path, split, path="*.npz", splits=shares)] for split in shares)
    assert not set(one) & set(two)
    assert len(one) + len(two) == 60
    few = read(tmp_path, "one", samples=8, path="*.npz", splits=shares)
    assert len(few) == 8
    assert {r.id[0] for r in few} == {"a", "b"}
    assert few[0].label is None


def test_a_file_is_never_in_memory_whole(tmp_path: Path) -> None:
    """Forty megabytes compressed to next to nothing are read within one."""
    np.savez_compressed(tmp_path / "data.npz", imu=np.zeros((1000, 10_000), np.float32))
    source = ArrayRecordings(path="data.npz", splits={"all": 1.0})
    tracemalloc.start()
    count = sum(1 for _ in array_recordings(source, tmp_path, MODALITIES, Wanted("all", 10**6)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1000
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"smell": np.zeros((3, 2))}, r"has \['smell'\], none of which is one of the modalities"),
        ({"label": np.zeros(3, np.int64)}, "none of which is one of the modalities"),
        ({"imu": np.zeros((3, 2)), "label": np.zeros(4, np.int64)}, r"different lengths: \{'imu': 3, 'label': 4\}"),
        ({"imu": np.asfortranarray(np.zeros((3, 2)))}, "in Fortran order: save numbers or text in C order"),
        ({"imu": np.zeros((3, 2), np.complex64)}, r"'imu' of .* is complex64\[3, 2\]"),
        ({"imu": np.float32(1)}, "one row per recording"),
        ({"imu": np.zeros((3, 2)), "label": np.zeros((3, 2))}, r"'label' of 'data.npz\[0\]' is float64\[2\]"),
    ],
)
def test_arrays_that_are_no_recordings_are_told(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    """Which array, what it is, and what it should be."""
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(CalibrationError, match=says):
        read(tmp_path)


def test_damage_is_told(tmp_path: Path) -> None:
    """No archive at all, a cut one, or a byte that changed in it: with the path."""
    path = tmp_path / "data.npz"
    np.savez(path, imu=np.arange(3000, dtype=np.float32).reshape(1000, 3))
    whole = path.read_bytes()
    damaged = [b"no archive", whole[:500], whole[:1000] + b"\xff" + whole[1001:], whole.replace(b"NUMPY", b"NOMPY", 1)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match=r"data\.npz"):
            read(tmp_path)
    with pytest.raises(CalibrationError, match=r"there is no file .*absent\.npz"):
        read(tmp_path, path="absent.npz")
