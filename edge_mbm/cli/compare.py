"""``edge-mbm compare``: what changed from one bundle to another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import typer
from msgspec import UNSET
from rich.console import Console

from edge_mbm.cli.options import Json, Threads, VariantChoice
from edge_mbm.cli.terminal import chosen, clean, figure, human, make_table, size, write_json
from edge_mbm.runtime.bundle import load
from edge_mbm.runtime.compare import (
    Change,
    Comparison,
    FileChange,
    HeadChange,
    HeadFigures,
    OutputDifference,
    Replayed,
    VariantChange,
    VariantSide,
    compare_bundles,
    replay_both,
)

__all__ = ["compare"]

_DIFFER = 1
_Read: TypeAlias = Callable[[VariantSide | None], str]
_SHOWN = 60
"""Letters of a value; --json has it whole."""
_DIGEST, _DIGEST_SHOWN = re.compile("[0-9a-f]{64}"), 15


def compare(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="The bundle before: a .mbm file or a directory.", show_default=False)
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="The bundle after.", show_default=False)],
    *,
    run: Annotated[
        bool,
        typer.Option(
            "--run", help="Also run A's golden samples through both on this machine, and compare answers and time."
        ),
    ] = False,
    variant: VariantChoice = "auto",
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Show what changed from one bundle to another: contract, variants, sizes, error, speed, origin, bytes.

    Exit code 0: every byte is the same. 1: they differ. Others: trouble, as for every command.

    Example: edge-mbm compare yesterday.mbm today.mbm --run
    """
    with load(a) as before, load(b) as after:
        replayed = replay_both(before, after, variant, threads=threads) if run else None
        found = compare_bundles(before, after, replayed)
    if as_json:
        write_json(_as_json(found))
    else:
        _print(found, human())
    if not found.same:
        raise typer.Exit(_DIFFER)


def _as_json(found: Comparison) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(found)
    for plain, change in zip(value["variants"], found.variants, strict=True):
        plain["flipped"] = change.flipped
    return value


def _print(found: Comparison, console: Console) -> None:
    for letter, side in (("A", found.a), ("B", found.b)):
        console.print(f"{letter}  {clean(side.path)}: {clean(side.name)}, {side.files} files, {size(side.bytes)}")
    if found.same:
        console.print("\nEvery byte is the same.", style="green")
    else:
        _print_differences(found, console)
    if found.replayed is not None:
        _print_replayed(found.replayed, console)


def _print_differences(found: Comparison, console: Console) -> None:
    _print_changes("Contract", found.manifest, console)
    _print_variants(found.variants, console)
    _print_heads(found.heads, console)
    _print_changes("Provenance", found.provenance, console)
    _print_files(found.files, console)
    for note in found.notes:
        console.print(f"\n{clean(note)}", style="dim")


def _heading(text: str, console: Console) -> None:
    console.print(f"\n{text}", style="bold")


def _print_changes(title: str, changes: Iterable[Change], console: Console) -> None:
    rows = [(clean(change.where), _value(change.a), _value(change.b)) for change in changes]
    if rows:
        _heading(title, console)
        _print_rows(("", "A", "B"), rows, console)


def _print_rows(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], console: Console) -> None:
    table = make_table(*columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _value(value: Any) -> str:
    if value is UNSET:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value)
    shown = _DIGEST_SHOWN if _DIGEST.fullmatch(text) else _SHOWN
    return clean(text if len(text) <= shown else f"{text[: shown - 3]}...")


# --- variants --------------------------------------------------------------------------------------------------------


def _print_variants(changes: Iterable[VariantChange], console: Console) -> None:
    changes = tuple(changes)
    if not changes:
        return
    _heading("Variants", console)
    table = make_table("component", "variant", "", "", *_FIGURES, right=tuple(_FIGURES))
    for change in changes:
        for row in _rows(change):
            table.add_row(*row, style="yellow" if change.flipped else "")
    console.print(table)
    for change in changes:
        if change.flipped or change.a is None or change.b is None:
            for line in _reasons(change):
                console.print(clean(line), soft_wrap=True)


