"""Roboflow's pipeline: ``InferencePipeline`` with custom logic; variants are its video processing modes."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
from harness import Job, Recorder, exposure_of, make_model, serve
from streamvision.camera.entities import SourceProperties, VideoFrame, VideoFrameProducer
from streamvision.stream.pipeline import InferencePipeline


class Producer(VideoFrameProducer):  # type: ignore[misc] - untyped
    """The camera as its frame producer."""

    def __init__(self, job: Job, recorder: Recorder) -> None:
        self._job, self._camera = job, recorder.camera
        self._frame = bytearray()
        self._open = True

    def grab(self) -> bool:
        if self._camera.over:
            return False
        self._frame = self._camera.read()
        return True

    def retrieve(self) -> tuple[bool, Any]:
        return True, np.frombuffer(self._frame, np.uint8).reshape(self._job.height, self._job.width, 3)

    def release(self) -> None:
        self._open = False

    def isOpened(self) -> bool:  # noqa: N802 - its name
        return self._open

    def discover_source_properties(self) -> SourceProperties:
        job = self._job
        # Told that it is a stream (a file is never dropped from), which need not come back.
        return SourceProperties(job.width, job.height, -1, False, job.fps, is_reconnectable=False)


def run(job: Job) -> Recorder:
    model = make_model(job)
    recorder = Recorder(job)

    def infer(frames: list[VideoFrame]) -> list[dict[str, int]]:
        model()
        return [{"exposure": exposure_of(frame.image.reshape(-1), job.width)} for frame in frames]

    def show(prediction: dict[str, int], _: VideoFrame) -> None:
        recorder.sink(prediction["exposure"])

    pipeline = InferencePipeline.init_with_custom_logic(
        video_reference=lambda: Producer(job, recorder),
        on_video_frame=infer,
        on_prediction=show,
        video_processing_mode=None if job.variant == "default" else job.variant,
    )
    pipeline.start(use_main_thread=False)
    pipeline.join()
    return recorder


if __name__ == "__main__":
    serve(run, f"streamvision {version('streamvision')}")
