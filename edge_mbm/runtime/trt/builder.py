"""One engine, built in a process of its own: again, with less, when memory runs out.

TensorRT's builder takes as much memory as the machine has, and on a small board Linux then kills somebody. In a process
of its own that is nobody else, and what its end says (SIGKILL, or TensorRT's own "out of memory") is a reason to try
again with a smaller workspace and a shorter search, which is what has helped on Jetsons.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
from msgspec import Struct

from edge_mbm.errors import EngineError
from edge_mbm.runtime.trt.phases import Phases
from edge_mbm.runtime.trt.release import BuildSettings, Kind

__all__ = [
    "Advance",
    "BuildJob",
    "Built",
    "EngineBuilder",
    "OutOfMemoryError",
    "SubprocessBuilder",
    "WorkerJob",
    "build_with_less",
]

Advance: TypeAlias = Callable[[float, str], None]
"""Gets the share done of a build, 0..1, and what is being done."""

_LEVELS = (2, 1, 0)
"""After TensorRT's own choice, which is 3: each searches among fewer kernels, which takes less memory and time."""
_LEAST_WORKSPACE = 16 << 20
_LAST_LINES = 5
_MEMORY = ("out of memory", "outofmemory", "failed to allocate", "cuda failure: 2", "std::bad_alloc")
_REMEDIES = (
    ("non-zero zero point", "quantize symmetrically, as edge-mbm export does for TensorRT targets"),
    ("uint8", "cast to float32 in the model before it is resized or transposed, and export again"),
    ("plugin not found", "export with standard operators only: no plugins, no custom operators"),
    ("same input types", "cast one side in the model: in a strongly typed network nothing is converted by itself"),
    ("insufficient workspace", "free memory on this machine, and compile again"),
    ("could not find any implementation", "free memory on this machine, and compile again"),
)
_ROOM = "Make room (edge-mbm cache ls, edge-mbm cache rm), or set XDG_CACHE_HOME to a folder on another disk"
_ELSE = "run this component's fp32 variant, export without it, or update TensorRT (edge-mbm doctor shows it)"


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


# --- the real one ----------------------------------------------------------------------------------------------------


class WorkerJob(Struct, frozen=True, kw_only=True):
    """What ``build_worker`` reads from its standard input, as one line of JSON."""

    graph: str
    plan: str
    timing: str
    """Paths: of the ONNX model; of the engine and of the timing cache, which it writes."""
    kind: Literal["tensorrt", "rtx"]
    workspace: int | None
    level: int | None
    capability: str | None


class SubprocessBuilder:
    """Builds with the installed TensorRT in another process, which ends when this one does.

    Args:
        command: what starts that process; for tests.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self._command = list(command or (sys.executable, "-m", "edge_mbm.runtime.trt.build_worker"))

    def build(self, job: BuildJob, folder: Path, advance: Advance) -> Built:
        """See ``EngineBuilder.build``."""
        files = {kind: folder / f"build-{os.getpid()}.{kind}.part" for kind in ("graph", "plan", "timing")}
        try:
            with _on_disk(job.name, folder):
                files["graph"].write_bytes(job.graph)
                files["timing"].write_bytes(job.settings.timing)
                heard, code = self._run(_worker_job(job, files), advance)
                _check(job, heard, code)
                return Built(files["plan"].read_bytes(), files["timing"].read_bytes(), job.settings)
        finally:
            for path in files.values():
                path.unlink(missing_ok=True)

    def _run(self, job: WorkerJob, advance: Advance) -> tuple[list[Mapping[str, Any]], int]:
        """All that the worker said but its progress, and its exit code."""
        heard: list[Mapping[str, Any]] = []
        phases = Phases()
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        chatter = _Tail(process.stderr)
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(msgspec.json.encode(job) + b"\n")
                process.stdin.flush()  # left open: when it closes, this process is gone
            for message in _messages(process.stdout):
                if "phase" in message:
                    share = phases.step(message["phase"], message["parent"], message["done"], message["total"])
                    advance(share, message["phase"])
                else:
                    heard.append(message)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            heard += [{"chatter": chatter.close()}]
        return heard, code


class _Tail:
    """The last lines of a stream, read so that its writer never waits."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, name="edge-mbm build", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            self._lines = [*self._lines, line.decode("utf-8", "replace").strip()][-_LAST_LINES:]

    def close(self) -> str:
        self._thread.join()
        self._stream.close()
        return " ".join(self._lines)


def _worker_job(job: BuildJob, files: Mapping[str, Path]) -> WorkerJob:
    settings = job.settings
    return WorkerJob(
        graph=str(files["graph"]),
        plan=str(files["plan"]),
        timing=str(files["timing"]),
        kind=job.kind,
        workspace=settings.workspace,
        level=settings.level,
        capability=settings.capability,
    )


def _messages(lines: Any) -> Iterator[dict[str, Any]]:
    """Whole lines only: the process may end in the middle of one."""
    for line in lines:
        with suppress(msgspec.DecodeError):
            yield msgspec.json.decode(line)


def _check(job: BuildJob, heard: Sequence[Mapping[str, Any]], code: int) -> None:
    """Raise what the worker's words and its end come to, unless there is an engine.

    Whoever is short of memory is killed without a word, or complains and fails.
    """
    for message in heard:
        if "failed" in message:
            raise EngineError(f"{job.name}: {message['failed']}")
        if "disk" in message:
            raise EngineError(f"{job.name}: the engine cannot be written: {message['disk']}. {_ROOM}")
    for message in heard:
        if "error" in message:
            raise EngineError(_refusal(job, message["node"], message["operator"], message["error"]))
    if any("built" in message for message in heard) and code == 0:
        return
    said = [str(message["log"]) for message in heard if message.get("severity") in ("error", "internal_error")]
    if code == -signal.SIGKILL or any(part in line.lower() for line in said for part in _MEMORY):
        raise OutOfMemoryError(f"{job.name}: the builder was killed" if code < 0 else f"{job.name}: {said[-1]}")
    if code != 0:
        chatter = next((str(message["chatter"]) for message in heard if "chatter" in message), "")
        raise EngineError(
            f"{job.name}: {job.release} ended with code {code} in the build. {chatter} To mend it: {_ELSE}"
        )
    raise EngineError(_refusal(job, "", "", said[-1] if said else "refused without a word"))


def _refusal(job: BuildJob, node: str, operator: str, message: str) -> str:
    at = f" at '{node}'" + (f" ({operator})" if operator else "") if node else ""
    remedy = next((remedy for part, remedy in _REMEDIES if part in message.lower()), _ELSE)
    return f"{job.name}: {job.release} cannot build it{at}: {message.strip()[:500]}. To mend it: {remedy}"


@contextmanager
def _on_disk(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(f"{name}: the disk of {folder} refuses: {error.strerror}. {_ROOM}") from error
