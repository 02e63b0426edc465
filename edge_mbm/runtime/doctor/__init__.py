"""What this machine has and lacks, with the line that mends it."""

from __future__ import annotations

from msgspec import Struct

from edge_mbm.runtime.doctor.check import Check
from edge_mbm.runtime.doctor.jetson import check_jetson
from edge_mbm.runtime.doctor.packages import check_device_packages, check_engines, check_workstation_packages
from edge_mbm.runtime.doctor.probes import Outcome, Probes, User
from edge_mbm.runtime.doctor.sensors import Devices, look_at_devices
from edge_mbm.runtime.doctor.system import check_system
from edge_mbm.runtime.machine import Machine, look_at_machine

__all__ = ["Check", "Devices", "Diagnosis", "Outcome", "Probes", "User", "examine"]


class Diagnosis(Struct, frozen=True, kw_only=True):
    """Everything that was looked at."""

    machine: Machine
    system: tuple[Check, ...]
    """Memory, disk, permissions; on a Jetson also JetPack, power, clocks, heat and what NVIDIA's libraries are."""
    device: tuple[Check, ...]
    """Packages that running a bundle may need."""
    workstation: tuple[Check, ...]
    """Packages that exporting one needs; a device does without."""
    engines: tuple[Check, ...]
    devices: Devices

    @property
    def can_run(self) -> bool:
        """Whether some engine really ran a bundle."""
        return any(engine.status == "ok" for engine in self.engines)


def examine(probes: Probes | None = None) -> Diagnosis:
    """Look at everything; whatever is broken is reported, nothing is raised."""
    probes = probes or Probes()
    machine = look_at_machine(probes.root)
    return Diagnosis(
        machine=machine,
        system=(*check_jetson(machine, probes), *check_system(machine, probes)),
        device=check_device_packages(machine, probes),
        workstation=check_workstation_packages(machine, probes),
        engines=check_engines(machine, probes),
        devices=look_at_devices(probes.root),
    )
