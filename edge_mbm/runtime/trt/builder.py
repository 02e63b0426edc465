"""One engine, built: again, with less, when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias

from edge_mbm.errors import EngineError
from edge_mbm.runtime.trt.layers import DlaShare
from edge_mbm.runtime.trt.release import BuildSettings, Kind

__all__ = ["Advance", "BuildJob", "Built", "EngineBuilder", "OutOfMemoryError", "build_with_less"]

Advance: TypeAlias = Callable[[float, str], None]
"""Gets the share done of a build, 0..1, and what is being done."""

_LEVELS = (2, 1, 0)
"""After TensorRT's own choice, which is 3: each searches among fewer kernels, which takes less memory and time."""
_LEAST_WORKSPACE = 16 << 20


@dataclass(frozen=True)
class BuildJob:
    """One engine to build.

    Args:
        name: component and variant, for messages.
        graph: the ONNX model.
        kind: by TensorRT or TensorRT-RTX.
        release: as what it says of itself, for messages.
        settings: see ``BuildSettings``.
    """

    name: str
    graph: bytes
    kind: Kind
    release: str
    settings: BuildSettings = field(default_factory=BuildSettings)


@dataclass(frozen=True)
class Built:
    """An engine, and what TensorRT measured on the way."""

    plan: bytes
    timing: bytes
    settings: BuildSettings
    """With which it succeeded."""
    dla: DlaShare | None = None
    """How much of it runs on the DLA; None where it was built for the GPU."""


class OutOfMemoryError(EngineError):
    """Memory ran out during a build; the same build with less may succeed."""


class EngineBuilder(Protocol):
    """Builds one engine. A protocol because the real one needs TensorRT: ``edge_mbm.testing`` has a scripted one."""

    def build(self, job: BuildJob, folder: Path, advance: Advance) -> Built:
        """Build it, once.

        Args:
            job: what to build.
            folder: for files on the way, on the disk where the engine will be kept.
            advance: see ``Advance``.

        Raises:
            OutOfMemoryError: memory ran out.
            EngineError: the graph cannot be read or built; the message has node, release and remedy.
        """
        ...


def build_with_less(builder: EngineBuilder, job: BuildJob, folder: Path, advance: Advance) -> Built:
    """Build, and after an end for want of memory once more with less, until there is no less.

    Raises:
        EngineError: see ``EngineBuilder``; after the last step with what can be done about memory.
    """
    steps = list(_ladder(job.settings))
    for settings in steps:
        try:
            return builder.build(replace(job, settings=settings), folder, advance)
        except OutOfMemoryError as error:
            last = error
            advance(0.0, f"out of memory: again with less ({_describe(settings)} was too much)")
    raise EngineError(
        f"{job.name}: memory ran out {len(steps)} times, the last time with {_describe(steps[-1])}. Stop other "
        "programs (on a Jetson also the desktop: sudo systemctl isolate multi-user.target), or add swap, and compile "
        f"again. Last: {last}"
    )


def _ladder(first: BuildSettings) -> Iterator[BuildSettings]:
    """Less and less: half the workspace, and a shorter search."""
    yield first
    workspace = first.workspace
    for level in _LEVELS:
        if first.level is None or level < first.level:
            workspace = None if workspace is None else max(workspace // 2, _LEAST_WORKSPACE)
            yield replace(first, workspace=workspace, level=level)


def _describe(settings: BuildSettings) -> str:
    level = "TensorRT's own level" if settings.level is None else f"level {settings.level}"
    return level if settings.workspace is None else f"{level} and {settings.workspace >> 20} MiB of workspace"
