"""What is particular to a Jetson: its releases, power mode, clocks, heat, NVIDIA's libraries and the camera daemon.

Where the facts come from: ``/etc/nv_tegra_release`` and Debian's packages (JetPack), ``nvpmodel -q`` and
``/etc/nvpmodel.conf`` (power), sysfs (clocks, throttling; ``jetson_clocks --show`` reads the same and wants root),
``/usr/local/cuda/version.json``. Formats as on JetPack 5, 6 and 7; the samples are in the tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edge_mbm.runtime.doctor.check import Check, ok, warning
from edge_mbm.runtime.doctor.probes import Outcome, Probes, last_line, read_number, read_text
from edge_mbm.runtime.heat import HeatReader
from edge_mbm.runtime.machine import Machine

__all__ = ["check_jetson", "jetpack_of"]

_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)")
# NVIDIA's JetPack archive; several revisions may be one JetPack.
_JETPACK = {
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "38.2.0": "7.0",
    "38.2.2": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}
_JETPACK_OF_LINE = {"35": "5", "36": "6", "38": "7", "39": "7"}
_SUPPORTED = ("6", "7")
_TENSORRT = ("libnvinfer11", "libnvinfer10", "libnvinfer8")
_MODE = re.compile(r"NV Power Mode: *(\S+)")
_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")
_WATTS = re.compile(r"(\d+)W")
_IN_A_CONTAINER = "in a container run edge-mbm doctor on the host too"


def check_jetson(machine: Machine, probes: Probes) -> tuple[Check, ...]:
    """Everything that is particular to a Jetson; nothing on other machines."""
    if machine.jetson is None:
        return ()
    packages = _debian_packages(probes)
    return (
        _jetpack(machine.jetson, packages),
        _cuda(probes),
        _tensorrt(packages, probes),
        _power(probes),
        *_clocks(probes.root),
        _throttling(probes.root),
        _argus(probes),
    )


def jetpack_of(release: str) -> tuple[str, str] | None:
    """L4T's version and JetPack's, of the first line of ``/etc/nv_tegra_release``; None if they are not known.

    JetPack's is "6.2" where NVIDIA's archive names this very L4T, and "6" where only its line is known.
    """
    match = _RELEASE.search(release)
    if match is None or match[1] not in _JETPACK_OF_LINE:
        return None
    l4t = f"{match[1]}.{match[2]}"
    return l4t, _JETPACK.get(l4t, _JETPACK_OF_LINE[match[1]])


# --- releases --------------------------------------------------------------------------------------------------------


def _jetpack(release: str, packages: dict[str, str]) -> Check:
    purpose = "NVIDIA's system and libraries"
    known = jetpack_of(release)
    if known is None:
        remedy = "edge-mbm knows JetPack 6 and 7; a newer edge-mbm may know this one"
        return warning("JetPack", purpose, f"not a release that this edge-mbm knows: {release}", remedy)
    l4t, jetpack = known
    meta = packages.get("nvidia-jetpack")
    detail = f"JetPack {jetpack}, L4T {l4t}" + ("" if meta is None else f" (nvidia-jetpack {meta})")
    if jetpack[0] not in _SUPPORTED:
        remedy = "flash JetPack 6 or 7: the Python of JetPack 5 is 3.8, and edge-mbm needs 3.10"
        return warning("JetPack", purpose, detail, remedy)
    if meta is not None and "." in jetpack and _line_of(meta) != _line_of(jetpack):
        remedy = (
            "sudo apt-get update && sudo apt-get dist-upgrade, and reboot: libraries and system are of two releases"
        )
        return warning("JetPack", purpose, detail, remedy)
    return ok("JetPack", purpose, detail)


def _line_of(version: str) -> list[str]:
    """Its first two numbers: "6.2" of "6.2.1+b38"."""
    return re.findall(r"\d+", version)[:2]


def _debian_packages(probes: Probes) -> dict[str, str]:
    """Versions of those that are installed."""
    names = ("nvidia-jetpack", "nvidia-l4t-core", *_TENSORRT)
    outcome = probes.run(["dpkg-query", "-W", "-f=${Package}\t${Version}\t${db:Status-Status}\n", *names])
    rows = (line.split("\t") for line in outcome.output.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 3 and row[2] == "installed"}


def _cuda(probes: Probes) -> Check:
    purpose = "computing on the GPU"
    found = _cuda_version(probes.root / "usr/local/cuda/version.json")
    if found is not None:
        return ok("CUDA", purpose, found)
    outcome = probes.run(["nvcc", "--version"])
    release = re.search(r"release (\d+\.\d+)", outcome.output)
    if outcome.code == 0 and release is not None:
        return ok("CUDA", purpose, f"{release[1]} (nvcc)")
    remedy = "sudo apt-get install nvidia-jetpack"
    return Check(name="CUDA", purpose=purpose, status="missing", detail="no /usr/local/cuda, no nvcc", remedy=remedy)


def _cuda_version(path: Path) -> str | None:
    try:
        return str(json.loads(read_text(path) or "")["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return None


def _tensorrt(packages: dict[str, str], probes: Probes) -> Check:
    """The library's version beside the module's: pip's wheels over JetPack's are the usual way to break both."""
    purpose = "the library behind the module tensorrt"
    library = next((packages[name] for name in _TENSORRT if name in packages), None)
    module = probes.version("tensorrt")
    if library is None:
        remedy = "sudo apt-get install nvidia-jetpack (libnvinfer and its Python module); not pip's tensorrt"
        return Check(name="TensorRT", purpose=purpose, status="missing", detail="no libnvinfer", remedy=remedy)
    if module is not None and _line_of(module) != _line_of(library):
        remedy = "pip uninstall tensorrt tensorrt-cu12 tensorrt-cu13, and use a venv with --system-site-packages"
        return warning("TensorRT", purpose, f"libnvinfer {library}, but the module is {module}", remedy)
    return ok("TensorRT", purpose, f"libnvinfer {library}")


# --- speed -----------------------------------------------------------------------------------------------------------


class _PowerModel(NamedTuple):
    number: str
    name: str

    @property
    def rank(self) -> tuple[bool, int]:
        """MAXN and MAXN_SUPER have no cap; of the others the one of the most watts."""
        watts = _WATTS.search(self.name)
        return self.name.startswith("MAXN"), int(watts[1]) if watts else 0


def _power(probes: Probes) -> Check:
    purpose = "how fast CPU and GPU may be"
    outcome = probes.run(["nvpmodel", "-q"])
    mode = _MODE.search(outcome.output)
    if outcome.code != 0 or mode is None:
        return _no_power_mode(purpose, outcome)
    models = [_PowerModel(*found) for found in _MODEL.findall(read_text(probes.root / "etc/nvpmodel.conf") or "")]
    fastest = max(models, key=lambda model: model.rank, default=None)
    if fastest is None or _PowerModel("", mode[1]).rank >= fastest.rank:
        return ok("power mode", purpose, mode[1])
    remedy = f"sudo nvpmodel -m {fastest.number} for {fastest.name}, where power supply and cooling are up to it"
    return warning("power mode", purpose, f"{mode[1]}, and {fastest.name} is faster", remedy)


def _no_power_mode(purpose: str, outcome: Outcome) -> Check:
    if not outcome.found:
        remedy = f"sudo apt-get install nvidia-l4t-nvpmodel; {_IN_A_CONTAINER}"
        return Check(name="power mode", purpose=purpose, status="missing", detail="no nvpmodel here", remedy=remedy)
    detail = f"nvpmodel -q: {outcome.failure if outcome.code else last_line(outcome.output) or 'it says nothing'}"
    remedy = "sudo nvpmodel -q says more; sudo systemctl restart nvpmodel"
    return Check(name="power mode", purpose=purpose, status="broken", detail=detail, remedy=remedy)


class _Clock(NamedTuple):
    """Frequencies of one clock, MHz."""

    name: str
    now: float
    least: float
    most: float

    @property
    def locked(self) -> bool:
        return self.least >= self.most


def _clocks(root: Path) -> Iterator[Check]:
    purpose = "the same latency on every frame"
    clocks = [*_gpu_clocks(root), *_cpu_clocks(root)]
    if not clocks:
        return
    detail = ", ".join(f"{clock.name} {clock.now:.0f} of {clock.most:.0f} MHz" for clock in clocks)
    if all(clock.locked for clock in clocks):
        yield ok("clocks", purpose, f"{detail}, locked")
    else:
        remedy = "sudo jetson_clocks (until the next boot), or runtime/edge-mbm-power.service while edge-mbm runs"
        yield warning("clocks", purpose, f"{detail}, not locked: they follow the load, with a delay", remedy)


def _gpu_clocks(root: Path) -> Iterator[_Clock]:
    """Of ``17000000.ga10b`` (JetPack 5), ``17000000.gpu`` (6) or ``gpu-gpc-0`` (Thor, whose gpu-nvd-0 is for video)."""
    for path in sorted((root / "sys/class/devfreq").glob("*")):
        if path.name.endswith((".gpu", ".ga10b")) or path.name.startswith("gpu-gpc"):
            yield from _clock("GPU", path, "cur_freq", "min_freq", "max_freq", per_mhz=1_000_000)


def _cpu_clocks(root: Path) -> Iterator[_Clock]:
    """The first of each cluster; all are in one power mode."""
    for path in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*")):
        name = f"CPU {path.name.removeprefix('policy')}"
        yield from _clock(name, path, "scaling_cur_freq", "scaling_min_freq", "scaling_max_freq", per_mhz=1000)


def _clock(name: str, folder: Path, now: str, least: str, most: str, *, per_mhz: int) -> Iterator[_Clock]:
    numbers = [read_number(folder / file) for file in (now, least, most)]
    known = [number / per_mhz for number in numbers if number is not None]
    if len(known) == 3:
        yield _Clock(name, *known)


def _throttling(root: Path) -> Check:
    purpose = "clocks that stay up"
    alerts = list(_alerts(root))
    heat = HeatReader(root).read()
    if alerts:
        remedy = "cool it: fan, heat sink, air; or a lower power mode. edge-mbm run --govern lowers rates meanwhile"
        return warning("throttling", purpose, f"too hot now: {', '.join(alerts)}", remedy)
    if heat.throttles:
        detail = f"{heat.throttles} times since boot for too low a voltage or too high a current"
        remedy = "a stronger power supply and shorter cable, or a lower power mode"
        return warning("throttling", purpose, detail, remedy)
    zone = heat.closest
    hottest = "" if zone is None else f"; {zone.name} is at {zone.temperature_c:.0f} degrees"
    return ok("throttling", purpose, f"none since boot{hottest}")


def _alerts(root: Path) -> Iterator[str]:
    """Cooling devices such as "gpu-throttle-alert" that are at work; a fan that turns is none."""
    for path in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind = read_text(path / "type") or ""
        if kind.endswith("-alert") and (read_number(path / "cur_state") or 0) > 0:
            yield kind


# --- cameras ---------------------------------------------------------------------------------------------------------


def _argus(probes: Probes) -> Check:
    purpose = "CSI cameras (USB and network ones do without)"
    outcome = probes.run(["systemctl", "show", "nvargus-daemon", "--property=LoadState,ActiveState,SubState"])
    state = dict(line.partition("=")[::2] for line in outcome.output.splitlines())
    active = state.get("ActiveState")
    if active == "active":
        return ok("nvargus-daemon", purpose, f"active ({state.get('SubState', '?')})")
    if outcome.code != 0 or active is None:
        remedy = f"systemctl status nvargus-daemon; {_IN_A_CONTAINER}"
        detail = f"systemctl: {outcome.failure if outcome.code else 'it says nothing'}"
        return warning("nvargus-daemon", purpose, detail, remedy)
    if state.get("LoadState") == "not-found":
        remedy = "sudo apt-get install nvidia-l4t-camera, if there is such a camera"
        return Check(name="nvargus-daemon", purpose=purpose, status="missing", detail="not installed", remedy=remedy)
    remedy = "sudo systemctl restart nvargus-daemon; journalctl -u nvargus-daemon says why"
    return Check(name="nvargus-daemon", purpose=purpose, status="broken", detail=active, remedy=remedy)
