"""Memory, disk and permissions: what every machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from edge_mbm.runtime.doctor.check import Check, ok, warning
from edge_mbm.runtime.doctor.probes import Probes, read_text
from edge_mbm.runtime.machine import Machine

__all__ = ["check_system"]

_GIB = 1024**3
# Loading a bundle of a few hundred MB and the libraries around it; building TensorRT engines wants more.
_LITTLE_MEMORY = 1 * _GIB
# Engines that are built here, and a recording of some minutes.
_LITTLE_DISK = 2 * _GIB
_GROUPS = {
    "video": ("dev/video*", "dev/nvmap", "dev/nvhost*"),
    "render": ("dev/dri/renderD*",),
    "audio": ("dev/snd/pcm*",),
}
"""Whose members may open which devices."""


def check_system(machine: Machine, probes: Probes) -> tuple[Check, ...]:
    """Memory, swap, disk, and whether this user may open the devices."""
    return (_memory(machine, probes), *_swap(machine, probes), _disk(probes), *_groups(probes))


def _memory(machine: Machine, probes: Probes) -> Check:
    purpose = "loading bundles, building engines"
    info = _memory_info(probes.root)
    if "MemAvailable" not in info:
        return warning("memory", purpose, "unknown: /proc/meminfo does not say", "mount /proc")
    detail = f"{_gib(info['MemAvailable'])} free of {_gib(info.get('MemTotal', 0))}"
    if info["MemAvailable"] >= _LITTLE_MEMORY:
        return ok("memory", purpose, detail)
    remedy = "stop what is not needed ('ps aux --sort=-rss | head' shows it)"
    if machine.jetson is not None:
        remedy += "; without a desktop some 1 GB is saved: sudo systemctl set-default multi-user.target, and reboot"
    return warning("memory", purpose, detail, remedy)


def _swap(machine: Machine, probes: Probes) -> Iterator[Check]:
    """On a Jetson, where CPU and GPU share one memory and a build's peak is killed without it."""
    if machine.jetson is None:
        return
    purpose = "memory at the peak of building engines"
    areas = [line.split() for line in (read_text(probes.root / "proc/swaps") or "").splitlines()[1:]]
    total = sum(int(area[2]) * 1024 for area in areas if len(area) > 2 and area[2].isdigit())
    if not total:
        remedy = "sudo systemctl enable --now nvzramconfig, or a swap file on an SSD"
        yield warning("swap", purpose, "none", remedy)
        return
    kinds = {"zram" if "zram" in area[0] else area[1] for area in areas if len(area) > 1}
    yield ok("swap", purpose, f"{_gib(total)} ({', '.join(sorted(kinds))})")


def _disk(probes: Probes) -> Check:
    purpose = "engines built here, recordings"
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-mbm"
    free = probes.free_bytes(place)
    if free is None:
        return warning("disk", purpose, f"unknown: {place} cannot be looked at", "set XDG_CACHE_HOME to a folder")
    if free < _LITTLE_DISK:
        remedy = "free some, or set XDG_CACHE_HOME to a folder on another disk"
        return warning("disk", purpose, f"{_gib(free)} free for {place}", remedy)
    return ok("disk", purpose, f"{_gib(free)} free for {place}")


def _groups(probes: Probes) -> Iterator[Check]:
    """Of those groups whose devices are here."""
    user = probes.user()
    known = _known_groups(probes.root)
    wanted = [name for name in _GROUPS if name in known and _has_any(probes.root, _GROUPS[name])]
    if not wanted:
        return
    purpose = "opening cameras, GPUs, microphones"
    missing = [name for name in wanted if user.uid != 0 and known[name] not in user.gids]
    if missing:
        remedy = f"sudo usermod -aG {','.join(missing)} $USER, then log in anew; a service says SupplementaryGroups="
        yield warning("groups", purpose, f"this process is not in {', '.join(missing)}", remedy)
    else:
        yield ok("groups", purpose, "root" if user.uid == 0 else f"in {', '.join(wanted)}")


def _known_groups(root: Path) -> dict[str, int]:
    fields = (line.split(":") for line in (read_text(root / "etc/group") or "").splitlines())
    return {field[0]: int(field[2]) for field in fields if len(field) > 2 and field[2].isdigit()}


def _has_any(root: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in root.glob(pattern))


def _memory_info(root: Path) -> dict[str, int]:
    """Bytes by name, of lines such as "MemAvailable:    5954560 kB"."""
    fields = (line.split() for line in (read_text(root / "proc/meminfo") or "").splitlines())
    return {f[0].rstrip(":"): int(f[1]) * 1024 for f in fields if len(f) == 3 and f[1].isdigit()}


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
