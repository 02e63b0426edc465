"""A real RTSP camera with sound on loopback, killed, stalled and cut."""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import edge_mbm
from edge_mbm.errors import SourceError
from edge_mbm.runtime.source import Sample
from edge_mbm.runtime.sources import StreamOptions, StreamSource, Supervised, Supervision, open_source
from edge_mbm.testing import tiny_bundle

MS, SECOND = 1_000_000, 1_000_000_000
pytestmark = [pytest.mark.needs("av"), pytest.mark.timeout(120)]


def made(frame: np.ndarray[Any, Any]) -> int:
    """When the camera made a frame: 32 bars are the bits of its monotonic time in ms."""
    row = frame[frame.shape[0] // 2, 5::10].mean(axis=-1) > 127
    return sum(int(bit) << k for k, bit in enumerate(row)) * MS


def error(sample: Sample) -> int:
    """How far a frame's time is from the truth, ns; modulo what 32 bits hold."""
    return (sample.t - made(sample.data) + (1 << 31) * MS) % ((1 << 32) * MS) - (1 << 31) * MS


def click(sample: Sample) -> int | None:
    """How far a click in a block of sound is from the whole second at which the camera clicked, ns."""
    loud = np.flatnonzero(np.abs(sample.data[:, 0]) > 0.3)
    if not len(loud):
        return None
    at = sample.t + int(loud[0]) * SECOND // sample.rate if sample.rate else 0
    return (at + SECOND // 2) % SECOND - SECOND // 2


def take(source: Any, count: int) -> list[Sample]:
    return list(itertools.islice(source.samples(), count))


class Reader:
    """Reads a source in a thread, as a live stream does."""

    def __init__(self, source: Supervised) -> None:
        self.source = source
        self.taken: queue.Queue[Sample] = queue.Queue()
        self.all: list[Sample] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for sample in self.source.samples():
            self.taken.put(sample)

    def next(self, modality: str) -> Sample:
        while True:
            sample = self.taken.get(timeout=30)
            self.all.append(sample)
            if sample.modality == modality:
                return sample

    def close(self) -> None:
        self.source.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def read() -> Iterator[Callable[[str], Reader]]:
    readers: list[Reader] = []

    def start(url: str) -> Reader:
        options = Supervision(backoff_s=(0.1, 0.5), seed=1)
        source = open_source(url, supervision=options)
        assert isinstance(source, Supervised)
        readers.append(Reader(source))
        return readers[-1]

    yield start
    for reader in readers:
        reader.close()


def check_order(samples: list[Sample]) -> None:
    """Times rise per modality, and no frame is there twice: its bars are its identity."""
    for modality in ("image", "audio"):
        times = [sample.t for sample in samples if sample.modality == modality]
        assert times == sorted(set(times))
    frames = [made(sample.data) for sample in samples if sample.modality == "image"]
    assert len(frames) == len(set(frames))


def test_picture_and_sound_have_the_times_of_capture(rtsp_camera: Any) -> None:
    """Bars and clicks tell the truth: at the median off by less than 20 ms, though frames come late."""
    source = StreamSource(rtsp_camera.url, options=StreamOptions(latency_ns=0))
    assert set(source.modalities) == {"image", "audio"}
    samples = take(source, 250)
    source.close()
    check_order(samples)
    frames = [sample for sample in samples if sample.modality == "image"]
    blocks = [sample for sample in samples if sample.modality == "audio"]
    assert {(s.data.shape, s.data.dtype.name) for s in frames} == {((64, 320, 3), "uint8")}
    assert {(s.data.shape[1], s.data.dtype.name, s.rate) for s in blocks} == {(1, "float32", 8000)}
    assert max(sample.duration for sample in blocks) <= 20 * MS
    clicks = [off for off in map(click, blocks) if off is not None]
    assert len(frames) > 50
    assert clicks
    assert abs(float(np.median([error(sample) for sample in frames]))) < 20 * MS
    assert abs(float(np.median(clicks))) < 20 * MS
    assert source.timing.uncertainty_ns >= abs(float(np.median([error(sample) for sample in frames])))


def test_what_piled_up_before_anybody_read_is_not_given(rtsp_camera: Any, until: Any) -> None:
    """Opened two seconds ago and not read, as while a model loads: the first frame is a new one, with its own time."""
    source = StreamSource(rtsp_camera.url, options=StreamOptions(latency_ns=0))
    opened = time.monotonic()
    until(lambda: time.monotonic() > opened + 2)
    frames = [sample for sample in take(source, 60) if sample.modality == "image"]
    source.close()
    assert max(abs(error(sample)) for sample in frames) < 100 * MS
    assert source.losses()["image.backlog"] > 20


@pytest.mark.parametrize("rtsp_camera", ["video"], indirect=True)
def test_without_sound_the_frame_that_ffmpeg_holds_back_is_allowed_for(rtsp_camera: Any) -> None:
    """Frames come 40 ms late, one period, and their times are right within half of it all the same."""
    source = StreamSource(rtsp_camera.url, options=StreamOptions(latency_ns=0))
    assert source.modalities == ("image",)
    samples = take(source, 75)
    source.close()
    assert abs(float(np.median([error(sample) for sample in samples]))) < 20 * MS


@pytest.mark.parametrize("rtsp_camera", ["audio"], indirect=True)
def test_a_camera_without_picture_gives_its_sound(rtsp_camera: Any) -> None:
    """Its modalities are those that are there; asking for a picture alone is an error that says so."""
    source = open_source(rtsp_camera.url)
    assert source.modalities == ("audio",)
    assert {sample.modality for sample in take(source, 20)} == {"audio"}
    source.close()
    with pytest.raises(SourceError, match="no image stream"):
        StreamSource(rtsp_camera.url, audio=None)


def test_a_camera_that_loses_power_comes_back(rtsp_camera: Any, read: Callable[[str], Reader]) -> None:
    """Killed and started again on its port: the same stream goes on, and no frame is given twice."""
    reader = read(rtsp_camera.url)
    for _ in range(10):
        reader.next("image")
    reader.next("audio")
    rtsp_camera.kill()
    before = reader.source.status().last
    rtsp_camera.start()
    while reader.source.status().reconnects == 0 or reader.next("image").t <= (before or 0) + SECOND // 2:
        reader.next("audio")
    for _ in range(10):
        reader.next("image")
    status = reader.source.status()
    assert status.state == "live"
    assert status.error is not None
    check_order(reader.all)


def test_a_network_that_stalls_is_noticed_and_survived(
    rtsp_camera: Any, proxy_to: Any, read: Callable[[str], Reader], until: Any
) -> None:
    """A connection that stays open and gives nothing is replaced; afterwards frames have the right times again."""
    proxy = proxy_to(rtsp_camera.port)
    reader = read(f"rtsp://127.0.0.1:{proxy.port}/live")
    for _ in range(10):
        reader.next("image")
    proxy.stall()
    until(lambda: reader.source.status().state == "reconnecting")
    proxy.cut()
    proxy.resume()
    count = reader.source.status().samples
    while reader.source.status().samples < count + 50:
        reader.next("audio")
    assert proxy.connections >= 2
    check_order(reader.all)
    assert np.median([abs(error(reader.next("image"))) for _ in range(10)]) < 40 * MS


def test_a_cut_connection_is_made_anew(rtsp_camera: Any, proxy_to: Any, read: Callable[[str], Reader]) -> None:
    """Three cuts, three reconnections, one stream in order."""
    proxy = proxy_to(rtsp_camera.port)
    reader = read(f"rtsp://127.0.0.1:{proxy.port}/live")
    for cuts in range(1, 4):
        for _ in range(5):
            reader.next("image")
        proxy.cut()
        while reader.source.status().reconnects < cuts:
            reader.next("audio")
    reader.next("image")
    assert proxy.connections >= 4
    check_order(reader.all)


def test_nobody_there_is_said_without_the_password(free_port: int) -> None:
    """The address with its account hidden, the reason, and what to look at; no library's error behind it."""
    with pytest.raises(SourceError, match=r"rtsp://\*\*\*@127.0.0.1.*refused.*address right") as caught:
        StreamSource(f"rtsp://admin:s3cr3t@127.0.0.1:{free_port}/live")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_one_that_accepts_and_says_nothing_is_given_up(silent_port: int) -> None:
    """A server that never answers costs the time limit for opening, not a thread."""
    with pytest.raises(SourceError, match=r"did not answer within 0.2 s"):
        StreamSource(f"rtsp://127.0.0.1:{silent_port}/live", options=StreamOptions(open_timeout_s=0.2))


@pytest.mark.needs("onnxruntime")
def test_a_stream_may_be_opened_in_a_process_of_its_own(rtsp_camera: Any) -> None:
    """By its address: pictures come from another process, and are answered as from this one."""
    options = edge_mbm.SessionOptions(heads=("color",))
    with edge_mbm.open(tiny_bundle(), video=rtsp_camera.url, options=options, isolation="process") as live:
        children = multiprocessing.active_children()
        results = list(itertools.islice(live, 3))
        assert [result.seq for result in results] == [0, 1, 2]
        assert [child.name for child in children] == ["edge-mbm-source"]
    assert not multiprocessing.active_children()
