"""``edge-mbm bench``: how fast a bundle streams on this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from edge_mbm.cli.options import (
    AllowFallback,
    BundlePath,
    DlaComponents,
    Heads,
    Json,
    ProviderChoice,
    Threads,
    VariantChoice,
)
from edge_mbm.cli.terminal import chosen, clean, figure, human, make_table, write_json
from edge_mbm.runtime.bench import BenchReport, BenchRun, bench_bundle
from edge_mbm.runtime.bundle import load
from edge_mbm.runtime.latency import LatencyFigures
from edge_mbm.runtime.session import SessionOptions

__all__ = ["bench"]


def bench(
    bundle: BundlePath,
    *,
    variant: VariantChoice = "auto",
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="NAME",
            help="Measure this choice of graphs too, in turns with the other: fp32 shows what quantization gains.",
            show_default=False,
            rich_help_panel="Model",
        ),
    ] = None,
    head: Heads = None,
    threads: Threads = 1,
    provider: ProviderChoice = "cpu",
    allow_fallback: AllowFallback = False,
    dla: DlaComponents = None,
    seconds: Annotated[
        float, typer.Option("--seconds", help="Time to measure each choice for.", rich_help_panel="Measurement")
    ] = 3.0,
    as_json: Json = False,
) -> None:
    """Stream the golden inputs through a bundle as fast as it goes, and show where the time is spent.

    Example: edge-mbm bench model.mbm --compare fp32
    """
    options = SessionOptions(
        heads=tuple(head) if head else None,
        variant=variant,
        threads=threads,
        provider=provider,
        allow_fallback=allow_fallback,
        dla=tuple(dla or ()),
    )
    with load(bundle) as opened:
        report = bench_bundle(opened, options, compare=compare, seconds=seconds)
    if as_json:
        write_json(report)
    else:
        _print(report, human())
        if compare is not None and len(report.runs) == 1:
            human().print(f"\n{clean(variant)} and {clean(compare)} are the same graphs here: nothing to compare.")


def _print(report: BenchReport, console: Console) -> None:
    console.print(f"{clean(report.bundle)} on {clean(report.processor)}, {report.threads} threads per engine")
    if report.zeros:
        console.print(f"The bundle has no golden input for {', '.join(report.zeros)}: zeros were fed.")
    for run in report.runs:
        _print_run(run, console)
    if report.speedup:
        _print_speedup(report, console)


def _print_run(run: BenchRun, console: Console) -> None:
    console.print(f"\n{clean(run.variant)} ({chosen(run.components)})")
    columns = ("us", "p50", "p95", "p99", "max")
    table = make_table(*columns, right=columns[1:])
    for stage, figures in run.stages.items():
        table.add_row(stage, *_cells(figures))
    table.add_row("end to end", *_cells(run.end_to_end), style="bold")
    console.print(table)
    console.print(f"{run.results} results in {run.seconds:.2f} s: {run.results_per_s:.0f} a second")


def _print_speedup(report: BenchReport, console: Console) -> None:
    first, second = (clean(run.variant) for run in report.runs)
    table = make_table("median us", first, second, f"{first} faster", right=(first, second, f"{first} faster"))
    for stage, ratio in report.speedup.items():
        medians = (figure(_median(run, stage)) for run in report.runs)
        table.add_row(stage.replace("_", " ") if stage == "end_to_end" else stage, *medians, f"{ratio:.2f}x")
    console.print()
    console.print(table)


def _median(run: BenchRun, stage: str) -> float:
    return run.end_to_end.p50_us if stage == "end_to_end" else run.stages[stage].p50_us


def _cells(figures: LatencyFigures) -> tuple[str, ...]:
    return tuple(figure(value) for value in (figures.p50_us, figures.p95_us, figures.p99_us, figures.max_us))
