"""MCAP files: what others make of ours, what we make of theirs, and of those that mean harm."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_mbm.errors import DeviceError, MissingDependencyError, SourceError
from edge_mbm.mcap import (
    RECORDING,
    Channel,
    McapReader,
    McapWriter,
    ReadLimits,
    RecordingReader,
    SampleEncoder,
    Schema,
    describe,
)
from edge_mbm.mcap.records import CHUNK, FRAME, HEADER, MAGIC, MESSAGE, MESSAGE_HEAD, SCHEMA, record
from edge_mbm.mcap.schemas import COMPRESSED_IMAGE, LOG, RAW_AUDIO, RAW_IMAGE, VECTOR

needs_mcap = pytest.mark.needs("mcap")
KINDS = {"image": "image", "audio": "audio", "prompt": "text", "imu": "sensor"}
START = 5_000_000_000


def write_recording(path: Path, *, chunks: int = 4, **options: Any) -> Path:
    """A raw frame, a block of stereo sound, a text and a vector in each chunk."""
    schemas, channels, numbers = describe(KINDS, "raw")  # type: ignore[arg-type]
    encoder, rng = SampleEncoder("raw", 90), np.random.default_rng(0)
    about = {RECORDING: {"format": "1.0", "clock": "monotonic"}}
    writer = McapWriter(path, schemas, channels, about, max_bytes=1 << 24, **options)
    for k in range(chunks):
        t = START + k * 20_000_000
        data: dict[str, Any] = {
            "image": rng.integers(0, 255, (6, 8, 3), np.uint8),
            "audio": rng.integers(-99, 99, (32, 2), np.int16),
            "prompt": f"take {k}",
            "imu": rng.standard_normal(3).astype(np.float32),
        }
        for name, value in data.items():
            kind: Any = KINDS[name]
            writer.add(numbers[name], t, encoder.encode(kind, name, value, t, 16000))
        writer.flush()
    writer.close({})
    return path


def write_channels(path: Path, schemas: list[Schema], channels: list[Channel], payloads: list[tuple[int, Any]]) -> Path:
    """One chunk of messages to the first channel."""
    writer = McapWriter(path, schemas, channels, {RECORDING: {"format": "1.0"}}, max_bytes=1 << 30)
    for t, payload in payloads:
        writer.add(channels[0].id, t, [payload])
    writer.flush()
    writer.close({})
    return path


def places(data: bytes) -> list[tuple[int, int, int]]:
    """(opcode, where the contents begin, length) of every record."""
    found, at = [], len(MAGIC)
    while at + FRAME.size <= len(data) and data[at:] != MAGIC:
        opcode, length = FRAME.unpack_from(data, at)
        found.append((opcode, at + FRAME.size, length))
        at += FRAME.size + length
    return found


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "whole.mcap")


@pytest.fixture
def spoiled(recording: Path) -> Callable[..., Path]:
    """The recording with the contents of its first record of a kind overwritten."""

    def spoil(opcode: int, offset: int, new: bytes) -> Path:
        data = bytearray(recording.read_bytes())
        at = next(place for kind, place, _ in places(bytes(data)) if kind == opcode) + offset
        data[at : at + len(new)] = new
        recording.write_bytes(data)
        return recording

    return spoil


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def play(path: Path, limits: ReadLimits | None = None) -> list[Any]:
    reader = RecordingReader(path, limits)
    try:
        return list(reader.items())
    finally:
        reader.close()


# --- against the reference implementation ----------------------------------------------------------------------------


@needs_mcap
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_reference_reader_sees_what_was_written(tmp_path: Path, compression: str) -> None:
    """With every checksum checked: by the index at the end, in order of time, and as a stream."""
    from mcap.reader import make_reader
    from mcap.stream_reader import StreamReader

    path = write_recording(tmp_path / "a.mcap", compression=compression)
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None
        assert summary.statistics is not None
        assert (summary.statistics.message_count, summary.statistics.chunk_count) == (16, 4)
        assert summary.statistics.channel_message_counts == {2: 4, 3: 4, 4: 4, 5: 4}
        assert (summary.statistics.message_start_time, summary.statistics.message_end_time) == (
            START,
            START + 60 * 10**6,
        )
        topics = [channel.topic for _, channel, _ in reader.iter_messages(topics=["/imu", "/image"])]
        assert topics == ["/image", "/imu"] * 4
        assert [m.name for m in reader.iter_metadata()] == ["edge_mbm.recording"]
    with path.open("rb") as file:
        assert len([r for r in StreamReader(file, validate_crcs=True).records if type(r).__name__ == "Message"]) == 16


@needs_mcap
@pytest.mark.parametrize("compression", ["NONE", "ZSTD"])
def test_a_file_rewritten_by_mcap_s_tools_gives_the_same_samples(tmp_path: Path, compression: str) -> None:
    """Theirs has its schemas and channels inside of chunks, and described again at the end."""
    from mcap.reader import make_reader
    from mcap.writer import CompressionType, Writer

    ours, theirs = write_recording(tmp_path / "ours.mcap"), tmp_path / "theirs.mcap"
    with ours.open("rb") as source, theirs.open("wb") as target:
        reader, writer = make_reader(source), Writer(target, compression=CompressionType[compression])
        writer.start()
        schemas: dict[int, int] = {}
        channels: dict[int, int] = {}
        for schema, channel, message in reader.iter_messages(log_time_order=False):
            if channel.id not in channels:
                assert schema is not None
                schemas[schema.id] = writer.register_schema(schema.name, schema.encoding, schema.data)
                channels[channel.id] = writer.register_channel(
                    channel.topic, channel.message_encoding, schemas[schema.id], channel.metadata
                )
            writer.add_message(channels[channel.id], message.log_time, message.data, message.publish_time)
        for metadata in reader.iter_metadata():
            writer.add_metadata(metadata.name, metadata.metadata)
        writer.finish()
    for a, b in zip(play(ours), play(theirs), strict=True):
        assert (a.modality, a.t, a.rate) == (b.modality, b.t, b.rate)
        np.testing.assert_array_equal(a.data, b.data)


@needs_mcap
def test_lz4_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """The message names the tool."""
    from mcap.writer import CompressionType, Writer

    path = tmp_path / "lz4.mcap"
    with path.open("wb") as target:
        writer = Writer(target, compression=CompressionType.LZ4)
        writer.start()
        writer.add_message(writer.register_channel("/a", "json", 0), 1, b"{}", 1)
        writer.finish()
    with pytest.raises(SourceError, match="mcap compress"):
        list(McapReader(path).messages())
    with pytest.raises(SourceError, match="no recording that edge-mbm made"):
        RecordingReader(path)


# --- schemas ---------------------------------------------------------------------------------------------------------

FOXGLOVE = {
    "foxglove.RawImage": {"timestamp": 1, "width": 2, "height": 3, "encoding": 4, "step": 5, "data": 6, "frame_id": 7},
    "foxglove.CompressedImage": {"timestamp": 1, "data": 2, "format": 3, "frame_id": 4},
    "foxglove.RawAudio": {"timestamp": 1, "data": 2, "format": 3, "sample_rate": 4, "number_of_channels": 5},
    "foxglove.Log": {"timestamp": 1, "level": 2, "message": 3, "name": 4, "file": 5, "line": 6},
}
"""Field numbers of the package foxglove-schemas-protobuf 0.4.0."""
EXAMPLES: list[tuple[Any, dict[str, Any]]] = [
    (RAW_IMAGE, {"width": 640, "height": 480, "encoding": "rgb8", "step": 1920, "data": b"\x00\xff" * 300}),
    (COMPRESSED_IMAGE, {"data": b"\xff\xd8", "format": "jpeg", "frame_id": "eye"}),
    (RAW_AUDIO, {"data": b"\x01\x02", "format": "pcm-s16", "sample_rate": 48000, "number_of_channels": 1}),
    (LOG, {"level": 2, "message": "grün", "name": "prompt"}),
    (VECTOR, {"values": np.array([1.5, -2], "<f4").tobytes(), "shape": b"\x02"}),
]


@pytest.mark.needs("google")  # the package protobuf
@pytest.mark.parametrize(("message", "values"), EXAMPLES, ids=lambda value: getattr(value, "full_name", ""))
def test_protobuf_itself_reads_schemas_and_messages(message: Any, values: dict[str, Any]) -> None:
    """The descriptor is complete, has Foxglove's field numbers, and decodes what we encode to what went in."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(message.descriptor()).file:
        pool.Add(file)
    described = pool.FindMessageTypeByName(message.full_name)
    if message.full_name in FOXGLOVE:
        assert {field.name: field.number for field in described.fields} == FOXGLOVE[message.full_name]
    payload = b"".join(message.encode({"timestamp": 1_700_000_000_123_456_789, **values}))
    read: Any = message_factory.GetMessageClass(described).FromString(payload)
    assert (read.timestamp.seconds, read.timestamp.nanos) == (1_700_000_000, 123_456_789)
    if message is VECTOR:
        assert (list(read.values), list(read.shape)) == ([1.5, -2], [2])
    else:
        assert {name: getattr(read, name) for name in values} == values
    ours = message.parse(memoryview(payload))
    texts = {name: value.encode() if isinstance(value, str) else value for name, value in values.items()}
    assert {name: ours[name] for name in values} == texts


