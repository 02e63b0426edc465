"""torch module to ONNX graph, in a process of its own: an exporter that hangs or crashes takes nothing with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edge_mbm.errors import TraceError
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.skeleton import Skeleton

__all__ = ["EXPORTERS", "Exporter", "trace"]

Exporter: TypeAlias = Literal["torch.export", "torchscript"]
EXPORTERS: tuple[Exporter, ...] = ("torch.export", "torchscript")
"""In the order in which they are tried."""


def trace(
    loaded: LoadedRecipe, components: Mapping[str, Skeleton], exporter: Exporter
) -> Iterator[tuple[str, bytes | TraceError]]:
    """Trace components one after the other in one subprocess.

    Args:
        loaded: the recipe.
        components: which, with their tensors.
        exporter: torch's newer exporter, or its older one.

    Yields:
        Each component's name with its graph as the exporter wrote it, or with what went wrong.
    """
    left = dict(components)
    with tempfile.TemporaryDirectory(prefix="edge-mbm-trace-") as folder:
        while left:
            for name, outcome in _round(loaded, left, exporter, Path(folder)):
                del left[name]
                yield name, outcome


def _round(
    loaded: LoadedRecipe, components: Mapping[str, Skeleton], exporter: Exporter, folder: Path
) -> Iterator[tuple[str, bytes | TraceError]]:
    """As many as one process manages; it always accounts for at least the first."""
    waiting, timeout = list(components), loaded.recipe.trace_timeout_s
    with (folder / "stderr").open("w+b") as log, _worker(_job(loaded, components, exporter, folder), log) as process:
        try:
            for answer in _answers(process, timeout):
                waiting.remove(answer["name"])
                yield answer["name"], _outcome(answer, folder)
            code = process.wait(timeout)
        except (TimeoutError, subprocess.TimeoutExpired):
            name = waiting[0] if waiting else next(iter(components))
            error = f"tracing '{name}' with {exporter} took over {timeout:.0f} s: raise the recipe's trace_timeout_s"
            yield name, TraceError(error)
            return
        if waiting:
            log.seek(0)
            yield waiting[0], TraceError(_crash(waiting[0], code, log.read().decode(errors="replace")))


def _job(loaded: LoadedRecipe, components: Mapping[str, Skeleton], exporter: Exporter, folder: Path) -> dict[str, Any]:
    return {
        "recipe": str(loaded.path),
        "python_path": [str(Path(__file__).parents[2]), *loaded.python_path()],
        "exporter": exporter,
        "opset": loaded.recipe.opset,
        "folder": str(folder),
        "components": {
            name: {
                "module": loaded.recipe.components[name].module,
                "inputs": [[key, spec.dtype, list(spec.shape)] for key, spec in component.graph_inputs().items()],
                "outputs": list(component.graph_outputs()),
            }
            for name, component in components.items()
        },
    }


@contextlib.contextmanager
def _worker(job: Mapping[str, Any], log: Any) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "edge_mbm.export.trace_worker"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(job["python_path"])}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
        yield process
    finally:
        # Whatever happens here, Ctrl-C included, it does not outlive us.
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _answers(process: subprocess.Popen[bytes], timeout: float) -> Iterator[dict[str, Any]]:
    """A record for each line; raises TimeoutError when the next does not come in time."""
    assert process.stdout is not None
    handle, rest = process.stdout.fileno(), b""
    while True:
        if not select.select([handle], [], [], timeout)[0]:
            raise TimeoutError
        chunk = os.read(handle, 1 << 16)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(json.loads, lines)


def _outcome(answer: Mapping[str, Any], folder: Path) -> bytes | TraceError:
    if "error" in answer:
        return TraceError(answer["error"])
    return (folder / f"{answer['name']}.onnx").read_bytes()


def _crash(name: str, code: int, log: str) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code == -9:
        how += " (out of memory?)"
    tail: Sequence[str] = log.strip().splitlines()[-5:]
    return f"tracing '{name}': the exporter's process {how}. Its last words:\n" + "\n".join(tail)