def _rows(change: VariantChange) -> Iterator[tuple[str, ...]]:
    """A line for each side, one above the other."""
    names = (clean(change.component), clean(change.variant))
    for letter, side in (("A", change.a), ("B", change.b)):
        yield (*names, letter, _state(side), *(read(side) for read in _FIGURES.values()))
        names = ("", "")


def _state(side: VariantSide | None) -> str:
    if side is None:
        return "absent"
    return "kept" if side.variant.decision.kept else "not kept"


def _reasons(change: VariantChange) -> Iterator[str]:
    for letter, side in (("A", change.a), ("B", change.b)):
        if side is not None:
            yield f"{change.component} {change.variant} in {letter}, {_state(side)}: {side.variant.decision.reason}"


def _kib(side: VariantSide | None) -> str:
    return figure(side.file.size / 1024 if side and side.file else None, 0)


def _error(name: str, digits: int) -> _Read:
    def read(side: VariantSide | None) -> str:
        error = side.variant.error if side else None
        return figure(getattr(error, name) if error else None, digits)

    return read


def _speed(name: str, digits: int, unit: str = "") -> _Read:
    def read(side: VariantSide | None) -> str:
        speed = side.variant.speed if side else None
        return figure(getattr(speed, name) if speed else None, digits, unit)

    return read


_FIGURES: Mapping[str, _Read] = {
    "KiB": _kib,
    "cosine": _error("cosine", 4),
    "dB": _error("sqnr_db", 1),
    "agree": _error("agreement", 3),
    "acc.": _error("accuracy", 3),
    "us": _speed("median_us", 0),
    "faster": _speed("speedup", 2, "x"),
}


def _change(a: str, b: str) -> str:
    return a if a == b else f"{a} -> {b}"


# --- the rest --------------------------------------------------------------------------------------------------------


def _print_heads(changes: Iterable[HeadChange], console: Console) -> None:
    rows = [
        (clean(change.head), *(_change(_head(change.a, key), _head(change.b, key)) for key in _HEAD_FIGURES))
        for change in changes
    ]
    if rows:
        _heading("Heads with all chosen variants, as measured on export", console)
        _print_rows(("head", *_HEAD_FIGURES.values()), rows, console)


_HEAD_FIGURES = {"accuracy": "accuracy", "agreement": "agreement", "cosine": "cosine"}


def _head(figures: HeadFigures | None, key: str) -> str:
    return figure(getattr(figures.error, key) if figures else None, 5 if key == "cosine" else 3)


def _print_files(changes: Iterable[FileChange], console: Console) -> None:
    rows = [(clean(change.path), *_sizes(change)) for change in changes]
    if rows:
        _heading("Files", console)
        _print_rows(("", "A", "B"), rows, console)


def _sizes(change: FileChange) -> tuple[str, str]:
    a, b = (size(entry.size) if entry else "-" for entry in (change.a, change.b))
    return (a, f"{b}, other bytes" if a == b else b)


def _print_replayed(found: Replayed, console: Console) -> None:
    _heading(f"B's answers against A's on {found.samples} golden samples of A, on {clean(found.processor)}", console)
    columns = ("output", "cosine", "SQNR dB", "max diff.", "same label")
    table = make_table(*columns, right=columns[1:])
    for output in found.outputs:
        table.add_row(*_row(output))
    console.print(table)
    for line in found.left_out:
        console.print(clean(f"not compared: {line}"), soft_wrap=True)
    for letter, ran, microseconds in (("A", found.a, found.a_us), ("B", found.b, found.b_us)):
        console.print(f"{letter}  {microseconds:.0f} us a sample ({chosen(ran)})", soft_wrap=True)
    if found.a_us > 0:
        console.print(f"B takes {found.b_us / found.a_us:.2f} of A's time ({found.threads} threads per engine)")


def _row(output: OutputDifference) -> tuple[str, ...]:
    agreement = "-" if output.agreement is None else f"{output.agreement:.1%}"
    numbers = (f"{output.cosine:.5f}", f"{output.sqnr_db:.1f}", f"{output.max_abs:.2g}", agreement)
    return (clean(output.output), *numbers)
