"""Printing: nothing that a bundle or a file says may steer the terminal, and scripts get stdout for themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TextIO

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["chosen", "clean", "figure", "human", "make_table", "size", "write_json", "write_line"]


def clean(text: object) -> str:
    r"""Text from outside, in one line: what is not printable (escapes, line breaks, bidi marks) shows as ``\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def human(*, to_stderr: bool = False) -> Console:
    """Where people read. Strings are taken literally: no markup, no emoji codes, no highlighting."""
    return Console(stderr=to_stderr, markup=False, emoji=False, highlight=False)


def make_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without lines but the one below its headers.

    Args:
        columns: headers.
        right: those of them that hold numbers.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def write_json(value: object) -> None:
    """Print a record as JSON to stdout, in ASCII, so that it is safe on a terminal too."""
    write_line(json.dumps(msgspec.to_builtins(value), indent=2, allow_nan=False), sys.stdout)


def write_line(text: str, stream: TextIO) -> None:
    """One line at once, neither wrapped nor held back."""
    stream.write(text + "\n")
    stream.flush()


def figure(value: float | None, digits: int = 1, unit: str = "") -> str:
    """A number for a column; "-" for none."""
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def size(count: int) -> str:
    """A number of bytes."""
    if count < 1 << 10:
        return f"{count} bytes"
    return f"{count / (1 << 10):.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"


def chosen(components: Mapping[str, str]) -> str:
    """Which variant each component runs, in few words."""
    variants = set(components.values())
    if len(variants) == 1:
        return f"every component {clean(variants.pop())}"
    return clean(", ".join(f"{name} {variant}" for name, variant in components.items()))
