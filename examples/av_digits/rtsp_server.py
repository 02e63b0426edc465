"""A network camera that sees a clip: serves its pictures by RTSP on 127.0.0.1, to each client from the start.

Runs under the system's Python, which has GStreamer's bindings. What a client gets is LEAD seconds of black, in which
whoever reads gets ready, the clip, and black until the client goes. Everything at the pace of life, encoded without
frames that wait for later ones, as cameras do.

Usage: rtsp_server.py CLIP LEAD    prints its port, then per client the monotonic ns of the clip's first frame;
                                   ends with its standard input.
"""

from __future__ import annotations

import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstApp, GstRtspServer  # noqa: E402, F401 - GstApp gives appsink its methods

WIDTH, HEIGHT, FPS = 320, 240, 25
PERIOD = 1_000_000_000 // FPS
FORM = f"video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate={FPS}/1"
BLACK = bytes([16]) * (WIDTH * HEIGHT) + bytes([128]) * (WIDTH * HEIGHT // 2)
SERVED = (
    f"( appsrc name=frames is-live=true format=time caps={FORM}"
    f" ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={FPS} pass=qual quantizer=20"
    " ! rtph264pay name=pay0 pt=96 )"
)
# Only a few frames are decoded ahead.
DECODED = (
    'filesrc location="{}" ! qtdemux ! h264parse ! avdec_h264 ! videoconvert ! videoscale ! videorate'
    f" ! {FORM} ! appsink name=frames sync=false max-buffers=5"
)


class Camera:
    """Shows one client the clip."""

    def __init__(self, media: GstRtspServer.RTSPMedia, clip: str, lead: float) -> None:
        self.alive = True
        self.lead = round(lead * FPS)
        self.shown = 0
        self.begin = 0
        self.to = media.get_element().get_by_name("frames")
        self.clip = Gst.parse_launch(DECODED.format(clip))
        self.frames = self.clip.get_by_name("frames")
        self.clip.set_state(Gst.State.PLAYING)
        media.connect("unprepared", self.stop)
        GLib.timeout_add(5, self.show)

    def stop(self, _media: GstRtspServer.RTSPMedia) -> None:
        """Its client is gone."""
        self.alive = False
        self.clip.set_state(Gst.State.NULL)

    def show(self) -> bool:
        """Push what is due."""
        # GStreamer's own clock is the monotonic one; before the pipeline runs there is no base, and nobody looks.
        now, base = time.monotonic_ns(), self.to.get_base_time()
        if base and not self.begin:
            self.begin = now
            print(self.begin + self.lead * PERIOD, flush=True)
        while self.alive and self.begin and self.begin + self.shown * PERIOD <= now:
            buffer = Gst.Buffer.new_wrapped(self.frame())
            buffer.pts = self.begin + self.shown * PERIOD - base
            buffer.duration = PERIOD
            self.to.emit("push-buffer", buffer)
            self.shown += 1
        return self.alive

    def frame(self) -> bytes:
        """The next one: of the clip, or black before and after it."""
        sample = self.frames.pull_sample() if self.shown >= self.lead else None
        if sample is None:
            return BLACK
        buffer = sample.get_buffer()
        data: bytes = buffer.extract_dup(0, buffer.get_size())
        return data


def main() -> None:
    """Serve until standard input ends."""
    clip, lead = sys.argv[1], float(sys.argv[2])
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service="0")
    factory = GstRtspServer.RTSPMediaFactory(shared=False)
    factory.set_launch(SERVED)
    factory.connect("media-configure", lambda _factory, media: Camera(media, clip, lead))
    server.get_mount_points().add_factory("/clip", factory)
    if not server.attach(None):
        sys.exit("no port is free")
    print(server.get_bound_port(), flush=True)
    loop = GLib.MainLoop()
    GLib.io_add_watch(sys.stdin, GLib.PRIORITY_DEFAULT, GLib.IO_IN | GLib.IO_HUP, lambda *_: loop.quit())
    loop.run()


if __name__ == "__main__":
    main()
