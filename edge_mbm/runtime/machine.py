"""What this machine is: its processor, and whether it is a Jetson."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from msgspec import Struct

__all__ = ["Machine", "look_at_machine"]

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
"""What decides how fast int8 is."""
_ROOT = Path("/")


class Machine(Struct, frozen=True, kw_only=True):
    """The processor and the system around it."""

    system: str
    python: str
    processor: str
    flags: tuple[str, ...]
    """Of the processor: those that int8 graphs profit from."""
    cores: int
    """That this process may use."""
    jetson: str | None
    """The release line of NVIDIA's L4T, where this is a Jetson."""


def look_at_machine(root: Path = _ROOT) -> Machine:
    """Describe this machine.

    Args:
        root: where ``proc`` and ``etc`` are, for tests.
    """
    info = _cpu_info(root)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return Machine(
        system=platform.platform(),
        python=platform.python_version(),
        processor=_board(root) or info.get("model name") or platform.processor() or platform.machine(),
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        jetson=_first_line(root / "etc/nv_tegra_release"),
    )


def _cpu_info(root: Path) -> dict[str, str]:
    """The first processor's fields."""
    lines = (_read(root / "proc/cpuinfo") or "").split("\n\n", 1)[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _board(root: Path) -> str | None:
    """ARM boards say what they are here; their ``cpuinfo`` has only numbers."""
    return (_read(root / "proc/device-tree/model") or "").strip("\0 \n") or None


def _first_line(path: Path) -> str | None:
    text = _read(path)
    return None if text is None else (text.splitlines() or [""])[0].strip("# ")


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return None
