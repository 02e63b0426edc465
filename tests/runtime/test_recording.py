"""Record and replay: nothing is changed, nothing holds the capture up, and what was written survives."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import edge_mbm
from edge_mbm.errors import DeviceError, InputError, MissingDependencyError, SourceError
from edge_mbm.mcap import McapReader, McapWriter
from edge_mbm.runtime import ClassificationOutput, Result, Sample, load
from edge_mbm.runtime.recording import Recorder, RecordOptions, ReplaySource
from edge_mbm.testing import FakeClock, tiny_bundle

MS, SECOND = 1_000_000, 1_000_000_000
KINDS: dict[str, Any] = {"image": "image", "audio": "audio", "prompt": "text", "imu": "sensor"}
needs_all = pytest.mark.needs("cv2", "soxr", "onnxruntime")


def raw(**changes: Any) -> RecordOptions:
    return RecordOptions(**{"max_bytes": 1 << 28, "frames": "raw", **changes})


def played(path: Path, **options: Any) -> list[Sample]:
    source = ReplaySource(path, **options)
    try:
        return list(source.samples())
    finally:
        source.close()


def record(path: Path, samples: list[Sample], options: RecordOptions | None = None) -> Path:
    with Recorder(path, KINDS, options or raw()) as recorder:
        for sample in samples:
            recorder.push(sample.modality, sample.data, sample.t, rate=sample.rate, wait=True)
    return path


def frame(value: int, size: tuple[int, ...] = (6, 8, 3)) -> Any:
    return np.random.default_rng(value).integers(0, 255, size, np.uint8)


def take(count: int, start: int = 0) -> list[Sample]:
    """Frames at 25 Hz between blocks of 20 ms of stereo sound, as they would become available."""
    rng, samples = np.random.default_rng(1), []
    for k in range(2 * count):
        if k % 2 == 0:
            samples.append(Sample("image", frame(k, (48, 64, 3)), start + k * 20 * MS))
        block = rng.integers(-3000, 3000, (160, 2), np.int16)
        samples.append(Sample("audio", block, start + k * 20 * MS, 20 * MS, 8000))
    return sorted(samples, key=lambda sample: sample.t + sample.duration)


# --- nothing is changed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_what_comes_back_is_what_went_in(tmp_path: Path, compression: Any) -> None:
    """Every kind, bit for bit and in the order of arrival, with times from the earliest on."""
    if compression == "zstd":
        pytest.importorskip("zstandard")
    start = 123_456_789_012_345
    went_in = [
        Sample("image", frame(0), start + 30),
        Sample("audio", np.array([[1, -2], [3, 4]], np.int16), start, 0, 48000),
        Sample("audio", np.array([0.1, -0.0, np.nan, np.inf, 1e-42], np.float32), start + 40, 0, 16000),
        Sample("image", frame(1, (5, 7)), start + 35),
        Sample("prompt", "grün\x00\U0001f600", start + 50),
        Sample("imu", np.array([[1.5, -2], [np.nan, 3]], np.float32), start + 10),
        Sample("audio", np.zeros((0, 2), np.float32), start + 60, 0, 16000),
        Sample("prompt", "", start + 70),
    ]
    path = record(tmp_path / "a.mcap", went_in, raw(compression=compression))
    source = ReplaySource(path)
    assert (source.origin, source.cut, source.losses) == (start, None, {})
    assert set(source.modalities) == set(KINDS)
    for before, after in zip(went_in, source.samples(), strict=True):
        assert (after.modality, after.t, after.rate) == (before.modality, before.t - start, before.rate)
        if isinstance(before.data, str):
            assert after.data == before.data
            continue
        assert (after.data.dtype, after.data.shape) == (before.data.dtype, before.data.shape)
        assert after.data.tobytes() == before.data.tobytes()
        assert not after.data.flags.writeable


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=st.lists(
        hnp.arrays(st.sampled_from([np.int16, np.float32, np.dtype(">f4")]), st.integers(0, 50)),
        max_size=4,
    ),
    step=st.integers(1, 3),
)
def test_no_bit_of_audio_is_lost(tmp_path_factory: pytest.TempPathFactory, blocks: list[Any], step: int) -> None:
    """Whatever the values, the byte order, and the layout in memory."""
    path = tmp_path_factory.mktemp("audio") / "a.mcap"
    strided = [block[::step] for block in blocks]
    record(path, [Sample("audio", block, k, 0, 8000) for k, block in enumerate(strided)])
    for before, after in zip(strided, played(path), strict=True):
        assert after.data.tobytes() == before.astype(before.dtype.newbyteorder("<")).tobytes()


@pytest.mark.needs("cv2")
@pytest.mark.parametrize("size", [(48, 64, 3), (48, 64)])
def test_jpeg_is_small_near_and_the_same_each_time(tmp_path: Path, size: tuple[int, ...]) -> None:
    """Colours are in their places, within what quality 90 costs, at an eighth of the size."""
    across = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.broadcast_to(across if len(size) == 2 else across[:, None] // np.array([1, 2, 4], np.uint8), size)
    path = record(tmp_path / "a.mcap", [Sample("image", picture, 0)], RecordOptions(max_bytes=1 << 20))
    [first], [second] = played(path), played(path)
    assert first.data.shape == size
    assert np.abs(first.data.astype(int) - picture).max() <= 12
    assert first.data.tobytes() == second.data.tobytes()


def test_a_buffer_may_be_used_again_at_once(tmp_path: Path) -> None:
    """What is pushed is copied, as a camera's driver expects."""
    buffer = np.zeros((4, 4, 3), np.uint8)
    with Recorder(tmp_path / "a.mcap", KINDS, raw()) as recorder:
        for k in range(20):
            buffer[:] = k
            recorder.push("image", buffer, k)
    assert [int(s.data.max()) for s in played(tmp_path / "a.mcap")] == list(range(20))


