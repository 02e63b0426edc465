"""One component loaded on one backend."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_mbm.errors import EdgeMbmError, EngineError, MissingDependencyError
from edge_mbm.runtime.onnx_guard import refuse_external_data
from edge_mbm.spec import Component

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Engine", "EngineLoader", "OnnxRuntimeEngine", "import_onnxruntime"]

Arrays = Mapping[str, "NDArray[Any]"]
# Where ONNX Runtime's name for a dtype is not numpy's.
_ORT_TYPES = {"float32": "float"}


class Engine(Protocol):
    """Named inputs in, named outputs out, batch 1.

    A protocol because it is where backends differ (ONNX Runtime, TensorRT, the fakes in ``edge_mbm.testing``).
    Buffers belong to the engine and are used again by the next call: copy what you keep. Not thread-safe.
    """

    @property
    def provider(self) -> str:
        """What executes it, by its backend's name ("CPUExecutionProvider")."""
        ...

    @property
    def inputs(self) -> Arrays:
        """The input buffers by tensor name; writing into one saves a copy."""
        ...

    def run(self, inputs: Arrays) -> Arrays:
        """Compute the outputs; inputs not given keep what their buffer holds.

        Raises:
            EngineError: the backend failed, or an input is unknown or of the wrong shape or dtype.
        """
        ...

    def close(self) -> None:
        """Free it; running it afterwards is an error."""
        ...


class EngineLoader(Protocol):
    """Makes the engine of one component from the bytes of its graph."""

    def __call__(self, name: str, component: Component, graph: bytes) -> Engine:
        """Load; raises EngineError when it cannot."""
        ...


class OnnxRuntimeEngine:
    """A component on ONNX Runtime's CPU provider, its buffers bound once.

    Threads are explicit and never spin: a spinning pool triples the CPU time of a pipeline that mostly waits.

    Args:
        name: the component's name, for messages.
        component: its manifest entry; the graph's inputs and outputs are checked against it.
        graph: the ONNX model, weights inside.
        threads: intra-op threads.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineError: the graph does not load, or is not what the manifest describes.
        BundleIntegrityError: the graph refers to files outside the bundle.
    """

    provider = "CPUExecutionProvider"

    def __init__(self, name: str, component: Component, graph: bytes, *, threads: int = 1) -> None:
        ort = import_onnxruntime()
        refuse_external_data(graph, f"the graph of '{name}'")
        self._name = name
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        with self._explain("load"):
            # Without its fallback: ONNX Runtime would print the error, and try again with other providers.
            self._session = ort.InferenceSession(graph, options, providers=[self.provider], enable_fallback=0)
            self._check_graph(component)
        self.inputs = {key: np.zeros(spec.resolve(), spec.dtype) for key, spec in component.graph_inputs().items()}
        self._outputs = {key: np.zeros(spec.resolve(), spec.dtype) for key, spec in component.graph_outputs().items()}
        with self._explain("bind"):
            self._binding = self._bind()
        # The first run plans memory; better here than on the first frame.
        self.run({})

    def run(self, inputs: Arrays) -> Arrays:
        """See ``Engine.run``."""
        if self._binding is None:
            raise EngineError(f"'{self._name}' was run after it was closed")
        for key, value in inputs.items():
            self._write(key, value)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise self._failed("run", error) from error
        return self._outputs

    def close(self) -> None:
        """See ``Engine.close``."""
        self._binding = self._session = None

    def _write(self, key: str, value: NDArray[Any]) -> None:
        buffer = self.inputs.get(key)
        if buffer is None:
            raise EngineError(f"'{self._name}' has no input '{key}'; it has {sorted(self.inputs)}")
        if value is buffer:
            return
        if value.shape != buffer.shape or value.dtype != buffer.dtype:
            raise EngineError(
                f"input '{key}' of '{self._name}' is {buffer.dtype}{list(buffer.shape)}, "
                f"got {value.dtype}{list(value.shape)}"
            )
        np.copyto(buffer, value)

    def _check_graph(self, component: Component) -> None:
        """Names both ways, and the dtype and fixed sizes of inputs; a wrong output shows in the first run."""
        for kind, expected, found in (
            ("inputs", component.graph_inputs(), self._session.get_inputs()),
            ("outputs", component.graph_outputs(), self._session.get_outputs()),
        ):
            names = {tensor.name for tensor in found}
            if names != set(expected):
                raise EngineError(
                    f"the graph of '{self._name}' has the {kind} {sorted(names)}, "
                    f"the manifest says {sorted(expected)}: export the bundle again"
                )
        for tensor in self._session.get_inputs():
            spec = component.graph_inputs()[tensor.name]
            sizes = zip(tensor.shape, spec.resolve(), strict=False)
            fits = len(tensor.shape) == len(spec.shape) and all(a == b for a, b in sizes if isinstance(a, int))
            if not fits or tensor.type != f"tensor({_ORT_TYPES.get(spec.dtype, spec.dtype)})":
                raise EngineError(
                    f"input '{tensor.name}' of '{self._name}' is {tensor.type}{tensor.shape} in the graph, "
                    f"{spec.dtype}{list(spec.shape)} in the manifest: export the bundle again"
                )

    def _bind(self) -> Any:
        binding = self._session.io_binding()
        for key, array in self.inputs.items():
            binding.bind_input(key, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for key, array in self._outputs.items():
            binding.bind_output(key, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding

    @contextlib.contextmanager
    def _explain(self, action: str) -> Any:
        # ONNX Runtime's own exceptions share no base but Exception.
        try:
            yield
        except EdgeMbmError:
            raise
        except Exception as error:
            raise self._failed(action, error) from error

    def _failed(self, action: str, error: Exception) -> EngineError:
        return EngineError(f"ONNX Runtime could not {action} '{self._name}': {_first_line(error)}")


def import_onnxruntime() -> Any:
    """The onnxruntime module, whichever build the device has.

    Raises:
        MissingDependencyError: none is installed.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - optional: a device may run TensorRT alone
    except ImportError:
        remedy = "pip install 'edge-mbm[cpu]' (on a Jetson install NVIDIA's build instead)"
        raise MissingDependencyError("onnxruntime", "running a bundle on the CPU", remedy) from None
    return onnxruntime


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