# --- cut off ---------------------------------------------------------------------------------------------------------


def test_whatever_length_is_left_gives_the_first_samples(tmp_path: Path) -> None:
    """Cut at every single byte: whole chunks are played, the rest is told, what is not even a beginning is refused."""
    whole = write_recording(tmp_path / "whole.mcap", chunks=2).read_bytes()
    ends = [place + length for opcode, place, length in places(whole) if opcode == CHUNK]
    data_end = next(place for opcode, place, _ in places(whole) if opcode == 0x0F) + 4
    path = tmp_path / "whole.mcap"
    refused = 0
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        try:
            reader = RecordingReader(path)
        except SourceError:
            refused += 1
            continue
        items = list(reader.items())
        assert len(items) == 4 * sum(end <= length for end in ends)
        assert (reader.cut is None) == (length >= data_end)
        reader.close()
    first = next(place for opcode, place, _ in places(whole) if opcode == 0x0C)
    assert refused < first + 200  # the format's mark and the recorder's note


def test_what_was_cut_is_told(recording: Path) -> None:
    """In bytes, after the last whole record."""
    whole = recording.read_bytes()
    [*_, (_, last, _)] = [found for found in places(whole) if found[0] == CHUNK]
    recording.write_bytes(whole[: last + 10])
    reader = RecordingReader(recording)
    assert reader.cut is not None
    assert f"its last {10 + FRAME.size} bytes are no whole chunk" in reader.cut
    assert len(list(reader.items())) == 12