def test_a_manifest_says_what_and_at_which_rate(tmp_path: Path) -> None:
    """Its modalities are the channels, its rate is the audio's, and the file remembers which bundle it was."""
    manifest = load(tiny_bundle()).manifest
    with Recorder(tmp_path / "a.mcap", manifest, raw(), only=["audio"]) as recorder:
        recorder.push("audio", np.zeros(100, np.float32), 0)
        with pytest.raises(InputError, match=r"'image' is not recorded here; \['audio'\] are"):
            recorder.push("image", frame(0), 0)
    [block] = played(tmp_path / "a.mcap")
    assert (block.rate, block.duration) == (1000, 100 * MS)
    about = McapReader(tmp_path / "a.mcap").metadata["edge_mbm.recording"]
    assert (about["bundle"], len(about["manifest_sha256"]), about["clock"]) == (manifest.name, 64, "monotonic")
    assert int(about["wall_offset_ns"]) > 0


def test_results_are_recorded_when_they_were_handed_out(tmp_path: Path) -> None:
    """As JSON on a channel of their own, which a replay leaves out."""
    output = ClassificationOutput("green", 0.5, 0, np.array([0.5, 0.5], np.float32), ("green", "red"))
    result = Result(
        head="event", seq=3, t_capture=5 * SECOND, age=7 * MS, outputs={"logits": output}, missing=("audio",),
        spread=0, dropped=0, stage_ns={}, provider="x",
    )  # fmt: skip
    with Recorder(tmp_path / "a.mcap", KINDS, raw()) as recorder:
        recorder.push("prompt", "hello", 5 * SECOND)
        recorder.write(result)
        assert "edge_mbm.results" not in recorder.recorded
    [_, message] = McapReader(tmp_path / "a.mcap").messages()
    assert message.t == 5 * SECOND + 7 * MS
    assert json.loads(bytes(message.data)) == result.as_json()
    assert [sample.modality for sample in played(tmp_path / "a.mcap")] == ["prompt"]


