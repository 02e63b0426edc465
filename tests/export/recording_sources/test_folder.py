"""Folders of images, sounds, texts and vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import CalibrationError
from edge_mbm.export.recording_sources.folder import folder_recordings
from edge_mbm.export.recording_sources.record import Recording
from edge_mbm.export.recording_sources.split import Wanted
from edge_mbm.export.recording_sources.tables import FolderRecordings
from edge_mbm.spec import AudioModality, ImageModality, Modality, SensorModality, TextModality

Image = Callable[[Path, int], Path]
IMAGE: dict[str, Modality] = {"image": ImageModality()}
BOTH: dict[str, Modality] = {"image": ImageModality(), "audio": AudioModality(sample_rate=8000)}
pytestmark = pytest.mark.needs("cv2")


def read(
    folder: Path,
    modalities: dict[str, Modality] = IMAGE,
    labels: dict[str, tuple[str, ...]] | None = None,
    split: str = "all",
    samples: int = 1000,
    **table: Any,
) -> list[Recording]:
    source = FolderRecordings(**({"path": "photos", "splits": {"all": 1.0}} | table))
    return list(folder_recordings(source, folder, modalities, labels or {}, Wanted(split, samples)))


def test_a_flat_folder_has_no_labels(tmp_path: Path, image: Image) -> None:
    """Ids are the names; what is hidden, or no image by its ending, is left out."""
    for k in range(6):
        image(tmp_path / "photos" / f"p{k}.png", 10 * k)
    (tmp_path / "photos" / "README.md").write_text("not a picture")
    image(tmp_path / "photos" / ".thumbnails" / "p0.png", 1)
    found = {recording.id: recording for recording in read(tmp_path)}
    assert sorted(found) == [f"p{k}" for k in range(6)]
    assert all(r.label is None for r in found.values())
    assert found["p3"].inputs["image"][0, 0].tolist() == [30, 0, 255]


def test_folders_are_classes(tmp_path: Path, image: Image) -> None:
    """By their sorted names, numbers by value; the first few are of every class."""
    for name in ("10", "9", "2"):
        for k in range(20):
            image(tmp_path / "photos" / name / f"{k}.png", int(name))
    recordings = read(tmp_path)
    assert {(r.id.split("/")[0], r.label) for r in recordings} == {("2", 0), ("9", 1), ("10", 2)}
    assert len({r.label for r in recordings[:15]}) == 3
    assert [r.id for r in read(tmp_path, samples=15)] == [r.id for r in recordings[:15]]


def test_the_recipe_s_order_of_labels_counts(tmp_path: Path, image: Image) -> None:
    """Where a list of labels has all of the folders' names, a label is the place there, not in the alphabet."""
    for name in ("blue", "red"):
        image(tmp_path / "photos" / name / "a.png", 0)
    labels = {"sizes": ("small", "large"), "colours": ("red", "green", "blue")}
    assert {r.id: r.label for r in read(tmp_path, labels=labels)} == {"blue/a": 2, "red/a": 0}


@pytest.mark.needs("av")
def test_files_of_one_name_belong_together(tmp_path: Path, image: Image, clip: Callable[..., Path]) -> None:
    """In folders called as the modalities, or told; where a file is missing the recording lacks it."""
    (tmp_path / "data" / "audio").mkdir(parents=True)
    for k in range(3):
        image(tmp_path / "data" / "image" / f"{k}.jpg", k)
    for k in range(2):
        clip(tmp_path / "data" / "audio" / f"{k}.wav", video=None, seconds=k + 1)
    found = {r.id: r.inputs for r in read(tmp_path, BOTH, path="data")}
    assert {id_: set(inputs) for id_, inputs in found.items()} == {
        "0": {"image", "audio"},
        "1": {"image", "audio"},
        "2": {"image"},
    }
    assert len(found["1"]["audio"]) == 16000
    told = read(tmp_path, BOTH, path=".", folders={"image": "data/image", "audio": "data/audio"})
    assert {r.id for r in told} == set(found)


def test_texts_and_vectors_are_read(tmp_path: Path) -> None:
    """UTF-8, and what numpy saved."""
    modalities: dict[str, Modality] = {"prompt": TextModality(), "imu": SensorModality(shape=(2,))}
    for name in modalities:
        (tmp_path / "photos" / name).mkdir(parents=True)
    (tmp_path / "photos" / "prompt" / "a.txt").write_text("ein Käfer\n", "utf-8")
    np.save(tmp_path / "photos" / "imu" / "a.npy", np.array([1, 2], np.float32))
    [recording] = read(tmp_path, modalities)
    assert recording.inputs["prompt"] == "ein Käfer"
    assert recording.inputs["imu"].tolist() == [1, 2]
    (tmp_path / "photos" / "imu" / "a.npy").write_bytes(b"damaged")
    with pytest.raises(CalibrationError, match=r"a\.npy is no array that numpy saved"):
        read(tmp_path, modalities)


def test_splits_are_of_a_recording_not_of_a_file(tmp_path: Path, image: Image) -> None:
    """A name is in one split only, and none is lost."""
    for k in range(40):
        image(tmp_path / "photos" / f"{k}.png", k)
    shares = {"one": 0.5, "two": 0.5}
    one, two = ({r.id for r in read(tmp_path, split=split, splits=shares)} for split in shares)
    assert not one & two
    assert len(one | two) == 40


@pytest.mark.parametrize(
    ("make", "modalities", "table", "says"),
    [
        ((), IMAGE, {}, "there is no folder .*photos: paths begin at"),
        (("photos/a.wav",), IMAGE, {}, r"photos has no files for 'image', which end in \.bmp, \.jpeg"),
        (("photos/a.png", "photos/a.jpg"), IMAGE, {}, r"a\.png and a\.jpg have the same name"),
        (("photos/cat/a.png", "photos/b.png"), IMAGE, {}, "'b' is beside folders of classes, and in none"),
        (("photos/a.png",), BOTH, {}, r"no folder called as one of \['image', 'audio'\]: say which is whose"),
        (
            ("photos/image/a.png", "photos/audio/b.wav"),
            BOTH,
            {},
            "no file of 'image' has the name of one of each other",
        ),
        (("photos/a.png",), IMAGE, {"folders": {"sound": "."}}, r"'folders' of .* has \['sound'\]; modalities are"),
        (("photos/a.png",), IMAGE, {}, r"a\.png is no image that can be read"),
    ],
)
def test_folders_that_are_no_recordings_are_told(
    tmp_path: Path, make: tuple[str, ...], modalities: dict[str, Modality], table: dict[str, Any], says: str
) -> None:
    """Absent, empty, of another modality, ambiguous, half sorted, of pairs that do not meet, corrupt."""
    for name in make:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"nothing that can be decoded")
    with pytest.raises(CalibrationError, match=says):
        read(tmp_path, modalities, **table)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    """With the endings that are looked for."""
    (tmp_path / "photos").mkdir()
    with pytest.raises(CalibrationError, match="has no files for 'image'"):
        read(tmp_path)
