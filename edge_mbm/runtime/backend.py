"""What runs a session's components: which variant of each, on which engine."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from edge_mbm.errors import EngineError
from edge_mbm.runtime.engine import CUDA, Engine, EngineLoader, OnnxRuntimeEngine
from edge_mbm.runtime.log import warn
from edge_mbm.runtime.plan import choose_variant
from edge_mbm.spec import Component, Manifest

__all__ = ["Backend", "CudaBackend", "OnnxRuntimeBackend", "Provider", "open_backend"]

Provider: TypeAlias = Literal["cpu", "cuda", "tensorrt", "rtx"]
"""ONNX Runtime on the CPU; ONNX Runtime on CUDA; TensorRT; TensorRT-RTX."""


class Backend(Protocol):
    """Chooses a variant of each component, then loads it.

    A protocol because choosing goes with loading: TensorRT runs what was built and measured on the device, ONNX Runtime
    what the workstation measured to be fastest.
    """

    def choose(self, manifest: Manifest, name: str, wanted: str = "auto") -> str:
        """The variant of a component that runs here; ``wanted`` as ``SessionOptions.variant``.

        Raises:
            ManifestError: none can.
            EngineError: none can yet, with what to do.
        """
        ...

    def load(self, name: str, component: Component, graph: bytes) -> Engine:
        """Its engine; see ``EngineLoader``."""
        ...


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU. A ``Backend``.

    Args:
        threads: intra-op threads of each engine.
        load: makes the engines, unless it is ``OnnxRuntimeEngine``.
    """

    def __init__(self, threads: int = 1, load: EngineLoader | None = None) -> None:
        self._threads = threads
        self._load = load

    def choose(self, manifest: Manifest, name: str, wanted: str = "auto") -> str:
        """See ``Backend.choose``."""
        return choose_variant(name, manifest.components[name], wanted)

    def load(self, name: str, component: Component, graph: bytes) -> Engine:
        """See ``Backend.load``."""
        if self._load is not None:
            return self._load(name, component, graph)
        return OnnxRuntimeEngine(name, component, graph, threads=self._threads)


class CudaBackend:
    """ONNX Runtime on CUDA: no engine to build first, and slower than TensorRT's. A ``Backend``.

    Args:
        threads: intra-op threads of each engine, for nodes that have no CUDA kernel.
        instead: runs components that CUDA cannot; None makes that an error.
    """

    def __init__(self, threads: int = 1, instead: Backend | None = None) -> None:
        self._threads = threads
        self._instead = instead

    def choose(self, manifest: Manifest, name: str, wanted: str = "auto") -> str:
        """See ``Backend.choose``: of the variants for any target, since one for a kind of CPU is slow on a GPU."""
        return choose_variant(name, manifest.components[name], wanted, machine="no CPU")

    def load(self, name: str, component: Component, graph: bytes) -> Engine:
        """See ``Backend.load``."""
        try:
            return OnnxRuntimeEngine(name, component, graph, threads=self._threads, provider=CUDA)
        except EngineError as error:
            if self._instead is None:
                raise
            warn(__name__, "'%s' cannot run on CUDA (%s): it runs on the CPU instead, as allowed", name, error)
            return self._instead.load(name, component, graph)


def open_backend(
    provider: Provider,
    *,
    threads: int = 1,
    allow_fallback: bool = False,
    dla: tuple[str, ...] = (),
    load: EngineLoader | None = None,
) -> Backend:
    """What runs a session.

    Args:
        provider: see ``Provider``. One that is asked for and missing is an error.
        threads: of ONNX Runtime's engines.
        allow_fallback: whether ONNX Runtime on the CPU runs what the provider cannot yet; ``Result.provider`` says so.
        dla: components that TensorRT runs on the Deep Learning Accelerator.
        load: makes the engines in place of ONNX Runtime, for tests and for engines of one's own.

    Raises:
        MissingDependencyError, EngineError: the provider is not here, and ``allow_fallback`` is False.
    """
    onnxruntime = OnnxRuntimeBackend(threads, load)
    if provider == "cpu" or load is not None:
        return onnxruntime
    if provider == "cuda":
        return CudaBackend(threads, onnxruntime if allow_fallback else None)
    # Only now: a device without TensorRT loads nothing of it.
    from edge_mbm.runtime.trt.backend import TensorRTBackend  # noqa: PLC0415 - see above
    from edge_mbm.runtime.trt.cache import EngineCache  # noqa: PLC0415
    from edge_mbm.runtime.trt.place import find_place  # noqa: PLC0415

    return TensorRTBackend(lambda: find_place(provider), EngineCache(), onnxruntime if allow_fallback else None, dla)
