"""``edge-mbm cache``: the engines that ``edge-mbm compile`` keeps on this device."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from edge_mbm.cli.options import Json
from edge_mbm.cli.terminal import clean, figure, human, make_table, size, write_json
from edge_mbm.runtime.trt.cache import CacheEntry, EngineCache, EngineRecord

__all__ = ["cache_app", "list_engines", "remove_engines"]

_SHORT = 12
"""Digits of a name that tell engines apart."""

cache_app = typer.Typer(
    help="The TensorRT engines that edge-mbm compile keeps on this device.",
    no_args_is_help=True,
    add_completion=False,
)


@cache_app.command("ls")
def list_engines(*, as_json: Json = False) -> None:
    """List the engines in the cache.

    Example: edge-mbm cache ls
    """
    cache = EngineCache()
    entries = cache.entries()
    if as_json:
        write_json({"folder": str(cache.folder), "engines": [_as_json(entry) for entry in entries]})
        return
    console = human()
    total = size(sum(entry.size for entry in entries))
    console.print(clean(f"{cache.folder}: {len(entries)} engines, {total}"), soft_wrap=True)
    table = make_table("name", "component", "variant", "size", "us", "built with", "for", right=("size", "us"))
    for entry in entries:
        table.add_row(entry.name[:_SHORT], *_row(entry), style="red" if entry.problem else "")
    if entries:
        console.print(table)


@cache_app.command("rm")
def remove_engines(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="As edge-mbm cache ls shows them.", show_default=False),
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Remove every engine.")] = False,
    as_json: Json = False,
) -> None:
    """Remove engines from the cache; edge-mbm compile builds them again.

    Example: edge-mbm cache rm 3f2a90c1d4e5
    """
    if bool(names) == everything:
        raise typer.BadParameter("give the names of engines, or --all", param_hint="NAME")
    cache = EngineCache()
    removed = cache.clear() if everything else [cache.remove(name) for name in names or ()]
    if as_json:
        write_json({"removed": [_as_json(entry) for entry in removed]})
    else:
        human().print(f"{len(removed)} engines removed, {size(sum(entry.size for entry in removed))}")


def _row(entry: CacheEntry) -> tuple[str, ...]:
    record = entry.record
    if record is None:
        return ("-", "-", size(entry.size), "-", clean(f"not used: {entry.problem}"), "")
    return (
        clean(record.component),
        clean(record.variant),
        size(entry.size),
        figure(record.latency.median_us if record.latency else None),
        clean(f"{record.key.product} {record.key.version}"),
        clean(f"not used: {entry.problem}" if entry.problem else _where(record)),
    )


def _where(record: EngineRecord) -> str:
    return record.key.gpu if record.dla is None else f"{record.key.gpu}'s DLA"


def _as_json(entry: CacheEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "size": entry.size,
        "problem": entry.problem,
        "record": msgspec.to_builtins(entry.record),
    }