def test_zeros_at_the_end_are_what_a_power_cut_leaves(recording: Path) -> None:
    """They are cut off like half a record."""
    whole = recording.read_bytes()
    [*_, (_, last, _)] = [found for found in places(whole) if found[0] == CHUNK]
    recording.write_bytes(whole[: last - FRAME.size] + bytes(5000))
    reader = RecordingReader(recording)
    assert len(list(reader.items())) == 12
    assert "5000 bytes" in (reader.cut or "")


# --- hostile ---------------------------------------------------------------------------------------------------------


def chunk(
    plain: bytes, *, size: int | None = None, crc: int | None = None, compression: bytes = b"", span: Any = (0, 9)
):
    """A chunk record, right or wrong."""
    checksum = zlib.crc32(plain) if crc is None else crc
    head = u64(span[0]) + u64(span[1]) + u64(len(plain) if size is None else size) + checksum.to_bytes(4, "little")
    return record(CHUNK, head, len(compression).to_bytes(4, "little") + compression, u64(len(plain)), plain)


def message(channel: int, t: int, data: bytes = b"") -> bytes:
    return record(MESSAGE, MESSAGE_HEAD.pack(channel, 0, t, t), data)


def head_of(path: Path) -> bytes:
    """Everything before the first chunk."""
    data = path.read_bytes()
    return data[: next(place for opcode, place, _ in places(data) if opcode == CHUNK) - FRAME.size]


