"""What this machine has and lacks, with the line that mends it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from msgspec import Struct

from edge_mbm.runtime.machine import Machine, look_at_machine

__all__ = ["Check", "Devices", "Diagnosis", "Outcome", "Probes", "examine"]

_PATIENCE_S = 60


class Check(Struct, frozen=True, kw_only=True):
    """One package, or one engine."""

    name: str
    purpose: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    """Version and what matters about it, or what went wrong."""
    remedy: str | None = None
    """What to do, unless all is well."""


class Devices(Struct, frozen=True, kw_only=True):
    """What could be a source."""

    cameras: tuple[str, ...]
    microphones: tuple[str, ...]


class Diagnosis(Struct, frozen=True, kw_only=True):
    """Everything that was looked at."""

    machine: Machine
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


class Outcome(Struct, frozen=True, kw_only=True):
    """How a piece of Python ended in a process of its own."""

    code: int
    """The exit code; below 0 the signal that killed it."""
    output: str
    errors: str


def _run_python(script: str) -> Outcome:
    # This process's own path: what is found there must be what edge-mbm itself would find.
    script = f"import sys; sys.path[:] = {sys.path!r}\n{script}"
    command = [sys.executable, "-c", script]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(code=1, output="", errors=f"nothing happened for {_PATIENCE_S} s")
    return Outcome(code=done.returncode, output=done.stdout, errors=done.stderr)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: blocked, or half imported
        return False


@dataclass(frozen=True)
class Probes:
    """How the machine is looked at.

    Args:
        run_python: a script to its outcome, in a process of its own: a native library may crash on import.
        is_there: whether a module can be found, without importing it.
        version: a distribution's version, or None.
        root: where ``dev``, ``proc``, ``etc`` and ``sys`` are.
    """

    run_python: Callable[[str], Outcome] = _run_python
    is_there: Callable[[str], bool] = _is_there
    version: Callable[[str], str | None] = _version
    root: Path = Path("/")


@dataclass(frozen=True)
class _Package:
    """One thing to look for.

    Args:
        module: its import name.
        purpose: what it is for.
        remedy: how to get it; on a Jetson ``jetson``, where that is different.
        distributions: whose version it is when it is not imported.
        script: prints details; None to look without importing, since that takes seconds.
    """

    module: str
    purpose: str
    remedy: str
    jetson: str | None = None
    distributions: tuple[str, ...] = ()
    script: str | None = "print(getattr({0}, '__version__', ''))"


_DEVICE = (
    _Package("numpy", "arrays", "pip install numpy"),
    _Package("msgspec", "manifests and results", "pip install msgspec"),
    _Package(
        "onnxruntime",
        "running bundles on the CPU",
        "pip install 'edge-mbm[cpu]'",
        "keep or install NVIDIA's own build of onnxruntime for your JetPack; pip's has no GPU",
        script="print({0}.__version__, 'with', ', '.join({0}.get_available_providers()))",
    ),
    _Package(
        "cv2",
        "resizing frames, cameras",
        "pip install 'edge-mbm[video]'",
        "apt-get install python3-opencv, NVIDIA's build with GStreamer; never pip install opencv over it",
        script="g = [l for l in {0}.getBuildInformation().splitlines() if 'GStreamer' in l]\n"
        "print({0}.__version__, 'with GStreamer' if g and 'YES' in g[0] else 'without GStreamer')",
    ),
    _Package("av", "playing video files", "pip install 'edge-mbm[video]'", "pip install av"),
    _Package("soxr", "resampling audio", "pip install 'edge-mbm[video]'", "pip install soxr"),
    _Package("sounddevice", "microphones", "apt-get install libportaudio2 && pip install sounddevice"),
    _Package(
        "tensorrt",
        "engines on NVIDIA GPUs",
        "pip install 'edge-mbm[tensorrt]'",
        "use JetPack's own (apt-get install nvidia-jetpack), in a venv with --system-site-packages",
    ),
    _Package(
        "pycuda.driver",
        "memory of NVIDIA GPUs",
        "pip install 'edge-mbm[tensorrt]'",
        "pip install pycuda (it is built against JetPack's CUDA)",
        script="import pycuda; print(pycuda.VERSION_TEXT)",
    ),
)
_EXPORT = "pip install 'edge-mbm[export]' (on the workstation)"
_WORKSTATION = (
    _Package("torch", "the models to export", _EXPORT, distributions=("torch",), script=None),
    _Package("onnx", "graphs", _EXPORT, distributions=("onnx",), script=None),
    _Package("onnxscript", "torch to ONNX", _EXPORT, distributions=("onnxscript",), script=None),
)

# Half the frame is green: computed, not just loaded.
_RUN_TINY = """
import numpy, edge_mbm
from edge_mbm.testing import tiny_bundle
with edge_mbm.load(tiny_bundle()) as bundle, bundle.session() as session:
    [result] = session.infer(image=numpy.full((8, 8, 3), (0, 255, 0), numpy.uint8))
    assert result.output.label == "green", f"it computes {result.output.label}, which is wrong"
    print("ran the tiny bundle on " + result.provider)
