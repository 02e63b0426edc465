"""What the doctor finds on Jetsons that a test makes up of what real ones print (see conftest.py). None was at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.runtime.doctor import Check, Outcome
from edge_mbm.runtime.doctor.jetson import jetpack_of

Finding = Callable[..., Check]
Boards = Mapping[str, Any]
CLOCKS_5 = (
    "GPU 306 of 1300 MHz, CPU 0 2202 of 2202 MHz, CPU 4 1114 of 2202 MHz, not locked: they follow the load, "
    "with a delay"
)
TOO_LONG = Outcome(code=124, output="", errors="nothing happened for 10 s")


@pytest.mark.parametrize(
    ("board", "name", "expected"),
    [
        ("5", "JetPack", "warning: JetPack 5.1.2, L4T 35.4.1 (nvidia-jetpack 5.1.2-b104)"),
        ("5", "CUDA", "ok: 11.4 (nvcc)"),
        ("5", "TensorRT", "ok: libnvinfer 8.5.2-1+cuda11.4"),
        ("5", "power mode", "ok: MAXN"),
        ("5", "clocks", f"warning: {CLOCKS_5}"),
        ("6.0", "JetPack", "ok: JetPack 6.0, L4T 36.3.0 (nvidia-jetpack 6.0+b106)"),
        ("6.0", "CUDA", "ok: 12.2 (nvcc)"),
        ("6.0", "TensorRT", "ok: libnvinfer 8.6.2.3-1+cuda12.2"),
        ("6.0", "power mode", "warning: MODE_30W, and MAXN is faster"),
        ("6.2", "JetPack", "ok: JetPack 6.2, L4T 36.4.3 (nvidia-jetpack 6.2+b77)"),
        ("6.2", "CUDA", "ok: 12.6.11"),
        ("6.2", "TensorRT", "ok: libnvinfer 10.3.0.30-1+cuda12.5"),
        ("6.2", "power mode", "warning: 25W, and MAXN_SUPER is faster"),
        ("6.2", "throttling", "ok: none since boot; tj-thermal is at 51 degrees"),
        ("6.2", "nvargus-daemon", "ok: active (running)"),
        ("6.2", "swap", "ok: 1.2 GiB (zram)"),
        ("6.2", "memory", "ok: 5.7 GiB free of 7.4 GiB"),
        ("6.2", "groups", "ok: in video, render, audio"),
        ("7-thor", "JetPack", "ok: JetPack 7.0, L4T 38.2.0"),
        ("7-thor", "CUDA", "ok: 13.0.0"),
        ("7-thor", "TensorRT", "ok: libnvinfer 10.13.3.9-1+cuda13.0"),
        ("7-thor", "power mode", "ok: MAXN"),
        ("7-thor", "clocks", "ok: GPU 1575 of 1575 MHz, CPU 0 2601 of 2601 MHz, locked"),
        ("7.2", "JetPack", "ok: JetPack 7.2, L4T 39.2.0"),
        ("7.2", "TensorRT", "ok: libnvinfer 10.16.2.10-1+cuda13.2"),
    ],
)
def test_what_boards_of_each_jetpack_print_is_understood(
    boards: Boards, finding: Finding, board: str, name: str, expected: str
) -> None:
    """Releases, libraries, power mode, clocks, heat and services, in the formats of JetPack 5, 6.0, 6.2 and 7."""
    check = finding(boards[board], name)
    assert f"{check.status}: {check.detail}" == expected


@pytest.mark.parametrize("board", ["5", "6.0", "6.2", "7-thor", "7.2"])
def test_every_problem_has_a_remedy_and_nothing_else_has(boards: Boards, doctor: Any, board: str) -> None:
    """Whatever is not "ok" says what to do; what is well says nothing to do."""
    found = doctor(boards[board])
    assert len(found.system) > 9
    assert all((check.status == "ok") == (check.remedy is None) for check in found.system)


@pytest.mark.parametrize(
    ("board", "remedy"),
    [("6.0", "sudo nvpmodel -m 0 for MAXN"), ("6.2", "sudo nvpmodel -m 2 for MAXN_SUPER")],
)
def test_the_fastest_power_mode_is_the_boards_own(boards: Boards, finding: Finding, board: str, remedy: str) -> None:
    """Its number is looked up: on an Orin Nano Super mode 0 is 15 W, on an AGX Orin it is the fastest."""
    assert (finding(boards[board], "power mode").remedy or "").startswith(remedy)


def test_without_maxn_the_mode_of_the_most_watts_is_the_fastest(boards: Boards, finding: Finding) -> None:
    """As on an Orin Nano before JetPack 6.2."""
    models = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n"
    slow = boards["6.0"].but({"etc/nvpmodel.conf": models}, {"nvpmodel": Outcome(code=0, output=SEVEN, errors="")})
    assert finding(slow, "power mode").detail == "7W, and 15W is faster"


SEVEN = "NV Power Mode: 7W\n1\n"


@pytest.mark.parametrize("command", ["nvpmodel", "systemctl"])
@pytest.mark.parametrize(
    "outcome", [TOO_LONG, Outcome(code=-9, output="", errors=""), Outcome(code=0, output="", errors="")]
)
def test_a_command_that_hangs_dies_or_is_silent_is_a_finding(
    boards: Boards, finding: Finding, command: str, outcome: Outcome
) -> None:
    """It is named with what became of it, and a remedy."""
    name = {"nvpmodel": "power mode", "systemctl": "nvargus-daemon"}[command]
    check = finding(boards["6.2"].but(commands={command: outcome}), name)
    assert check.status in ("broken", "warning")
    assert command in check.detail
    assert check.remedy


def test_a_jetson_on_which_nothing_answers_is_described_all_the_same(boards: Boards, doctor: Any) -> None:
    """As in a container that has the release file and nothing else: each finding stands for itself."""
    bare = boards["6.2"]
    found = doctor(type(bare)({"etc/nv_tegra_release": bare.files["etc/nv_tegra_release"]}))
    status = {check.name: check.status for check in found.system}
    assert status["JetPack"] == "ok"
    assert status["CUDA"] == status["TensorRT"] == status["power mode"] == "missing"
    assert status["nvargus-daemon"] == status["memory"] == status["swap"] == "warning"
    assert "clocks" not in status
    assert all(check.remedy for check in found.system if check.status != "ok")


@pytest.mark.parametrize(
    ("line", "known"),
    [
        ("R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic", ("36.4.7", "6.2.1")),
        ("R36 (release), REVISION: 9.1, GCID: 1", ("36.9.1", "6")),
        ("R39 (release), REVISION: 2.1, GCID: 46758480", ("39.2.1", "7.2.1")),
        ("R41 (release), REVISION: 1.0", None),
        ("R32 (release), REVISION: 7.1", None),
        ("", None),
    ],
)
def test_l4t_is_told_and_jetpack_looked_up(line: str, known: tuple[str, str] | None) -> None:
    """A revision that is not in the table is of its line's JetPack; an unknown line is unknown, not guessed."""
    assert jetpack_of(line) == known


