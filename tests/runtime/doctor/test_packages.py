"""What the doctor finds on machines that a test makes up."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_mbm.runtime.doctor import Check, Diagnosis, Outcome, Probes, examine
from edge_mbm.runtime.machine import look_at_machine

FINE = Outcome(code=0, output="1.2.3\n", errors="")


def machine(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


def diagnosed(
    root: Path,
    run_python: Callable[[str], Outcome] = lambda _: FINE,
    is_there: Callable[[str], bool] = lambda _: True,
    version: Callable[[str], str | None] = lambda _: "9.9",
) -> Diagnosis:
    return examine(Probes(run_python=run_python, is_there=is_there, version=version, root=root))


def check(found: Diagnosis, name: str) -> Check:
    return next(c for c in (*found.device, *found.workstation, *found.engines) if c.name == name)


X86 = """processor\t: 0
model name\t: Some CPU @ 3 GHz
flags\t\t: fpu sse2 avx2 avx512_vnni

processor\t: 1
model name\t: Another
"""
ARM = "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd asimddp\n"
JETSON = {
    "proc/cpuinfo": ARM,
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1\n",
}


def test_a_pc_is_described(tmp_path: Path) -> None:
    """The first processor's name, and the flags that int8 profits from."""
    found = look_at_machine(machine(tmp_path, {"proc/cpuinfo": X86}))
    assert (found.processor, found.flags, found.jetson) == ("Some CPU @ 3 GHz", ("avx2", "avx512_vnni"), None)
    assert found.python == platform.python_version()
    assert found.cores >= 1


def test_a_jetson_is_described(tmp_path: Path) -> None:
    """By its board, since its cpuinfo has no name, and by its release."""
    found = look_at_machine(machine(tmp_path, JETSON))
    assert found.processor == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found.flags == ("asimddp",)
    assert found.jetson == "R36 (release), REVISION: 4.3, GCID: 1"


def test_a_machine_that_says_nothing_is_described_too(tmp_path: Path) -> None:
    """Without any of these files."""
    assert look_at_machine(tmp_path).processor


def test_a_missing_package_comes_with_the_line_that_installs_it(tmp_path: Path) -> None:
    """Nothing is imported that is not there."""
    ran: list[str] = []
    found = diagnosed(tmp_path, lambda script: ran.append(script) or FINE, lambda _: False)
    assert {c.status for c in (*found.device, *found.workstation)} == {"missing"}
    assert check(found, "av").remedy == "pip install 'edge-mbm[video]'"
    assert "edge-mbm[export]" in (check(found, "torch").remedy or "")
    assert len(ran) == 1  # the engine
    assert all(c.purpose and c.remedy for c in (*found.device, *found.workstation))


def test_a_jetson_keeps_nvidias_builds(tmp_path: Path) -> None:
    """No line there would put pip's onnxruntime, OpenCV or TensorRT over them."""
    found = diagnosed(machine(tmp_path, JETSON), is_there=lambda _: False)
    for name in ("onnxruntime", "cv2", "tensorrt"):
        assert not (check(found, name).remedy or "").startswith("pip install")
    assert "edge-mbm[video]" not in (check(found, "av").remedy or "")  # which would bring OpenCV along


@pytest.mark.parametrize(
    ("outcome", "detail"),
    [
        (Outcome(code=-11, output="", errors="some noise"), "crashed with SIGSEGV"),
        (Outcome(code=-4, output="", errors=""), "crashed with SIGILL"),
        (Outcome(code=-99, output="", errors=""), "crashed with signal 99"),
        (
            Outcome(code=1, output="", errors="Traceback\n  File\nOSError: libGL.so.1: not found\n"),
            "OSError: libGL.so.1: not found",
        ),
        (Outcome(code=3, output="", errors=""), "exit code 3"),
    ],
)
def test_a_broken_package_is_reported(tmp_path: Path, outcome: Outcome, detail: str) -> None:
    """Whether its import raises or kills the process; the others are still looked at."""
    found = diagnosed(tmp_path, lambda script: outcome if "import cv2" in script else FINE)
    broken = check(found, "cv2")
    assert (broken.status, broken.detail) == ("broken", detail)
    assert "edge-mbm[video]" in (broken.remedy or "")
    assert check(found, "av").status == "ok"
    assert found.can_run


def test_versions_and_what_matters_about_them(tmp_path: Path) -> None:
    """Libraries are asked; those of the workstation are only looked up, since importing them takes seconds."""
    ran: list[str] = []
    found = diagnosed(tmp_path, lambda script: ran.append(script) or FINE)
    assert check(found, "av").detail == "1.2.3"
    assert check(found, "torch").detail == "9.9 (found, not imported)"
    assert not [script for script in ran if "torch" in script or "import onnx\n" in script]


def test_an_engine_counts_when_it_ran(tmp_path: Path) -> None:
    """Installed is not enough."""
    broken = Outcome(code=1, output="", errors="RuntimeError: no kernel image")
    found = diagnosed(tmp_path, lambda script: broken if "tiny_bundle" in script else FINE)
    assert not found.can_run
    assert check(found, "ONNX Runtime").detail == "RuntimeError: no kernel image"
    assert check(found, "ONNX Runtime").remedy == "pip install 'edge-mbm[cpu]'"


def test_cameras_and_microphones_are_listed(tmp_path: Path) -> None:
    """Video devices with their names, and ALSA devices that can record, as sounddevice and arecord name them."""
    root = machine(
        tmp_path,
        {
            "dev/video0": "",
            "dev/video1": "",
            "sys/class/video4linux/video0/name": "USB Camera\n",
            "proc/asound/pcm": "00-00: ALC257 Analog : ALC257 Analog : playback 1 : capture 1\n"
            "00-03: HDMI 0 : HDMI 0 : playback 1\n"
            "02-00: USB Audio : USB Audio : capture 1\nrubbish\n",
        },
    )
    devices = diagnosed(root).devices
    assert devices.cameras == ("/dev/video0 (USB Camera)", "/dev/video1")
    assert devices.microphones == ("hw:0,0 (ALC257 Analog)", "hw:2,0 (USB Audio)")
    assert diagnosed(tmp_path / "nothing").devices.cameras == ()


def test_python_really_runs_apart() -> None:
    """A script that kills its process is an outcome, and it sees the modules that this process sees."""
    probes = Probes()
    assert probes.run_python("import os; os.kill(os.getpid(), 9)").code == -9
    assert probes.run_python("import edge_mbm; print(edge_mbm.__version__)").code == 0
    assert probes.run_python("raise ValueError('why')").errors.strip().endswith("ValueError: why")
    assert probes.is_there("edge_mbm")
    assert not probes.is_there("no_such_module")
    assert probes.version("no-such-distribution") is None
    assert probes.version("numpy")


@pytest.mark.parametrize(("outcome", "status"), [(FINE, "ok"), (Outcome(code=-11, output="", errors=""), "broken")])
def test_cuda_counts_when_it_ran_too(tmp_path: Path, outcome: Outcome, status: str) -> None:
    """Where onnxruntime has it, a bundle is run on it, and what becomes of that is said beside the CPU's."""
    has_cuda = Outcome(code=0, output="['CUDAExecutionProvider', 'CPUExecutionProvider']\n", errors="")

    def run(script: str) -> Outcome:
        if 'provider="cuda"' in script:
            return outcome
        return has_cuda if "get_available_providers" in script else FINE

    found = diagnosed(tmp_path, run)
    assert [(engine.name, engine.status) for engine in found.engines] == [
        ("ONNX Runtime", "ok"),
        ("ONNX Runtime, CUDA", status),
    ]
    assert found.can_run
