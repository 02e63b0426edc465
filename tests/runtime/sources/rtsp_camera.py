"""A network camera with sound on loopback, for tests; runs under the system's Python, which has GStreamer's bindings.

Each frame is 32 vertical bars, black or white: the bits of the monotonic time in ms at which it was made, so that the
one who sees it knows how old it is. The sound clicks at each whole second of the same clock.

Usage: rtsp_camera.py PORT [video|audio|both]    PORT 0 for a free one, which is printed.
"""

from __future__ import annotations

import struct
import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

BAR, HEIGHT, FPS = 10, 64, 25
RATE, BLOCK = 8000, 160
MS, SECOND = 1_000_000, 1_000_000_000
SOURCE = "appsrc name={} is-live=true format=time caps={}"
VIDEO = (
    SOURCE.format("frames", f"video/x-raw,format=GRAY8,width={32 * BAR},height={HEIGHT},framerate={FPS}/1")
    + " ! videoconvert ! video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast "
    f"key-int-max={FPS // 2} bitrate=1000 ! rtph264pay name=pay0 pt=96"
)
AUDIO = (
    SOURCE.format("sound", f"audio/x-raw,format=S16LE,rate={RATE},channels=1,layout=interleaved")
    + " ! alawenc ! rtppcmapay name={} pt=8"
)
PIPELINES = {
    "video": f"( {VIDEO} )",
    "audio": f"( {AUDIO.format('pay0')} )",
    "both": f"( {VIDEO} {AUDIO.format('pay1')} )",
}


def bars(now: int) -> bytes:
    row = b"".join((b"\xff" if now // MS >> bit & 1 else b"\x00") * BAR for bit in range(32))
    return row * HEIGHT


def clicks(begin: int) -> bytes:
    """Silence from ``begin`` on, with a click of 2 ms at each whole second of monotonic time."""
    times = (begin + k * SECOND // RATE for k in range(BLOCK))
    return struct.pack(f"<{BLOCK}h", *(20_000 if t % SECOND < 2 * MS else 0 for t in times))


class Camera:
    """Feeds one media as long as it lives."""

    def __init__(self, media: GstRtspServer.RTSPMedia) -> None:
        self.alive = True
        self.frames = media.get_element().get_by_name("frames")
        self.sound = media.get_element().get_by_name("sound")
        self.heard = time.monotonic_ns()
        media.connect("unprepared", self.stop)
        if self.frames:
            GLib.timeout_add(1000 // FPS, self.show)
        if self.sound:
            GLib.timeout_add(10, self.speak)

    def stop(self, _media: object) -> None:
        self.alive = False

    def show(self) -> bool:
        now = time.monotonic_ns()
        self.push(self.frames, bars(now), now)
        return self.alive

    def speak(self) -> bool:
        duration = BLOCK * SECOND // RATE
        while self.heard + duration <= time.monotonic_ns():
            self.push(self.sound, clicks(self.heard), self.heard)
            self.heard += duration
        return self.alive

    def push(self, to: Gst.Element, data: bytes, captured: int) -> None:
        # GStreamer's own clock is the monotonic one; before the pipeline runs there is no base, and nobody listens.
        if to.get_base_time() and captured >= to.get_base_time():
            buffer = Gst.Buffer.new_wrapped(data)
            buffer.pts = captured - to.get_base_time()
            to.emit("push-buffer", buffer)


def main() -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=sys.argv[1])
    factory = GstRtspServer.RTSPMediaFactory(shared=True)
    factory.set_launch(PIPELINES[sys.argv[2] if len(sys.argv) > 2 else "both"])
    factory.connect("media-configure", lambda _factory, media: Camera(media))
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit("the port is taken")
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
