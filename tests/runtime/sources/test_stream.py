"""Network streams from a web server of our own: what ends, what is damaged, and what has no times."""

from __future__ import annotations

import http.server
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import InputError, SourceError
from edge_mbm.runtime.source import Sample
from edge_mbm.runtime.sources import StreamOptions, StreamSource
from edge_mbm.testing import FakeClock

MS, SECOND = 1_000_000, 1_000_000_000
FPS = 25
pytestmark = [pytest.mark.needs("av"), pytest.mark.timeout(60)]
Serve = Callable[..., str]
ALL = StreamOptions(keep_backlog=True)  # a test's server sends everything at once


def write_ts(path: Path, seconds: int, *, first: int = 0) -> bytes:
    """An MPEG transport stream, as a camera sends it over UDP or HTTP: grey pictures and a tone."""
    import av

    with av.open(str(path), "w", format="mpegts") as out:
        pictures: Any = out.add_stream("mpeg2video", rate=FPS)
        pictures.width, pictures.height, pictures.pix_fmt, pictures.gop_size = 64, 48, "yuv420p", 5
        sounds: Any = out.add_stream("aac", rate=48000, layout="mono")
        for k in range(first * FPS, (first + seconds) * FPS):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 100, np.uint8), format="rgb24")
            picture.pts = k
            out.mux(pictures.encode(picture))
            tone = np.sin(np.arange(48000 // FPS) / 5, dtype=np.float32).reshape(1, -1)
            sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 48000, k * 48000 // FPS
            out.mux(sounds.encode(sound))
        for stream in (pictures, sounds):
            out.mux(stream.encode(None))
    return path.read_bytes()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves pieces over HTTP, one after the other, calling those that are functions in between."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(*pieces: bytes | Callable[[], object], kind: str = "video/mp2t") -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                for piece in pieces:
                    if isinstance(piece, bytes):
                        self.wfile.write(piece)
                    else:
                        piece()

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # the client has left
                    self.close_connection = True

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/live"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def until_it_breaks(source: StreamSource) -> tuple[list[Sample], str]:
    taken: list[Sample] = []
    with pytest.raises(SourceError) as caught:
        taken.extend(source.samples())
    source.close()
    return taken, str(caught.value)


def test_a_stream_that_ends_is_an_error_after_all_it_gave(serve: Serve, tmp_path: Path) -> None:
    """A live stream has no end. Of a burst from before the first arrival what cannot be dated is counted."""
    source = StreamSource(serve(write_ts(tmp_path / "a.ts", 6)), options=ALL)
    taken, words = until_it_breaks(source)
    assert "broke off" in words
    frames = [s for s in taken if s.modality == "image"]
    blocks = [s for s in taken if s.modality == "audio"]
    lost = source.losses()
    # FFmpeg looked at the first seconds to find the streams, and was told not to keep them.
    assert len(frames) + lost.get("image.backward", 0) > 40
    assert len(blocks) + lost.get("audio.backward", 0) > 80
    assert max(s.duration for s in blocks) <= 20 * MS
    for samples in (frames, blocks):
        assert [s.t for s in samples] == sorted({s.t for s in samples})


def test_what_had_waited_before_anybody_read_is_passed_over(serve: Serve, tmp_path: Path) -> None:
    """Nobody knows how old it is: six seconds in one burst give nothing, and all of it is counted."""
    source = StreamSource(serve(write_ts(tmp_path / "a.ts", 6)), clock=FakeClock())
    taken, words = until_it_breaks(source)
    assert "broke off" in words
    assert taken == []
    assert source.losses()["image.backlog"] > 40
    assert source.losses()["audio.backlog"] > 80


def test_rubbish_in_the_stream_is_counted_and_passed_over(serve: Serve, tmp_path: Path) -> None:
    """It ends with the stream, not with the rubbish; times still rise."""
    whole = write_ts(tmp_path / "a.ts", 4)
    third = len(whole) // 3
    rubbish = np.random.default_rng(0).integers(0, 255, 20_000, np.uint8).tobytes()
    source = StreamSource(serve(whole[:third], rubbish, whole[third + 20_000 :]), options=ALL)
    taken, words = until_it_breaks(source)
    assert "broke off" in words
    for modality in ("image", "audio"):
        times = [s.t for s in taken if s.modality == modality]
        assert times == sorted(set(times))
        assert len(times) + source.losses().get(f"{modality}.backward", 0) > 50


def jpegs(count: int) -> list[bytes]:
    import cv2

    encoded = [cv2.imencode(".jpg", np.full((48, 64, 3), 10 * k, np.uint8))[1].tobytes() for k in range(count)]
    head = "--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    return [head.format(len(data)).encode() + data + b"\r\n" for data in encoded]


@pytest.mark.needs("av", "cv2")
def test_a_webcam_without_times_gets_those_of_arrival(serve: Serve) -> None:
    """Motion JPEG: FFmpeg would make up 25 frames a second, whatever the camera does."""
    clock = FakeClock(SECOND)

    def pause() -> None:
        clock.advance(300 * MS)

    pieces = [part for jpeg in jpegs(20) for part in (jpeg, pause)]
    address = serve(*pieces, kind="multipart/x-mixed-replace; boundary=frame")
    source = StreamSource(address, clock=clock, options=ALL)
    begun = clock.now()
    taken, _ = until_it_breaks(source)
    assert source.modalities == ("image",)
    assert taken
    assert all(SECOND <= s.t <= clock.now() for s in taken)
    assert begun >= SECOND


def test_silence_is_an_error_within_the_time_limit(serve: Serve, tmp_path: Path) -> None:
    """A server that keeps the connection and sends nothing more."""
    freed = threading.Event()
    address = serve(write_ts(tmp_path / "a.ts", 8), lambda: freed.wait(30))
    source = StreamSource(address, options=StreamOptions(read_timeout_s=0.3, keep_backlog=True))
    taken, words = until_it_breaks(source)
    freed.set()
    assert taken
    assert "nothing came for 0.3 s" in words


def test_closing_ends_the_samples_and_asks_nothing_of_what_is_gone(serve: Serve, tmp_path: Path) -> None:
    """The one who reads frees the decoder; what was known of the stream is still known."""
    source = StreamSource(serve(write_ts(tmp_path / "a.ts", 4)), options=ALL)
    samples = iter(source.samples())
    next(samples)
    source.close()
    assert list(samples) == []
    source.close()
    assert list(source.samples()) == []
    assert source.modalities == ("image", "audio")
    assert source.timing.uncertainty_ns == 240 * MS


def test_a_recording_on_a_web_server_is_refused(serve: Serve, tmp_path: Path) -> None:
    """It comes as fast as the network is, so its times would mean nothing; the file itself can be played."""
    import av

    with av.open(str(tmp_path / "a.mov"), "w") as out:
        sounds: Any = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = 8000, 0
        out.mux(sounds.encode(sound))
        out.mux(sounds.encode(None))
    data = (tmp_path / "a.mov").read_bytes()
    with pytest.raises(SourceError, match="recording of 2 s: download it"):
        StreamSource(serve(data, kind="video/quicktime"))


def test_what_is_no_stream_is_said(serve: Serve) -> None:
    """A page of text, with the address."""
    with pytest.raises(SourceError, match=r"http://127.0.0.1:\d+/live cannot be opened"):
        StreamSource(serve(b"<html>not a camera</html>" * 100, kind="text/html"))


def test_a_measured_latency_is_subtracted_and_trusted(serve: Serve, tmp_path: Path) -> None:
    """Then a time may be off by one frame's period only."""
    data = write_ts(tmp_path / "a.ts", 2)

    def first(latency: int | None) -> tuple[int, int]:
        source = StreamSource(
            serve(data),
            audio=None,
            clock=FakeClock(SECOND),
            options=StreamOptions(latency_ns=latency, keep_backlog=True),
        )
        sample = next(itertools.islice(source.samples(), 1))
        source.close()
        return sample.t, source.timing.uncertainty_ns

    (late, unknown), (right, known) = first(None), first(80 * MS)
    assert late - right == 80 * MS
    assert (unknown, known) == (240 * MS, 40 * MS)


@pytest.mark.parametrize(
    "wrong", [{"transport": "pigeon"}, {"open_timeout_s": 0}, {"read_timeout_s": -1}, {"latency_ns": -1}]
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    """Before anything is opened."""
    with pytest.raises(InputError):
        StreamOptions(**wrong)
