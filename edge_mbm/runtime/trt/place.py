"""What engines are built with and run on: a TensorRT, and a GPU that is here or elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edge_mbm.errors import InputError, MissingDependencyError
from edge_mbm.runtime.trt.cache import EngineKey
from edge_mbm.runtime.trt.cuda import Cuda, open_cuda
from edge_mbm.runtime.trt.device import Gpu, absent_gpu, engine_key, look_at_gpu
from edge_mbm.runtime.trt.release import Kind, Release, find_release

__all__ = ["Place", "Target", "find_place"]

Target: TypeAlias = Literal["auto", "tensorrt", "rtx"]


@dataclass(frozen=True)
class Place:
    """Where engines are for.

    Args:
        release: what builds and runs them.
        gpu: the GPU.
        cuda: it, opened; None where it is elsewhere.
        capability: "SM86" where engines are built for GPUs that are not here.
    """

    release: Release
    gpu: Gpu
    cuda: Cuda | None = None
    capability: str | None = None

    def __str__(self) -> str:
        return f"{self.release} on {self.gpu.name}"

    def key(self, graph: str, *, dla: bool = False) -> EngineKey:
        """Under which the engine of a graph (its sha256) is kept, for the GPU or for the DLA."""
        return engine_key(graph, self.release, self.gpu, dla=dla)

    def keys(self, graph: str, *, dla: bool = False) -> tuple[EngineKey, ...]:
        """Where an engine that runs here may be: built for this GPU, or ahead of time for all of its kind (RTX)."""
        if self.release.kind != "rtx" or dla:
            return (self.key(graph, dla=dla),)
        kind = absent_gpu(f"SM{self.gpu.capability.replace('.', '')}")
        return self.key(graph), engine_key(graph, self.release, kind)


def find_place(
    target: Target = "auto",
    capability: str | None = None,
    *,
    release: Callable[[Kind], Release] = find_release,
    cuda: Callable[[], Cuda] = open_cuda,
) -> Place:
    """What this machine has.

    Args:
        target: "tensorrt", "rtx" (TensorRT-RTX), or "auto" for the first of them that is installed.
        capability: "SM86" to build for GPUs that are not here, which TensorRT-RTX alone can.
        release: finds TensorRT, for tests.
        cuda: opens the GPU, for tests.

    Raises:
        InputError: a capability, and TensorRT proper; or one that TensorRT-RTX does not know.
        MissingDependencyError: TensorRT or pycuda is not installed.
        EngineError: there is no GPU, and no capability is given.
    """
    if capability is not None:
        if target == "tensorrt":
            raise InputError("only TensorRT-RTX builds for GPUs that are not here: --target rtx with --capability")
        return _elsewhere(release("rtx"), capability)
    found = release(target) if target != "auto" else _first(release)
    opened = cuda()
    with opened.current(), opened.explain("look at the GPU"):
        return Place(found, look_at_gpu(opened.driver), opened)


def _elsewhere(release: Release, capability: str) -> Place:
    known = release.capabilities
    if capability not in known:
        raise InputError(f"{release} cannot build for '{capability}'; it knows {', '.join(known)}")
    return Place(release, absent_gpu(capability), capability=capability)


def _first(release: Callable[[Kind], Release]) -> Release:
    """TensorRT before TensorRT-RTX; where there is neither, what TensorRT lacks is said."""
    try:
        return release("tensorrt")
    except MissingDependencyError as missing:
        try:
            return release("rtx")
        except MissingDependencyError:
            raise missing from None