@given(st.text())
def test_any_release_file_is_survived(text: str) -> None:
    """Whatever is in it."""
    jetpack_of(text)


def test_an_unknown_l4t_is_said(boards: Boards, finding: Finding) -> None:
    """With the line as it stands in the file."""
    later = boards["7.2"].but({"etc/nv_tegra_release": "# R41 (release), REVISION: 1.0, GCID: 5\n"})
    check = finding(later, "JetPack")
    assert check.status == "warning"
    assert "R41 (release), REVISION: 1.0" in check.detail


def test_libraries_of_another_release_than_the_system_are_said(boards: Boards, finding: Finding) -> None:
    """Half an upgrade: JetPack 6.2's libraries on a base of 6.1."""
    base = {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic\n"}
    check = finding(boards["6.2"].but(base), "JetPack")
    assert (check.status, check.detail) == ("warning", "JetPack 6.1, L4T 36.4.0 (nvidia-jetpack 6.2+b77)")
    assert "dist-upgrade" in (check.remedy or "")


def test_pips_tensorrt_over_jetpacks_is_said(boards: Boards, finding: Finding) -> None:
    """The module's version is not that of the library behind it."""
    check = finding(boards["6.2"].but(modules={"tensorrt": "10.13.2"}), "TensorRT")
    assert (check.status, check.detail) == ("warning", "libnvinfer 10.3.0.30-1+cuda12.5, but the module is 10.13.2")
    assert "pip uninstall tensorrt" in (check.remedy or "")


@pytest.mark.parametrize(
    ("module", "printed", "remedy"),
    [
        ("cv2", "4.11.0 without GStreamer\n", "pip uninstall opencv-python"),
        ("onnxruntime", "1.23.2 with AzureExecutionProvider, CPUExecutionProvider\n", "NVIDIA's build"),
    ],
)
def test_pips_builds_on_a_jetson_work_and_lack_something(
    boards: Boards, finding: Finding, module: str, printed: str, remedy: str
) -> None:
    """OpenCV without GStreamer cannot open CSI cameras, onnxruntime without CUDA has no GPU: a warning each."""
    other = boards["6.2"].but(scripts={module: Outcome(code=0, output=printed, errors="")})
    check = finding(other, module)
    assert (check.status, check.detail) == ("warning", printed.strip())
    assert remedy in (check.remedy or "")


@pytest.mark.parametrize(
    ("path", "text", "detail"),
    [
        ("sys/class/thermal/cooling_device3/cur_state", "1\n", "too hot now: gpu-throttle-alert"),
        (
            "sys/class/hwmon/hwmon3/oc3_event_cnt",
            "27390\n",
            "27390 times since boot for too low a voltage or too high a current",
        ),
    ],
)
def test_throttling_is_said(boards: Boards, finding: Finding, path: str, text: str, detail: str) -> None:
    """For heat and for current; that a fan turns is none."""
    check = finding(boards["6.2"].but({path: text}), "throttling")
    assert (check.status, check.detail) == ("warning", detail)


@pytest.mark.parametrize(
    ("printed", "expected", "remedy"),
    [
        ("LoadState=loaded\nActiveState=failed\nSubState=failed\n", "broken: failed", "restart nvargus-daemon"),
        ("LoadState=loaded\nActiveState=inactive\nSubState=dead\n", "broken: inactive", "restart nvargus-daemon"),
        ("LoadState=not-found\nActiveState=inactive\nSubState=dead\n", "missing: not installed", "nvidia-l4t-camera"),
    ],
)
def test_the_camera_daemon(boards: Boards, finding: Finding, printed: str, expected: str, remedy: str) -> None:
    """Failed, stopped, or not there at all."""
    board = boards["6.2"].but(commands={"systemctl": Outcome(code=0, output=printed, errors="")})
    check = finding(board, "nvargus-daemon")
    assert f"{check.status}: {check.detail}" == expected
    assert remedy in (check.remedy or "")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cuda": 5}', '{"cuda": {}}', "\0\xff"])
def test_a_broken_version_file_is_not_believed(boards: Boards, finding: Finding, text: str) -> None:
    """CUDA is then what the compiler says, or missing."""
    check = finding(boards["6.2"].but({"usr/local/cuda/version.json": text}), "CUDA")
    assert check.status == "missing"


def test_nothing_of_it_is_asked_on_a_pc(boards: Boards, doctor: Any) -> None:
    """No command runs, and no such check is shown."""
    found = doctor(boards["6.2"].but({"etc/nv_tegra_release": None}))
    assert {check.name for check in found.system} == {"memory", "disk", "groups"}
    assert doctor.asked == []
