"""Writes an MCAP file that is whole after every chunk, whatever happens next."""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from edge_mbm.errors import DeviceError, MissingDependencyError
from edge_mbm.mcap.records import (
    CHANNEL,
    CHUNK,
    CHUNK_INDEX,
    DATA_END,
    FOOTER,
    FRAME,
    HEADER,
    MAGIC,
    MESSAGE,
    MESSAGE_HEAD,
    MESSAGE_INDEX,
    METADATA,
    METADATA_INDEX,
    SCHEMA,
    STATISTICS,
    SUMMARY_OFFSET,
    Channel,
    Schema,
    pack_map,
    pack_string,
    record,
)
from edge_mbm.mcap.wire import Buffer

__all__ = ["Compression", "McapWriter"]

Compression: TypeAlias = Literal["none", "zstd"]

_LIBRARY: Final = "edge-mbm"
_ZSTD_LEVEL: Final = 1
_MOST_INDEX = 16 << 20
"""Bytes of chunk index kept in memory for the file's end, some 100,000 chunks; a longer file is left without one."""


class McapWriter:
    """One file. Messages wait in memory until ``flush`` writes them as one chunk; a file cut off later stays readable.

    Args:
        path: of a file that is not there yet.
        schemas: of the channels.
        channels: all there will be.
        metadata: name -> entries, written at the beginning.
        max_bytes: what the file may not exceed.
        compression: of chunks.

    Raises:
        DeviceError: the file is there already, or cannot be written.
        MissingDependencyError: zstd is asked for and not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        schemas: Sequence[Schema],
        channels: Sequence[Channel],
        metadata: Mapping[str, Mapping[str, str]],
        *,
        max_bytes: int,
        compression: Compression = "none",
    ) -> None:
        self.path = Path(path)
        self.size = 0
        """Bytes written."""
        self._max_bytes = max_bytes
        self._compression = "" if compression == "none" else compression
        self._compress = _compressor(compression)
        self._definitions = [_schema(schema) for schema in schemas], [_channel(channel) for channel in channels]
        self._metadata_index: list[bytes] = []
        self._chunk_index: list[bytes] | None = []
        self._index_bytes = self._chunks = 0
        self._counts: Counter[int] = Counter()
        self._span: tuple[int, int] | None = None
        self._clear()
        self._file = self._open()
        try:
            self._begin(metadata)
        except BaseException:
            self._file.close()
            self.path.unlink()
            raise

    @property
    def pending_bytes(self) -> int:
        """What the next chunk will hold, before compression."""
        return self._pending_bytes

    @property
    def pending(self) -> Mapping[int, int]:
        """Channel -> messages that the next chunk will hold."""
        return {channel: len(entries) for channel, entries in self._entries.items()}

    def add(self, channel: int, t: int, parts: Sequence[Buffer]) -> None:
        """Append a message to the next chunk; its parts are kept by reference until ``flush``."""
        entries = self._entries.setdefault(channel, [])
        sequence = (self._counts[channel] + len(entries)) & 0xFFFF_FFFF
        entries.append((t, self._pending_bytes))
        length = MESSAGE_HEAD.size + sum(map(len, parts))
        self._parts += [FRAME.pack(MESSAGE, length) + MESSAGE_HEAD.pack(channel, sequence, t, t), *parts]
        self._pending_bytes += FRAME.size + length

    def flush(self) -> None:
        """Write the chunk, with its index, in one go.

        Raises:
            DeviceError: the disk or the file is full; the file ends with the chunk before, and this one is kept.
        """
        if not self._entries:
            return
        times = [t for entries in self._entries.values() for t, _ in entries]
        span = min(times), max(times)
        plain = b"".join(self._parts)
        packed = self._compress(plain)
        head = struct.pack("<QQQI", *span, len(plain), zlib.crc32(plain)) + pack_string(self._compression)
        chunk = record(CHUNK, head, struct.pack("<Q", len(packed)), packed)
        indexes = {channel: _message_index(channel, entries) for channel, entries in self._entries.items()}
        entry = self._chunk_entry(span, len(chunk), indexes, len(packed), len(plain))
        self._write(chunk + b"".join(indexes.values()), reserve=self._end_size + len(entry))
        self._count(span, entry)
        self._clear()

    def sync(self) -> None:
        """Wait until what was written would outlast a power cut.

        Raises:
            DeviceError: the disk failed.
        """
        self._guard(lambda: os.fdatasync(self._file.fileno()))

    def close(self, metadata: Mapping[str, Mapping[str, str]]) -> None:
        """Write what a reader starts with, and close; what was not flushed is left out. May be called twice.

        Args:
            metadata: as at the beginning, for what is known only now.

        Raises:
            DeviceError: it could not be written; the file ends with its last chunk, and can be read.
        """
        if self._file.closed:
            return
        try:
            for name, values in metadata.items():
                self._add_metadata(name, values)
            self._write(record(DATA_END, bytes(4)) + self._summary(self.size + FRAME.size + 4) + MAGIC)
            self._guard(lambda: os.fsync(self._file.fileno()))
        finally:
            self._file.close()

    def _begin(self, metadata: Mapping[str, Mapping[str, str]]) -> None:
        self._write(MAGIC + record(HEADER, pack_string(""), pack_string(_LIBRARY)))
        for name, values in metadata.items():
            self._add_metadata(name, values)
        self._write(b"".join(part for parts in self._definitions for part in parts))

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def _end_size(self) -> int:
        """About how much ``close`` will write."""
        return 4096 + self._index_bytes + sum(len(part) for parts in self._definitions for part in parts)

    def _summary(self, start: int) -> bytes:
        """Definitions, statistics and indexes again, where these are, and the footer; ``start`` is its place."""
        groups = [
            (SCHEMA, self._definitions[0]),
            (CHANNEL, self._definitions[1]),
            (STATISTICS, [self._statistics()]),
            (CHUNK_INDEX, self._chunk_index or []),
            (METADATA_INDEX, self._metadata_index),
        ]
        summary, offsets, place = b"", b"", start
        for opcode, parts in groups:
            group = b"".join(parts)
            if group:
                offsets += record(SUMMARY_OFFSET, struct.pack("<BQQ", opcode, place, len(group)))
            summary, place = summary + group, place + len(group)
        checked = summary + offsets + FRAME.pack(FOOTER, 20) + struct.pack("<QQ", start, place)
        return checked + struct.pack("<I", zlib.crc32(checked))

    def _statistics(self) -> bytes:
        first, last = self._span or (0, 0)
        schemas, channels = map(len, self._definitions)
        counts = b"".join(struct.pack("<HQ", *count) for count in sorted(self._counts.items()))
        numbers = (self._counts.total(), schemas, channels, 0, len(self._metadata_index), self._chunks, first, last)
        return record(STATISTICS, struct.pack("<QHIIIIQQ", *numbers), pack_string(counts))

    def _add_metadata(self, name: str, values: Mapping[str, str]) -> None:
        whole = record(METADATA, pack_string(name), pack_map(values))
        place = struct.pack("<QQ", self.size, len(whole))
        self._write(whole)
        self._metadata_index.append(record(METADATA_INDEX, place, pack_string(name)))

    # --- chunks ------------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._parts: list[Buffer] = []
        self._entries: dict[int, list[tuple[int, int]]] = {}
        self._pending_bytes = 0

    def _count(self, span: tuple[int, int], entry: bytes) -> None:
        first, last = self._span or span
        self._span = min(first, span[0]), max(last, span[1])
        self._chunks += 1
        self._counts.update(self.pending)
        self._index_bytes += len(entry)
        if self._index_bytes > _MOST_INDEX:
            self._chunk_index, self._index_bytes = None, 0
        if self._chunk_index is not None:
            self._chunk_index.append(entry)

    def _chunk_entry(
        self, span: tuple[int, int], length: int, indexes: Mapping[int, bytes], packed: int, plain: int
    ) -> bytes:
        place, places = self.size + length, b""
        for channel, index in indexes.items():
            places += struct.pack("<HQ", channel, place)
            place += len(index)
        head = struct.pack("<QQQQ", *span, self.size, length) + pack_string(places)
        tail = struct.pack("<Q", sum(map(len, indexes.values()))) + pack_string(self._compression)
        return record(CHUNK_INDEX, head, tail, struct.pack("<QQ", packed, plain))

    # --- the file ----------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        try:
            return self.path.open("xb", buffering=0)
        except FileExistsError as error:
            raise DeviceError(f"{self.path} is there already: choose another name, or delete it first") from error
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, data: bytes, reserve: int = 0) -> None:
        if self.size + len(data) + reserve > self._max_bytes:
            raise DeviceError(f"{self.path} has reached its limit of {self._max_bytes} bytes; what it holds is whole")
        self._guard(lambda: self._write_all(data))
        self.size += len(data)

    def _write_all(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _guard(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            # Half a record must not be what a reader finds last.
            with suppress(OSError):
                self._file.truncate(self.size)
                self._file.seek(self.size)
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> DeviceError:
        return DeviceError(f"the recording {self.path} cannot be written: {error.strerror or error}")


def _schema(schema: Schema) -> bytes:
    number = struct.pack("<H", schema.id)
    return record(SCHEMA, number, pack_string(schema.name), pack_string(schema.encoding), pack_string(schema.data))


def _channel(channel: Channel) -> bytes:
    numbers = struct.pack("<HH", channel.id, channel.schema)
    texts = pack_string(channel.topic) + pack_string(channel.encoding)
    return record(CHANNEL, numbers, texts, pack_map(channel.metadata))


def _message_index(channel: int, entries: Sequence[tuple[int, int]]) -> bytes:
    packed = b"".join(struct.pack("<QQ", *entry) for entry in sorted(entries))
    return record(MESSAGE_INDEX, struct.pack("<H", channel), pack_string(packed))


def _compressor(compression: Compression) -> Callable[[bytes], bytes]:
    if compression == "none":
        return lambda data: data
    try:
        import zstandard  # noqa: PLC0415 - optional: pictures and sound hardly shrink
    except ImportError:
        remedy = "pip install zstandard, or record without compression"
        raise MissingDependencyError("zstandard", "a compressed recording", remedy) from None
    compress: Callable[[bytes], bytes] = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress
    return compress