@pytest.mark.parametrize(
    ("modality", "data", "moment", "says"),
    [
        ("smell", 1, (0, None), "'smell' is not recorded"),
        ("image", np.zeros((4, 4, 3)), (0, None), "a frame is uint8"),
        ("image", np.zeros((4, 4, 3), np.uint8), (-1, None), "t = -1 ns"),
        ("image", np.zeros((4, 4, 3), np.uint8), (1 << 63, None), "or no time"),
        ("audio", np.zeros(4, np.float32), (0, None), "rate="),
        ("audio", np.zeros(4, np.float32), (0, 0), "rate="),
        ("audio", np.zeros(4, np.int32), (0, 8000), "float or int16"),
        ("audio", np.zeros((4, 0), np.float32), (0, 8000), "float or int16"),
        ("audio", np.zeros((4, 65), np.float32), (0, 8000), "float or int16"),
        ("prompt", b"bytes", (0, None), "is text"),
        ("imu", np.array(["a"]), (0, None), "is numbers"),
        ("imu", np.zeros(0), (0, None), "is numbers"),
        ("imu", [[1], [1, 2]], (0, None), "not an array"),
    ],
)
def test_what_a_replay_could_not_give_back_is_refused(
    tmp_path: Path, modality: str, data: Any, moment: tuple[int, int | None], says: str
) -> None:
    """Where it is handed in, and the recording goes on."""
    with Recorder(tmp_path / "a.mcap", KINDS, raw()) as recorder:
        with pytest.raises(InputError, match=says):
            recorder.push(modality, data, moment[0], rate=moment[1])
        recorder.push("prompt", "on it goes", 0)
    assert len(played(tmp_path / "a.mcap")) == 1


def test_time_does_not_go_back(tmp_path: Path) -> None:
    """As in a session: two blocks of sound may begin at once, two frames may not; modalities are apart."""
    with Recorder(tmp_path / "a.mcap", KINDS, raw()) as recorder:
        recorder.push("image", frame(0), 10)
        recorder.push("audio", np.zeros(4, np.float32), 5, rate=8000)
        recorder.push("audio", np.zeros(4, np.float32), 5, rate=8000)
        with pytest.raises(InputError, match="not after the previous one at 10 ns"):
            recorder.push("image", frame(0), 10)
        with pytest.raises(InputError, match="not after the previous one at 5 ns"):
            recorder.push("audio", np.zeros(4, np.float32), 4, rate=8000)
    assert [sample.t for sample in played(tmp_path / "a.mcap")] == [5, 0, 0]


# --- replay ----------------------------------------------------------------------------------------------------------


def answers(results: list[Result], origin: int = 0) -> list[Any]:
    """Everything but the time it took."""
    kept = [{k: v for k, v in r.as_json().items() if k not in ("age", "stage_ns")} for r in results]
    return [{**answer, "t_capture": answer["t_capture"] - origin} for answer in kept]


@needs_all
@pytest.mark.parametrize("start", [0, 987_654_321_987])
def test_a_replay_repeats_what_the_session_gave(tmp_path: Path, start: int) -> None:
    """To the last bit: pushed live while it was recorded, replayed, and replayed again, with audio resampled."""
    bundle = load(tiny_bundle())
    live: list[Result] = []
    with bundle.session() as session, Recorder(tmp_path / "a.mcap", bundle.manifest, raw()) as recorder:
        for sample in take(50, start):
            session.push(sample.modality, sample.data, sample.t, rate=sample.rate)
            recorder.push(sample.modality, sample.data, sample.t, rate=sample.rate, wait=True)
            live += session.poll()
        live += session.finish()

    def replay() -> list[Any]:
        with edge_mbm.open(bundle, ReplaySource(tmp_path / "a.mcap"), realtime=False) as stream:
            return answers(list(stream))

    first = replay()
    assert len(first) == 50
    assert sum(not answer["missing"] for answer in first) > 15
    assert first == replay()
    assert first == answers(live, start)


@needs_all
def test_a_replay_at_its_own_pace_ends_too(tmp_path: Path) -> None:
    """In real time, under a clock that jumps, it gives some of the same frames, and leaves no thread."""
    source = ReplaySource(record(tmp_path / "a.mcap", take(10)), modalities=["image", "audio"])
    with edge_mbm.open(tiny_bundle(), source, clock=FakeClock()) as stream:
        times = {result.t_capture - stream.origin for result in stream}
    assert times <= {k * 40 * MS for k in range(10)}
    assert times
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edge-mbm")]


