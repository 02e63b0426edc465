"""edge-mbm: the tiny bundle's image encoder and head, the job's model in the encoder's place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from harness import CELLS, Job, Recorder, exposure_of, make_model, serve

import edge_mbm
from edge_mbm.runtime.source import Timing
from edge_mbm.spec import Component
from edge_mbm.testing import NullEngine, tiny_bundle


class Source:
    """The camera as a ``Source``."""

    modalities = ("image",)
    timing = Timing("monotonic")

    def __init__(self, job: Job, recorder: Recorder) -> None:
        self._job, self._camera = job, recorder.camera

    def samples(self) -> Iterator[edge_mbm.Sample]:
        job = self._job
        for frame in self._camera.frames():
            picture = np.frombuffer(frame, np.uint8).reshape(job.height, job.width, 3)
            yield edge_mbm.Sample("image", picture, exposure_of(frame, job.width))

    def close(self) -> None:
        pass


def run(job: Job) -> Recorder:
    model = make_model(job)
    seen: deque[int] = deque(maxlen=8)

    def compute(inputs: Mapping[str, Any], _: Mapping[str, Any]) -> None:
        seen.append(exposure_of(inputs["image"].reshape(-1), CELLS))
        model()

    def load(name: str, component: Component, graph: bytes) -> NullEngine:
        return NullEngine(name, component, graph, compute=compute if name == "image_encoder" else None)

    recorder = Recorder(job)
    recorder.dropped = 0
    options = edge_mbm.SessionOptions(heads=("color",))
    with edge_mbm.open(tiny_bundle(), Source(job, recorder), options=options, load_engine=load) as live:
        for result in live:
            if result.t_capture not in seen:
                raise AssertionError("a result's time is not the one in the pixels that the model saw")
            recorder.dropped += result.dropped
            recorder.sink(result.t_capture)
    return recorder


if __name__ == "__main__":
    serve(run, f"edge-mbm {edge_mbm.__version__}")
