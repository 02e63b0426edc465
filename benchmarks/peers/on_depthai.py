"""depthai's host nodes (Luxonis), no device: camera, model and sink as threads linked by its queues."""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import Any

import depthai as dai
import numpy as np
from harness import Job, Recorder, exposure_of, make_model, serve

_QUEUES = {"newest 1": {"blocking": False, "queueSize": 1}, "blocking 4": {"blocking": True, "queueSize": 4}}


class CameraNode(dai.node.ThreadedHostNode):  # type: ignore[misc] - untyped
    def __init__(self) -> None:
        super().__init__()
        self.out = self.createOutput()
        self.recorder: Recorder
        self.ended = threading.Event()

    def run(self) -> None:
        for frame in self.recorder.camera.frames():
            message = dai.Buffer()
            message.setData(np.frombuffer(frame, np.uint8))
            self.out.send(message)
        self.ended.set()


class ModelNode(dai.node.ThreadedHostNode):  # type: ignore[misc] - untyped
    def __init__(self, queue: dict[str, Any]) -> None:
        super().__init__()
        self.input = self.createInput(**queue)
        self.out = self.createOutput()
        self.model: Any = None

    def run(self) -> None:
        while self.isRunning():
            message = self.input.get()
            self.model()
            self.out.send(message)


class SinkNode(dai.node.ThreadedHostNode):  # type: ignore[misc] - untyped
    def __init__(self, queue: dict[str, Any]) -> None:
        super().__init__()
        self.input = self.createInput(**queue)
        self.recorder: Recorder
        self.width = 0

    def run(self) -> None:
        while self.isRunning():
            self.recorder.sink(exposure_of(self.input.get().getData(), self.width))


def run(job: Job) -> Recorder:
    queue = _QUEUES[job.variant]
    model = make_model(job)
    with dai.Pipeline(createImplicitDevice=False) as pipeline:
        camera = pipeline.create(CameraNode)
        infer = pipeline.create(ModelNode, queue)
        sink = pipeline.create(SinkNode, queue)
        infer.model, sink.width = model, job.width
        camera.out.link(infer.input)
        infer.out.link(sink.input)
        camera.recorder = sink.recorder = Recorder(job)
        pipeline.start()
        camera.ended.wait()
        pipeline.stop()
    return camera.recorder


if __name__ == "__main__":
    serve(run, f"depthai {version('depthai')}")
