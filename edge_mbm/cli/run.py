"""``edge-mbm run``: stream a recording through a bundle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from edge_mbm.cli.options import BundlePath, Heads, Json, Threads, VariantChoice
from edge_mbm.cli.result_line import ResultLine
from edge_mbm.cli.run_report import RunReport, print_report
from edge_mbm.cli.terminal import human, write_json, write_line
from edge_mbm.errors import EdgeMbmError, InputError
from edge_mbm.runtime.bundle import Bundle, load
from edge_mbm.runtime.live import Live, open_live
from edge_mbm.runtime.result import Result
from edge_mbm.runtime.scoring import Scorer, read_truth
from edge_mbm.runtime.session import SessionOptions
from edge_mbm.runtime.sinks import JsonLines
from edge_mbm.runtime.summary import RunSummary

__all__ = ["run"]

_STDOUT = Path("-")


@dataclass(frozen=True)
class _Output:
    """What is printed, and where.

    Args:
        lines: a file for JSON lines, "-" for stdout, or None.
        as_json: whether the summary is JSON on stdout.
        quiet: whether people see the summary only.
    """

    lines: Path | None
    as_json: bool
    quiet: bool

    @property
    def to_stderr(self) -> bool:
        """Whether stdout belongs to a script."""
        return self.as_json or self.lines == _STDOUT


@dataclass
class _Counts:
    """What is added up; memory is bounded by the bundle and the truth file."""

    scorer: Scorer | None
    summary: RunSummary = field(default_factory=RunSummary)
    finished: bool = False


def run(
    bundle: BundlePath,
    *,
    source: Annotated[
        Path,
        typer.Option("--source", metavar="FILE", help="Video or audio file to play.", show_default=False),
    ],
    fast: Annotated[
        bool,
        typer.Option("--fast", help="As fast as possible instead of real time: drops nothing, repeats itself exactly."),
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Stop after so many results.", show_default=False)
    ] = None,
    head: Heads = None,
    variant: VariantChoice = "auto",
    threads: Threads = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|-",
            help="Write results as JSON lines, each before the next result; - is stdout, and people read stderr then.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE",
            help="What the right answers are. Without it, the source's NAME.truth.json is used if it is there.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No line per result, only the summary.", rich_help_panel="Output")
    ] = False,
    as_json: Json = False,
) -> None:
    """Stream a recording through a bundle at real time, and print each result as it comes.

    At the end, and after Ctrl-C, a summary shows ages, where the time went, what was lost, and how often the answer
    was right where a truth file tells.

    Example: edge-mbm run model.mbm --source clip.mp4 --output results.jsonl
    """
    out = _Output(output, as_json, quiet)
    if out.as_json and out.lines == _STDOUT:
        raise InputError("--json and --output - both want stdout: write the results to a file")
    counts = _Counts(_scorer(source, truth))
    options = SessionOptions(heads=tuple(head) if head else None, variant=variant, threads=threads)
    with load(bundle) as opened, open_live(opened, source, options=options, realtime=not fast) as live:
        try:
            with ExitStack() as stack:
                takers = [*_takers(opened, live, out, counts, stack, realtime=not fast)]
                counts.finished = _stream(live, takers, limit)
        except (EdgeMbmError, KeyboardInterrupt):
            # What was seen until then is worth knowing, above all after weeks.
            _report(live, source, out, counts, realtime=not fast)
            raise
        _report(live, source, out, counts, realtime=not fast)


def _scorer(source: Path, truth: Path | None) -> Scorer | None:
    beside = source.with_suffix(".truth.json")
    if truth is None and not beside.is_file():
        return None
    return Scorer(read_truth(truth or beside))


def _takers(
    bundle: Bundle, live: Live, out: _Output, counts: _Counts, stack: ExitStack, *, realtime: bool
) -> list[Callable[[Result], None]]:
    """Whoever wants each result, in order: the file first, so that nothing that fails later keeps a line from it."""
    takers: list[Callable[[Result], None]] = []
    if out.lines is not None:
        to = sys.stdout.buffer if out.lines == _STDOUT else out.lines
        takers.append(stack.enter_context(JsonLines(to, live.origin)).write)
    takers.append(counts.summary.add)
    if (scorer := counts.scorer) is not None:
        takers.append(lambda result: scorer.add(result, result.t_capture - live.origin))
    if not out.quiet:
        stream = sys.stderr if out.to_stderr else sys.stdout
        heads = [planned.name for planned in live.session.plan]
        lines = ResultLine(bundle, heads, origin=live.origin, realtime=realtime)
        write_line(lines.header(), stream)
        takers.append(lambda result: write_line(lines.line(result), stream))
    return takers


def _stream(live: Live, takers: list[Callable[[Result], None]], limit: int | None) -> bool:
    """Hand out every result; returns whether the source came to its end."""
    for count, result in enumerate(live, start=1):
        for take in takers:
            take(result)
        if count == limit:
            return False
    return True


def _report(live: Live, source: Path, out: _Output, counts: _Counts, *, realtime: bool) -> None:
    newest = counts.summary.newest
    until = None if counts.finished else -1 if newest is None else newest - live.origin
    report = RunReport(
        bundle=live.session.manifest.name,
        source=str(source),
        realtime=realtime,
        finished=counts.finished,
        summary=counts.summary.summary(),
        losses=live.session.stats(),
        scores=None if counts.scorer is None else counts.scorer.scores(until),
    )
    if out.as_json:
        write_json(report)
    else:
        print_report(report, human(to_stderr=out.to_stderr))
