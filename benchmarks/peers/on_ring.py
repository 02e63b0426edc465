"""The loop everybody writes first: read, infer, show; behind it the driver's ring of frames, oldest first."""

from __future__ import annotations

import platform
import queue
import threading

from harness import Job, Recorder, exposure_of, make_model, serve

_BUFFERS = 4  # V4L2's customary number; a driver without a free one drops what comes


def run(job: Job) -> Recorder:
    model = make_model(job)
    ring: queue.Queue[bytearray | None] = queue.Queue(_BUFFERS)
    recorder = Recorder(job)

    def drive() -> None:
        for frame in recorder.camera.frames():
            if not ring.full():
                ring.put(frame)
        ring.put(None)

    driver = threading.Thread(target=drive)
    driver.start()
    while (frame := ring.get()) is not None:
        model()
        recorder.sink(exposure_of(frame, job.width))
    driver.join()
    return recorder


if __name__ == "__main__":
    serve(run, f"Python {platform.python_version()}")
