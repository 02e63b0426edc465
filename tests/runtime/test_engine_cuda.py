"""ONNX Runtime's CUDA provider, on a GPU that is not there.

A made-up onnxruntime has the memory of a GPU: what is on it can only be reached by copies, which are counted, and an
input on the host is copied when it is bound, as the real one does (``IOBinding::BindInput`` copies across devices). It
computes with the real onnxruntime on the CPU, so that what comes out can be held against that. **Nothing of this has
run on a GPU.**
"""

from __future__ import annotations

import ctypes
import gc
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_mbm
from edge_mbm import SessionOptions
from edge_mbm.errors import EngineError
from edge_mbm.runtime import OnnxRuntimeEngine
from edge_mbm.runtime import engine as engine_module
from edge_mbm.runtime.backend import CudaBackend
from edge_mbm.runtime.states import HostStates, states_of
from edge_mbm.spec import Component, TensorSpec
from edge_mbm.testing import tiny_bundle

pytestmark = pytest.mark.needs("onnxruntime")
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class DeviceValue:
    """A tensor on the GPU."""

    alive = 0

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._gpu = gpu
        # What is allocated holds whatever was there.
        self.memory = np.full(shape, 99, dtype)
        gpu.allocated += 1
        DeviceValue.alive += 1

    def __del__(self) -> None:
        DeviceValue.alive -= 1

    def update_inplace(self, data: np.ndarray) -> None:
        assert (data.shape, data.dtype) == (self.memory.shape, self.memory.dtype)
        assert data.flags.c_contiguous
        self._gpu.to_device += data.nbytes
        self._gpu.copying = True
        self.memory[...] = data

    def numpy(self) -> np.ndarray:
        self._gpu.to_host += self.memory.nbytes
        return self.memory.copy()


class Binding:
    """What a run reads and writes: device memory, or the host's by its address."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, Callable[[np.ndarray], None]] = {}

    def bind_input(  # noqa: PLR0917 - as the real one
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        self._gpu.to_device += 1
        self.inputs[name] = host_array(element_type, shape, buffer_ptr).copy()  # the trap: as it is now, for ever

    def synchronize_inputs(self) -> None:
        self._gpu.copying = False

    def bind_ortvalue_input(self, name: str, ortvalue: DeviceValue) -> None:
        self.inputs[name] = ortvalue.memory

    def bind_ortvalue_output(self, name: str, ortvalue: DeviceValue) -> None:
        self.outputs[name] = partial(np.copyto, ortvalue.memory)

    def bind_output(  # noqa: PLR0917 - as the real one
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Any = None,
        buffer_ptr: int | None = None,
    ) -> None:
        assert device_type == "cpu"
        assert buffer_ptr is not None
        target = host_array(element_type, shape, buffer_ptr)

        def to_host(value: np.ndarray) -> None:
            self._gpu.to_host += value.nbytes
            target[...] = value

        self.outputs[name] = to_host


def host_array(dtype: Any, shape: Any, address: int) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class Part:
    """Some of a graph's nodes."""

    def __init__(self, ep_name: str) -> None:
        self.ep_name = ep_name


