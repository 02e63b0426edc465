"""The GPU that engines are built for, and how much memory a build may take."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from msgspec import Struct

from edge_mbm.runtime.trt.cache import EngineKey
from edge_mbm.runtime.trt.release import Release

__all__ = ["Gpu", "absent_gpu", "engine_key", "look_at_gpu", "workspace_bytes"]

_ROOT = Path("/")
_SHARE = 2
"""A build may take one part in so many of what is free: the network's weights are in memory as well, twice."""


class Gpu(Struct, frozen=True, kw_only=True):
    """One GPU, present or only named."""

    name: str
    capability: str
    """"8.7"."""
    driver: str = ""
    is_integrated: bool = False
    """Whether it shares the machine's memory, as a Jetson's does."""
    free_bytes: int | None = None
    """Of its memory; None where it is not here."""

    @property
    def is_here(self) -> bool:
        """Whether engines can be run on it, and measured."""
        return self.free_bytes is not None


def look_at_gpu(driver: Any, root: Path = _ROOT) -> Gpu:
    """The first GPU.

    Args:
        driver: ``pycuda.driver``, initialised, with a context of that GPU current.
        root: where ``sys`` is, for tests.
    """
    device = driver.Device(0)
    major, minor = device.compute_capability()
    free, _ = driver.mem_get_info()
    return Gpu(
        name=device.name(),
        capability=f"{major}.{minor}",
        driver=_driver_version(driver, root),
        is_integrated=bool(device.get_attribute(driver.device_attribute.INTEGRATED)),
        free_bytes=free,
    )


def absent_gpu(capability: str) -> Gpu:
    """A GPU of a kind ("SM86"), to build for where there is none."""
    digits = capability.removeprefix("SM")
    return Gpu(name=f"any {capability}", capability=f"{digits[:-1]}.{digits[-1:]}")


def engine_key(graph: str, release: Release, gpu: Gpu, root: Path = _ROOT, *, dla: bool = False) -> EngineKey:
    """Under which the engine of a graph, given by its sha256, is kept here; with ``dla`` the one for the DLA."""
    typing = "strongly typed" if release.is_strongly_typed(dla=dla) else "weakly typed"
    return EngineKey(
        graph=graph,
        product="TensorRT-RTX" if release.kind == "rtx" else "TensorRT",
        version=release.version,
        gpu=gpu.name,
        capability=gpu.capability,
        driver=gpu.driver,
        machine=_machine(root),
        options=(typing, "DLA") if dla else (typing,),
    )


def workspace_bytes(gpu: Gpu, root: Path = _ROOT) -> int | None:
    """How much scratch memory a build may take; None where nothing is known.

    An integrated GPU's memory is the machine's, of which only Linux knows what it could free.
    """
    known = [value for value in (gpu.free_bytes, _available(root)) if value is not None]
    if gpu.is_here and not gpu.is_integrated:
        known = known[:1]
    return min(known) // _SHARE if known else None


def _driver_version(driver: Any, root: Path) -> str:
    version = driver.get_driver_version()
    kernel = _read(root / "sys/module/nvidia/version")
    return f"CUDA {version // 1000}.{version % 1000 // 10}" + (f", {kernel}" if kernel else "")


def _machine(root: Path) -> str:
    """Hashed: the id itself is nobody's business (machine-id(5))."""
    return hashlib.sha256(b"edge-mbm " + _read(root / "etc/machine-id").encode()).hexdigest()[:32]


def _available(root: Path) -> int | None:
    lines = _read(root / "proc/meminfo").splitlines()
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kib) << 10 for kib in found), None)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""
