"""Make the tiny bundle that ``edge_mbm.testing`` ships: ``python tests/golden/make_tiny.py edge_mbm/testing/tiny.mbm``.

Its graphs are written by hand so that anyone can compute the right answer in the head: the image embedding is the mean
red, green and blue of the frame (0..1), the audio embedding is a running level (half the old level plus half the mean
absolute sample), and the head "event" scores red, green, blue and loud with them.
"""

from __future__ import annotations

import io
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.bundle import write_bundle
from edge_mbm.spec import (
    Asset,
    AudioModality,
    Classification,
    Decision,
    Embedding,
    Encoder,
    GoldenSample,
    Head,
    ImageModality,
    ImageSteps,
    Input,
    Manifest,
    Output,
    Present,
    State,
    TensorSpec,
    Variant,
    Window,
)

OPSET = 17
GAIN = 8.0


def constant(name: str, value: object, dtype: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def graph(nodes: list, inputs: dict, outputs: dict, constants: list) -> bytes:
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in tensors.items()]
        for tensors in (inputs, outputs)
    ]
    body = helper.make_graph(nodes, "tiny", *infos, constants)
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="edge-mbm"
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def image_encoder() -> bytes:
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["color"]),
    ]
    return graph(
        nodes,
        {"image": (TensorProto.UINT8, ["batch", 8, 8, 3])},
        {"color": (TensorProto.FLOAT, ["batch", 3])},
        [constant("scale", 1 / 255, np.float32)],
    )


def audio_encoder() -> bytes:
    nodes = [
        helper.make_node("Abs", ["samples"], ["absolute"]),
        helper.make_node("ReduceMean", ["absolute"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Add", ["mean", "state"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["level"]),
        helper.make_node("Identity", ["level"], ["next_state"]),
    ]
    return graph(
        nodes,
        {"samples": (TensorProto.FLOAT, ["batch", 100]), "state": (TensorProto.FLOAT, ["batch", 1])},
        {"level": (TensorProto.FLOAT, ["batch", 1]), "next_state": (TensorProto.FLOAT, ["batch", 1])},
        [constant("half", 0.5, np.float32)],
    )


def event_head() -> bytes:
    nodes = [
        helper.make_node("Split", ["present"], ["has_image", "has_audio"], axis=1),
        helper.make_node("Mul", ["color", "has_image"], ["seen"]),
        helper.make_node("Mul", ["level", "has_audio"], ["heard"]),
        helper.make_node("Concat", ["seen", "heard"], ["both"], axis=1),
        helper.make_node("Mul", ["both", "gain"], ["logits"]),
    ]
    return graph(
        nodes,
        {
            "color": (TensorProto.FLOAT, ["batch", 3]),
            "level": (TensorProto.FLOAT, ["batch", 1]),
            "present": (TensorProto.FLOAT, ["batch", 2]),
        },
        {"logits": (TensorProto.FLOAT, ["batch", 4])},
        [constant("gain", GAIN, np.float32)],
    )


def color_head() -> bytes:
    return graph(
        [helper.make_node("Mul", ["color", "gain"], ["logits"])],
        {"color": (TensorProto.FLOAT, ["batch", 3])},
        {"logits": (TensorProto.FLOAT, ["batch", 3])},
        [constant("gain", GAIN, np.float32)],
    )


def floats(*shape: int | str) -> TensorSpec:
    return TensorSpec(dtype="float32", shape=shape)


def variants(name: str) -> dict[str, Variant]:
    reason = "the reference: every other variant is measured against it"
    return {
        "fp32": Variant(
            target="any",
            precision="fp32",
            opset=OPSET,
            graph=f"graphs/{name}.fp32.onnx",
            decision=Decision(kept=True, reason=reason),
        ),
        "x86-cpu-int8": Variant(
            target="x86-cpu",
            precision="int8",
            opset=OPSET,
            decision=Decision(kept=False, reason="there is nothing to quantize in so small a graph"),
        ),
    }


def manifest() -> Manifest:
    color, level = (
        Output(tensor=floats("batch", 3), task=Embedding()),
        Output(tensor=floats("batch", 1), task=Embedding()),
    )
    frame = TensorSpec(dtype="uint8", shape=("batch", 8, 8, 3), layout="NHWC", unit="rgb 0..255")
    return Manifest(
        name="tiny",
        description="Mean colour and loudness: the answers can be computed in the head.",
        modalities={"image": ImageModality(), "audio": AudioModality(sample_rate=1000)},
        components={
            "image_encoder": Encoder(
                inputs={"image": Input(source="image", tensor=frame, preprocess=ImageSteps(height=8, width=8))},
                outputs={"color": color},
                variants=variants("image_encoder"),
            ),
            "audio_encoder": Encoder(
                inputs={"samples": Input(source="audio", tensor=floats("batch", 100))},
                outputs={"level": level},
                states=(State(input="state", output="next_state", tensor=floats("batch", 1)),),
                window=Window(length=100, hop=100),
                variants=variants("audio_encoder"),
            ),
            "event": Head(
                inputs={
                    "color": Input(source="image_encoder.color", tensor=color.tensor),
                    "level": Input(source="audio_encoder.level", tensor=level.tensor),
                },
                outputs={"logits": Output(tensor=floats("batch", 4), task=Classification(labels="events"))},
                pivot="image",
                tolerance_ns={"audio": 200_000_000},
                deadline_ns=300_000_000,
                present=Present(input="present", order=("image", "audio")),
                variants=variants("event"),
            ),
            "color": Head(
                inputs={"color": Input(source="image_encoder.color", tensor=color.tensor)},
                outputs={"logits": Output(tensor=floats("batch", 3), task=Classification(labels="colors"))},
                pivot="image",
                deadline_ns=0,
                variants=variants("color"),
            ),
        },
        default_heads=("event",),
        assets={
            "events": Asset(kind="labels", path="labels/events.txt"),
            "colors": Asset(kind="labels", path="labels/colors.txt"),
        },
        golden=(
            GoldenSample(
                id="green and quiet",
                inputs={"image": "golden/0.image.npy", "audio": "golden/0.audio.npy"},
                outputs={"event.logits": "golden/0.event.logits.npy"},
            ),
        ),
        files={},
    )


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def contents() -> dict[str, bytes]:
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[:, :, 1] = 255
    level = 0.5 * 0.1 + 0.5 * (0.5 * 0.1)  # two windows of 0.1, from a zero state
    return {
        "labels/events.txt": b"red\ngreen\nblue\nloud\n",
        "labels/colors.txt": b"red\ngreen\nblue\n",
        "graphs/image_encoder.fp32.onnx": image_encoder(),
        "graphs/audio_encoder.fp32.onnx": audio_encoder(),
        "graphs/event.fp32.onnx": event_head(),
        "graphs/color.fp32.onnx": color_head(),
        "golden/0.image.npy": npy(frame),
        "golden/0.audio.npy": npy(np.full(200, 0.1, np.float32)),
        "golden/0.event.logits.npy": npy(np.array([[0.0, GAIN, 0.0, GAIN * level]], np.float32)),
    }


if __name__ == "__main__":
    write_bundle(sys.argv[1], manifest(), contents())
