"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

__all__ = ["BundlePath", "Heads", "Json", "Threads", "VariantChoice"]

BundlePath: TypeAlias = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A .mbm file or a bundle directory.", show_default=False)
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout, for scripts.", rich_help_panel="Output")
]
VariantChoice: TypeAlias = Annotated[
    str,
    typer.Option(
        "--variant",
        metavar="auto|NAME",
        help="Graphs to run: auto takes the fastest kept for this machine; a name (fp32) takes that one, "
        "and fp32 where a component does not have it.",
        rich_help_panel="Model",
    ),
]
Heads: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--head",
        metavar="NAME",
        help="Head to run; may be given several times. Without it the bundle's default heads run.",
        show_default=False,
        rich_help_panel="Model",
    ),
]
Threads: TypeAlias = Annotated[
    int, typer.Option("--threads", min=1, help="Threads of each engine.", rich_help_panel="Model")
]
