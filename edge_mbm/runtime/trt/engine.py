"""A TensorRT engine at work, as the runtime's ``Engine``."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import DeviceLostError, EngineError
from edge_mbm.runtime.engine import Arrays
from edge_mbm.runtime.log import warn
from edge_mbm.runtime.states import States
from edge_mbm.runtime.trt.memory import DeviceStates, Loaded, free, kept_states
from edge_mbm.runtime.trt.place import Place
from edge_mbm.runtime.trt.release import Said
from edge_mbm.spec import Component, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EngineOptions", "TensorRTEngine"]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
"""TensorRT's types by numpy's names."""
_ERRORS_KEPT = 3


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs.

    Args:
        use_graph: whether its work is captured once as a CUDA graph and replayed: shapes are fixed here.
        mapped: whether the GPU reads and writes the host's buffers in place; None where it shares their memory, as a
            Jetson's does.
        dla_core: of an engine that was built for the DLA, on which of its cores it runs, counted round; None for
            one of the GPU.
    """

    use_graph: bool = True
    mapped: bool | None = None
    dla_core: int | None = None


class TensorRTEngine:
    """A component on TensorRT: buffers allocated and bound once, one stream, its work replayed as a CUDA graph.

    ``inputs`` and the outputs are page-locked host memory. Each call queues the copies in, the engine and the copies
    out (on an integrated GPU only the engine, which works in place), and waits for its own stream alone; other
    components' streams go on meanwhile. States that only the next run reads stay on the GPU, and are no ``inputs``.

    Args:
        name: the component's, for messages.
        component: its manifest entry; the engine's tensors are checked against it.
        plan: the engine, as this very TensorRT built it for this GPU.
        place: TensorRT, and the GPU, which is here.
        options: see ``EngineOptions``.

    Raises:
        EngineError: it does not load here, is not what the manifest describes, or memory ran out.
        DeviceLostError: the GPU does not answer any more.
    """

    def __init__(
        self,
        name: str,
        component: Component,
        plan: bytes,
        place: Place,
        options: EngineOptions | None = None,
    ) -> None:
        assert place.cuda is not None
        options = options or EngineOptions()
        self._name, self._component = name, component
        self._cuda, self._release = place.cuda, place.release
        self._use_graph = options.use_graph
        self._mapped = place.gpu.is_integrated if options.mapped is None else options.mapped
        self._lock = threading.Lock()
        self._said: list[str] = []
        self._closed = False
        self._held: frozenset[str] = frozenset()
        self.provider = "TensorRT-RTX" if self._release.kind == "rtx" else "TensorRT"
        if options.dla_core is not None:
            self.provider += " DLA"
        loaded = self._loaded = Loaded()
        # Also where nobody closes it: pycuda leaks what is freed while another context is current.
        self._free = weakref.finalize(self, free, self._cuda, loaded)
        try:
            with self._cuda.current(), self._explain("load"):
                self._load(plan, options.dla_core)
                self._allocate()
                self._warm_up()
            if self.states is not None:
                self.states.reset()
        except BaseException:
            self._free()
            raise

    @property
    def inputs(self) -> Arrays:
        """See ``Engine.inputs``."""
        return self._loaded.inputs

    @property
    def states(self) -> States | None:
        """How its states are carried: on the GPU; None where they are ``inputs``, in memory that host and GPU share."""
        if self._mapped:
            return None
        return DeviceStates(self._component, self._cuda, self._loaded, guard=self._guard, hold=self.hold)

    @property
    def replays(self) -> bool:
        """Whether its work is replayed as a CUDA graph."""
        return self._loaded.graph is not None

    def describe_layers(self) -> str:
        """What TensorRT's inspector says of its layers, as JSON; megabytes, of a large engine."""
        with self._cuda.current():
            return self._release.layers_json(self._loaded.engine)

    @property
    def device_us(self) -> float:
        """What the last call took on the GPU, copies included, microseconds; by CUDA's events."""
        with self._cuda.current():
            return float(self._loaded.end.time_since(self._loaded.start)) * 1000

    def run(self, inputs: Arrays) -> Arrays:
        """See ``Engine.run``.

        Raises:
            EngineError: see ``Engine.run``.
            DeviceLostError: the GPU does not answer any more; the engine is closed.
        """
        with self._guard("run"):
            self._take(inputs, self._held & inputs.keys())
            self._run()
            return self._loaded.outputs

    def close(self) -> None:
        """See ``Engine.close``; from any thread, and while another one runs it, which it waits for."""
        with self._lock:
            self._close()

    # --- inside ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _guard(self, action: str) -> Iterator[None]:
        """Alone, and with the context current; a GPU that is lost closes the engine."""
        with self._lock:
            if self._closed:
                raise EngineError(f"'{self._name}' was run after it was closed")
            try:
                with self._cuda.current(), self._explain(action):
                    yield
            except DeviceLostError:
                self._close()
                raise

    def _take(self, inputs: Arrays, now: Collection[str]) -> None:
        """Into the host's buffers; ``now`` also to the GPU, since no run copies them."""
        for key, value in inputs.items():
            self._write(key, value)
        for key in now:
            self._cuda.driver.memcpy_htod_async(self._loaded.device[key], self._loaded.inputs[key], self._loaded.stream)

    def hold(self, inputs: Arrays) -> None:
        """See ``States.hold``: copied now, and no more by runs, for which these are taken down anew once."""
        with self._guard("hold inputs of"):
            self._take(inputs, inputs.keys())
            self._loaded.stream.synchronize()
            if not self._held >= inputs.keys():
                self._held |= inputs.keys()
                self._capture_again()

    def _close(self) -> None:
        self._closed = True
        self._free()

    def _load(self, plan: bytes, dla_core: int | None) -> None:
        loaded, release = self._loaded, self._release
        loaded.runtime = release.trt.Runtime(release.logger(_listener(self._said)))
        loaded.engine = release.deserialize(loaded.runtime, plan, dla_core)
        if loaded.engine is None:
            raise EngineError(
                f"{release} does not take the engine of '{self._name}'{self._why()}: edge-mbm compile builds it"
            )
        loaded.context = loaded.engine.create_execution_context()
        if loaded.context is None:
            raise EngineError(f"'{self._name}' cannot be run{self._why()}: free memory on the GPU")

    def _allocate(self) -> None:
        loaded, engine, component = self._loaded, self._loaded.engine, self._component
        kept = () if self._mapped else kept_states(component)
        hidden = {name for state in kept for name in (state.input, state.output)}
        specs = {"inputs": component.graph_inputs(), "outputs": component.graph_outputs()}
        self._check_tensors(engine, specs)
        loaded.stream = self._cuda.stream()
        loaded.start, loaded.end = self._cuda.driver.Event(), self._cuda.driver.Event()
        for key, spec in specs["inputs"].items():
            loaded.context.set_input_shape(key, spec.resolve())
        for place, kind in ((loaded.inputs, "inputs"), (loaded.outputs, "outputs")):
            for key, spec in specs[kind].items():
                if key not in hidden:
                    place[key] = self._cuda.host_array(spec.resolve(), spec.dtype, mapped=self._mapped)
                self._bind(key, spec, place.get(key))

    def _bind(self, key: str, spec: TensorSpec, array: NDArray[Any] | None) -> None:
        """Memory of the GPU for a tensor, once and for all: the host's own, or some for it."""
        if self._mapped and array is not None:
            address = self._cuda.address_of(array)
        else:
            size = int(np.prod(spec.resolve())) * np.dtype(spec.dtype).itemsize
            self._loaded.device[key] = self._cuda.driver.mem_alloc(size)
            address = int(self._loaded.device[key])
        if not self._loaded.context.set_tensor_address(key, address):
            raise EngineError(f"'{key}' of '{self._name}' cannot be bound{self._why()}")

    def _check_tensors(self, engine: Any, specs: Mapping[str, Mapping[str, TensorSpec]]) -> None:
        """Names, types and fixed sizes, both ways."""
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) == self._release.trt.TensorIOMode.INPUT for name in names}
        for kind, expected in specs.items():
            found = {name for name, is_input in modes.items() if is_input == (kind == "inputs")}
            if found != set(expected):
                raise EngineError(
                    f"the engine of '{self._name}' has the {kind} {sorted(found)}, the manifest says "
                    f"{sorted(expected)}: export the bundle again"
                )
            for key, spec in expected.items():
                self._check_tensor(engine, key, spec)

    def _check_tensor(self, engine: Any, key: str, spec: TensorSpec) -> None:
        dtype = engine.get_tensor_dtype(key).name
        shape = tuple(engine.get_tensor_shape(key))
        sizes = zip(shape, spec.resolve(), strict=False)
        fits = len(shape) == len(spec.shape) and all(a in (-1, b) for a, b in sizes)
        if _DTYPES.get(dtype) != spec.dtype or not fits:
            raise EngineError(
                f"'{key}' of '{self._name}' is {dtype}{list(shape)} in the engine, {spec.dtype}{list(spec.shape)} in "
                "the manifest" + (": TensorRT before 10 has no int64" if spec.dtype == "int64" else "")
            )

    def _warm_up(self) -> None:
        """The first run loads kernels, which cannot be captured; the second is taken down."""
        self._enqueue()
        self._loaded.stream.synchronize()
        if self._use_graph:
            self._capture()
        self._run()

    def _capture(self) -> None:
        """Some engines cannot be captured (loops whose end the data decides): those are queued anew for each call."""
        graphs, handle = self._cuda.graphs, self._loaded.stream.handle
        graphs.begin(handle)
        try:
            self._enqueue()
        except EngineError:
            with suppress(EngineError):
                graphs.destroy(graphs.end(handle))
            warn(__name__, "'%s' runs without a CUDA graph: it cannot be captured", self._name)
            return
        try:
            self._loaded.graph = graphs.end(handle)
        except EngineError as error:
            warn(__name__, "'%s' runs without a CUDA graph: %s", self._name, error)

    def _capture_again(self) -> None:
        """Other inputs are held: the graph has copies that are not wanted."""
        graph, self._loaded.graph = self._loaded.graph, None
        if graph is not None:
            self._cuda.graphs.destroy(graph)
            self._capture()

    def _run(self) -> None:
        loaded = self._loaded
        loaded.start.record(loaded.stream)
        if loaded.graph is not None:
            self._cuda.graphs.launch(loaded.graph, loaded.stream.handle)
        else:
            self._enqueue()
        loaded.end.record(loaded.stream)
        loaded.stream.synchronize()

    def _enqueue(self) -> None:
        """The copies in, the engine, the copies out: in this order on its stream."""
        driver, loaded, stream = self._cuda.driver, self._loaded, self._loaded.stream
        for key, array in loaded.inputs.items():
            if key in loaded.device and key not in self._held:
                driver.memcpy_htod_async(loaded.device[key], array, stream)
        if not loaded.context.execute_async_v3(stream.handle):
            raise EngineError(f"TensorRT could not run '{self._name}'{self._why()}")
        for key, array in loaded.outputs.items():
            if key in loaded.device:
                driver.memcpy_dtoh_async(array, loaded.device[key], stream)

    def _write(self, key: str, value: NDArray[Any]) -> None:
        buffer = self._loaded.inputs.get(key)
        if buffer is None:
            raise EngineError(f"'{self._name}' has no input '{key}'; it has {sorted(self._loaded.inputs)}")
        if value is buffer:
            return
        if value.shape != buffer.shape or value.dtype != buffer.dtype:
            raise EngineError(
                f"input '{key}' of '{self._name}' is {buffer.dtype}{list(buffer.shape)}, "
                f"got {value.dtype}{list(value.shape)}"
            )
        np.copyto(buffer, value)

    @contextmanager
    def _explain(self, action: str) -> Iterator[None]:
        self._said.clear()
        with self._cuda.explain(f"{action} '{self._name}'"):
            yield

    def _why(self) -> str:
        return f" ({'; '.join(self._said)})" if self._said else ""


def _listener(said: list[str]) -> Said:
    """Keeps the last errors. Not a method: TensorRT would keep the engine alive that it is part of."""

    def listen(severity: str, message: str) -> None:
        if severity != "warning":
            said[:] = [*said, message][-_ERRORS_KEPT:]

    return listen