HOSTILE: dict[str, tuple[bytes, str]] = {
    "huge record": (FRAME.pack(CHUNK, 1 << 62), "claims"),
    "huge description": (FRAME.pack(SCHEMA, 1 << 30), "claims"),
    "huge chunk inside": (chunk(message(2, 1), size=1 << 60), "claims"),
    "wrong checksum": (chunk(message(2, 1), crc=1), "checksum"),
    "chunk in a chunk": (chunk(chunk(message(2, 1))), "inside of a chunk"),
    "the same schema for ever": (chunk(record(SCHEMA, bytes(14)) * 300), "too often"),
    "huge description inside": (
        chunk(record(SCHEMA, bytes(10) + (1 << 19).to_bytes(4, "little") + bytes(1 << 19))),
        "description",
    ),
    "another size": (chunk(message(2, 1), size=3), "claims 3 bytes"),
    "unknown channel": (chunk(message(77, 1)), "channel 77"),
    "message cut short": (chunk(message(2, 1)[:-5]), "cut short"),
    "string too long": (record(CHUNK, u64(0) * 3 + bytes(4) + b"\xff\xff\xff\xff"), "cut short"),
    "unknown compression": (chunk(b"", compression=b"rot13"), "rot13"),
    "negative time": (chunk(message(2, 1 << 63), span=(0, (1 << 64) - 1)), "time"),
    "chunk of negative time": (chunk(b"", span=(1 << 63, 1 << 63)), "no time"),
    "time outside": (chunk(message(2, 50)), "outside"),
    "loose message": (message(2, 1), "outside of chunks"),
    "second header": (record(HEADER, bytes(8)), "header"),
    "unknown record": (record(0x55, b""), "kind 85"),
    "another channel of the same number": (record(0x04, b"\x02\x00\x02\x00" + bytes(12)), "twice"),
    "not a frame": (chunk(message(2, 1, b"\xff" * 20)), "'image' at 0.0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_means_harm_is_refused(recording: Path, tmp_path: Path, name: str) -> None:
    """With the file, the place, and what is wrong."""
    bad, says = HOSTILE[name]
    path = tmp_path / "bad.mcap"
    path.write_bytes(head_of(recording) + bad)
    with pytest.raises(SourceError, match=says) as caught:
        play(path)
    assert str(path) in str(caught.value)


@pytest.mark.needs("zstandard")
def test_a_decompression_bomb_is_stopped_at_the_size_it_claims(recording: Path, tmp_path: Path) -> None:
    """And one that claims its true size at the limit; a terabyte in all, however slowly, at the limit of the whole."""
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    path = tmp_path / "bomb.mcap"
    for size, limits, says in (
        (1000, ReadLimits(), "holds 1001"),
        (64 << 20, ReadLimits(chunk_bytes=1 << 20), "more than the 1048576 allowed"),
    ):
        path.write_bytes(head_of(recording) + chunk(bomb, size=size, crc=0, compression=b"zstd"))
        with pytest.raises(SourceError, match=says):
            play(path, limits)
    small = zstandard.ZstdCompressor().compress(record(SCHEMA, b"\x09\x00" + bytes(12)) * 200)
    size = len(zstandard.ZstdDecompressor().decompress(small))
    path.write_bytes(head_of(recording) + chunk(small, size=size, crc=0, compression=b"zstd") * 5)
    with pytest.raises(SourceError, match="its chunks hold more than"):
        play(path, ReadLimits(total_bytes=4 * size))


HUNGRY = """
import resource, sys
import numpy
from edge_mbm.errors import SourceError
from edge_mbm.mcap import RecordingReader
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    try:
        print(len(list(RecordingReader(path).items())))
    except SourceError as error:
        print("refused")
"""


@pytest.mark.needs("zstandard")
def test_hostile_files_are_refused_in_little_memory(recording: Path, tmp_path: Path) -> None:
    """With 300 MB of address space to spare, none of them is anything but a SourceError."""
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    bad = {name: data for name, (data, _) in HOSTILE.items()}
    bad["bomb"] = chunk(bomb, size=1 << 20, crc=0, compression=b"zstd")
    bad["frame header of a terabyte"] = chunk(
        b"\x28\xb5\x2f\xfd\xe4" + u64(1 << 40) + b"\x01\x00\x00", size=1 << 20, crc=0, compression=b"zstd"
    )
    paths = []
    for k, data in enumerate(bad.values()):
        paths.append(tmp_path / f"{k}.mcap")
        paths[-1].write_bytes(head_of(recording) + data)
    command = [sys.executable, "-c", HUNGRY, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.split(), done.stderr) == (["refused"] * len(paths), "")


def jpeg(frame_marker: int, size: bytes) -> bytes:
    """The beginning of a colour picture, and nothing in it."""
    return b"\xff\xd8\xff" + bytes([frame_marker]) + b"\x00\x11\x08" + size + b"\x03" + bytes(40)


@pytest.mark.parametrize(
    ("schema", "payload", "says"),
    [
        (RAW_IMAGE, {"width": 1 << 31, "height": 1 << 31, "encoding": "rgb8"}, "without padding"),
        (RAW_IMAGE, {"width": 2, "height": 1, "step": 2, "encoding": "mono8", "data": b"123"}, "without padding"),
        (RAW_IMAGE, {"width": 2, "height": 1, "step": 4, "encoding": "mono16", "data": b"1234"}, "without padding"),
        (RAW_AUDIO, {"data": b"12", "format": "pcm-s16", "sample_rate": 0, "number_of_channels": 1}, "a rate"),
        (RAW_AUDIO, {"data": b"12", "format": "mp3", "sample_rate": 8000, "number_of_channels": 1}, "not pcm-s16"),
        (RAW_AUDIO, {"data": b"123", "format": "pcm-s16", "sample_rate": 8000, "number_of_channels": 1}, "a block"),
        (VECTOR, {"values": b"1234", "shape": b"\xff\xff\xff\xff\x7f\x00"}, "a vector"),
        (VECTOR, {"values": b"1234", "shape": b"\x01" * 20}, "a vector"),
        (VECTOR, {"values": b"1234", "shape": b"\xff" * 20}, "does not end"),
        (LOG, {"message": b"\xff"}, "UTF-8"),
        (COMPRESSED_IMAGE, {"format": "webp", "data": b""}, "webp"),
        (COMPRESSED_IMAGE, {"format": "jpeg", "data": jpeg(0xC0, b"\xff\xff\xff\xff")}, "larger"),
        (COMPRESSED_IMAGE, {"format": "jpeg", "data": jpeg(0xC2, b"\x00\x08\x00\x08")}, "baseline"),
        (COMPRESSED_IMAGE, {"format": "jpeg", "data": jpeg(0xC0, b"\x00\x08\x00\x08")}, "decoded"),
        (COMPRESSED_IMAGE, {"format": "jpeg", "data": b"\xff\xd8" + b"\xff\xe0\x00\x02" * 999}, "baseline"),
    ],
)
def test_a_message_that_lies_about_itself_is_refused(
    tmp_path: Path, schema: Any, payload: dict[str, Any], says: str
) -> None:
    """Sizes, formats and pictures are looked at before anything is made of them."""
    if schema is COMPRESSED_IMAGE:
        pytest.importorskip("cv2")
    kinds = {RAW_IMAGE: "image", RAW_AUDIO: "audio", VECTOR: "sensor", LOG: "text", COMPRESSED_IMAGE: "image"}
    channel = Channel(1, 1, "/m", "protobuf", {"modality": "m", "kind": kinds[schema]})
    data = b"".join(schema.encode(payload))
    path = write_channels(
        tmp_path / "a.mcap", [Schema(1, schema.full_name, "protobuf", schema.descriptor())], [channel], [(1, data)]
    )
    with pytest.raises(SourceError, match=says):
        play(path)


@pytest.mark.parametrize(
    ("metadata", "name", "encoding"),
    [
        ({"modality": "m", "kind": "audio"}, "foxglove.RawImage", "protobuf"),
        ({"modality": "m", "kind": "smell"}, "foxglove.RawImage", "protobuf"),
        ({"modality": "m"}, "foxglove.RawImage", "protobuf"),
        ({"modality": "../m", "kind": "image"}, "foxglove.RawImage", "protobuf"),
        ({"modality": "m", "kind": "image"}, "foxglove.RawImage", "json"),
        ({"modality": "m", "kind": "image"}, "sensor_msgs/Image", "protobuf"),
    ],
)
def test_a_channel_that_is_not_a_recorder_s_is_refused(
    tmp_path: Path, metadata: dict[str, str], name: str, encoding: str
) -> None:
    """Its kind, its schema, its encoding and its modality's name must go together."""
    schema, channel = Schema(1, name, encoding, b""), Channel(1, 1, "/m", encoding, metadata)
    with pytest.raises(SourceError, match="channel 1"):
        RecordingReader(write_channels(tmp_path / "a.mcap", [schema], [channel], []))


@pytest.mark.parametrize(("kind", "allowed"), [("image", False), ("audio", True)])
def test_time_that_stands_still(tmp_path: Path, kind: Any, allowed: bool) -> None:
    """Is refused for frames, as a session would, and is no fault of two blocks of sound; back it never goes."""
    schemas, [_, channel], _ = describe({"m": kind}, "raw")
    values: dict[str, Any] = {"width": 1, "height": 1, "step": 1, "encoding": "mono8", "data": b"1"}
    if kind == "audio":
        values = {"data": b"12", "format": "pcm-s16", "sample_rate": 8000, "number_of_channels": 1}
    data = b"".join((RAW_IMAGE if kind == "image" else RAW_AUDIO).encode(values))
    still = write_channels(tmp_path / "still.mcap", schemas, [channel], [(7, data), (7, data)])
    back = write_channels(tmp_path / "back.mcap", schemas, [channel], [(7, data), (8, data), (7, data)])
    if allowed:
        assert len(play(still)) == 2
    else:
        with pytest.raises(SourceError, match="goes back"):
            play(still)
    with pytest.raises(SourceError, match="goes back"):
        play(back)


def test_a_later_version_is_refused(spoiled: Callable[..., Path]) -> None:
    """With both versions in the message."""
    path = spoiled(0x0C, 0, b"")
    path.write_bytes(path.read_bytes().replace(b"\x03\x00\x00\x001.0", b"\x03\x00\x00\x002.0"))
    with pytest.raises(SourceError, match=r"version '2.0', this reads 1.0"):
        RecordingReader(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Nothing, a folder, a pipe that nobody writes to, and something else."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.mcap").write_text("hello")
    (tmp_path / "empty.mcap").write_bytes(b"")
    for name in ("nowhere", "", "pipe", "text.mcap", "empty.mcap"):
        with pytest.raises(SourceError, match=str(tmp_path / name)):
            RecordingReader(tmp_path / name)


def test_too_many_records_are_refused(recording: Path) -> None:
    """A file of nothing but small records cannot keep a reader busy for ever."""
    with pytest.raises(SourceError, match="more than 5 records"):
        RecordingReader(recording, ReadLimits(records=5))
    with pytest.raises(SourceError, match="more than 3 schemas"):
        RecordingReader(recording, ReadLimits(definitions=3))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_source_error_or_no_damage(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, put in, taken out and cut off: the reader gives samples and ends, or raises a SourceError."""
    path = tmp_path / "fuzz.mcap"
    if not path.exists():
        write_recording(path, chunks=2)
        (tmp_path / "whole").write_bytes(path.read_bytes())
    spoiled = bytearray((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(spoiled)))
        length = data.draw(st.integers(0, 12))
        spoiled[at : at + length] = data.draw(st.binary(max_size=12))
    path.write_bytes(spoiled[: data.draw(st.integers(0, len(spoiled)))])
    try:
        items = play(path)
    except (SourceError, MissingDependencyError):
        return
    assert all(item.t >= 0 for item in items)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_never_exceeds_its_limit(tmp_path: Path) -> None:
    """The chunk that would is refused; the file, its end included, is whole and within."""
    schemas, channels, numbers = describe({"m": "text"}, "raw")
    path = tmp_path / "a.mcap"
    writer = McapWriter(path, schemas, channels, {RECORDING: {"format": "1.0"}}, max_bytes=40_000)

    def fill() -> Iterator[int]:
        for k in range(1000):
            writer.add(numbers["m"], k, LOG.encode({"message": "x" * 500}))
            writer.flush()
            yield k

    written: list[int] = []
    with pytest.raises(DeviceError, match="limit of 40000 bytes"):
        written.extend(fill())
    writer.close({})
    assert path.stat().st_size == writer.size <= 40_000
    assert len(play(path)) == len(written) > 20


def test_a_limit_too_small_for_a_beginning_leaves_nothing(tmp_path: Path) -> None:
    """No file remains."""
    with pytest.raises(DeviceError, match="limit of 20 bytes"):
        McapWriter(tmp_path / "a.mcap", [], [], {"a": {"b": "c"}}, max_bytes=20)
    assert not list(tmp_path.iterdir())
