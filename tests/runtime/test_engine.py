"""Every engine behaves the same at its seam; the suite runs over the null engine and ONNX Runtime."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edge_mbm
from edge_mbm.errors import BundleIntegrityError, EdgeMbmError, EngineError, MissingDependencyError
from edge_mbm.runtime import Engine, EngineLoader, OnnxRuntimeEngine
from edge_mbm.spec import Component, TensorSpec
from edge_mbm.testing import NullEngine, tiny_bundle

LOADERS = [
    pytest.param(NullEngine, id="null"),
    pytest.param(OnnxRuntimeEngine, id="onnxruntime", marks=pytest.mark.needs("onnxruntime")),
]


def part(name: str) -> tuple[str, Component, bytes]:
    with edge_mbm.load(tiny_bundle()) as bundle:
        component = bundle.manifest.components[name]
        return name, component, bundle.read(component.variants["fp32"].graph or "")


@pytest.fixture(params=LOADERS)
def load(request: pytest.FixtureRequest) -> EngineLoader:
    return request.param


@pytest.fixture
def engine(load: EngineLoader) -> Engine:
    return load(*part("event"))


def test_buffers_have_the_manifests_names_shapes_and_dtypes(load: EngineLoader) -> None:
    """Inputs, states and the present mask, each with its named dimensions at 1."""
    head, audio, image = (load(*part(name)) for name in ("event", "audio_encoder", "image_encoder"))
    assert {k: v.shape for k, v in head.inputs.items()} == {"color": (1, 3), "level": (1, 1), "present": (1, 2)}
    assert {k: v.shape for k, v in audio.inputs.items()} == {"samples": (1, 100), "state": (1, 1)}
    assert image.inputs["image"].dtype == np.uint8
    assert audio.run({}).keys() == {"level", "next_state"}


def test_buffers_are_the_same_from_run_to_run(engine: Engine) -> None:
    """Outputs are the engine's own memory, used again; inputs too."""
    inputs, outputs = dict(engine.inputs), dict(engine.run({}))
    for key, value in engine.run({"level": np.ones((1, 1), np.float32)}).items():
        assert value is outputs[key]
    assert all(engine.inputs[key] is value for key, value in inputs.items())


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts an onnxruntime in the way that ends its import with this line."""

    def put(line: str) -> None:
        (tmp_path / "onnxruntime.py").write_text(line)
        monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    return put


def test_a_ctrl_c_while_onnxruntime_is_imported_is_one(broken: Callable[[str], None]) -> None:
    """That takes 0.2 s, and pybind11 wraps it in an ImportError, which is no word of a missing module."""
    broken("raise ImportError('initialization failed') from KeyboardInterrupt()")
    with pytest.raises(KeyboardInterrupt):
        OnnxRuntimeEngine(*part("event"))


def test_an_onnxruntime_that_cannot_be_imported_is_not_called_missing(broken: Callable[[str], None]) -> None:
    """What its loader said is in the message."""
    broken("raise ImportError('libcudart.so.12: cannot open shared object file')")
    with pytest.raises(EngineError, match=r"is installed.*libcudart\.so\.12.*doctor"):
        OnnxRuntimeEngine(*part("event"))


@pytest.mark.needs("onnxruntime")
def test_closing_it_in_the_midst_of_a_run_lets_the_run_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another thread, or a signal handler: the outputs are those of that run; the next run says that it closed."""
    engine = OnnxRuntimeEngine(*part("event"))
    buffers = engine._buffers
    assert buffers is not None
    run = buffers.run

    def run_and_close() -> None:
        run()
        engine.close()

    monkeypatch.setattr(buffers, "run", run_and_close)
    assert engine.run({}) is buffers.outputs
    with pytest.raises(EngineError, match="after it was closed"):
        engine.run({})


def test_inputs_not_given_keep_their_value(engine: Engine) -> None:
    """What was written stays, whether it was given to ``run`` or written into the buffer."""
    engine.run({"level": np.full((1, 1), 3, np.float32)})
    engine.inputs["color"][...] = 2
    engine.run({})
    assert engine.inputs["level"].item() == 3
    assert (engine.inputs["color"] == 2).all()
    engine.run({"color": engine.inputs["color"]})
    assert (engine.inputs["color"] == 2).all()


@pytest.mark.parametrize(
    "value",
    [np.zeros((1, 4), np.float32), np.zeros(3, np.float32), np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float64)],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_a_wrong_shape_or_dtype_is_refused(engine: Engine, value: np.ndarray) -> None:
    """Nothing is broadcast or cast in silence; the message has the input's name and what it takes."""
    with pytest.raises(EngineError, match=r"'color' of 'event' is float32\[1, 3\]"):
        engine.run({"color": value})