class Gpu:
    """An onnxruntime with a CUDA provider: the module, as ``import_onnxruntime`` gives it.

    Args:
        starts: whether the provider's libraries are found.
        nodes: the providers that a graph's nodes are put on; None for a release that does not say.
    """

    __version__ = "1.24.0"

    def __init__(self, *, starts: bool = True, nodes: tuple[str, ...] | None = (CUDA,)) -> None:
        import onnxruntime

        self.real = onnxruntime
        self.starts, self.nodes = starts, nodes
        self.to_device = self.to_host = self.allocated = 0
        self.copying = False
        """Whether a copy may be on its way."""
        self.asked: list[Any] = []
        self.SessionOptions = onnxruntime.SessionOptions
        gpu = self

        class Session:
            def __init__(
                self, graph: bytes, sess_options: Any = None, providers: Any = None, enable_fallback: int = 1
            ) -> None:
                gpu.asked.append(providers)
                assert enable_fallback == 0
                self._is_cpu = providers == [CPU]
                self._real = onnxruntime.InferenceSession(graph, sess_options, providers=[CPU])
                self.get_inputs, self.get_outputs = self._real.get_inputs, self._real.get_outputs
                if gpu.nodes is not None:
                    self.get_provider_graph_assignment_info = lambda: [Part(name) for name in gpu.nodes or ()]

            def get_providers(self) -> list[str]:
                return [CUDA, CPU] if gpu.starts else [CPU]

            def io_binding(self) -> Any:
                return self._real.io_binding() if self._is_cpu else Binding(gpu)

            def run_with_iobinding(self, binding: Any) -> None:
                if self._is_cpu:
                    self._real.run_with_iobinding(binding)
                    return
                assert not gpu.copying, "a run does not wait for copies"
                names = list(binding.outputs)
                for name, value in zip(names, self._real.run(names, binding.inputs), strict=True):
                    binding.outputs[name](value)

        class OrtValue:
            @staticmethod
            def ortvalue_from_shape_and_type(
                shape: Any, element_type: Any, device_type: str = "cpu", device_id: int = 0
            ) -> DeviceValue:
                assert (device_type, device_id) == ("cuda", 0)
                return DeviceValue(gpu, shape, element_type)

        self.InferenceSession = Session
        self.OrtValue = OrtValue

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Gpu], Gpu]:
    """Put a made-up onnxruntime in place of the device's."""

    def put(gpu: Gpu) -> Gpu:
        monkeypatch.setattr(engine_module, "import_onnxruntime", lambda: gpu)
        return gpu

    return put


def part(name: str) -> tuple[str, Component, bytes]:
    with edge_mbm.load(tiny_bundle()) as bundle:
        component = bundle.manifest.components[name]
        return name, component, bundle.read(component.variants["fp32"].graph or "")


def on_cuda(name: str, gpu: Gpu) -> OnnxRuntimeEngine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "import_onnxruntime", lambda: gpu)
        return OnnxRuntimeEngine(*part(name), provider=CUDA)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["run", "hold"]), st.floats(-1, 1, width=32)),
        st.tuples(st.sampled_from(["reset", "save", "restore", "run again"]), st.just(0.0)),
    ),
    max_size=20,
)


class Lane:
    """An engine, its states, and what was saved of them."""

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        self._engine = engine
        self._states = states_of(engine, part("audio_encoder")[1].states)
        self._saved = self._states.save()

    def act(self, action: str, value: float) -> np.ndarray | None:
        """One call, and what it gave."""
        samples = {"samples": np.full((1, 100), value, np.float32)}
        if action.startswith("run"):
            outputs = self._engine.run(samples if action == "run" else {})
            self._states.carry(outputs)
            return outputs["level"].copy()
        if action == "save":
            self._saved = self._states.save()
        else:
            calls = {"reset": [], "hold": [samples], "restore": [self._saved]}
            getattr(self._states, action)(*calls[action])
        return None

    @property
    def state(self) -> dict[str, list[Any]]:
        return {key: value.tolist() for key, value in self._states.save().items()}


@settings(deadline=None, max_examples=50)
@given(ACTIONS)
def test_every_sequence_of_calls_gives_what_the_cpu_gives(actions: list[tuple[str, float]]) -> None:
    """Runs with new inputs, held ones or the old ones; states carried, reset, saved and restored: bit for bit."""
    gpu, cpu = Lane(on_cuda("audio_encoder", Gpu())), Lane(OnnxRuntimeEngine(*part("audio_encoder")))
    for action, value in actions:
        np.testing.assert_array_equal(gpu.act(action, value), cpu.act(action, value))
        assert gpu.state == cpu.state


def test_what_is_written_into_a_buffer_counts(use: Callable[[Gpu], Gpu]) -> None:
    """As preprocessing does it: the second frame is computed, not the first again."""
    use(Gpu())
    engine = OnnxRuntimeEngine(*part("image_encoder"), provider=CUDA)
    for green in (255, 51):
        engine.inputs["image"][..., 1] = green
        np.testing.assert_allclose(engine.run({})["color"], [[0, green / 255, 0]], atol=1e-6)


