"""Reads MCAP files from anywhere: what is cut off is told, and what is wrong is refused before it costs anything."""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from edge_mbm.errors import MissingDependencyError, SourceError
from edge_mbm.mcap.records import (
    CHANNEL,
    CHUNK,
    DATA_END,
    DESCRIBING,
    FOOTER,
    FRAME,
    HEADER,
    MAGIC,
    MESSAGE,
    METADATA,
    PASSED_OVER,
    SCHEMA,
    Channel,
    Cursor,
    Schema,
)

__all__ = ["McapReader", "Message", "ReadLimits"]

_SMALL = 1 << 18
"""Longest record that only describes."""
_PRIVATE = 0x80
"""From here on opcodes are anybody's."""
_NEWEST = (1 << 63) - 1


@dataclass(frozen=True)
class ReadLimits:
    """What a file may ask for before it is refused.

    Args:
        chunk_bytes: one chunk, before and after decompression: what is in memory at once.
        total_bytes: all chunks after decompression.
        records: outside of chunks.
        definitions: schemas, channels and notes; repetitions in a chunk count.
    """

    chunk_bytes: int = 256 << 20
    total_bytes: int = 1 << 42
    records: int = 4_000_000
    definitions: int = 256


class Message(NamedTuple):
    """One message, as it is in its chunk."""

    channel: int
    t: int
    """Log time, ns."""
    data: memoryview


class _Record(NamedTuple):
    opcode: int
    place: int
    """Where its contents begin."""
    length: int


