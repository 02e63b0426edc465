"""GStreamer: appsrc, queue, the model in an identity's handoff, queue, appsink. Queues are leaky ones of 1, or of 4."""

from __future__ import annotations

import threading
from typing import Any

import gi
from harness import Job, Recorder, exposure_of, make_model, serve

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402 - only after its version was chosen

Gst.init(None)

_QUEUES = {
    "leaky": ("queue leaky=downstream max-size-buffers=1", "max-buffers=1 drop=true"),
    "queues of 4": ("queue max-size-buffers=4", "max-buffers=4 drop=false"),
}
_UNBOUNDED = "max-size-bytes=0 max-size-time=0"


def describe(job: Job) -> str:
    queue, sink = _QUEUES[job.variant]
    caps = f"video/x-raw,format=RGB,width={job.width},height={job.height},framerate={round(job.fps)}/1"
    return (
        f"appsrc name=camera is-live=true format=time do-timestamp=true block=true max-buffers=1 caps={caps} "
        f"! {queue} {_UNBOUNDED} ! identity name=model signal-handoffs=true ! {queue} {_UNBOUNDED} "
        f"! appsink name=sink sync=false {sink}"
    )


def run(job: Job) -> Recorder:
    model = make_model(job)
    pipeline: Any = Gst.parse_launch(describe(job))
    camera, infer, sink = (pipeline.get_by_name(name) for name in ("camera", "model", "sink"))
    infer.connect("handoff", lambda *_: model())
    pipeline.set_state(Gst.State.PLAYING)
    recorder = Recorder(job)

    def capture() -> None:
        for frame in recorder.camera.frames():
            camera.emit("push-buffer", Gst.Buffer.new_wrapped(bytes(frame)))
        camera.emit("end-of-stream")

    driver = threading.Thread(target=capture)
    driver.start()
    while (sample := sink.emit("pull-sample")) is not None:
        buffer = sample.get_buffer()
        recorder.sink(exposure_of(buffer.extract_dup(0, job.width * 3), job.width))
    driver.join()
    pipeline.set_state(Gst.State.NULL)
    return recorder


if __name__ == "__main__":
    serve(run, Gst.version_string())