def test_states_stay_on_the_gpu(use: Callable[[Gpu], Gpu]) -> None:
    """A run copies its inputs there and its outputs back, and nothing else; nothing is allocated after loading."""
    gpu = use(Gpu())
    engine = OnnxRuntimeEngine(*part("audio_encoder"), provider=CUDA)
    assert engine.states is not None
    assert set(engine.inputs) == {"samples"}
    gpu.to_device = gpu.to_host = 0
    before = gpu.allocated
    for _ in range(10):
        engine.states.carry(engine.run({}))
    assert (gpu.to_device, gpu.to_host) == (10 * 100 * 4, 10 * 4)
    assert gpu.allocated == before


def test_what_is_held_is_copied_once(use: Callable[[Gpu], Gpu]) -> None:
    """What a decoder reads throughout a text crosses once, however many tokens it has; another one replaces it."""
    gpu = use(Gpu())
    engine = OnnxRuntimeEngine(*part("audio_encoder"), provider=CUDA)
    gpu.to_device = 0
    for value, level in ((0.5, 0.25), (1.0, 0.5)):
        states_of(engine, ()).hold({"samples": np.full((1, 100), value, np.float32)})
        for _ in range(5):
            np.testing.assert_allclose(engine.run({})["level"], [[level]], atol=1e-6)
    assert gpu.to_device == 2 * 100 * 4
    engine.run({"samples": np.zeros((1, 100), np.float32)})  # given by hand, it counts too
    assert not engine.run({})["level"].any()


def test_a_state_that_is_an_output_too_is_shown(use: Callable[[Gpu], Gpu]) -> None:
    """Whoever reads it finds it on the host; it is carried all the same."""
    name, component, graph = part("audio_encoder")
    [state] = component.states
    shown = msgspec.structs.replace(component.outputs["level"], tensor=state.tensor)
    both = msgspec.structs.replace(component, outputs=component.outputs | {state.output: shown})
    use(Gpu())
    engine = OnnxRuntimeEngine(name, both, graph, provider=CUDA)
    cpu = OnnxRuntimeEngine.__new__(OnnxRuntimeEngine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "import_onnxruntime", lambda: Gpu().real)
        cpu.__init__(name, component, graph)  # type: ignore[misc]
    carried = HostStates(cpu, component.states)
    for value in (0.5, -0.25, 0.75):
        given_now = {"samples": np.full((1, 100), value, np.float32)}
        outputs, expected = engine.run(given_now), cpu.run(given_now)
        np.testing.assert_array_equal(outputs[state.output], expected[state.output])
        states_of(engine, both.states).carry(outputs)
        carried.carry(expected)


def test_a_session_gives_the_cpus_results() -> None:
    """A whole bundle, pictures and sound, streamed: the same labels and scores, and results say what computed them."""
    found = [list(streamed(loader)) for loader in (None, on_cuda_loader(Gpu()))]
    assert len(found[0]) > 3
    assert [f[:2] for f in found[0]] == [f[:2] for f in found[1]]
    assert {f[2] for f in found[1]} == {CUDA}


def on_cuda_loader(gpu: Gpu) -> Callable[..., OnnxRuntimeEngine]:
    def load(name: str, component: Component, graph: bytes) -> OnnxRuntimeEngine:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_module, "import_onnxruntime", lambda: gpu)
            return OnnxRuntimeEngine(name, component, graph, provider=CUDA)

    return load


def streamed(load: Any) -> Any:
    chance = np.random.default_rng(3)
    with edge_mbm.load(tiny_bundle()) as bundle, bundle.session(load_engine=load) as session:
        for tick in range(10):
            now = tick * 100_000_000
            session.push("audio", chance.uniform(-1, 1, 100).astype(np.float32), now)
            session.push("image", chance.integers(0, 256, (8, 8, 3), np.uint8), now + 100_000_000)
            for result in session.poll(now + 100_000_000):
                yield result.output.label, result.output.score, result.provider