class McapReader:
    """One file, read from its beginning, chunk by chunk; the index at its end is not needed and not trusted.

    Args:
        path: of a regular file.
        limits: see ``ReadLimits``.

    Raises:
        SourceError: there is no such file, or it is not MCAP, or damaged before its first chunk.
    """

    def __init__(self, path: str | os.PathLike[str], limits: ReadLimits | None = None) -> None:
        self.path = Path(path)
        self.schemas: dict[int, Schema] = {}
        self.channels: dict[int, Channel] = {}
        self.metadata: dict[str, Mapping[str, str]] = {}
        self.start: int | None = None
        """The earliest time that chunks claim, ns; None if there are none."""
        self.cut = 0
        """Bytes at the end that are no whole record: the writer was stopped in the middle."""
        self.ended = False
        """Whether the writer came to its end."""
        self._limits = limits or ReadLimits()
        self._file = self._open()
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            for found in self._records():
                self._note(found)
        except BaseException:
            self._file.close()
            raise

    def messages(self) -> Iterator[Message]:
        """All messages in the order of the file, one chunk in memory at a time.

        Raises:
            SourceError: a chunk is damaged or contradicts itself; what was given before is whole.
        """
        total = 0
        for found in self._records():
            if found.opcode == CHUNK:
                with self._told(found.place):
                    plain, span = self._chunk(found)
                    total += len(plain)
                    if total > self._limits.total_bytes:
                        raise SourceError(f"its chunks hold more than {self._limits.total_bytes} bytes")
                    yield from self._inside(plain, span)

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    # --- records -----------------------------------------------------------------------------------------------------

    def _open(self) -> BinaryIO:
        try:
            # What is no regular file (a pipe, a device) could block for ever.
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise SourceError(f"{self.path} is not a file")
            return self.path.open("rb")
        except FileNotFoundError as error:
            raise SourceError(f"there is no file {self.path}") from error
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.path} cannot be read: {error}") from error

    def _records(self) -> Iterator[_Record]:
        """Every record's place, up to the footer or the end of the file."""
        place, ended = len(MAGIC), False
        if self._read(0, place) != MAGIC:
            raise SourceError(f"{self.path} is not a recording: it does not begin as MCAP does")
        for _ in range(self._limits.records):
            head = self._read(place, FRAME.size)
            opcode, length = FRAME.unpack(head) if len(head) == FRAME.size else (0, 0)
            contents = place + FRAME.size
            # Zeros are what a file system leaves of writes that power failure stopped.
            if opcode == 0:
                self.cut = self._size - place
                return
            with self._told(place):
                self._check_record(opcode, length, first=place == len(MAGIC), ended=ended)
            if contents + length > self._size:
                self.cut = self._size - place
                return
            if opcode == FOOTER:
                return
            ended = ended or opcode == DATA_END
            self.ended = self.ended or ended
            yield _Record(opcode, contents, length)
            place = contents + length
        raise SourceError(f"{self.path} has more than {self._limits.records} records")

    def _check_record(self, opcode: int, length: int, *, first: bool, ended: bool) -> None:
        if first != (opcode == HEADER):
            raise SourceError("a header is not the first record, or the first is not a header")
        if opcode in DESCRIBING:
            most = _SMALL
        elif opcode in PASSED_OVER or opcode >= _PRIVATE or (opcode == CHUNK and not ended):
            most = self._limits.chunk_bytes
        elif opcode == MESSAGE:
            raise SourceError("messages outside of chunks are not read here")
        else:
            raise SourceError(f"a record of kind {opcode} does not belong there")
        if length > most:
            raise SourceError(f"a record of kind {opcode} claims {length} bytes, more than the {most} allowed")

    def _note(self, found: _Record) -> None:
        with self._told(found.place):
            if found.opcode == CHUNK:
                first = Cursor(memoryview(self._read(found.place, 8))).integer(8)
                if first > _NEWEST:
                    raise SourceError(f"a chunk begins at {first} ns, which is no time")
                self.start = first if self.start is None else min(first, self.start)
            elif found.opcode in (SCHEMA, CHANNEL, METADATA):
                self._define(found.opcode, memoryview(self._read(found.place, found.length)))

    def _define(self, opcode: int, data: memoryview) -> None:
        if len(data) > _SMALL:
            raise SourceError(f"a description has {len(data)} bytes, more than the {_SMALL} allowed")
        contents = Cursor(data)
        if opcode == METADATA:
            name = contents.string()
            self.metadata[name] = contents.map()
        elif opcode == SCHEMA:
            schema = contents.schema()
            if self.schemas.setdefault(schema.id, schema) != schema:
                raise SourceError(f"schema {schema.id} is there twice, and differs")
        else:
            channel = contents.channel()
            if self.channels.setdefault(channel.id, channel) != channel:
                raise SourceError(f"channel {channel.id} is there twice, and differs")
        if len(self.schemas) + len(self.channels) + len(self.metadata) > self._limits.definitions:
            raise SourceError(f"it has more than {self._limits.definitions} schemas, channels and notes")

    def _read(self, place: int, length: int) -> bytes:
        try:
            self._file.seek(place)
            return self._file.read(length)
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.path} cannot be read at byte {place}: {error}") from error

    def _told(self, place: int) -> _Place:
        return _Place(self.path, place)

    # --- chunks ------------------------------------------------------------------------------------------------------

    def _chunk(self, found: _Record) -> tuple[memoryview, tuple[int, int]]:
        contents = Cursor(memoryview(self._read(found.place, found.length)))
        span = contents.integer(8), contents.integer(8)
        length, checksum = contents.integer(8), contents.integer(4)
        compression, packed = contents.string(), contents.take(contents.integer(8))
        if length > self._limits.chunk_bytes:
            raise SourceError(f"a chunk claims {length} bytes, more than the {self._limits.chunk_bytes} allowed")
        plain = _unpack(packed, compression, length)
        if len(plain) != length or contents:
            raise SourceError(f"a chunk claims {length} bytes and holds {len(plain)}")
        if checksum and zlib.crc32(plain) != checksum:
            raise SourceError("a chunk is damaged: its checksum differs")
        return plain, span

    def _inside(self, plain: memoryview, span: tuple[int, int]) -> Iterator[Message]:
        contents, defined = Cursor(plain), 0
        while contents:
            opcode, inside = contents.integer(1), contents.take(contents.integer(8))
            if opcode == MESSAGE:
                yield self._message(Cursor(inside), span)
                continue
            defined += 1
            if opcode not in (SCHEMA, CHANNEL) or defined > self._limits.definitions:
                raise SourceError(f"a record of kind {opcode} is inside of a chunk, or too often")
            self._define(opcode, inside)

    def _message(self, inside: Cursor, span: tuple[int, int]) -> Message:
        channel, _, t, _ = inside.integer(2), inside.integer(4), inside.integer(8), inside.integer(8)
        if channel not in self.channels:
            raise SourceError(f"a message is of channel {channel}, which is not described before it")
        if t > _NEWEST or not span[0] <= t <= span[1]:
            raise SourceError(f"a message's time of {t} ns is outside of its chunk's {span[0]} to {span[1]}")
        return Message(channel, t, inside.rest())


class _Place:
    """Adds to a SourceError where it was found."""

    def __init__(self, path: Path, place: int) -> None:
        self._path = path
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SourceError) and not str(error).startswith(str(self._path)):
            raise SourceError(f"{self._path} is damaged at byte {self._place}: {error}") from error


def _unpack(packed: memoryview, compression: str, length: int) -> memoryview:
    """At most one byte more than ``length``, whatever it would come to."""
    if compression == "":
        return packed
    if compression != "zstd":
        raise SourceError(
            f"its chunks are compressed with {compression[:20]!r}; 'mcap compress --compression none' rewrites them"
        )
    zstandard = _import_zstandard()
    try:
        stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(io.BytesIO(packed))
        return memoryview(stream.read(length + 1))
    except zstandard.ZstdError as error:
        raise SourceError(f"a chunk cannot be decompressed: {error}") from error


def _import_zstandard() -> Any:
    try:
        import zstandard  # noqa: PLC0415 - optional: our own recordings are not compressed
    except ImportError:
        raise MissingDependencyError("zstandard", "a compressed recording", "pip install zstandard") from None
    return zstandard
