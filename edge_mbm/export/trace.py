"""torch module to ONNX graph, in a process of its own: an exporter that hangs or crashes takes nothing with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edge_mbm.errors import TraceError
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.recordings import import_path
from edge_mbm.export.skeleton import Skeleton

__all__ = ["EXPORTERS", "Exporter", "trace"]

Exporter: TypeAlias = Literal["torch.export", "torchscript"]
EXPORTERS: tuple[Exporter, ...] = ("torch.export", "torchscript")
"""In the order in which they are tried."""


def trace(
    loaded: LoadedRecipe,
    components: Mapping[str, Skeleton],
    exporter: Exporter,
    weights: Mapping[str, bytes] | None = None,
) -> Generator[tuple[str, bytes | TraceError], None, None]:
    """Trace components one after the other in one subprocess.

    Args:
        loaded: the recipe.
        components: which, with their tensors.
        exporter: torch's newer exporter, or its older one.
        weights: of some components, packed, in place of the model's own.

    Yields:
        Each component's name with its graph as the exporter wrote it, or with what went wrong. Close it to end early:
        the process is gone then.
    """
    left = dict(components)
    with tempfile.TemporaryDirectory(prefix="edge-mbm-trace-") as folder:
        for name, packed in (weights or {}).items():
            Path(folder, f"{name}.npz").write_bytes(packed)
        while left:
            with contextlib.closing(_round(loaded, dict(left), exporter, Path(folder))) as outcomes:
                for name, outcome in outcomes:
                    del left[name]
                    yield name, outcome


def _round(
    loaded: LoadedRecipe, components: Mapping[str, Skeleton], exporter: Exporter, folder: Path
) -> Generator[tuple[str, bytes | TraceError], None, None]:
    """As many as one process manages; it always accounts for at least the first."""
    waiting, timeout = list(components), loaded.recipe.trace_timeout_s
    with (folder / "stderr").open("a+b") as log, _worker(_job(loaded, components, exporter, folder), log) as process:
        try:
            for answer in _answers(process, timeout):
                waiting.remove(answer["name"])
                yield answer["name"], _outcome(answer, folder)
                if not waiting:  # what a model left running must not hold us up
                    return
            code = process.wait(timeout)
        except (TimeoutError, subprocess.TimeoutExpired):
            error = f"took over {timeout:g} s: raise the recipe's trace_timeout_s"
            yield waiting[0], TraceError(f"tracing '{waiting[0]}' with {exporter} {error}")
        else:
            log.seek(0)
            yield waiting[0], TraceError(_crash(waiting[0], code, log.read().decode(errors="replace")))


def _job(loaded: LoadedRecipe, components: Mapping[str, Skeleton], exporter: Exporter, folder: Path) -> dict[str, Any]:
    return {
        "recipe": str(loaded.path),
        "exporter": exporter,
        "opset": loaded.recipe.opset,
        "folder": str(folder),
        "components": {
            name: {
                "inputs": [[key, spec.dtype, list(spec.shape)] for key, spec in component.graph_inputs().items()],
                "outputs": list(component.graph_outputs()),
            }
            for name, component in components.items()
        },
    }


@contextlib.contextmanager
def _worker(job: Mapping[str, Any], log: Any) -> Iterator[subprocess.Popen[bytes]]:
    # -P: nothing that lies in this folder is in its way.
    command = [sys.executable, "-P", "-m", "edge_mbm.export.trace_worker"]
    environment = os.environ | {"PYTHONPATH": import_path()}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
        yield process
    finally:
        # Whatever happens here, Ctrl-C included, it does not outlive us, nor what the model has started in it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
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
