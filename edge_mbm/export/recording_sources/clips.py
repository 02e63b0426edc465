"""Recordings from MCAP and video files: moments of long recordings, split by time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from edge_mbm.errors import CalibrationError
from edge_mbm.export.mcap_recordings import cut_mcap, mcap_length
from edge_mbm.export.recording_sources.cut import Cut, Cutter
from edge_mbm.export.recording_sources.files import matching, relative
from edge_mbm.export.recording_sources.media import clip_items, clip_length, streams
from edge_mbm.export.recording_sources.record import Recording
from edge_mbm.export.recording_sources.split import Wanted, share_of
from edge_mbm.export.recording_sources.tables import McapRecordings, VideoRecordings
from edge_mbm.mcap import RecordedItem
from edge_mbm.spec import AudioModality, ImageModality, Modality, VideoModality

__all__ = ["clip_recordings"]

_SECOND = 1_000_000_000


class _Part(NamedTuple):
    """A split's part of one file, ns."""

    path: Path
    start: int
    end: int


def clip_recordings(
    source: McapRecordings | VideoRecordings, folder: Path, modalities: Mapping[str, Modality], wanted: Wanted
) -> Iterator[Recording]:
    """A split's recordings of each file in turn.

    Every file is divided into one part per split, in the order of ``splits``. Splitting single moments at random would
    put a frame and the one after it, which are all but the same, on both sides: what is held out would have been seen.
    For the same reason sound of the part before is not used. Where a split has more than is wanted the moments are
    taken further apart, so that all files are used from beginning to end.

    Args:
        source: the table.
        folder: that its paths begin at.
        modalities: the recipe's.
        wanted: which split.

    Raises:
        CalibrationError: there is no such file, or one cannot be read, or lacks the pivot.
        MissingDependencyError: a decoder is not installed.
    """
    paths = matching(folder, source.location(wanted.split))
    first, last = share_of(source.shares(), wanted.split)
    lengths = [mcap_length(path) if isinstance(source, McapRecordings) else clip_length(path) for path in paths]
    # One more than the last moment, so that it is inside.
    parts = [
        _Part(path, round(first * length), round(last * length) + 1)
        for path, length in zip(paths, lengths, strict=True)
    ]
    window = round(source.window_s * _SECOND)
    usable = sum(max(0, part.end - part.start - window) for part in parts)
    every = max(round(source.every_s * _SECOND), usable // wanted.samples)
    for part in parts:
        name = relative(part.path, folder)
        if isinstance(source, McapRecordings):
            cut = Cut(source.pivot, every, window, part.start, part.end)
            yield from cut_mcap(part.path, name, modalities, cut)
        else:
            yield from _cut_video(part, name, modalities, every, window)


def _cut_video(
    part: _Part, name: str, modalities: Mapping[str, Modality], every: int, window: int
) -> Iterator[Recording]:
    found = (_first(modalities, (kind,)) for kind in (ImageModality, VideoModality))
    pictures = [modality for modality in found if modality is not None]
    picture = next(iter(pictures), None)
    has_pictures, has_sound = streams(part.path)
    if picture is not None and not has_pictures:
        raise CalibrationError(f"{part.path} has no pictures, which '{picture}' needs: leave it out")
    sound = _first(modalities, (AudioModality,)) if has_sound else None
    pivot = picture or sound
    if pivot is None:
        raise CalibrationError(f"{part.path} has nothing of the recipe's modalities, which are {list(modalities)}")
    used = {key: modalities[key] for key in (*pictures, sound) if key is not None}
    cutter = Cutter(name, used, Cut(pivot, every, window, part.start, part.end))
    yield from cutter.recordings(_shared(clip_items(part.path, picture, sound), pictures))


def _shared(items: Iterator[RecordedItem], pictures: list[str]) -> Iterator[RecordedItem]:
    """What is a picture comes once for each modality that takes pictures; the pivot, the first of them, last."""
    for item in items:
        for name in reversed(pictures) if item.modality in pictures else (item.modality,):
            yield item._replace(modality=name)


def _first(modalities: Mapping[str, Modality], kinds: tuple[type, ...]) -> str | None:
    return next((name for name, modality in modalities.items() if isinstance(modality, kinds)), None)
