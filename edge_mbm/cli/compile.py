"""``edge-mbm compile``: TensorRT engines of a bundle, for this device's GPU."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import TaskProgressColumn

from edge_mbm.cli.bars import StageBars
from edge_mbm.cli.options import BundlePath, Json
from edge_mbm.cli.terminal import clean, figure, human, make_table, size, write_json
from edge_mbm.runtime.bundle import load
from edge_mbm.runtime.trt.build_process import SubprocessBuilder
from edge_mbm.runtime.trt.cache import EngineCache
from edge_mbm.runtime.trt.compiling import (
    Compiled,
    CompileOptions,
    CompileReport,
    PlannedEngine,
    compile_bundle,
    plan_engines,
)
from edge_mbm.runtime.trt.layers import describe_layers
from edge_mbm.runtime.trt.place import Place, Target, find_place

__all__ = ["compile"]

_ESTIMATE_S = 600.0
"""Over which time the speed of a build is taken: its steps are of very different lengths."""


def compile(  # noqa: A001 - the command's name
    bundle: BundlePath,
    *,
    target: Annotated[
        Target,
        typer.Option(
            "--target",
            help="TensorRT, or TensorRT-RTX (desktop GPUs); auto takes the first of them that is installed.",
            rich_help_panel="Model",
        ),
    ] = "auto",
    capability: Annotated[
        str | None,
        typer.Option(
            "--capability",
            metavar="SM86",
            help="Build for GPUs of this kind, though none is here: TensorRT-RTX alone can. Nothing is measured then.",
            show_default=False,
            rich_help_panel="Model",
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            metavar="NAME",
            help="Build only what this head needs; may be given several times. Without it every component is built.",
            show_default=False,
            rich_help_panel="Model",
        ),
    ] = None,
    dla: Annotated[
        list[str] | None,
        typer.Option(
            "--dla",
            metavar="COMPONENT",
            help="Build this component for the Deep Learning Accelerator that some Jetsons have, instead of the GPU; "
            "edge-mbm run --dla runs it there. May be given several times.",
            show_default=False,
            rich_help_panel="Model",
        ),
    ] = None,
    dla_share: Annotated[
        float,
        typer.Option(
            "--dla-share",
            min=0.0,
            max=1.0,
            help="The share of a component's layers that must be able to run there; with less it is refused.",
            rich_help_panel="Model",
        ),
    ] = 0.8,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build what is in the cache again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which engines would be built; build nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build the TensorRT engines of a bundle on this device, measure them, and keep them for edge-mbm run.

    One engine at a time, in a process of its own, with less memory where it ran out. What is in the cache already is
    not built again; what an update of TensorRT or of the driver made useless is. INT8 runs only where it was measured
    to be faster than FP16 here.

    Exit code 0: every component has an engine. 6: one has none, or there is no GPU. 7: TensorRT is not installed.

    Example: edge-mbm compile model.mbm

    Example: edge-mbm run model.mbm --provider tensorrt --source clip.mp4
    """
    heads = tuple(head) if head else None
    options = CompileOptions(heads=heads, rebuild=rebuild, dla=tuple(dla or ()), dla_share=dla_share)
    with load(bundle) as opened:
        place, cache = find_place(target, capability), EngineCache()
        if dry_run:
            _show_plan(plan_engines(opened, place, cache, options), place, as_json=as_json)
            return
        with _Bars(human(to_stderr=True)) as bars:
            report = compile_bundle(opened, place, cache, SubprocessBuilder(), watch=bars, options=options)
    if as_json:
        write_json(report)
    else:
        _print(report, human())


def _show_plan(planned: tuple[PlannedEngine, ...], place: Place, *, as_json: bool) -> None:
    if as_json:
        write_json({"release": str(place.release), "gpu": place.gpu.name, "engines": planned})
        return
    console = human()
    console.print(clean(f"With {place}:"), soft_wrap=True)
    table = make_table("component", "variant", "graph", "", right=("graph",))
    for engine in planned:
        status = ("in the cache" if engine.is_cached else "to build") + (", for the DLA" if engine.is_dla else "")
        table.add_row(clean(engine.component), clean(engine.variant), size(engine.graph_bytes), status)
    console.print(table)


def _print(report: CompileReport, console: Console) -> None:
    console.print(clean(f"{report.bundle}: {report.release} on {report.gpu}"), soft_wrap=True)
    columns = ("component", "variant", "", "s", "size", "us", "+-", "")
    table = make_table(*columns, right=columns[3:-1])
    for engine in report.engines:
        runs = report.choices[engine.component].variant == engine.variant
        table.add_row(*_row(engine), "runs" if runs else "", style="" if runs else "dim")
    console.print(table)
    for engine in report.engines:
        console.print(clean(f"{engine.component} {engine.variant}: {_words(engine)}"), soft_wrap=True)
    for name, choice in report.choices.items():
        console.print(clean(f"{name} runs {choice.variant}: {choice.reason}"), soft_wrap=True)


def _row(engine: Compiled) -> tuple[str, ...]:
    record = engine.record
    latency = None if record is None else record.latency
    return (
        clean(engine.component),
        clean(engine.variant),
        engine.status,
        "-" if record is None else figure(record.build_s),
        "-" if record is None else size(record.size),
        figure(None if latency is None else latency.median_us),
        figure(None if latency is None else latency.iqr_us),
    )


def _words(engine: Compiled) -> str:
    record = engine.record
    if record is None:
        return engine.problem
    level = "" if record.level is None else f"; built at level {record.level}, since memory ran out above"
    if record.dla is not None:
        return f"{record.dla} on the DLA, the rest on the GPU{level}"
    if record.latency is None:
        return f"asked {record.asked}; what it got, and how fast it is, shows on its GPU{level}"
    return describe_layers(record.asked, record.got) + level


class _Bars(StageBars):
    """A bar for each engine that is built: a ``Watch``."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, TaskProgressColumn(), width=32, estimate_s=_ESTIMATE_S)

    def begin(self, planned: PlannedEngine) -> None:
        self.stage(str(planned), 1.0)

    def advance(self, share: float, what: str) -> None:
        self.update(what[:48], completed=share)

    def wait(self) -> None:
        self.console.print("Another process builds engines; waiting for it.")
