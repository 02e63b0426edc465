"""What every side of ``age_at_sink.py`` shares: the camera, the model, the measuring sink. Standard library only.

A peer runs in an interpreter of its own, perhaps without numpy; so this must import there too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["CELLS", "Camera", "Job", "Recorder", "exposure_of", "make_model", "serve"]

CELLS = 8
"""The exposure time is 8 bytes, one per cell of the picture's first row of cells: scaling to 8x8 leaves it readable."""
_WARM_UP_S = 0.4


@dataclass(frozen=True)
class Job:
    """One run: a camera, a model, a sink."""

    fps: float
    seconds: float
    """Measured; the warm-up comes on top."""
    width: int
    height: int
    model: str
    """"none", "sleep" or "onnx"."""
    model_s: float
    graph: str
    sink_s: float
    variant: str
    """Of the peer's settings."""


class Camera:
    """Frames at a fixed rate, RGB, each with the moment at which it was there in its own pixels.

    The moment is taken when the frame is handed out, so how late this process woke up is nobody's fault.
    """

    def __init__(self, job: Job) -> None:
        self.exposed = 0
        self._job = job
        self._cell = job.width // CELLS
        self._rows = job.height // CELLS
        self._scene = bytes(job.width * job.height * 3)
        self._begun = time.monotonic_ns()
        self._tick = 0

    @property
    def over(self) -> bool:
        """Whether the run's time is up."""
        return time.monotonic_ns() - self._begun > (self._job.seconds + _WARM_UP_S) * 1e9

    def read(self) -> bytearray:
        """Wait for the next frame."""
        period = 1e9 / self._job.fps
        now = time.monotonic_ns()
        # As a sensor, it doesn't wait for whoever was late: the frames in between were never read.
        self._tick = max(self._tick + 1, int((now - self._begun) // period))
        time.sleep(max(0.0, (self._begun + self._tick * period - now) / 1e9))
        self.exposed += 1
        return self._expose()

    def frames(self) -> Iterator[bytearray]:
        """All of them."""
        while not self.over:
            yield self.read()

    def _expose(self) -> bytearray:
        frame = bytearray(self._scene)
        stamp = time.monotonic_ns().to_bytes(CELLS, "big")
        row = b"".join(bytes((value,)) * (3 * self._cell) for value in stamp)
        for y in range(self._rows):
            start = y * self._job.width * 3
            frame[start : start + len(row)] = row
        return frame


def exposure_of(frame: Any, width: int) -> int:  # Any: bytes, or an array where there is numpy
    """The time in a frame's pixels: any flat buffer of RGB bytes."""
    step = width // CELLS * 3
    return int.from_bytes(bytes(frame[step * cell] for cell in range(CELLS)), "big")


def make_model(job: Job) -> Callable[[], None]:
    """The work between camera and sink."""
    if job.model == "sleep":
        return lambda: time.sleep(job.model_s)
    if job.model == "onnx":
        return _onnx_model(job.graph)
    return lambda: None


def _onnx_model(graph: str) -> Callable[[], None]:
    import numpy as np  # noqa: PLC0415 - not every peer's interpreter has them
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    data = {given.name: np.random.default_rng(0).standard_normal(given.shape, dtype=np.float32)}
    session.run(None, data)

    def model() -> None:
        session.run(None, data)

    return model


class Recorder:
    """The sink: notes the age of what comes, then takes its time. The camera begins with it."""

    def __init__(self, job: Job) -> None:
        self.camera = Camera(job)
        self.dropped: int | None = None
        """What the pipeline says that it dropped, if it says so."""
        self._job = job
        self._ages: list[tuple[float, float]] = []
        self._rss: list[tuple[float, float]] = []
        self._begun = time.monotonic_ns()
        self._cpu = self._cpu_begun = time.process_time()
        self._exposed_begun = self._results = 0
        self._lock = threading.Lock()

    def sink(self, exposure: int) -> None:
        """A result about the frame exposed then has arrived."""
        now = time.monotonic_ns()
        elapsed = (now - self._begun) / 1e9 - _WARM_UP_S
        if elapsed > self._job.seconds:
            return
        with self._lock:
            self._results += 1
            if elapsed < 0:
                self._cpu_begun, self._exposed_begun = time.process_time(), self.camera.exposed
            else:
                self._ages.append((elapsed, (now - exposure) / 1e6))
                self._note_memory(elapsed)
            self._cpu = time.process_time()
        if self._job.sink_s:
            time.sleep(self._job.sink_s)

    def report(self) -> dict[str, Any]:
        """Plain values for JSON."""
        last = self._ages[-1][0] if self._ages else 0.0
        return {
            "ages": self._ages,
            "rss": self._rss,
            "cpu": (self._cpu - self._cpu_begun) / last if last else 0.0,
            "exposed": self.camera.exposed - self._exposed_begun,
            "unseen": self.camera.exposed - self._results,
            "dropped": self.dropped,
        }

    def _note_memory(self, elapsed: float) -> None:
        if not self._rss or elapsed - self._rss[-1][0] > 0.2:
            with open("/proc/self/statm") as file:
                pages = int(file.read().split()[1])
            self._rss.append((elapsed, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))


def serve(run: Callable[[Job], Recorder], version: str) -> None:
    """Answer jobs, one JSON line each; what else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answers.write(json.dumps({"version": version}) + "\n")
    for line in sys.stdin:
        recorder = run(Job(**json.loads(line)))
        answers.write(json.dumps(recorder.report()) + "\n")
    answers.flush()
    os._exit(0)  # a peer's native threads may not want to end


def as_line(job: Job) -> str:
    """A job as ``serve`` reads it."""
    return json.dumps(asdict(job)) + "\n"
