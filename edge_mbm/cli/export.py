"""``edge-mbm export``: from a recipe to a bundle, on the workstation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from edge_mbm.cli.bars import ExportBars
from edge_mbm.cli.options import Json
from edge_mbm.cli.terminal import clean, figure, human, make_table, size, write_json
from edge_mbm.errors import ExportError
from edge_mbm.spec import Component, Manifest, Variant

if TYPE_CHECKING:
    from edge_mbm.export.plan import PlannedComponent

__all__ = ["export"]


def export(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe, such as export/av_digits.toml.", show_default=False)
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="BUNDLE",
            help="What to write: a single file if it ends in .mbm, else a directory. Not for --dry-run, --lock.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="NAME",
            help="Make variants for this machine too (jetson-orin, jetson-thor, rtx, x86-cpu, arm-cpu), besides those "
            "that the recipe names; may be given several times.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be made, and about how long it would take; write nothing."),
    ] = False,
    lock: Annotated[
        bool,
        typer.Option(
            "--lock",
            help="Only read the recordings, and write their ids and digests beside the calibration set: from then on "
            "an export notices when they change.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Trace a trained model, prove parity, calibrate on recordings, quantize, measure, decide, and write one bundle.

    The recipe's model and recordings are Python code, and are run. Nothing is written unless everything holds. What
    was found out is kept in the user's cache: an export that was stopped goes on from there.

    Exit code 0: written. 2: the recipe is wrong. 4: a component cannot be exported. 5: what the recipe
    requires does not hold. 7: torch or onnx is not installed.

    Example: edge-mbm export export/av_digits.toml -o av_digits.mbm

    Example: edge-mbm export export/zero_shot.toml -o zero_shot.mbm --target jetson-orin
    """
    from edge_mbm.export import export_bundle  # noqa: PLC0415 - needs torch, which a device does not have

    if dry_run:
        _dry_run(recipe, target or (), as_json=as_json)
        return
    if lock:
        _lock(recipe, as_json=as_json)
        return
    if output is None:
        raise typer.BadParameter("say what to write, or take --dry-run or --lock", param_hint="--output")
    console = human(to_stderr=True)
    try:
        with ExportBars(console) as bars:
            manifest = export_bundle(recipe, output, bars, targets=target or ())
    except ExportError as error:
        # Its first line is the error's; the rest, what was tried and how it went, is a list to be read as one.
        first, *rest = str(error).splitlines()
        for line in rest:
            console.print(clean(line), soft_wrap=True)
        raise type(error)(first) from error
    if as_json:
        write_json({"bundle": str(output), "manifest": manifest})
    else:
        _print(manifest, output, human())


def _lock(recipe: Path, *, as_json: bool) -> None:
    from edge_mbm.export import load_recipe  # noqa: PLC0415 - needs torch
    from edge_mbm.export.lock import write_lock  # noqa: PLC0415 - as above

    path = write_lock(load_recipe(recipe))
    if as_json:
        write_json({"lock": str(path)})
    else:
        human().print(clean(f"{path}: what the recordings are now"), soft_wrap=True)


def _dry_run(recipe: Path, targets: Sequence[str], *, as_json: bool) -> None:
    from edge_mbm.export.plan import plan  # noqa: PLC0415 - as above

    planned = plan(recipe, targets)
    if as_json:
        write_json(planned)
        return
    console = human()
    for name, component in planned.components.items():
        console.print(clean(_summary(name, component)), soft_wrap=True)
    table = make_table("component", "variant", "for", "about", "to try", right=("about",))
    for name, component in planned.components.items():
        for key, variant in component.variants.items():
            first = clean(name) if key == "fp32" else ""
            about = size(variant.bytes) if variant.bytes is not None else "-"
            table.add_row(
                first, key, ", ".join(variant.targets) or "any", about, clean(", ".join(variant.presets) or "-")
            )
    console.print(table)
    for stage, seconds in planned.seconds.items():
        console.print(f"  {stage:24} about {_duration(seconds)}{' at most' if stage == 'search' else ''}")
    counts = ", ".join(f"{count} {split}" for split, count in planned.recordings.items())
    whole = _duration(planned.total_seconds)
    console.print(clean(f"{planned.name}: at most {counts} recordings; all in all about {whole}"), soft_wrap=True)


def _summary(name: str, component: PlannedComponent) -> str:
    edges = [f"{key} {shape}" for key, shape in {**component.inputs, **component.states}.items()]
    made = [f"{key} {shape}" for key, shape in component.outputs.items()]
    counted = "" if component.parameters is None else f"; {component.parameters:,} parameters"
    timed = "" if component.call_ms is None else f", {component.call_ms:.1f} ms a call"
    return f"{name}: {component.kind}, {', '.join(edges)} -> {', '.join(made)}{counted}{timed}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _print(manifest: Manifest, output: Path, console: Console) -> None:
    columns = ("component", "variant", "KiB", "cosine", "dB", "acc.", "us", "speed", "")
    table = make_table(*columns, right=columns[2:-1])
    table.columns[1].no_wrap = True
    for name, component in manifest.components.items():
        for key, variant in component.variants.items():
            table.add_row(*_row(name, key, variant, manifest), style="" if variant.decision.kept else "dim")
    console.print(table)
    for name, key, variant in _not_kept(manifest.components):
        console.print(clean(f"{name} {key}: {variant.decision.reason}"), style="dim", soft_wrap=True)
    total = sum(entry.size for entry in manifest.files.values())
    console.print(
        f"\n{output}: {len(manifest.files)} files, {size(total)}. Next: edge-mbm verify {output}", soft_wrap=True
    )


def _row(name: str, key: str, variant: Variant, manifest: Manifest) -> tuple[Any, ...]:
    error, speed = variant.error, variant.speed
    return (
        clean(name) if key == "fp32" else "",
        clean(key),
        figure(manifest.files[variant.graph].size / 1024 if variant.graph else None, 0),
        figure(error.cosine if error else None, 4),
        figure(error.sqnr_db if error else None),
        figure(error.accuracy if error else None, 3),
        figure(speed.median_us if speed else None, 0),
        figure(speed.speedup if speed else None, 2, "x"),
        "kept" if variant.decision.kept else "no",
    )


def _not_kept(components: dict[str, Component]) -> list[tuple[str, str, Variant]]:
    return [(n, k, v) for n, c in components.items() for k, v in c.variants.items() if not v.decision.kept]
