"""What a component's variants cost on this machine, side by side, each loaded in another process first.

Figures differ from run to run, so a bundle exported twice would differ too: they are measured once per machine and
graph, and kept in the user's cache (``docs/decisions/0002-measurements-are-cached.md``).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnxruntime

from edge_mbm.errors import ExportError
from edge_mbm.export.recordings import import_path
from edge_mbm.spec import SpeedFigures

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Probe", "SpeedCache", "host", "measure_speed", "probe"]

_SECONDS = 1.5  # of measuring, for each component
_TIMEOUT_S, _PER_GRAPH_S = 120.0, 30.0
_PER_SECOND = 20.0  # of timing asked for: the warm-up, and the fewest rounds of slow graphs


@dataclass(frozen=True)
class Probe:
    """What became of each graph in a process of its own: None if it loaded and ran, else what went wrong."""

    faults: Mapping[str, str | None]
    times_us: Mapping[str, Sequence[float]]


class SpeedCache:
    """Measured speeds, a small file each.

    Args:
        folder: made when something is stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> dict[str, SpeedFigures] | None:
        """What was stored, or None; a damaged file counts as absent."""
        try:
            return msgspec.json.decode((self._folder / f"{key}.json").read_bytes(), type=dict[str, SpeedFigures])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def store(self, key: str, figures: Mapping[str, SpeedFigures]) -> None:
        """Write the file whole; where nothing can be written nothing is kept, and the next export measures anew."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            part = self._folder / f".{key}.{os.getpid()}"
            part.write_bytes(msgspec.json.encode(figures))
            part.replace(self._folder / f"{key}.json")


def measure_speed(
    graphs: Mapping[str, bytes], inputs: Mapping[str, NDArray[Any]], cache: SpeedCache
) -> dict[str, SpeedFigures]:
    """Median time of one call of each variant, in turn in one process, with buffers bound as the device binds them.

    Args:
        graphs: variant -> graph; "fp32" is what the others are compared with.
        inputs: one real call's, batch 1.
        cache: asked first.

    Returns:
        Figures per variant.

    Raises:
        ExportError: a graph does not load or run.
    """
    where = host()
    digests = {variant: hashlib.sha256(graph).hexdigest() for variant, graph in graphs.items()}
    key = hashlib.sha256(json.dumps([where, digests], sort_keys=True).encode()).hexdigest()
    known = cache.load(key)
    if known is not None and known.keys() == graphs.keys():
        return known
    result = probe(graphs, inputs, seconds=_SECONDS)
    for variant, fault in result.faults.items():
        if fault is not None:
            raise ExportError(f"the variant '{variant}' {fault}")
    baseline = statistics.median(result.times_us["fp32"])
    figures = {variant: _figures(times, baseline, where) for variant, times in result.times_us.items()}
    cache.store(key, figures)
    return figures


def host() -> str:
    """Where speed is measured: CPU, engine, threads."""
    return f"{_cpu()}, onnxruntime {onnxruntime.__version__}, 1 thread"


def probe(
    graphs: Mapping[str, bytes],
    inputs: Mapping[str, NDArray[Any]],
    *,
    seconds: float = 0.0,
    extended: Collection[str] = (),
) -> Probe:
    """Load and run graphs in another process, since a bad one may end the process (some fp16 graphs do).

    Args:
        graphs: by variant.
        inputs: of one call, batch 1.
        seconds: of timing, all graphs in turn; 0 only runs each once.
        extended: of these stop at extended optimisations.
    """
    faults: dict[str, str | None] = {}
    times: dict[str, list[float]] = {}
    left = list(graphs)
    while left:
        answers, ending = _worker(graphs, left, inputs, seconds=seconds, extended=extended)
        for answer in answers:
            if "variant" in answer:
                faults[answer["variant"]] = answer.get("fault")
            times.update(answer.get("times", {}))
        unheard = [variant for variant in left if variant not in faults]
        if unheard:  # the process died of the first that it says nothing about
            faults[unheard.pop(0)] = ending
        elif seconds > 0:  # it died of one of them while it timed them, or not at all
            faults |= {variant: faults[variant] or ending for variant in left if variant not in times}
        left = unheard
    return Probe({variant: faults[variant] for variant in graphs}, times)


def _worker(
    graphs: Mapping[str, bytes],
    variants: Sequence[str],
    inputs: Mapping[str, NDArray[Any]],
    *,
    seconds: float,
    extended: Collection[str],
) -> tuple[list[dict[str, Any]], str]:
    with tempfile.TemporaryDirectory(prefix="edge-mbm-probe-") as folder:
        for index, variant in enumerate(variants):
            Path(folder, f"{index}.onnx").write_bytes(graphs[variant])
        with Path(folder, "inputs.npz").open("wb") as stream:
            np.savez(stream, **dict(inputs))  # type: ignore[arg-type] # names, not numpy's own keyword
        job = {"folder": folder, "variants": list(variants), "seconds": seconds, "extended": list(extended)}
        # By path: as a module it would bring torch along. -P: nothing beside it, or in this folder, is in its way.
        limit = _limit_s(len(variants), seconds)
        command = [sys.executable, "-P", str(Path(__file__).with_name("speed_worker.py"))]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(job).encode(),
                env=os.environ | {"PYTHONPATH": import_path()},
                capture_output=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            return _parse(late.stdout or b""), f"did not load and run within {limit:.0f} s"
    return _parse(done.stdout), _ending(done.returncode)


def _limit_s(graphs: int, seconds: float) -> float:
    """How long the process may take: more for more graphs, and for longer timing."""
    return _TIMEOUT_S + _PER_GRAPH_S * (graphs - 1) + _PER_SECOND * seconds


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed while it ran, by signal 9: out of memory? Close other programs, or take a smaller model"
    return f"ends ONNX Runtime's process with code {code} (a crash)"


def _parse(lines: bytes) -> list[dict[str, Any]]:
    """Whole lines only: the process may have ended in the middle of one."""
    return [json.loads(line) for line in lines.splitlines(keepends=True) if line.endswith(b"\n")]


def _figures(times: Sequence[float], baseline: float, where: str) -> SpeedFigures:
    low, median, high = statistics.quantiles(times, n=4)
    return SpeedFigures(
        host=where, median_us=round(median, 2), iqr_us=round(high - low, 2), speedup=round(baseline / median, 3)
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
