"""Jetsons as files and commands, of every JetPack that the doctor may meet.

What they hold is what boards really print. Release lines and ``dpkg-query``'s versions are from logs of such boards
that their owners published; "jetson_clocks --show" of an AGX Orin on JetPack 5 (catid.io, "Jetson Orin"), of an Orin
Nano Super on 6.2 and an AGX Orin on 7.2 (public logs) gave the clocks; names of devfreq, cooling devices and counters
are those of NVIDIA's kernels (drivers/hwmon of nvidia-oot; Jetson Linux Developer Guide, "Platform Power and
Performance"); modes are of the boards' ``/etc/nvpmodel.conf``. The rest of a board's tree is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from edge_mbm.runtime.doctor import Check, Diagnosis, Outcome, Probes, User, examine

GIB = 1024**3
ABSENT = Outcome(code=127, output="", errors="no such command")
FINE = Outcome(code=0, output="1.2.3\n", errors="")
OWNER = User(uid=1000, gids=frozenset({1000, 29, 44, 104}))


def said(output: str, code: int = 0) -> Outcome:
    return Outcome(code=code, output=output, errors="")


@dataclass(frozen=True)
class Board:
    """Files under the root, and what commands print."""

    files: Mapping[str, str]
    commands: Mapping[str, Outcome] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    """Distributions that pip knows."""
    scripts: Mapping[str, Outcome] = field(default_factory=dict)
    """Outcomes of Python scripts by a module that they import."""

    def but(
        self,
        files: Mapping[str, str | None] | None = None,
        commands: Mapping[str, Outcome] | None = None,
        modules: Mapping[str, str] | None = None,
        scripts: Mapping[str, Outcome] | None = None,
    ) -> Board:
        """The same with something else; a file that is None is not there."""
        kept = {path: text for path, text in (self.files | (files or {})).items() if text is not None}
        return Board(
            kept,
            self.commands | (commands or {}),
            self.modules | (modules or {}),
            self.scripts | (scripts or {}),
        )


def cpu(policy: int, now: int, least: int, most: int) -> dict[str, str]:
    folder = f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_"
    return {f"{folder}cur_freq": f"{now}\n", f"{folder}min_freq": f"{least}\n", f"{folder}max_freq": f"{most}\n"}


def gpu(name: str, now: int, least: int, most: int) -> dict[str, str]:
    folder = f"sys/class/devfreq/{name}/"
    return {f"{folder}cur_freq": f"{now}\n", f"{folder}min_freq": f"{least}\n", f"{folder}max_freq": f"{most}\n"}


def cooling(number: int, kind: str, state: int) -> dict[str, str]:
    folder = f"sys/class/thermal/cooling_device{number}/"
    return {f"{folder}type": f"{kind}\n", f"{folder}cur_state": f"{state}\n"}


def packages(**versions: str) -> Outcome:
    """Of dpkg-query: what is not known makes its exit code 1."""
    rows = [f"{name.replace('_', '-')}\t{version}\tinstalled\n" for name, version in versions.items()]
    return Outcome(code=1, output="".join(rows), errors="dpkg-query: no packages found matching libnvinfer11\n")


RELEASE_TAIL = (
    "\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
    "TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n"
)
COMMON = {
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd asimddp\n",
    "proc/meminfo": "MemTotal:        7802564 kB\nMemFree:          2101232 kB\nMemAvailable:    5954560 kB\n",
    "proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    "/dev/zram0                              partition\t650212\t\t0\t\t5\n"
    "/dev/zram1                              partition\t650212\t\t0\t\t5\n",
    "etc/group": "root:x:0:\naudio:x:29:pulse\nvideo:x:44:\nrender:x:104:\n",
    "dev/nvmap": "",
    "dev/video0": "",
    "dev/dri/renderD128": "",
    "dev/snd/pcmC0D0c": "",
    **cooling(0, "cpufreq-cpu0", 0),
    **cooling(1, "pwm-fan", 2),
    **cooling(2, "cpu-throttle-alert", 0),
    **cooling(3, "gpu-throttle-alert", 0),
    "sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "0\n",
    "sys/class/thermal/thermal_zone8/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone8/temp": "50531\n",
}
ARGUS = said("LoadState=loaded\nActiveState=active\nSubState=running\n")
NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release {0}\n"
AGX_ORIN_MODES = (
    "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=MODE_15W >\n"
    "< POWER_MODEL ID=2 NAME=MODE_30W >\n< POWER_MODEL ID=3 NAME=MODE_50W >\n< PM_CONFIG DEFAULT=2 >\n"
)
SUPER_MODES = (
    "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< POWER_MODEL ID=3 NAME=7W >\n< PM_CONFIG DEFAULT=1 >\n"
)
CUDA = '{\n   "cuda" : {\n      "name" : "CUDA SDK",\n      "version" : "VERSION"\n   }\n}\n'
GOOD_SCRIPTS = {
    "cv2": said("4.8.0 with GStreamer\n"),
    "onnxruntime": said("1.23.0 with TensorrtExecutionProvider, CUDAExecutionProvider, CPUExecutionProvider\n"),
}

JETPACK_5 = Board(
    COMMON
    | {
        "proc/device-tree/model": "Jetson AGX Orin\0",
        "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, "
        "DATE: Tue Aug  1 19:57:35 UTC 2023\n",
        "etc/nvpmodel.conf": AGX_ORIN_MODES,
        **cpu(0, 2201600, 729600, 2201600),
        **cpu(4, 1113600, 729600, 2201600),
        **gpu("17000000.ga10b", 306000000, 306000000, 1300500000),
        **gpu("15480000.nvdec", 1190400000, 0, 1190400000),
    },
    {
        "dpkg-query": packages(
            nvidia_jetpack="5.1.2-b104", nvidia_l4t_core="35.4.1-20230801124926", libnvinfer8="8.5.2-1+cuda11.4"
        ),
        "nvpmodel": said("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n"),
        "nvcc": said(NVCC.format("11.4, V11.4.315")),
        "systemctl": ARGUS,
    },
    {"tensorrt": "8.5.2.2"},
    GOOD_SCRIPTS,
)
JETPACK_6_0 = Board(
    COMMON
    | {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 36191598, BOARD: generic, EABI: aarch64, "
        "DATE: Mon May  6 17:34:21 UTC 2024" + RELEASE_TAIL,
        "etc/nvpmodel.conf": AGX_ORIN_MODES,
        **cpu(0, 729600, 729600, 1728000),
        **gpu("17000000.gpu", 306000000, 306000000, 612000000),
    },
    {
        "dpkg-query": packages(nvidia_jetpack="6.0+b106", libnvinfer8="8.6.2.3-1+cuda12.2"),
        "nvpmodel": said("NV Power Mode: MODE_30W\n2\n"),
        "nvcc": said(NVCC.format("12.2, V12.2.140")),
        "systemctl": ARGUS,
    },
    {"tensorrt": "8.6.2"},
    GOOD_SCRIPTS,
)
JETPACK_6_2 = Board(
    COMMON
    | {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Jan  8 01:49:37 UTC 2025" + RELEASE_TAIL,
        "etc/nvpmodel.conf": SUPER_MODES,
        "usr/local/cuda/version.json": CUDA.replace("VERSION", "12.6.11"),
        **cpu(0, 729600, 729600, 1344000),
        **cpu(4, 1190400, 729600, 1344000),
        **gpu("17000000.gpu", 306000000, 306000000, 918000000),
    },
    {
        "dpkg-query": packages(
            nvidia_jetpack="6.2+b77", nvidia_l4t_core="36.4.3-20250107174145", libnvinfer10="10.3.0.30-1+cuda12.5"
        ),
        "nvpmodel": said("NV Power Mode: 25W\n1\n"),
        "systemctl": ARGUS,
    },
    {"tensorrt": "10.3.0"},
    GOOD_SCRIPTS,
)
JETPACK_7_THOR = Board(
    COMMON
    | {
        "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, "
        "DATE: Fri Aug 22 00:55:42 UTC 2025" + RELEASE_TAIL + "INSTALL_TYPE=\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n"
        "< POWER_MODEL ID=2 NAME=90W >\n< POWER_MODEL ID=3 NAME=70W >\n",
        "usr/local/cuda/version.json": CUDA.replace("VERSION", "13.0.0"),
        **cpu(0, 2601000, 2601000, 2601000),
        **gpu("gpu-gpc-0", 1575000000, 1575000000, 1575000000),
        **gpu("gpu-nvd-0", 270000000, 270000000, 1692000000),
    },
    {
        "dpkg-query": packages(libnvinfer10="10.13.3.9-1+cuda13.0"),
        "nvpmodel": said("NV Power Mode: MAXN\n0\n"),
        "systemctl": ARGUS,
    },
    {"tensorrt": "10.13.3.9"},
    GOOD_SCRIPTS,
)
JETPACK_7_2 = Board(
    COMMON
    | {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "etc/nv_tegra_release": "# R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic, EABI: aarch64, "
        "DATE: Mon Jun  1 09:28:48 PM UTC 2026" + RELEASE_TAIL,
        "etc/nvpmodel.conf": AGX_ORIN_MODES,
        "usr/local/cuda/version.json": CUDA.replace("VERSION", "13.2.1"),
        **cpu(0, 2201600, 2201600, 2201600),
        **gpu("17000000.gpu", 1300500000, 1300500000, 1300500000),
    },
    {
        "dpkg-query": packages(nvidia_l4t_core="39.2.0-20260601142848", libnvinfer10="10.16.2.10-1+cuda13.2"),
        "nvpmodel": said("NV Power Mode: MAXN\n0\n"),
        "systemctl": ARGUS,
    },
    {"tensorrt": "10.16.2.10"},
    GOOD_SCRIPTS,
)
BOARDS = {"5": JETPACK_5, "6.0": JETPACK_6_0, "6.2": JETPACK_6_2, "7-thor": JETPACK_7_THOR, "7.2": JETPACK_7_2}


@pytest.fixture
def boards() -> Mapping[str, Board]:
    """By their JetPack."""
    return BOARDS


class Doctor:
    """Examines made-up boards.

    Args:
        root: an empty folder for their files.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.asked: list[Sequence[str]] = []

    def __call__(
        self, board: Board, *, user: User = OWNER, free: Callable[[Path], int | None] = lambda _: 40 * GIB
    ) -> Diagnosis:
        for path, text in board.files.items():
            place = self._root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)

        def run(command: Sequence[str]) -> Outcome:
            self.asked.append(command)
            return board.commands.get(command[0], ABSENT)

        def run_python(script: str) -> Outcome:
            return next((o for module, o in board.scripts.items() if f"import {module}\n" in script), FINE)

        return examine(
            Probes(
                run_python=run_python,
                run=run,
                is_there=lambda _: True,
                version=board.modules.get,
                free_bytes=free,
                user=lambda: user,
                root=self._root,
            )
        )


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    return Doctor(tmp_path)


@pytest.fixture
def finding(doctor: Doctor) -> Callable[..., Check]:
    """One check of a board, by its name."""

    def find(board: Board, name: str, **how: object) -> Check:
        found = doctor(board, **how)  # type: ignore[arg-type]
        [check] = [check for check in (*found.system, *found.device) if check.name == name]
        return msgspec.json.decode(msgspec.json.encode(check), type=Check)  # as scripts get it

    return find
