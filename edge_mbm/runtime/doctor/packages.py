"""Python packages and the engines that they make, in a process of its own each: a native library may crash."""

from __future__ import annotations

from dataclasses import dataclass

from edge_mbm.runtime.doctor.check import Check, ok, warning
from edge_mbm.runtime.doctor.probes import Outcome, Probes, last_line
from edge_mbm.runtime.machine import Machine

__all__ = ["check_device_packages", "check_engines", "check_workstation_packages"]


@dataclass(frozen=True)
class _Package:
    """One thing to look for.

    Args:
        module: its import name.
        purpose: what it is for.
        remedy: how to get it; on a Jetson ``jetson``, where that is different.
        distributions: whose version it is when it is not imported.
        script: prints details; None to look without importing, since that takes seconds.
        wanted: what the details say where all is well on a Jetson.
        lacking: what it costs when they do not, and how to get it.
    """

    module: str
    purpose: str
    remedy: str
    jetson: str | None = None
    distributions: tuple[str, ...] = ()
    script: str | None = "print(getattr({0}, '__version__', ''))"
    wanted: str = ""
    lacking: str = ""


_SHADOWED = (
    "if pip installed it, 'pip uninstall {0}' in the venv that has it, which was made with --system-site-packages"
)
_DEVICE = (
    _Package("numpy", "arrays", "pip install numpy"),
    _Package("msgspec", "manifests and results", "pip install msgspec"),
    _Package(
        "onnxruntime",
        "running bundles on the CPU",
        "pip install 'edge-mbm[cpu]'",
        "keep or install NVIDIA's own build of onnxruntime for your JetPack; pip's has no GPU",
        script="print({0}.__version__, 'with', ', '.join({0}.get_available_providers()))",
        wanted="CUDAExecutionProvider",
        lacking="no GPU through ONNX Runtime. Install NVIDIA's build for your JetPack: pip's has none for a Jetson",
    ),
    _Package(
        "cv2",
        "resizing frames, cameras",
        "pip install 'edge-mbm[video]'",
        "sudo apt-get install python3-opencv, the system's with GStreamer; never pip install opencv over it",
        script="g = [l for l in {0}.getBuildInformation().splitlines() if 'GStreamer' in l]\n"
        "print({0}.__version__, 'with GStreamer' if g and 'YES' in g[0] else 'without GStreamer')",
        wanted="with GStreamer",
        lacking="no CSI cameras. The system's OpenCV has GStreamer (sudo apt-get install python3-opencv); "
        + _SHADOWED.format("opencv-python opencv-python-headless"),
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
options = edge_mbm.SessionOptions(provider="PROVIDER")
with edge_mbm.load(tiny_bundle()) as bundle, bundle.session(options) as session:
    [result] = session.infer(image=numpy.full((8, 8, 3), (0, 255, 0), numpy.uint8))
    assert result.output.label == "green", f"it computes {result.output.label}, which is wrong"
    print("ran the tiny bundle on " + result.provider)
"""

_PROVIDERS = "import onnxruntime\nprint(onnxruntime.get_available_providers())"
_CUDA_REMEDY = "CUDA and cuDNN of the versions that this onnxruntime was built for (on a Jetson, of its JetPack)"


def check_device_packages(machine: Machine, probes: Probes) -> tuple[Check, ...]:
    """What running a bundle may need."""
    return tuple(_check(package, machine, probes) for package in _DEVICE)


def check_workstation_packages(machine: Machine, probes: Probes) -> tuple[Check, ...]:
    """What exporting one needs."""
    return tuple(_check(package, machine, probes) for package in _WORKSTATION)


def check_engines(machine: Machine, probes: Probes) -> tuple[Check, ...]:
    """Each engine runs a bundle of a few kilobytes."""
    [ort] = [package for package in _DEVICE if package.module == "onnxruntime"]
    on_cpu = probes.run_python(_RUN_TINY.replace("PROVIDER", "cpu"))
    engines = [_judge("ONNX Runtime", ort.purpose, on_cpu, _remedy(ort, machine))]
    if probes.is_there("onnxruntime") and "CUDAExecutionProvider" in probes.run_python(_PROVIDERS).output:
        on_cuda = probes.run_python(_RUN_TINY.replace("PROVIDER", "cuda"))
        engines.append(_judge("ONNX Runtime, CUDA", "running bundles on the GPU", on_cuda, _CUDA_REMEDY))
    return tuple(engines)


def _check(package: _Package, machine: Machine, probes: Probes) -> Check:
    remedy = _remedy(package, machine)
    top = package.module.partition(".")[0]
    if not probes.is_there(top):
        return Check(name=top, purpose=package.purpose, status="missing", detail="not installed", remedy=remedy)
    if package.script is None:
        found = next(filter(None, map(probes.version, package.distributions)), "version unknown")
        return ok(top, package.purpose, f"{found} (found, not imported)")
    outcome = probes.run_python(f"import {package.module}\n{package.script.format(package.module)}")
    check = _judge(top, package.purpose, outcome, f"it does not import; mend it with: {remedy}")
    if machine.jetson is not None and check.status == "ok" and package.wanted not in check.detail:
        return warning(top, package.purpose, check.detail, package.lacking)
    return check


def _remedy(package: _Package, machine: Machine) -> str:
    return (package.jetson if machine.jetson is not None else None) or package.remedy


def _judge(name: str, purpose: str, outcome: Outcome, remedy: str) -> Check:
    if outcome.code == 0:
        return ok(name, purpose, last_line(outcome.output) or "version unknown")
    return Check(name=name, purpose=purpose, status="broken", detail=outcome.failure, remedy=remedy)
