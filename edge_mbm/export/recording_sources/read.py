"""The recordings of a split, whatever table says where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edge_mbm.export.recording_sources.arrays import array_recordings
from edge_mbm.export.recording_sources.clips import clip_recordings
from edge_mbm.export.recording_sources.folder import folder_recordings
from edge_mbm.export.recording_sources.record import Recording
from edge_mbm.export.recording_sources.split import Wanted
from edge_mbm.export.recording_sources.tables import ArrayRecordings, FolderRecordings, RecordingSource
from edge_mbm.spec import Modality

__all__ = ["read_recordings"]


def read_recordings(
    source: RecordingSource,
    folder: Path,
    modalities: Mapping[str, Modality],
    labels: Mapping[str, Sequence[str]],
    wanted: Wanted,
) -> Iterator[Recording]:
    """One after the other; memory does not grow with their number.

    Args:
        source: the table.
        folder: the calibration set's, which paths begin at.
        modalities: the recipe's.
        labels: the recipe's lists of labels.
        wanted: which split, and how many at most.

    Raises:
        RecipeError: there is no such split.
        CalibrationError: files are absent or damaged, or have nothing of these modalities.
        MissingDependencyError: a decoder is not installed.
    """
    if isinstance(source, FolderRecordings):
        yield from folder_recordings(source, folder, modalities, labels, wanted)
    elif isinstance(source, ArrayRecordings):
        yield from array_recordings(source, folder, modalities, wanted)
    else:
        yield from clip_recordings(source, folder, modalities, wanted)