def test_only_what_is_asked_for_is_played(tmp_path: Path) -> None:
    """And a recording with none of it is refused on opening."""
    path = record(tmp_path / "a.mcap", take(3))
    assert {sample.modality for sample in played(path, modalities=["audio", "smell"])} == {"audio"}
    with pytest.raises(SourceError, match=r"none of \['smell'\]"):
        ReplaySource(path, modalities=["smell"])


def test_closing_in_the_middle_ends_the_samples(tmp_path: Path) -> None:
    """What plays stops, and closing twice is fine."""
    source = ReplaySource(record(tmp_path / "a.mcap", take(9)))
    samples = source.samples()
    next(samples)
    source.close()
    assert list(samples) == []
    source.close()
    assert list(source.samples()) == []


# --- a slow disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that takes nothing until the event is set; the recorder's thread is inside of it by then."""
    entered, go_on = threading.Event(), threading.Event()
    flush = McapWriter.flush

    def wait_for_it(self: McapWriter) -> None:
        entered.set()
        assert go_on.wait(60)
        flush(self)

    monkeypatch.setattr(McapWriter, "flush", wait_for_it)
    go_on.entered = entered  # type: ignore[attr-defined]
    yield go_on
    go_on.set()


def jam(recorder: Recorder, stuck: Any) -> None:
    """One text is on its way to the disk, and stays there."""
    recorder.push("prompt", "first", 0)
    assert stuck.entered.wait(60)


def test_a_disk_that_stands_still_costs_frames_before_sound(tmp_path: Path, stuck: Any) -> None:
    """``push`` returns each time; the queue is bounded; frames go first, and every loss is counted and in the file."""
    options = raw(chunk_bytes=1, queue_bytes=40_000)
    with Recorder(tmp_path / "a.mcap", KINDS, options) as recorder:
        jam(recorder, stuck)
        for k in range(10):
            recorder.push("image", np.zeros((50, 50, 3), np.uint8), k)  # 7.5 kB each: five fit
        assert recorder.dropped == {"image": 5}
        for k in range(10):
            recorder.push("audio", np.zeros(1600, np.int16), k, rate=16000)  # 3.2 kB each
        assert recorder.dropped == {"image": 10}
        for k in range(10, 20):
            recorder.push("audio", np.zeros(1600, np.int16), k, rate=16000)
        dropped = recorder.dropped
        assert dropped["audio"] == 20 - 40_000 // (3200 + 256)
        stuck.set()
    source = ReplaySource(tmp_path / "a.mcap")
    assert source.losses == dropped
    names = [sample.modality for sample in source.samples()]
    assert (names.count("image"), names.count("audio")) == (0, 20 - dropped["audio"])


def test_who_has_time_waits(tmp_path: Path, stuck: Any) -> None:
    """With ``wait`` nothing is dropped, as when a file is recorded as fast as possible."""
    with Recorder(tmp_path / "a.mcap", KINDS, raw(chunk_bytes=1, queue_bytes=20_000)) as recorder:
        jam(recorder, stuck)
        feeding = threading.Thread(
            target=lambda: [recorder.push("image", frame(k, (50, 50, 3)), k, wait=True) for k in range(20)]
        )
        feeding.start()
        stuck.set()
        feeding.join(60)
        assert not feeding.is_alive()
    assert len(played(tmp_path / "a.mcap")) == 21


def test_what_is_larger_than_the_queue_is_recorded_alone(tmp_path: Path) -> None:
    """A bound too small slows down, and does not stop."""
    path = record(
        tmp_path / "a.mcap", [Sample("image", frame(k, (50, 50, 3)), k) for k in range(5)], raw(queue_bytes=9)
    )
    assert len(played(path)) == 5


