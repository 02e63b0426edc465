"""``edge-mbm verify``: the right bytes, and the right answers on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from edge_mbm.cli.options import BundlePath, DlaComponents, Json, ProviderChoice, Threads
from edge_mbm.cli.terminal import chosen, clean, figure, human, make_table, size, write_json
from edge_mbm.runtime.bundle import load
from edge_mbm.runtime.verify import OutputCheck, Replay, Verification, verify_bundle

__all__ = ["verify"]


def verify(
    bundle: BundlePath,
    *,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            metavar="auto|NAME",
            help="Graphs to check. Without it fp32 is checked, and what runs here (auto) if that is something else.",
            show_default=False,
            rich_help_panel="Model",
        ),
    ] = None,
    threads: Threads = 1,
    provider: ProviderChoice = "cpu",
    dla: DlaComponents = None,
    as_json: Json = False,
) -> None:
    """Check every byte of a bundle, then replay its golden samples on this machine against the framework's outputs.

    Exit code 0: everything passed. 3: the bundle is damaged. 8: this machine computes something else.

    Example: edge-mbm verify model.mbm
    """
    with load(bundle) as opened:
        found = verify_bundle(
            opened, None if variant is None else [variant], threads=threads, provider=provider, dla=tuple(dla or ())
        )
    if as_json:
        write_json(_as_json(found))
    else:
        _print(found, human())
    found.check()


def _as_json(found: Verification) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(found) | {"passed": found.passed}
    for plain, replay in zip(value["replays"], found.replays, strict=True):
        plain["passed"] = replay.passed
        for entry, check in zip(plain["outputs"], replay.outputs, strict=True):
            entry["passed"] = check.passed
    return value


def _print(found: Verification, console: Console) -> None:
    console.print(f"{clean(found.bundle)}: {found.files} files, {size(found.bytes)}, every byte is what it should be")
    if not found.replays:
        console.print("It has no golden samples, so only the bytes were verified, not what this machine computes.")
    for replay in found.replays:
        _print_replay(replay, found.samples, console)
    if found.replays and found.passed:
        console.print("\nThis machine computes what the framework computed.", style="green")


def _print_replay(replay: Replay, samples: int, console: Console) -> None:
    console.print(f"\n{clean(replay.variant)} on {samples} golden samples ({chosen(replay.components)})")
    columns = ("output", "SQNR dB", "needed", "max error", "same label", "")
    table = make_table(*columns, right=columns[1:-1])
    for check in replay.outputs:
        table.add_row(*_row(check), style="" if check.passed else "red")
    console.print(table)


def _row(check: OutputCheck) -> tuple[str, ...]:
    agreement = "-" if check.agreement is None else f"{check.agreement:.1%}"
    worst = "not finite" if check.max_abs is None else f"{check.max_abs:.2g}"
    verdict = "ok" if check.passed else "FAILED"
    numbers = (figure(check.sqnr_db), figure(check.required_db), worst, agreement)
    return (clean(check.output), *numbers, verdict)
