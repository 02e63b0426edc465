"""Builds an engine in a process of its own, and says what its end means.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from edge_mbm.errors import EngineError
from edge_mbm.runtime.trt.build_messages import (
    Done,
    Failed,
    Log,
    Message,
    NoRoom,
    Refused,
    Step,
    WorkerJob,
    read_message,
)
from edge_mbm.runtime.trt.builder import Advance, BuildJob, Built, OutOfMemoryError
from edge_mbm.runtime.trt.phases import Phases

__all__ = ["SubprocessBuilder"]

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


class SubprocessBuilder:
    """Builds with the installed TensorRT in another process, which ends when this one does. An ``EngineBuilder``.

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
                done = _check(job, self._run(_worker_job(job, files), advance))
                return Built(files["plan"].read_bytes(), files["timing"].read_bytes(), job.settings, done.dla)
        finally:
            for path in files.values():
                path.unlink(missing_ok=True)

    def _run(self, job: WorkerJob, advance: Advance) -> _Ending:
        """Until its end; whatever happens here, it is gone afterwards."""
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        chatter = _Tail(process.stderr)
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(msgspec.json.encode(job) + b"\n")
                process.stdin.flush()  # and left open: when it closes, this process is gone
            said = list(_listen(process.stdout, advance))
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            last = chatter.close()
        return _Ending(tuple(said), code, last)


@dataclass(frozen=True)
class _Ending:
    """All that a worker said but its progress, its exit code, and the last that the library printed."""

    said: tuple[Message, ...]
    code: int
    chatter: str

    @property
    def errors(self) -> list[str]:
        """What TensorRT logged as such."""
        return [one.message for one in self.said if isinstance(one, Log) and one.severity.endswith("error")]

    @property
    def done(self) -> Done | None:
        """What it said of an engine that it wrote; None where something went wrong."""
        return next((one for one in self.said if isinstance(one, Done)), None) if self.code == 0 else None

    @property
    def is_short_of_memory(self) -> bool:
        """Whoever is, is killed without a word, or complains and fails."""
        lines = [line.lower() for line in self.errors]
        return self.code == -signal.SIGKILL or any(part in line for line in lines for part in _MEMORY)


class _Tail:
    """The last lines of a stream, read so that its writer never waits."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, name="edge-mbm build", daemon=True)
        self._thread.start()

    def close(self) -> str:
        """What they are, at its end."""
        self._thread.join()
        self._stream.close()
        return " ".join(self._lines)

    def _read(self) -> None:
        for line in self._stream:
            self._lines = [*self._lines, line.decode("utf-8", "replace").strip()][-_LAST_LINES:]


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
        dla_share=settings.dla_share,
    )


def _listen(lines: IO[bytes], advance: Advance) -> Iterator[Message]:
    """All but progress, which goes to ``advance``."""
    phases = Phases()
    for line in lines:
        message = read_message(line)
        if isinstance(message, Step):
            advance(phases.step(message.phase, message.parent, message.done, message.total), message.phase)
        elif message is not None:
            yield message


def _check(job: BuildJob, ending: _Ending) -> Done:
    """Raise what the ending comes to, unless there is an engine."""
    for message in ending.said:
        _check_message(job, message)
    if ending.done is not None:
        return ending.done
    if ending.is_short_of_memory:
        raise OutOfMemoryError(f"{job.name}: {ending.errors[-1] if ending.errors else 'the builder was killed'}")
    if ending.code != 0:
        how = f"{job.release} ended with code {ending.code} in the build"
        raise EngineError(f"{job.name}: {how}. {ending.chatter} To mend it: {_ELSE}")
    raise _refusal(job, Refused("", "", ending.errors[-1] if ending.errors else "refused without a word"))


def _check_message(job: BuildJob, message: Message) -> None:
    if isinstance(message, Failed):
        raise EngineError(f"{job.name}: {message.message}")
    if isinstance(message, NoRoom):
        raise EngineError(f"{job.name}: the engine cannot be written: {message.reason}. {_ROOM}")
    if isinstance(message, Refused):
        raise _refusal(job, message)


def _refusal(job: BuildJob, refused: Refused) -> EngineError:
    operator = f" ({refused.operator})" if refused.operator else ""
    at = f" at '{refused.node}'{operator}" if refused.node else ""
    words = refused.message.strip()[:500]
    remedy = next((remedy for part, remedy in _REMEDIES if part in words.lower()), _ELSE)
    return EngineError(f"{job.name}: {job.release} cannot build it{at}: {words}. To mend it: {remedy}")


@contextmanager
def _on_disk(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(f"{name}: the disk of {folder} refuses: {error.strerror}. {_ROOM}") from error
