"""``edge-mbm doctor``: what this machine has and lacks."""

from __future__ import annotations

from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from edge_mbm.cli.options import Json
from edge_mbm.cli.terminal import clean, human, make_table, write_json
from edge_mbm.errors import MissingDependencyError
from edge_mbm.runtime.doctor import Check, Devices, Diagnosis, examine
from edge_mbm.runtime.machine import Machine

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warning": "yellow", "missing": "dim", "broken": "red"}


def doctor(*, as_json: Json = False) -> None:
    """Show what this machine has and lacks to run bundles, with the line that mends it.

    Exit code 0: a bundle ran. 7: none can.

    Example: edge-mbm doctor
    """
    found = examine()
    if as_json:
        write_json(_as_json(found))
    else:
        _print(found, human())
    if not found.can_run:
        for engine in found.engines:
            line = f"error: this machine cannot run bundles: {clean(engine.detail)}. To mend it: {engine.remedy}"
            human(to_stderr=True).print(line, style="red", soft_wrap=True)
        raise typer.Exit(MissingDependencyError.exit_code)


def _as_json(found: Diagnosis) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(found)
    return value | {"can_run": found.can_run}


def _print(found: Diagnosis, console: Console) -> None:
    _print_machine(found.machine, console)
    for title, checks in (
        ("Engines", found.engines),
        ("System", found.system),
        ("Packages for running bundles", found.device),
        ("Packages for exporting them (a device does without)", found.workstation),
    ):
        console.print()
        console.print(Text(title, style="bold"))
        _print_checks(checks, console)
    _print_devices(found.devices, console)
    if found.can_run:
        console.print("\nThis machine can run bundles.", style="green")


def _print_machine(machine: Machine, console: Console) -> None:
    console.print(f"Python {machine.python}, {clean(machine.system)}")
    flags = ", ".join(machine.flags) or "no vector instructions of note"
    console.print(f"{clean(machine.processor)}, {machine.cores} cores, {flags}")
    if machine.jetson is not None:
        console.print(f"Jetson: {clean(machine.jetson)}")
        console.print("Keep NVIDIA's own builds (tensorrt, onnxruntime, OpenCV): never install pip's over them.")


def _print_checks(checks: tuple[Check, ...], console: Console) -> None:
    table = make_table("", "", "")
    table.show_header = False
    for check in checks:
        status = Text(check.status, style=_STYLES[check.status])
        table.add_row(f"  {check.name}", status, f"{check.purpose}: {clean(check.detail)}")
        if check.remedy is not None:
            table.add_row("", "", f"-> {check.remedy}")
    console.print(table)


def _print_devices(devices: Devices, console: Console) -> None:
    console.print()
    console.print(Text("Devices", style="bold"))
    for kind, names in (("cameras", devices.cameras), ("microphones", devices.microphones)):
        console.print(f"  {kind}: {clean(', '.join(names) or 'none')}")