def tell(monkeypatch: pytest.MonkeyPatch, method: str, done: threading.Event) -> None:
    """Set an event whenever the writer has done something."""
    original = getattr(McapWriter, method)

    def do_and_tell(self: McapWriter, *arguments: Any) -> None:
        original(self, *arguments)
        done.set()

    monkeypatch.setattr(McapWriter, method, do_and_tell)


def test_a_chunk_is_written_when_its_time_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ``flush_s`` by the clock, though nothing more is pushed and nothing is closed."""
    added, written = threading.Event(), threading.Event()
    tell(monkeypatch, "add", added)
    tell(monkeypatch, "flush", written)
    clock = FakeClock()
    with Recorder(tmp_path / "a.mcap", KINDS, raw(flush_s=1.0), clock=clock) as recorder:
        recorder.push("prompt", "hello", 0)
        assert added.wait(60)
        clock.advance(SECOND - 1)
        assert not written.is_set()
        clock.advance(SECOND)  # a whole second, should the thread have looked at the clock only now
        assert written.wait(60)
        assert [sample.data for sample in played(tmp_path / "a.mcap")] == ["hello"]
        assert "no end" in (ReplaySource(tmp_path / "a.mcap").cut or "")


# --- a full disk, a kill ---------------------------------------------------------------------------------------------


def push_until_it_fails(recorder: Recorder) -> None:
    for k in range(100_000):
        recorder.push("image", frame(k % 7, (50, 50, 3)), k, wait=True)


def test_a_limit_reached_is_an_error_and_a_whole_file(tmp_path: Path) -> None:
    """``push`` says so, each time; ``close`` does not say it again; and what is there is counted right."""
    recorder = Recorder(tmp_path / "a.mcap", KINDS, raw(max_bytes=200_000, chunk_bytes=20_000))
    with pytest.raises(DeviceError, match="limit of 200000 bytes"):
        push_until_it_fails(recorder)
    with pytest.raises(DeviceError, match="limit of 200000 bytes"):
        recorder.push("prompt", "hello", 0)
    recorder.close()
    assert (tmp_path / "a.mcap").stat().st_size <= 200_000
    source = ReplaySource(tmp_path / "a.mcap")
    assert source.cut is None
    assert len(list(source.samples())) == recorder.recorded["image"] > 15
    assert source.losses == recorder.dropped


def test_a_failure_that_nobody_heard_of_is_told_at_the_end(tmp_path: Path) -> None:
    """By ``close``, once."""
    recorder = Recorder(tmp_path / "a.mcap", KINDS, raw(max_bytes=30_000))
    recorder.push("image", frame(0, (200, 200, 3)), 0)
    with pytest.raises(DeviceError, match="limit of 30000 bytes"):
        recorder.close()
    recorder.close()
    assert (recorder.recorded, recorder.dropped) == ({}, {"image": 1})


FULL = """
import resource, sys
import numpy as np
from edge_mbm.errors import DeviceError
from edge_mbm.runtime.recording import Recorder, RecordOptions
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
options = RecordOptions(max_bytes=1 << 40, frames="raw", chunk_bytes=20_000)
recorder = Recorder(sys.argv[1], {"image": "image"}, options)
try:
    for k in range(1000):
        recorder.push("image", np.full((50, 50, 3), k % 200, np.uint8), k, wait=True)
except DeviceError as error:
    print(error)