# --- no silent fallback ----------------------------------------------------------------------------------------------


def test_a_build_without_cuda_is_an_error() -> None:
    """The real onnxruntime of this machine, which would compute on the CPU; the message says what to install."""
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(
        EngineError, match=r"'event' was to run on CUDAExecutionProvider.*built without.*onnxruntime-gpu"
    ):
        OnnxRuntimeEngine(*part("event"), provider=CUDA)


def test_a_provider_that_is_not_known_is_an_error(use: Callable[[Gpu], Gpu]) -> None:
    """Its memory would not be what the buffers are made for."""
    use(Gpu())
    with pytest.raises(EngineError, match=r"'event' was to run on TensorrtExecutionProvider; .*are known"):
        OnnxRuntimeEngine(*part("event"), provider="TensorrtExecutionProvider")


def test_a_provider_that_does_not_start_is_an_error(use: Callable[[Gpu], Gpu]) -> None:
    """As with a cuDNN of another version: onnxruntime goes on without it, and without an error."""
    use(Gpu(starts=False))
    with pytest.raises(EngineError, match=r"'event'.*did not start.*cuDNN.*edge-mbm doctor"):
        OnnxRuntimeEngine(*part("event"), provider=CUDA)


def test_a_graph_of_which_nothing_is_on_the_gpu_is_an_error(use: Callable[[Gpu], Gpu]) -> None:
    """The provider is there, and has no kernel for any node."""
    use(Gpu(nodes=(CPU, CPU)))
    with pytest.raises(EngineError, match=r"'event'.*kernel for none of its nodes.*CPUExecutionProvider"):
        OnnxRuntimeEngine(*part("event"), provider=CUDA)


@pytest.mark.parametrize(
    ("nodes", "provider"),
    [((CUDA, CUDA), CUDA), ((CUDA, CPU, CUDA), f"{CUDA}+{CPU}"), (None, CUDA)],
)
def test_the_provider_names_where_the_nodes_are(
    use: Callable[[Gpu], Gpu], nodes: tuple[str, ...] | None, provider: str
) -> None:
    """Some nodes on the CPU are said in every result; a release that does not tell is taken at its word."""
    gpu = use(Gpu(nodes=nodes))
    assert OnnxRuntimeEngine(*part("event"), provider=CUDA).provider == provider
    assert gpu.asked == [[(CUDA, {"use_tf32": "0"})]]


def test_wrong_inputs_are_refused_as_on_the_cpu(use: Callable[[Gpu], Gpu]) -> None:
    """Shapes, dtypes and names; a state of a wrong shape too."""
    use(Gpu())
    engine = OnnxRuntimeEngine(*part("audio_encoder"), provider=CUDA)
    with pytest.raises(EngineError, match="has no input 'smell'"):
        engine.run({"smell": np.zeros(1, np.float32)})
    for key, value in (("samples", np.zeros((1, 3), np.float32)), ("state", np.zeros((1, 2), np.float32))):
        with pytest.raises(EngineError, match=f"input '{key}' of 'audio_encoder' is float32"):
            engine.run({key: value})


def test_a_graph_of_another_shape_is_refused(use: Callable[[Gpu], Gpu]) -> None:
    """Before anything is bound."""
    gpu = use(Gpu())
    name, component, graph = part("event")
    spec = TensorSpec(dtype="float32", shape=("batch", 4))
    lying = msgspec.structs.replace(
        component, inputs=component.inputs | {"color": msgspec.structs.replace(component.inputs["color"], tensor=spec)}
    )
    with pytest.raises(EngineError, match="event"):
        OnnxRuntimeEngine(name, lying, graph, provider=CUDA)
    assert gpu.allocated == 0


