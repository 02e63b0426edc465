"""How old a result is when it reaches its consumer: edge-mbm, a reference slot, and its peers, on one synthetic camera.

    python benchmarks/age_at_sink.py [--peers streamvision,gstreamer,depthai,mediapipe] [--repetitions N] [--scale X]

Age is the time at the sink minus the exposure time, which is in the frame's pixels. Every side runs in a process of
its own and in turn with the others; peers in environments that are made on first use (``--peers ''`` for none). The
goals are checked at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from harness import Job
from sides import PEERS, SIDES, Process, Unavailable, environment

OURS, REFERENCE = SIDES[0].name, SIDES[1].name
_JOB = Job(fps=30, seconds=2, width=640, height=480, model="none", model_s=0.04, graph="", sink_s=0, variant="")
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-mbm" / "peers"


@dataclass(frozen=True)
class Scenario:
    """One table."""

    key: str
    title: str
    job: Job
    every_variant: bool = True
    """Or only the first of each peer's."""


SCENARIOS = (
    Scenario("overload", "1.2x overload: 40 ms model, 30 fps, 640x480", replace(_JOB, model="sleep")),
    Scenario(
        "slow-sink",
        "slow sink: 40 ms model, 100 ms sink, 30 fps, 640x480",
        replace(_JOB, seconds=2.5, model="sleep", sink_s=0.1),
    ),
    Scenario(
        "busy-sink",
        "busy sink: 30 ms model, 30 ms sink, 30 fps, 640x480",
        replace(_JOB, seconds=1.5, model="sleep", model_s=0.03, sink_s=0.03),
        every_variant=False,
    ),
    Scenario(
        "no-op",
        "no-op model, 120 fps, 8x8 frames",
        replace(_JOB, fps=120, seconds=1.2, width=8, height=8),
        every_variant=False,
    ),
    Scenario(
        "onnx",
        "convolutions in onnxruntime, one thread, 30 fps, 640x480",
        replace(_JOB, seconds=1.5, model="onnx"),
        every_variant=False,
    ),
)


class Runs:
    """What one side gave in one scenario."""

    def __init__(self, reports: Sequence[dict[str, Any]]) -> None:
        self.reports = reports
        self.ages = [np.array([age for _, age in report["ages"]]) for report in reports]

    def pooled(self, percent: float) -> float:
        """Over all repetitions, ms."""
        return float(np.percentile(np.concatenate(self.ages), percent, method="inverted_cdf"))

    def each(self, percent: float) -> list[float]:
        return [float(np.percentile(ages, percent, method="inverted_cdf")) for ages in self.ages]

    def growth(self) -> list[float]:
        """How fast results get older, ms per second."""
        return [slope(report["ages"]) for report in self.reports]

    def cpu(self) -> list[float]:
        return [report["cpu"] * 100 for report in self.reports]

    def share(self) -> list[float]:
        """Of the frames that the camera exposed, those of which a result came, %."""
        return [100 * len(report["ages"]) / max(1, report["exposed"]) for report in self.reports]

    def memory(self) -> list[float]:
        """MB per minute."""
        return [60 * slope(report["rss"]) for report in self.reports]


def slope(points: Sequence[Sequence[float]]) -> float:
    if len(points) < 3:
        return 0.0
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])


def spread(values: Sequence[float], digits: int = 1) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def make_graph(folder: Path) -> str:
    """Two 3x3 convolutions over a picture of 112x112 with 64 channels: some 20 ms on one thread."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 - for this scenario only

    rng = np.random.default_rng(0)
    weights = [(64, 3, 3, 3), (64, 64, 3, 3), (64, 64, 3, 3)]
    names = ["image", "a", "b", "c"]
    convolutions = [
        helper.make_node("Conv", [names[k], f"w{k}"], [names[k + 1]], pads=[1] * 4, strides=[1 if k else 2] * 2)
        for k in range(3)
    ]
    mean = helper.make_node("GlobalAveragePool", ["c"], ["mean"])
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])
    out = helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 64, 1, 1])
    tensors = [
        numpy_helper.from_array(rng.standard_normal(shape, np.float32) / 30, f"w{k}") for k, shape in enumerate(weights)
    ]
    graph = helper.make_graph([*convolutions, mean], "convolutions", [given], [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "convolutions.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


class Field:
    """All sides that could be started, and why the others could not."""

    def __init__(self, peers: Sequence[str], wheels: str | None, folder: Path, undo: ExitStack) -> None:
        self.notes: dict[str, str] = {}
        self.processes: list[Process] = []
        pythons = {name: self._python(name, wheels) for name in peers}
        for number, side in enumerate(SIDES):
            python = sys.executable if side.peer is None else pythons.get(side.peer)
            if python is None:
                self.notes.setdefault(side.name, self.notes.get(side.peer or "", "not asked for (--peers)"))
                continue
            try:
                process = Process(side, python, folder / f"{number}.log")
            except Unavailable as why:
                self.notes[side.name] = str(why)
                continue
            undo.callback(process.close)
            self.processes.append(process)

    def run(self, scenario: Scenario, repetitions: int, progress: Callable[[str], None]) -> dict[str, Runs]:
        """Every side in turn, the turn's order moving on with each repetition."""
        entered = [p for p in self.processes if scenario.every_variant or p.side.is_first]
        reports: dict[str, list[dict[str, Any]]] = {process.side.name: [] for process in entered}
        for k in range(repetitions):
            shift = k % len(entered)
            for process in [*entered[shift:], *entered[:shift]]:
                progress(f"{scenario.key} {k + 1}/{repetitions}: {process.side.name}")
                self._run_one(process, scenario.job, reports[process.side.name])
        return {name: Runs(found) for name, found in reports.items() if found}

    def _run_one(self, process: Process, job: Job, reports: list[dict[str, Any]]) -> None:
        if process not in self.processes:
            return
        try:
            report = process.run(replace(job, variant=process.side.variant))
        except (Unavailable, OSError) as why:
            self.notes[process.side.name] = str(why)
            self.processes.remove(process)
            return
        if report["ages"]:
            reports.append(report)
        else:
            self.notes[process.side.name] = f"gave no result in a run of {job.seconds:g} s"

    def _python(self, name: str, wheels: str | None) -> str | None:
        try:
            return environment(name, _CACHE, wheels)
        except Unavailable as why:
            self.notes[name] = str(why)
            return None


