"""Calibration recordings cut from what was recorded on the device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from edge_mbm.errors import CalibrationError, InputError, SourceError
from edge_mbm.export.recording_sources.cut import Cut, Cutter
from edge_mbm.export.recording_sources.record import Recording
from edge_mbm.mcap import McapReader, ReadLimits, RecordingReader
from edge_mbm.spec import Modality

__all__ = ["cut_mcap", "mcap_length", "recordings_from"]

_SECOND = 1_000_000_000


def recordings_from(
    path: str | os.PathLike[str],
    modalities: Mapping[str, Modality],
    pivot: str,
    *,
    every_s: float,
    window_s: float,
    limits: ReadLimits | None = None,
) -> Iterator[Recording]:
    """What the sensors took in around one pivot sample after another: a split's ``recordings``, without labels.

    Each has the pivot's sample, the latest of every other frame, vector and text, and of audio the ``window_s`` up to
    the pivot's time at the manifest's rate, mono. A pivot for which sound is recorded but not whole is left out.

    Args:
        path: an MCAP file of ``edge-mbm record`` or ``Recorder``.
        modalities: the bundle's or the recipe's; what else was recorded is left out.
        pivot: the modality whose samples say when.
        every_s: least time between two of them, seconds.
        window_s: length of audio, seconds.
        limits: what the file may ask for; see ``ReadLimits``.

    Raises:
        CalibrationError: the file cannot be read, or the pivot is not recorded in it.
        InputError: a time that is not above 0.
        MissingDependencyError: OpenCV for JPEG, or soxr where audio has another rate.
    """
    if not (0 < every_s <= 3600 and 0 < window_s <= 3600):
        raise InputError("every_s and window_s are seconds above 0 and at most 3600")
    cut = Cut(pivot, round(every_s * _SECOND), round(window_s * _SECOND))
    yield from cut_mcap(Path(path), Path(path).name, modalities, cut, limits)


def cut_mcap(
    path: Path, name: str, modalities: Mapping[str, Modality], cut: Cut, limits: ReadLimits | None = None
) -> Iterator[Recording]:
    """As ``recordings_from``, of a part of the file; ``name`` begins each id.

    Raises:
        CalibrationError: the file cannot be read, or the pivot is not recorded in it.
        MissingDependencyError: OpenCV for JPEG, or soxr where audio has another rate.
    """
    try:
        reader = RecordingReader(path, limits)
        try:
            if cut.pivot not in reader.modalities or cut.pivot not in modalities:
                raise CalibrationError(f"{path} has {list(reader.modalities)}, and not the pivot '{cut.pivot}'")
            used = {key: modality for key, modality in modalities.items() if key in reader.modalities}
            yield from Cutter(name, used, cut).recordings(reader.items())
        finally:
            reader.close()
    except SourceError as error:
        raise CalibrationError(f"no calibration recordings: {error}") from error


def mcap_length(path: Path, limits: ReadLimits | None = None) -> int:
    """Time of the last message, ns from the first; nothing is decoded.

    Raises:
        CalibrationError: the file cannot be read.
    """
    try:
        reader = McapReader(path, limits)
        try:
            newest = max((message.t for message in reader.messages()), default=0)
        finally:
            reader.close()
    except SourceError as error:
        raise CalibrationError(f"no calibration recordings: {error}") from error
    return max(0, newest - (reader.start or 0))