def test_an_unknown_input_is_refused(engine: Engine) -> None:
    """By name, with the names there are."""
    with pytest.raises(EngineError, match=r"no input 'smell'.*color"):
        engine.run({"smell": np.zeros((1, 3), np.float32)})


def test_running_after_close_is_refused(engine: Engine) -> None:
    """Closing twice is fine, running then is not."""
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({})


def test_the_provider_has_a_name(engine: Engine) -> None:
    """Results say what computed them."""
    assert engine.provider


# --- the null engine -------------------------------------------------------------------------------------------------


def test_the_null_engine_computes_what_a_test_says() -> None:
    """``compute`` fills the outputs, and what it raises comes out."""

    def double(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        outputs["logits"][:, 0] = 2 * inputs["level"][:, 0]

    name, component, _ = part("event")
    engine = NullEngine(name, component, compute=double)
    assert engine.run({"level": np.full((1, 1), 4, np.float32)})["logits"][0, 0] == 8
    assert engine.runs == 1


# --- ONNX Runtime ----------------------------------------------------------------------------------------------------


@pytest.mark.needs("onnxruntime")
def test_onnxruntime_computes_what_can_be_computed_in_the_head() -> None:
    """The mean colour, the running level, and the head's scores from them."""
    image, audio, head = (OnnxRuntimeEngine(*part(n)) for n in ("image_encoder", "audio_encoder", "event"))
    frame = np.zeros((1, 8, 8, 3), np.uint8)
    frame[:, :4, :, 1] = 255
    color = image.run({"image": frame})["color"].copy()
    np.testing.assert_allclose(color, [[0, 0.5, 0]], atol=1e-6)
    level = audio.run({"samples": np.full((1, 100), -0.5, np.float32)})["level"].copy()
    np.testing.assert_allclose(level, [[0.25]], atol=1e-6)
    present = np.array([[1, 0]], np.float32)
    np.testing.assert_allclose(
        head.run({"color": color, "level": level, "present": present})["logits"], [[0, 4, 0, 0]], atol=1e-5
    )


@pytest.mark.needs("onnxruntime")
def test_the_first_run_is_done_on_loading_and_leaves_zero_states() -> None:
    """Planning memory does not wait for the first frame, and does not touch a carried state."""
    engine = OnnxRuntimeEngine(*part("audio_encoder"))
    assert not engine.inputs["state"].any()


@pytest.mark.needs("onnxruntime")
def test_a_corrupt_graph_is_an_engine_or_integrity_error() -> None:
    """Empty, cut short, another format, or a hundred random edits: never another exception."""
    name, component, graph = part("event")
    for bad in (b"", graph[: len(graph) // 2], b"hello", b"\0" * 100):
        with pytest.raises((EngineError, BundleIntegrityError), match="event"):
            OnnxRuntimeEngine(name, component, bad)
    chance = random.Random(5)
    for _ in range(100):
        data = bytearray(graph)
        data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            OnnxRuntimeEngine(name, component, bytes(data))
        except EdgeMbmError:
            continue


@pytest.mark.needs("onnxruntime")
def test_a_graph_of_another_component_is_refused() -> None:
    """Names of inputs and outputs must be the manifest's; both lists are in the message."""
    name, component, _ = part("event")
    with pytest.raises(EngineError, match=r"'event' has the inputs \['image'\].*'color', 'level', 'present'"):
        OnnxRuntimeEngine(name, component, part("image_encoder")[2])


@pytest.mark.needs("onnxruntime")
@pytest.mark.parametrize(
    ("where", "spec"),
    [
        ("inputs", TensorSpec(dtype="float32", shape=("batch", 4))),
        ("inputs", TensorSpec(dtype="float16", shape=("batch", 3))),
        ("inputs", TensorSpec(dtype="float32", shape=("batch", 3, 1))),
        ("outputs", TensorSpec(dtype="float32", shape=("batch", 3))),
        ("outputs", TensorSpec(dtype="float32", shape=("batch", 5))),
        ("outputs", TensorSpec(dtype="int64", shape=("batch", 4))),
        ("outputs", TensorSpec(dtype="float32", shape=("batch", 2, 2))),
    ],
)
def test_a_graph_of_another_shape_is_refused_on_loading(where: str, spec: TensorSpec) -> None:
    """A manifest that lies about a size, rank or dtype is caught before the first sample, not in memory."""
    name, component, graph = part("event")
    key = "color" if where == "inputs" else "logits"
    changed = msgspec.structs.replace(getattr(component, where)[key], tensor=spec)
    lying = msgspec.structs.replace(component, **{where: getattr(component, where) | {key: changed}})
    with pytest.raises(EngineError, match="event"):
        OnnxRuntimeEngine(name, lying, graph)


def test_without_onnxruntime_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading names the module and the line to type, the Jetson's included."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"'onnxruntime'.*pip install 'edge-mbm\[cpu\]'.*Jetson"):
        OnnxRuntimeEngine(*part("event"))