"""


def examine(probes: Probes | None = None) -> Diagnosis:
    """Look at everything; whatever is broken is reported, nothing is raised."""
    probes = probes or Probes()
    machine = look_at_machine(probes.root)
    return Diagnosis(
        machine=machine,
        device=tuple(_check(package, machine, probes) for package in _DEVICE),
        workstation=tuple(_check(package, machine, probes) for package in _WORKSTATION),
        engines=(_check_engine(machine, probes),),
        devices=Devices(cameras=tuple(_cameras(probes.root)), microphones=tuple(_microphones(probes.root))),
    )


def _check(package: _Package, machine: Machine, probes: Probes) -> Check:
    remedy = (package.jetson if machine.jetson is not None else None) or package.remedy
    top = package.module.partition(".")[0]
    if not probes.is_there(top):
        return Check(name=top, purpose=package.purpose, status="missing", detail="not installed", remedy=remedy)
    if package.script is None:
        found = next(filter(None, map(probes.version, package.distributions)), "version unknown")
        return Check(name=top, purpose=package.purpose, status="ok", detail=f"{found} (found, not imported)")
    outcome = probes.run_python(f"import {package.module}\n{package.script.format(package.module)}")
    return _judge(top, package.purpose, outcome, f"it does not import; mend it with: {remedy}")


def _check_engine(machine: Machine, probes: Probes) -> Check:
    outcome = probes.run_python(_RUN_TINY)
    [ort] = [package for package in _DEVICE if package.module == "onnxruntime"]
    remedy = (ort.jetson if machine.jetson is not None else None) or ort.remedy
    return _judge("ONNX Runtime", "running bundles on the CPU", outcome, remedy)


def _judge(name: str, purpose: str, outcome: Outcome, remedy: str) -> Check:
    if outcome.code == 0:
        return Check(name=name, purpose=purpose, status="ok", detail=_last_line(outcome.output) or "version unknown")
    return Check(name=name, purpose=purpose, status="broken", detail=_failure(outcome), remedy=remedy)


def _failure(outcome: Outcome) -> str:
    if outcome.code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"crashed with {names.get(-outcome.code, f'signal {-outcome.code}')}"
    return _last_line(outcome.errors) or f"exit code {outcome.code}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()


def _cameras(root: Path) -> Iterable[str]:
    for device in sorted((root / "dev").glob("video*")):
        name = root / "sys/class/video4linux" / device.name / "name"
        yield f"/dev/{device.name}{_in_brackets(name)}"


def _in_brackets(path: Path) -> str:
    try:
        return f" ({path.read_text('utf-8', errors='replace').strip()})"
    except OSError:
        return ""


def _microphones(root: Path) -> Iterable[str]:
    """ALSA's list of PCM devices: "00-00: ALC257 Analog : ALC257 Analog : playback 1 : capture 1"."""
    try:
        lines = (root / "proc/asound/pcm").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        place, _, rest = line.partition(":")
        card, _, device = place.partition("-")
        if "capture" in rest and card.isdigit() and device.isdigit():
            yield f"hw:{int(card)},{int(device)} ({rest.split(':')[0].strip()})"
