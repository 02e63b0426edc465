"""What a run came to: for people, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from rich.console import Console

from edge_mbm.cli.terminal import clean, make_table
from edge_mbm.runtime.latency import LatencyFigures
from edge_mbm.runtime.scoring import HeadScore
from edge_mbm.runtime.summary import HeadSummary, Summary

__all__ = ["RunReport", "print_report"]


class RunReport(Struct, frozen=True, kw_only=True):
    """What ``edge-mbm run --json`` prints."""

    bundle: str
    source: str
    realtime: bool
    finished: bool
    """Whether the source was played to its end."""
    summary: Summary
    losses: dict[str, int]
    """See ``Session.stats``."""
    scores: dict[str, HeadScore] | None
    """Per head, where there is a truth file."""


def print_report(report: RunReport, console: Console) -> None:
    """Tables of heads, stages, losses and right answers."""
    console.print()
    if not report.summary.heads:
        console.print("no results")
    else:
        _print_heads(report, console)
        _print_stages(_meaningful(report), console)
    lost = ", ".join(f"{cause} {count}" for cause, count in report.losses.items() if count)
    console.print(f"\nlost: {clean(lost or 'nothing')}")
    if report.scores is not None:
        _print_scores(report.scores, console)


def _print_heads(report: RunReport, console: Console) -> None:
    kind = "age" if report.realtime else "compute"
    columns = ("results", "dropped", f"{kind} p50 ms", "p95", "p99", "max", "without")
    table = make_table("head", *columns, right=columns[:-1])
    for name, head in report.summary.heads.items():
        figures = head.age if report.realtime else head.compute
        times = (figures.p50_us, figures.p95_us, figures.p99_us, figures.max_us)
        table.add_row(name, str(head.results), str(head.dropped), *map(_ms, times), _missing(head))
    console.print(table)


def _missing(head: HeadSummary) -> str:
    return ", ".join(f"{modality} {count}" for modality, count in head.missing.items()) or "-"


def _meaningful(report: RunReport) -> dict[str, LatencyFigures]:
    """Stages in the order of a sample's way; a file played as fast as possible neither queues nor waits."""
    stages = dict(report.summary.stages)
    first, last = ({name: stages.pop(name)} if name in stages else {} for name in ("queue", "wait"))
    return first | stages | last if report.realtime else stages


def _print_stages(stages: Mapping[str, LatencyFigures], console: Console) -> None:
    table = make_table("stage", "p50 ms", "p95", "max", right=("p50 ms", "p95", "max"))
    for stage, figures in stages.items():
        table.add_row(stage, *map(_ms, (figures.p50_us, figures.p95_us, figures.max_us)))
    console.print()
    console.print(table)


def _print_scores(scores: Mapping[str, HeadScore], console: Console) -> None:
    console.print()
    if not scores:
        console.print("The truth is known, but no head that ran gives a label.")
        return
    spoils = tuple(dict.fromkeys(name for score in scores.values() for name in score.by_spoiled))
    columns = ("results right", "segments right", *map(clean, spoils))
    table = make_table("head", *columns, right=columns)
    for head, score in scores.items():
        parts = (score.by_spoiled.get(name) for name in spoils)
        cells = ("-" if part is None else f"{part.segments_right}/{part.segments}" for part in parts)
        whole = score.all
        segments = _share(whole.segments_right, whole.segments)
        table.add_row(head, _share(whole.results_right, whole.results), segments, *cells)
    console.print(table)


def _share(right: int, total: int) -> str:
    return f"{right}/{total} = {right / total:.1%}" if total else "0/0"


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1e3:.2f}"
