"""``edge-mbm replay``: stream what was recorded on a device through a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edge_mbm.cli.options import (
    AllowFallback,
    DlaComponents,
    Heads,
    Json,
    Limit,
    ProviderChoice,
    Quiet,
    ResultsPath,
    Threads,
    TruthPath,
    VariantChoice,
)
from edge_mbm.cli.run import Playing, ResultOutput, play
from edge_mbm.cli.terminal import clean, write_line
from edge_mbm.runtime.bundle import load
from edge_mbm.runtime.live import open_live
from edge_mbm.runtime.recording import ReplaySource
from edge_mbm.runtime.session import SessionOptions

__all__ = ["replay"]


def replay(
    recording: Annotated[
        Path,
        typer.Argument(metavar="RECORDING", help="An .mcap file that edge-mbm recorded.", show_default=False),
    ],
    *,
    bundle: Annotated[
        Path,
        typer.Option("--bundle", "-b", metavar="BUNDLE", help="A .mbm file or a bundle directory.", show_default=False),
    ],
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime", help="At the pace at which it was recorded, dropping frames that come while it is busy."
        ),
    ] = False,
    limit: Limit = None,
    head: Heads = None,
    variant: VariantChoice = "auto",
    threads: Threads = 1,
    provider: ProviderChoice = "cpu",
    allow_fallback: AllowFallback = False,
    dla: DlaComponents = None,
    output: ResultsPath = None,
    truth: TruthPath = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Stream a recording of samples through a bundle as fast as possible: nothing is dropped, every run is the same.

    The recording may have been made with another bundle; what this one does not know is left out. A recording that was
    cut off is played as far as it goes.

    Example: edge-mbm replay session.mcap --bundle model.mbm --output results.jsonl
    """
    options = SessionOptions(
        heads=tuple(head) if head else None,
        variant=variant,
        threads=threads,
        provider=provider,
        allow_fallback=allow_fallback,
        dla=tuple(dla or ()),
    )
    playing = Playing(str(recording), truth, limit, ResultOutput(output, as_json, quiet), realtime)
    with load(bundle) as opened:
        source = ReplaySource(recording, modalities=opened.manifest.modalities)
        for note in _notes(source):
            write_line(f"note: {clean(note)}", sys.stderr)
        play(opened, open_live(opened, source, options=options, realtime=realtime), playing)


def _notes(source: ReplaySource) -> list[str]:
    lost = ", ".join(f"{name} {count}" for name, count in source.losses.items())
    notes = [source.cut] if source.cut is not None else []
    return notes + ([f"the recorder could not write all: {lost}"] if lost else [])
