"""Cameras and microphones that could be sources."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from edge_mbm.runtime.doctor.probes import read_text

__all__ = ["Devices", "look_at_devices"]


class Devices(Struct, frozen=True, kw_only=True):
    """What could be a source."""

    cameras: tuple[str, ...]
    microphones: tuple[str, ...]


def look_at_devices(root: Path) -> Devices:
    """Those of Video4Linux and ALSA.

    Args:
        root: where ``dev``, ``proc`` and ``sys`` are.
    """
    return Devices(cameras=tuple(_cameras(root)), microphones=tuple(_microphones(root)))


def _cameras(root: Path) -> Iterable[str]:
    for device in sorted((root / "dev").glob("video*")):
        name = read_text(root / "sys/class/video4linux" / device.name / "name")
        yield f"/dev/{device.name}" + ("" if name is None else f" ({name})")


def _microphones(root: Path) -> Iterable[str]:
    """ALSA's list of PCM devices: "00-00: ALC257 Analog : ALC257 Analog : playback 1 : capture 1"."""
    for line in (read_text(root / "proc/asound/pcm") or "").splitlines():
        place, _, rest = line.partition(":")
        card, _, device = place.partition("-")
        if "capture" in rest and card.isdigit() and device.isdigit():
            yield f"hw:{int(card)},{int(device)} ({rest.split(':')[0].strip()})"