def test_closing_frees_the_gpus_memory(use: Callable[[Gpu], Gpu]) -> None:
    """Whoever still holds the engine or its states."""
    use(Gpu())
    engine = OnnxRuntimeEngine(*part("audio_encoder"), provider=CUDA)
    states = engine.states
    before = DeviceValue.alive
    engine.close()
    gc.collect()
    assert before - DeviceValue.alive == 3
    assert states is engine.states
    with pytest.raises(EngineError, match="closed"):
        engine.run({})


def test_the_made_up_onnxruntime_takes_what_the_real_one_takes() -> None:
    """Its calls have the real one's names and parameters, so that what passes here is not refused there."""
    import onnxruntime

    gpu = Gpu()
    for fake, real in (
        (Binding, onnxruntime.IOBinding),
        (DeviceValue, onnxruntime.OrtValue),
        (gpu.OrtValue, onnxruntime.OrtValue),
        (gpu.InferenceSession, onnxruntime.InferenceSession),
    ):
        for name, method in vars(fake).items():
            if not name.startswith("_") and callable(getattr(fake, name)):
                plain = method.__func__ if isinstance(method, staticmethod) else method
                mine = [key for key in inspect.signature(plain).parameters if key != "self"]
                theirs = list(inspect.signature(getattr(real, name)).parameters)
                theirs = [key for key in theirs if key not in ("self", "cls")]
                # run_with_iobinding's and update_inplace's first are given by place.
                assert mine == theirs[: len(mine)] or len(mine) == 1, (fake, name, mine, theirs)


def test_the_real_onnxruntime_says_where_nodes_are() -> None:
    """With the session's options as they are for CUDA; releases that cannot say are known by that."""
    import onnxruntime

    options = engine_module._session_options(onnxruntime, 1, CUDA)
    session = onnxruntime.InferenceSession(part("event")[2], options, providers=[CPU])
    says = hasattr(session, "get_provider_graph_assignment_info")
    assert engine_module._providers_of_nodes(session) == ({CPU} if says else None)


# --- behind a session's option ---------------------------------------------------------------------------------------

ON_CUDA = SessionOptions(provider="cuda")


def test_a_session_is_told_to_run_on_cuda(use: Callable[[Gpu], Gpu]) -> None:
    """By an option, the same as on the command line; each component of it does."""
    use(Gpu())
    with edge_mbm.load(tiny_bundle()) as bundle, bundle.session(ON_CUDA) as session:
        assert {engine.provider for engine in session.engines.values()} == {CUDA}
        [result] = session.infer(image=np.full((8, 8, 3), (0, 255, 0), np.uint8))
        assert (result.output.label, result.provider) == ("green", CUDA)


def test_the_cpu_is_used_instead_only_where_that_is_allowed(
    use: Callable[[Gpu], Gpu], caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise it is an error; where it is allowed, the log and every result say so."""
    gpu = use(Gpu(starts=False))
    with edge_mbm.load(tiny_bundle()) as bundle:
        with pytest.raises(EngineError, match="did not start"):
            bundle.session(ON_CUDA)
        allowed = replace(ON_CUDA, allow_fallback=True)
        with bundle.session(allowed) as session:
            [result] = session.infer(image=np.full((8, 8, 3), (0, 255, 0), np.uint8))
    assert (result.output.label, result.provider) == ("green", CPU)
    assert "'event' cannot run on CUDA" in caplog.text
    assert gpu.allocated == 0


def test_only_graphs_for_any_target_are_chosen() -> None:
    """What is fastest on a kind of CPU, in 8 bits, is not on a GPU; a name that CUDA cannot run is fp32 instead."""
    with edge_mbm.load(tiny_bundle()) as bundle:
        manifest = bundle.manifest
    component = manifest.components["event"]
    plain = component.variants["fp32"]
    for target in ("x86-cpu", "arm-cpu"):
        fast = msgspec.structs.replace(plain, target=target)
        both = msgspec.structs.replace(component, variants={"fp32": plain, "int8": fast})
        changed = msgspec.structs.replace(manifest, components=manifest.components | {"event": both})
        for wanted in ("auto", "int8", "fp32"):
            assert CudaBackend().choose(changed, "event", wanted) == "fp32"