def show(console: Console, scenario: Scenario, results: dict[str, Runs], notes: dict[str, str]) -> None:
    table = Table(title=f"{scenario.title}: median (quartiles) of the repetitions")
    fine = 2 if scenario.job.model == "none" else 1
    for column in ("", "p50, ms", "p99, ms", "growth, ms/s", "shown, %", "CPU, %"):
        table.add_column(column, justify="right" if column else "left")
    for side in SIDES:
        if side.name in results:
            runs = results[side.name]
            figures = (runs.each(50), runs.each(99), runs.growth(), runs.share(), runs.cpu())
            table.add_row(
                side.name,
                *(spread(values, digits) for values, digits in zip(figures, (fine, fine, 0, 0, 1), strict=True)),
            )
        elif side.name in notes and (scenario.every_variant or side.is_first):
            table.add_row(side.name, notes[side.name], *[""] * 4)
    console.print(table)


Check = tuple[str, float, float]
"""What, measured, at most."""


def checks(scenario: Scenario, results: dict[str, Runs]) -> Iterator[Check]:
    ours, job = results[OURS], scenario.job
    if scenario.key == "overload":
        reference = results[REFERENCE]
        yield "overload: p50 over the reference slot's, ms", ours.pooled(50) - reference.pooled(50), 1.0
        yield "overload: p99 over the reference slot's, ms", ours.pooled(99) - reference.pooled(99), 5.0
    elif scenario.key == "slow-sink":
        bound = (job.model_s + job.sink_s + 1 / job.fps) * 1e3
        yield "slow sink: oldest result, ms", ours.pooled(100), bound
    elif scenario.key == "no-op":
        yield "no-op at 120 fps: p50, ms", ours.pooled(50), 0.5
        yield "no-op at 120 fps: CPU, % of a core (camera and sink included)", statistics.median(ours.cpu()), 4.0
        yield "no-op at 120 fps: frames dropped", sum(report["dropped"] for report in ours.reports), 0


def endurance(field: Field, seconds: float) -> Iterator[Check]:
    """The slow sink for longer: what grows, shows."""
    [ours] = [process for process in field.processes if process.side.name == OURS]
    job = replace(SCENARIOS[1].job, seconds=seconds)
    runs = Runs([ours.run(job)])
    settled = [point for point in runs.reports[0]["rss"] if point[0] > seconds / 4]
    bound = (job.model_s + job.sink_s + 1 / job.fps) * 1e3
    yield f"slow sink for {seconds:.0f} s: oldest result, ms", runs.pooled(100), bound
    yield f"slow sink for {seconds:.0f} s: memory, MB/min", 60 * slope(settled), 1.0


def show_checks(console: Console, found: Sequence[Check]) -> None:
    table = Table(title="goals")
    for column in ("", "measured", "at most", ""):
        table.add_column(column, justify="right" if column else "left")
    for what, measured, most in found:
        table.add_row(what, f"{measured:.2f}", f"{most:g}", "met" if measured <= most else "missed")
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; '' for none")
    parser.add_argument("--scenarios", default=",".join(scenario.key for scenario in SCENARIOS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="longer or shorter runs")
    parser.add_argument("--endurance", type=float, default=40.0, help="seconds behind a slow sink")
    parser.add_argument("--wheels", help="folder with the peers' wheels, for pip --find-links")
    parser.add_argument("--json", type=Path, help="where to write every run's figures")
    arguments = parser.parse_args()
    if unknown := {name for name in arguments.peers.split(",") if name} - set(PEERS):
        parser.error(f"no peers {sorted(unknown)}; there are {', '.join(PEERS)}")
    return arguments


def main() -> None:
    arguments, console = parse(), Console()
    peers = [name for name in arguments.peers.split(",") if name]
    found: list[Check] = []
    raw: dict[str, Any] = {}
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        with console.status("making the peers' environments") as status:
            field = Field(peers, arguments.wheels, folder, undo)
            console.print(
                f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.system()}"
            )
            console.print(", ".join(sorted({process.version for process in field.processes})))
            for scenario in SCENARIOS:
                if scenario.key not in arguments.scenarios.split(","):
                    continue
                graph = make_graph(folder) if scenario.job.model == "onnx" else ""
                job = replace(scenario.job, seconds=scenario.job.seconds * arguments.scale, graph=graph)
                results = field.run(replace(scenario, job=job), arguments.repetitions, status.update)
                show(console, scenario, results, field.notes)
                found += checks(scenario, results)
                raw[scenario.key] = {name: runs.reports for name, runs in results.items()}
            if arguments.endurance:
                status.update("endurance")
                found += endurance(field, arguments.endurance)
    show_checks(console, found)
    console.print(f"load at the end {os.getloadavg()[0]:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(raw))


if __name__ == "__main__":
    main()
