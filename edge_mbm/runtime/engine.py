"""One component loaded on one backend."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_mbm.errors import EdgeMbmError, EngineError, MissingDependencyError
from edge_mbm.runtime.onnx_guard import refuse_external_data
from edge_mbm.runtime.ort_buffers import Buffers, CudaBuffers, HostBuffers
from edge_mbm.spec import Component

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CPU", "CUDA", "Engine", "EngineLoader", "OnnxRuntimeEngine", "import_onnxruntime"]

Arrays = Mapping[str, "NDArray[Any]"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_GPU_REMEDY = (
    "On a Jetson install NVIDIA's build of onnxruntime for its JetPack, elsewhere onnxruntime-gpu in place of "
    "onnxruntime; 'edge-mbm doctor' says what is here. Or run it on the CPU"
)
# Where ONNX Runtime's name for a dtype is not numpy's.
_ORT_TYPES = {"float32": "float"}


class Engine(Protocol):
    """Named inputs in, named outputs out, batch 1.

    A protocol because it is where backends differ (ONNX Runtime, TensorRT, the fakes in ``edge_mbm.testing``).
    Buffers belong to the engine and are used again by the next call: copy what you keep. Not thread-safe.

    One that keeps carried states on a GPU has an attribute ``states`` (see ``States``), and no buffers of them.
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
    """A component on ONNX Runtime, its buffers bound once: on the CPU, or on CUDA (see ``CudaBuffers``).

    Threads are explicit and never spin: a spinning pool triples the CPU time of a pipeline that mostly waits.

    Args:
        name: the component's name, for messages.
        component: its manifest entry; the graph's inputs and outputs are checked against it.
        graph: the ONNX model, weights inside.
        threads: intra-op threads.
        provider: "CPUExecutionProvider" or "CUDAExecutionProvider". One that is not to be had is an error: ONNX
            Runtime's own way is to warn, and to compute on the CPU.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineError: the graph does not load, or is not what the manifest describes; the provider is not here, did not
            start, or has a kernel for none of the graph's nodes.
        BundleIntegrityError: the graph refers to files outside the bundle.
    """

    def __init__(self, name: str, component: Component, graph: bytes, *, threads: int = 1, provider: str = CPU) -> None:
        ort = import_onnxruntime()
        refuse_external_data(graph, f"the graph of '{name}'")
        self._name = name
        self._taken = {key: (s.resolve(), np.dtype(s.dtype)) for key, s in component.graph_inputs().items()}
        _check_is_here(ort, name, provider)
        with self._explain("load"):
            # Without its fallback: ONNX Runtime would print the error, and try again with other providers.
            self._session = ort.InferenceSession(
                graph, _session_options(ort, threads, provider), providers=[_configured(provider)], enable_fallback=0
            )
            self._check_graph(component)
        self.provider = self._really_used(provider)
        with self._explain("bind"):
            self._buffers: Buffers | None = self._make_buffers(ort, component, provider)
        self.inputs = self._buffers.inputs
        self.states = self._buffers.states
        # The first run plans memory; better here than on the first frame.
        self.run({})

    def _make_buffers(self, ort: Any, component: Component, provider: str) -> Buffers:
        if provider == CPU:
            return HostBuffers(self._session, component)
        return CudaBuffers(ort, self._session, component)

    def _really_used(self, provider: str) -> str:
        """What the nodes are on; a provider that could not start is missing from the session without an error."""
        if provider == CPU:
            return provider
        if provider not in self._session.get_providers():
            raise EngineError(
                f"'{self._name}' was to run on {provider}, which did not start: a CUDA or cuDNN library that it "
                f"needs is missing or of another version (onnxruntime's message, above, names it). {_GPU_REMEDY}"
            )
        used = _providers_of_nodes(self._session)
        if used is not None and provider not in used:
            raise EngineError(
                f"'{self._name}' was to run on {provider}, which has a kernel for none of its nodes: they are on "
                f"{', '.join(sorted(used))}. Take another variant (--variant fp32), or run it on the CPU"
            )
        return "+".join([provider, *sorted((used or set()) - {provider})])

    def run(self, inputs: Arrays) -> Arrays:
        """See ``Engine.run``."""
        buffers = self._buffers  # another thread may close it meanwhile
        if buffers is None:
            raise EngineError(f"'{self._name}' was run after it was closed")
        for key, value in inputs.items():
            self._write(buffers, key, value)
        try:
            buffers.run()
        except Exception as error:
            raise self._failed("run", error) from error
        return buffers.outputs

    def close(self) -> None:
        """See ``Engine.close``."""
        if self._buffers is not None:
            self._buffers.close()
        self._buffers = self._session = None

    def _write(self, buffers: Buffers, key: str, value: NDArray[Any]) -> None:
        if key in self.inputs and value is self.inputs[key]:
            return
        taken = self._taken.get(key)
        if taken is None:
            raise EngineError(f"'{self._name}' has no input '{key}'; it has {sorted(self._taken)}")
        if (value.shape, value.dtype) != taken:
            raise EngineError(
                f"input '{key}' of '{self._name}' is {taken[1]}{list(taken[0])}, got {value.dtype}{list(value.shape)}"
            )
        buffers.write(key, value)

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
        EngineError: the one that is cannot be imported.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - optional: a device may run TensorRT alone
    except ModuleNotFoundError:
        remedy = "pip install 'edge-mbm[cpu]' (on a Jetson install NVIDIA's build instead)"
        raise MissingDependencyError("onnxruntime", "running a bundle on the CPU", remedy) from None
    except ImportError as error:
        # pybind11 makes an ImportError of whatever ends a module's start, a Ctrl-C too.
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise EngineError(
            f"onnxruntime is installed, and cannot be imported: {_first_line(error)}. Install it anew, or the library "
            "that it misses; 'edge-mbm doctor' says which build is here"
        ) from error
    return onnxruntime


def _check_is_here(ort: Any, name: str, provider: str) -> None:
    if provider not in (CPU, CUDA):
        raise EngineError(f"'{name}' was to run on {provider}; of ONNX Runtime's providers {CPU} and {CUDA} are known")
    if provider not in ort.get_available_providers():
        raise EngineError(
            f"'{name}' was to run on {provider}, which onnxruntime {ort.__version__} here is built without: it has "
            f"{', '.join(ort.get_available_providers())}. {_GPU_REMEDY}"
        )


def _session_options(ort: Any, threads: int, provider: str) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if provider != CPU:
        # Older releases do not know it, and take any entry.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _configured(provider: str) -> Any:
    # TF32 rounds a float32 graph's products to 10 bits, which is not what the bundle's proof was measured with.
    return (provider, {"use_tf32": "0"}) if provider == CUDA else provider


def _providers_of_nodes(session: Any) -> set[str] | None:
    """Where ONNX Runtime put the graph's nodes; None where a release (1.23 is one) does not say."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return {part.ep_name for part in session.get_provider_graph_assignment_info()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