recorder.close()
print(recorder.recorded["image"], recorder.dropped["image"] > 0)
"""


def test_a_full_disk_is_an_error_and_the_rest_can_be_read(tmp_path: Path) -> None:
    """Where the operating system refuses to write in the middle of a chunk, the file ends with the one before."""
    path = tmp_path / "a.mcap"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    message, counts = done.stdout.splitlines()
    assert message == f"the recording {path} cannot be written: File too large"
    assert counts == f"{len(played(path))} True"
    assert len(played(path)) > 20


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    """And a recording is never replaced."""
    with pytest.raises(DeviceError, match="cannot be written: No such file"):
        Recorder(tmp_path / "no" / "a.mcap", KINDS, raw())
    path = record(tmp_path / "a.mcap", take(2))
    before = path.read_bytes()
    with pytest.raises(DeviceError, match="is there already"):
        Recorder(path, KINDS, raw())
    assert path.read_bytes() == before


KILLED = """
import sys
import numpy as np
from edge_mbm.mcap import McapWriter
from edge_mbm.runtime.recording import Recorder, RecordOptions
write = McapWriter._write_all
chunks = 0
def write_and_tell(self, data):
    # The fourth chunk stops in its middle, where the parent's kill finds it.
    global chunks
    chunks += len(data) > 20_000
    if chunks == 4:
        write(self, data[:len(data) // 2])
        print("in the middle", flush=True)
        sys.stdin.read()
    write(self, data)
McapWriter._write_all = write_and_tell
recorder = Recorder(sys.argv[1], {"image": "image"}, RecordOptions(max_bytes=1 << 30, frames="raw", chunk_bytes=20_000))
for k in range(1000):
    recorder.push("image", np.full((50, 50, 3), k % 200, np.uint8), k, wait=True)
sys.stdin.read()
"""


def test_a_kill_loses_no_more_than_the_last_chunk(tmp_path: Path) -> None:
    """SIGKILL in the middle of a write: the three chunks before are there, and what was cut is told."""
    path = tmp_path / "a.mcap"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    source = ReplaySource(path)
    assert source.cut is not None
    assert "was cut off" in source.cut
    samples = list(source.samples())
    assert [int(sample.data.max()) for sample in samples] == list(range(len(samples)))
    assert len(samples) == 9  # 7.5 kB each, three to a chunk


def test_any_failure_of_the_thread_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in there is a DeviceError out here, the thread is gone, and the file is finished."""

    def broken(self: McapWriter) -> None:
        raise ZeroDivisionError("a bug")

    recorder = Recorder(tmp_path / "a.mcap", KINDS, raw())
    monkeypatch.setattr(McapWriter, "flush", broken)
    recorder.push("prompt", "hello", 0)
    with pytest.raises(DeviceError, match="ZeroDivisionError"):
        recorder.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "edge-mbm-recorder"]
    assert ReplaySource(tmp_path / "a.mcap").losses == {"prompt": 1}


def test_a_loss_of_more_digits_than_a_count_has_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile file may claim one: Python makes no number of it."""
    monkeypatch.setattr(Recorder, "dropped", {"prompt": "9" * 5000, "eye": "3"})
    with Recorder(tmp_path / "a.mcap", KINDS, raw()) as recorder:
        recorder.push("prompt", "hello", 0)
    assert ReplaySource(tmp_path / "a.mcap").losses == {"eye": 3}


def test_a_closed_recorder_says_so(tmp_path: Path) -> None:
    """Pushing into it is a DeviceError; closing again is nothing."""
    recorder = Recorder(tmp_path / "a.mcap", KINDS, raw())
    recorder.close()
    recorder.close()
    with pytest.raises(DeviceError, match="is closed"):
        recorder.push("prompt", "hello", 0)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"jpeg_quality": 0}, {"jpeg_quality": 101}, {"flush_s": 0}, {"queue_bytes": 0}, {"chunk_bytes": 1 << 30}],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """Before anything is opened."""
    with pytest.raises(InputError):
        raw(**wrong)
    with pytest.raises(TypeError):
        RecordOptions()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("module", "options", "says"),
    [("cv2", {"frames": "jpeg"}, "record raw frames"), ("zstandard", {"compression": "zstd"}, "without compression")],
)
def test_what_is_missing_is_said_before_a_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, options: Any, says: str
) -> None:
    """With the line that installs it, and the way to do without."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=says):
        Recorder(tmp_path / "a.mcap", KINDS, raw(**options))
    assert not list(tmp_path.iterdir())


def test_a_modality_has_a_name_that_a_bundle_could_have(tmp_path: Path) -> None:
    """It becomes a topic, and is printed."""
    with pytest.raises(InputError, match="no name for a modality"):
        Recorder(tmp_path / "a.mcap", {"a/b": "text"}, raw())
