"""What a recording of samples is, in MCAP's terms, and how it is read back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, get_args

from edge_mbm.errors import InputError, SourceError
from edge_mbm.mcap.payloads import FrameFormat, Payload, decode, schema_of
from edge_mbm.mcap.reader import McapReader, ReadLimits
from edge_mbm.mcap.records import Channel, Schema
from edge_mbm.mcap.schemas import RESULT_SCHEMA, Kind

__all__ = ["FORMAT", "LOSSES", "RECORDING", "RESULTS", "RecordedItem", "RecordingReader", "describe"]

RECORDING: Final = "edge_mbm.recording"
"""The metadata record that says which clock, which bundle, and which version of these conventions."""
LOSSES: Final = "edge_mbm.losses"
"""The metadata record at the end with what was not recorded: modality -> count."""
RESULTS: Final = "edge_mbm.results"
"""Where results stand among the channels; no modality's name has a dot."""
FORMAT: Final = "1.0"

_DIGITS: Final = 20
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_KINDS: Final[Mapping[str, frozenset[str]]] = {
    kind: frozenset(schema_of(kind, frames).full_name for frames in get_args(FrameFormat)) for kind in get_args(Kind)
}
_RESULT = "edge_mbm.Result"


class RecordedItem(NamedTuple):
    """One sample. ``t`` and ``duration`` are ns, ``rate`` is audio's, Hz; arrays are read-only."""

    modality: str
    kind: Kind
    data: Any
    t: int
    duration: int
    rate: int | None


def describe(modalities: Mapping[str, Kind], frames: FrameFormat) -> tuple[list[Schema], list[Channel], dict[str, int]]:
    """The schemas and channels of a recording, and each modality's channel; ``RESULTS`` is among them.

    Raises:
        InputError: a modality's name is not one that a bundle could have.
    """
    types = {kind: schema_of(kind, frames) for kind in dict.fromkeys(modalities.values())}
    numbers = {message.full_name: number for number, message in enumerate(types.values(), start=2)}
    schemas = [Schema(1, _RESULT, "jsonschema", RESULT_SCHEMA)]
    schemas += [Schema(numbers[m.full_name], m.full_name, "protobuf", m.descriptor()) for m in types.values()]
    channels = [Channel(1, 1, "/edge_mbm/results", "json", {})]
    for name, kind in modalities.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"'{name}' is no name for a modality: letters, digits and _ are")
        schema = numbers[types[kind].full_name]
        own = {"modality": name, "kind": kind}
        channels.append(Channel(len(channels) + 1, schema, f"/{name}", "protobuf", own))
    return schemas, channels, {RESULTS: 1} | {c.metadata["modality"]: c.id for c in channels[1:]}


class RecordingReader:
    """The samples of a recording in the order in which they came, times from 0 on.

    Args:
        path: an MCAP file that ``Recorder`` wrote, or such a file rewritten by MCAP's tools.
        limits: see ``ReadLimits``.

    Raises:
        SourceError: there is no such file, or it is damaged, or no recording of this version.
    """

    def __init__(self, path: str | os.PathLike[str], limits: ReadLimits | None = None) -> None:
        self._file = McapReader(path, limits)
        try:
            self.info = self._file.metadata.get(RECORDING, {})
            """What the recorder wrote about itself: format, clock, wall_offset_ns, bundle, manifest_sha256."""
            self._check_format()
            self._sources = dict(self._channels())
        except BaseException:
            self._file.close()
            raise
        self.path = self._file.path
        self.origin = self._file.start or 0
        """The recorder's time that is 0 here, ns."""

    @property
    def modalities(self) -> dict[str, Kind]:
        """What was to be recorded, in the recorder's order."""
        return {name: kind for name, kind, _ in self._sources.values()}

    @property
    def losses(self) -> dict[str, int]:
        """Modality -> samples that the recorder could not keep up with; empty if it never came to its end."""
        counts = self._file.metadata.get(LOSSES, {})
        # Of more digits than a count has, Python refuses to make a number.
        plain = {name: count for name, count in counts.items() if count.isascii() and count.isdecimal()}
        return {name: int(count) for name, count in plain.items() if len(count) <= _DIGITS}

    @property
    def cut(self) -> str | None:
        """In words, what the file lacks at its end; None if it is whole."""
        if self._file.ended:
            return None
        return f"{self.path} was cut off: it has no end, and its last {self._file.cut} bytes are no whole chunk"

    def items(self) -> Iterator[RecordedItem]:
        """All samples.

        Raises:
            SourceError: damage, or a time that goes back; what was given before is whole.
            MissingDependencyError: frames are JPEG and OpenCV is not installed.
        """
        newest: dict[str, int] = {}
        for message in self._file.messages():
            source = self._sources.get(message.channel)
            if source is None:
                continue
            name, kind, schema = source
            t = message.t - self.origin
            # What a session would refuse: two blocks of sound may begin at once, two frames may not.
            if t < newest.get(name, 0) + (kind != "audio" and name in newest):
                raise SourceError(f"{self.path} is damaged: '{name}' goes back to {t / 1e9:.6f} s")
            newest[name] = t
            data, duration, rate = self._decoded(schema, message.data, name, t)
            yield RecordedItem(name, kind, data, t, duration, rate)

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def _check_format(self) -> None:
        version = self.info.get("format", "")
        if not version:
            raise SourceError(f"{self._file.path} is MCAP, but no recording that edge-mbm made: it has no {RECORDING}")
        if version.split(".")[0] != FORMAT.split(".", maxsplit=1)[0]:
            raise SourceError(f"{self._file.path} is a recording of version {version[:20]!r}, this reads {FORMAT}")

    def _channels(self) -> Iterator[tuple[int, tuple[str, Kind, str]]]:
        names: set[str] = set()
        for channel in self._file.channels.values():
            name = channel.metadata.get("modality")
            if name is None:
                continue
            schema = self._file.schemas.get(channel.schema)
            kinds = [kind for kind in get_args(Kind) if kind == channel.metadata.get("kind")]
            is_known = bool(kinds) and schema is not None and schema.name in _KINDS[kinds[0]]
            if schema is None or not is_known or (schema.encoding, channel.encoding) != ("protobuf", "protobuf"):
                raise SourceError(f"{self._file.path} is damaged: channel {channel.id} is not what a recorder writes")
            if name in names or not _NAME.fullmatch(name):
                raise SourceError(f"{self._file.path} is damaged: channel {channel.id} has a modality's name wrong")
            names.add(name)
            yield channel.id, (name, kinds[0], schema.name)

    def _decoded(self, schema: str, data: memoryview, name: str, t: int) -> Payload:
        try:
            return decode(schema, data)
        except SourceError as error:
            raise SourceError(f"{self.path} is damaged: '{name}' at {t / 1e9:.6f} s: {error}") from error
