"""The reference: the smallest pipeline of three threads with a slot for the newest between each two."""

from __future__ import annotations

import platform
import threading
from typing import Generic, TypeVar

from harness import Job, Recorder, exposure_of, make_model, serve

T = TypeVar("T")


class Slot(Generic[T]):
    """Holds the newest item until it is taken."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: T | None = None
        self._ended = False

    def put(self, item: T | None) -> None:
        """None is the end."""
        with self._changed:
            self._item, self._ended = item, item is None
            self._changed.notify()

    def take(self) -> T | None:
        with self._changed:
            while self._item is None and not self._ended:
                self._changed.wait()
            item, self._item = self._item, None
            return item


def run(job: Job) -> Recorder:
    model = make_model(job)
    frames: Slot[bytearray] = Slot()
    results: Slot[int] = Slot()
    recorder = Recorder(job)

    def capture() -> None:
        for frame in recorder.camera.frames():
            frames.put(frame)
        frames.put(None)

    def infer() -> None:
        while (frame := frames.take()) is not None:
            model()
            results.put(exposure_of(frame, job.width))
        results.put(None)

    threads = [threading.Thread(target=work) for work in (capture, infer)]
    for thread in threads:
        thread.start()
    while (exposure := results.take()) is not None:
        recorder.sink(exposure)
    for thread in threads:
        thread.join()
    return recorder


if __name__ == "__main__":
    serve(run, f"Python {platform.python_version()}")
