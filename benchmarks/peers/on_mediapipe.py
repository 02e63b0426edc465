"""MediaPipe's LIVE_STREAM mode: an image embedder of almost no work; the job's model runs in the result's callback.

A model of one's own can't run inside its graph from Python, so the callback is where a user puts it.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import flatbuffers
import mediapipe as mp
import numpy as np
from harness import Job, Recorder, exposure_of, make_model, serve
from mediapipe.tasks.metadata import schema_py_generated as tflite

_SIZE = 8


def mean_graph() -> bytes:
    """A TFLite model: the mean colour of a picture, uint8 in and out."""

    def tensor(name: str, shape: list[int], kind: int, buffer: int) -> Any:
        made = tflite.TensorT()
        made.name, made.shape, made.type, made.buffer = name, shape, kind, buffer
        if kind == tflite.TensorType.UINT8:
            made.quantization = tflite.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [1 / 255], [0]
        return made

    axes = tflite.BufferT()
    axes.data = np.frombuffer(np.array([1, 2], np.int32).tobytes(), np.uint8)
    code = tflite.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = tflite.BuiltinOperator.MEAN
    mean = tflite.OperatorT()
    mean.opcodeIndex, mean.inputs, mean.outputs = 0, [0, 1], [2]
    mean.builtinOptionsType, mean.builtinOptions = tflite.BuiltinOptions.ReducerOptions, tflite.ReducerOptionsT()
    graph = tflite.SubGraphT()
    graph.tensors = [
        tensor("image", [1, _SIZE, _SIZE, 3], tflite.TensorType.UINT8, 0),
        tensor("axes", [2], tflite.TensorType.INT32, 1),
        tensor("color", [1, 3], tflite.TensorType.UINT8, 0),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [mean]
    model = tflite.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [tflite.BufferT(), axes]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run(job: Job) -> Recorder:
    model = make_model(job)
    vision = mp.tasks.vision
    recorder: Recorder

    def show(_: Any, image: Any, __: int) -> None:
        model()
        recorder.sink(exposure_of(image.numpy_view().reshape(-1), job.width))

    options = vision.ImageEmbedderOptions(
        base_options=mp.tasks.BaseOptions(model_asset_buffer=mean_graph()),
        running_mode=vision.RunningMode.LIVE_STREAM,
        result_callback=show,
    )
    with vision.ImageEmbedder.create_from_options(options) as embedder:
        recorder = Recorder(job)
        last = -1
        for frame in recorder.camera.frames():
            picture = np.frombuffer(frame, np.uint8).reshape(job.height, job.width, 3)
            last = max(last + 1, exposure_of(frame, job.width) // 1_000_000)
            embedder.embed_async(mp.Image(image_format=mp.ImageFormat.SRGB, data=picture), last)
    return recorder


if __name__ == "__main__":
    serve(run, f"mediapipe {version('mediapipe')}")
