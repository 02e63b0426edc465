"""Recordings from folders of files: one file per modality, sorted into folders by class or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_mbm.errors import CalibrationError
from edge_mbm.export.recording_sources.media import read_image, read_sound
from edge_mbm.export.recording_sources.record import Recording
from edge_mbm.export.recording_sources.split import Wanted, wanted_ids
from edge_mbm.export.recording_sources.tables import FolderRecordings
from edge_mbm.spec import AudioModality, Modality, SensorModality, TextModality

__all__ = ["folder_recordings"]

_IMAGES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_SOUNDS = frozenset((".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"))


def folder_recordings(
    source: FolderRecordings,
    folder: Path,
    modalities: Mapping[str, Modality],
    labels: Mapping[str, Sequence[str]],
    wanted: Wanted,
) -> Iterator[Recording]:
    """A split's recordings, in an order that mixes the classes; one in memory at a time.

    A recording is all the files of one name, ending aside, in the modalities' folders: its id is that name. Where a
    modality lacks the file, the recording lacks the modality. If files lie in folders of their own, these are classes:
    the label is the class's place in the recipe's list of labels that has them all, or else among the sorted names.

    Args:
        source: the table.
        folder: that its path begins at.
        modalities: the recipe's.
        labels: the recipe's.
        wanted: which split.

    Raises:
        CalibrationError: a folder is absent or has no such files, two files have the same name, or one is damaged.
        MissingDependencyError: a decoder is not installed.
    """
    root = folder / source.location(wanted.split)
    found = {name: _files(place, name, modalities[name]) for name, place in _places(source, root, modalities).items()}
    ids = list(dict.fromkeys(id_ for files in found.values() for id_ in files))
    if len(found) > 1 and not any(all(id_ in files for files in found.values()) for id_ in ids):
        raise CalibrationError(f"{root}: no file of '{next(iter(found))}' has the name of one of each other modality")
    label_of = _labels(ids, labels, root)
    for id_ in wanted_ids(ids, source.shares(), wanted):
        inputs = {name: _reader(modalities[name])(files[id_]) for name, files in found.items() if id_ in files}
        yield Recording(id_, inputs, label_of(id_))


def _places(source: FolderRecordings, root: Path, modalities: Mapping[str, Modality]) -> dict[str, Path]:
    """Modality -> folder: as told, or the folders that have a modality's name, or all is the only modality's."""
    if not root.is_dir():
        raise CalibrationError(f"there is no folder {root}: paths begin at the calibration set's folder")
    strangers = sorted(set(source.folders) - set(modalities))
    if strangers:
        raise CalibrationError(f"'folders' of {source} has {strangers}; modalities are {list(modalities)}")
    told = source.folders or {name: name for name in modalities if (root / name).is_dir()}
    if told:
        return {name: root / place for name, place in told.items()}
    if len(modalities) > 1:
        raise CalibrationError(
            f"{root} has no folder called as one of {list(modalities)}: say which is whose in a table 'folders'"
        )
    return dict.fromkeys(modalities, root)


def _files(place: Path, name: str, modality: Modality) -> dict[str, Path]:
    """Id -> file."""
    suffixes = _suffixes(modality)
    files = sorted(path for path in place.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    visible = [path for path in files if not any(part.startswith(".") for part in path.relative_to(place).parts)]
    found: dict[str, Path] = {}
    for path in visible:
        other = found.setdefault(path.relative_to(place).with_suffix("").as_posix(), path)
        if other != path:
            raise CalibrationError(f"{path} and {other.name} have the same name: which is meant? Rename one")
    if not found:
        raise CalibrationError(f"{place} has no files for '{name}', which end in {', '.join(sorted(suffixes))}")
    return found


def _suffixes(modality: Modality) -> frozenset[str]:
    if isinstance(modality, AudioModality):
        return _SOUNDS
    if isinstance(modality, TextModality):
        return frozenset((".txt",))
    return frozenset((".npy",)) if isinstance(modality, SensorModality) else _IMAGES


def _reader(modality: Modality) -> Callable[[Path], Any]:
    if isinstance(modality, AudioModality):
        return lambda path: read_sound(path, modality.sample_rate)
    if isinstance(modality, TextModality):
        return _text
    return _vector if isinstance(modality, SensorModality) else read_image


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is no UTF-8 text: {error.reason}") from error


def _vector(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CalibrationError(f"{path} is no array that numpy saved: {error}") from error


def _labels(ids: Sequence[str], labels: Mapping[str, Sequence[str]], root: Path) -> Callable[[str], int | None]:
    folders = {id_: id_.rpartition("/")[0] for id_ in ids}
    classes = sorted(set(folders.values()), key=_in_order)
    if classes == [""]:
        return lambda _: None
    if "" in classes:
        loose = next(id_ for id_, place in folders.items() if not place)
        raise CalibrationError(f"{root}: '{loose}' is beside folders of classes, and in none of them: move it into one")
    known = next((list(names) for names in labels.values() if set(classes) <= set(names)), classes)
    return lambda id_: known.index(folders[id_])


def _in_order(name: str) -> tuple[bool, int, str]:
    """Numbers by their value: class 10 is not between 1 and 2."""
    is_number = name.isascii() and name.isdecimal()
    return not is_number, int(name) if is_number else 0, name
