"""A Jetson's programs as scripts that write down how they are called, in front of the real ones on PATH."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

LOGS = """#!/bin/sh
echo "$(basename "$0") $*" >>"$FAKE/log"
"""
# What install.sh asks Python: where modules are, to make a venv, and pip to fill it.
PYTHON = r"""#!/bin/bash
case "$*" in
    *find_spec*)
        [[ $* =~ find_spec\(\'([a-z0-9]+)\'\) ]]
        cat "$FAKE/modules/${BASH_REMATCH[1]}" 2>/dev/null || echo
        exit ;;
    *"import venv"*) [ -e "$FAKE/has-venv" ]; exit ;;
esac
echo "python $*" >>"$FAKE/log"
case "$*" in
    "-m venv "*)
        mkdir -p "${@: -1}/bin"
        echo "include-system-site-packages = true" >"${@: -1}/pyvenv.cfg"
        cp "$0" "${@: -1}/bin/python" ;;
    "-m pip install "*)
        [ ! -e "$FAKE/pip-fails" ] || exit 1
        cp -r "$FAKE/pip-brings/." "$FAKE/modules/"
        cp "$FAKE/edge-mbm" "$(dirname "$0")/edge-mbm" ;;
esac
"""
DOCTOR = """#!/bin/sh
echo "edge-mbm $*" >>"$FAKE/log"
exit "$(cat "$FAKE/doctor-says" 2>/dev/null || echo 0)"
"""
DPKG = """#!/bin/sh
[ ! -e "$FAKE/has-portaudio" ] || printf installed
"""
LOGGED = ("apt-get", "udevadm", "systemctl")


class Jetson:
    """A root folder, and the programs that are looked for on PATH.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self.fake, programs = folder / "root", folder / "fake", folder / "programs"
        running = (self.root / "run/udev", self.root / "run/systemd/system")
        for place in (self.root / "etc", *running, self.fake / "modules", self.fake / "pip-brings", programs):
            place.mkdir(parents=True)
        for name in LOGGED:
            self.program(programs / name, LOGS)
        self.program(programs / "python3", PYTHON)
        self.program(programs / "dpkg-query", DPKG)
        self.program(self.fake / "edge-mbm", DOCTOR)
        self.wheel = folder / "edge_mbm-0.1.0-py3-none-any.whl"
        self.wheel.write_text("the wheel")
        self._path = f"{programs}:{os.environ['PATH']}"
        self.is_release("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64")
        self.has("cv2", "/usr/lib/python3/dist-packages/cv2/__init__.py")
        self.has("tensorrt", "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py")
        (self.fake / "has-venv").touch()
        (self.fake / "has-portaudio").touch()

    @staticmethod
    def program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def is_release(self, line: str) -> None:
        (self.root / "etc/nv_tegra_release").write_text(f"{line}\n# KERNEL_VARIANT: oot\n")

    def has(self, module: str, origin: str) -> None:
        (self.fake / "modules" / module).write_text(f"{origin}\n")

    def run(self, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script of the repository; the log begins anew."""
        (self.fake / "log").write_text("")
        variables: Mapping[str, str] = {
            "PATH": self._path,
            "FAKE": str(self.fake),
            "EDGE_MBM_ROOT": str(self.root),
            **environment,
        }
        line = [str(ROOT / "runtime" / str(command[0])), *map(str, command[1:])]
        return subprocess.run(line, env=variables, capture_output=True, text=True, check=False)

    def install(self, *options: object) -> subprocess.CompletedProcess[str]:
        return self.run("install.sh", "--wheel", self.wheel, *options)

    @property
    def log(self) -> list[str]:
        """What was called, but for questions."""
        return (self.fake / "log").read_text().splitlines()

    def tree(self) -> dict[str, bytes]:
        """Every file under the root with its bytes and mode."""
        files = (path for path in sorted(self.root.rglob("*")) if path.is_file())
        return {f"{path.relative_to(self.root)} {path.stat().st_mode:o}": path.read_bytes() for path in files}


@pytest.fixture
def jetson(tmp_path: Path) -> Jetson:
    return Jetson(tmp_path)
