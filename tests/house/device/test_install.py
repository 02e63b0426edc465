"""``runtime/install.sh`` on a made-up Jetson: what it would do, and that it does nothing twice. None was at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PIP = "python -m pip install --disable-pip-version-check"
PACKAGES = "av soxr sounddevice"


def test_what_a_first_run_does(jetson: Any) -> None:
    """A venv that sees JetPack's libraries, pip held back by the constraints, the rules, and the doctor last."""
    done = jetson.install()
    assert (done.returncode, done.stderr) == (0, "")
    venv = jetson.root / "opt/edge-mbm"
    constraints = ROOT / "runtime/jetson-constraints.txt"
    assert jetson.log == [
        f"python -m venv --system-site-packages {venv}",
        f"{PIP} --upgrade-strategy only-if-needed --constraint {constraints} {jetson.wheel} {PACKAGES} onnxruntime",
        f"{PIP} --no-deps --force-reinstall {jetson.wheel}",
        "udevadm control --reload",
        "udevadm trigger --subsystem-match=video4linux",
        "edge-mbm doctor",
    ]
    assert "keeping cv2: /usr/lib/python3/dist-packages/cv2/__init__.py" in done.stdout
    assert (jetson.root / "etc/udev/rules.d/71-edge-mbm.rules").read_bytes() == (
        ROOT / "runtime/71-edge-mbm.rules"
    ).read_bytes()


def test_a_second_run_changes_nothing(jetson: Any) -> None:
    """Not a byte under the root, and no command but the doctor's."""
    jetson.install("--service")
    before = jetson.tree()
    assert any(path.startswith("etc/systemd/system/edge-mbm-power.service") for path in before)
    again = jetson.install("--service")
    assert again.returncode == 0
    assert jetson.tree() == before
    assert jetson.log == ["edge-mbm doctor"]


@pytest.mark.parametrize("options", [(), ("--service",)])
def test_a_dry_run_prints_each_step_and_takes_none(jetson: Any, options: tuple[str, ...]) -> None:
    """The very steps that the run itself then takes."""
    before = jetson.tree()
    dry = jetson.install("--dry-run", *options)
    assert (dry.returncode, jetson.log, jetson.tree()) == (0, [], before)
    real = jetson.install(*options)
    assert [line for line in dry.stdout.splitlines() if line.startswith("+")] == [
        line for line in real.stdout.splitlines() if line.startswith("+")
    ]


def test_system_packages_are_installed_where_they_are_missing(jetson: Any) -> None:
    """OpenCV, PortAudio and venv are Debian's; what is there is not asked for."""
    for name in ("modules/cv2", "has-venv", "has-portaudio"):
        (jetson.fake / name).unlink()
    jetson.install()
    assert jetson.log[0] == "apt-get install -y --no-install-recommends python3-venv python3-opencv libportaudio2"


@pytest.mark.parametrize(
    ("line", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.7, GCID: 42132812", "JetPack 6, L4T 36.4.7"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464", "JetPack 7, L4T 38.2.0"),
        ("# R39 (release), REVISION: 2.1, GCID: 46758480", "JetPack 7, L4T 39.2.1"),
    ],
)
def test_jetpack_6_and_7_are_known(jetson: Any, line: str, jetpack: str) -> None:
    """By their L4T."""
    jetson.is_release(line)
    assert jetson.install("--dry-run").stdout.startswith(f"{jetpack}\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("# R41 (release), REVISION: 1.0, GCID: 5", "L4T 41.1.0 is not known to this script"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178", "L4T 35.4.1 is older than JetPack 6"),
        ("# R28 (release), REVISION: 2.1", "L4T 28.2.1 is older than JetPack 6"),
        ("rubbish", "cannot read the L4T release in /etc/nv_tegra_release: 'rubbish'"),
        (None, "this is no Jetson"),
    ],
)
def test_another_machine_is_a_clear_error(jetson: Any, line: str | None, message: str) -> None:
    """In one line, before anything is changed."""
    if line is None:
        (jetson.root / "etc/nv_tegra_release").unlink()
    else:
        jetson.is_release(line)
    before = jetson.tree()
    done = jetson.install()
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert (jetson.log, jetson.tree()) == ([], before)


def test_nvidias_onnxruntime_is_kept_or_taken_from_a_file(jetson: Any, tmp_path: Path) -> None:
    """pip's is taken where there is none, and nowhere else."""
    jetson.has("onnxruntime", "/usr/local/lib/python3.10/dist-packages/onnxruntime/__init__.py")
    jetson.install()
    assert jetson.log[1].endswith(f"{jetson.wheel} av soxr sounddevice")
    wheel = tmp_path / "onnxruntime_gpu-1.23.0-cp310-cp310-linux_aarch64.whl"
    wheel.write_text("NVIDIA's")
    jetson.install("--onnxruntime", wheel)
    assert jetson.log[0].endswith(f"av soxr sounddevice {wheel}")


def test_a_module_that_pip_hides_is_an_error(jetson: Any) -> None:
    """Should pip bring OpenCV after all, the run ends there, says so, and does not count as done."""
    (jetson.fake / "pip-brings/cv2").write_text("/opt/edge-mbm/lib/python3.10/site-packages/cv2/__init__.py\n")
    done = jetson.install()
    assert done.returncode == 1
    assert "error: cv2 was /usr/lib/python3/dist-packages/cv2/__init__.py and is now /opt" in done.stderr
    assert "edge-mbm doctor" not in jetson.log
    assert not (jetson.root / "opt/edge-mbm/.edge-mbm-installed").exists()


def test_another_wheel_is_installed_over_the_old_one(jetson: Any) -> None:
    """Also one of the same version; then the rules are left alone."""
    jetson.install()
    jetson.wheel.write_text("another build")
    jetson.install()
    assert [line.split()[3] for line in jetson.log[:-1]] == ["install", "install"]


def test_where_nothing_runs_nothing_is_told(jetson: Any) -> None:
    """As in an image that is being built: files are put there, and no daemon is asked to read them."""
    (jetson.root / "run/udev").rmdir()
    (jetson.root / "run/systemd/system").rmdir()
    assert jetson.install("--service").returncode == 0
    assert not [line for line in jetson.log if line.startswith(("udevadm", "systemctl"))]
    assert (jetson.root / "etc/systemd/system/edge-mbm.service").exists()


def test_settings_are_never_written_over(jetson: Any) -> None:
    """Units are replaced by newer ones, the owner's file stays."""
    jetson.install("--service")
    settings, unit = (jetson.root / p for p in ("etc/edge-mbm/edge-mbm.env", "etc/systemd/system/edge-mbm.service"))
    settings.write_text("EDGE_MBM_BUNDLE=/mine\n")
    unit.write_text("of an older version\n")
    jetson.install("--service")
    assert settings.read_text() == "EDGE_MBM_BUNDLE=/mine\n"
    assert unit.read_bytes() == (ROOT / "runtime/edge-mbm.service").read_bytes()
    assert jetson.log == ["systemctl daemon-reload", "edge-mbm doctor"]


def test_a_venv_that_hides_jetpack_is_refused(jetson: Any) -> None:
    """Made without --system-site-packages, or no venv at all; it is not touched."""
    venv = jetson.root / "opt/edge-mbm"
    venv.mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    before = jetson.tree()
    done = jetson.install()
    assert (done.returncode, jetson.tree(), jetson.log) == (1, before, [])
    assert "is not a venv with --system-site-packages" in done.stderr


def test_failures_end_the_run(jetson: Any) -> None:
    """pip's, before anything else is installed; and the doctor's exit code is the script's."""
    (jetson.fake / "pip-fails").touch()
    assert jetson.install().returncode == 1
    assert not (jetson.root / "etc/udev").exists()
    (jetson.fake / "pip-fails").unlink()
    (jetson.fake / "doctor-says").write_text("7")
    assert jetson.install().returncode == 7


@pytest.mark.parametrize(
    "options",
    [("--no-such",), ("--venv",), ("--wheel", ""), ("--service", "--venv", "/somewhere")],
)
def test_wrong_use_is_exit_code_2(jetson: Any, options: tuple[str, ...]) -> None:
    """With how it is used."""
    done = jetson.run("install.sh", *options)
    assert done.returncode == 2
    assert "Use: sudo runtime/install.sh" in done.stderr


def test_without_a_wheel_the_newest_is_taken(jetson: Any, tmp_path: Path) -> None:
    """Of dist/ beside runtime/; with none there, the error says how to make one."""
    shutil.copytree(ROOT / "runtime", tmp_path / "here/runtime")
    script = tmp_path / "here/runtime/install.sh"
    done = jetson.run(script, "--dry-run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no wheel of edge-mbm: make one on the workstation (python -m build --wheel)")
    for age, name in enumerate(("0.10.0", "0.9.0", "0.1.0")):
        wheel = tmp_path / f"here/dist/edge_mbm-{name}-py3-none-any.whl"
        wheel.parent.mkdir(exist_ok=True)
        wheel.write_text(name)
        os.utime(wheel, (1e9 - age, 1e9 - age))
    assert "edge_mbm-0.10.0-py3-none-any.whl av" in jetson.run(script, "--dry-run").stdout


def test_a_wheel_that_is_not_there_is_an_error(jetson: Any, tmp_path: Path) -> None:
    """It is named."""
    done = jetson.run("install.sh", "--wheel", tmp_path / "none.whl")
    assert (done.returncode, done.stderr) == (1, f"error: no such wheel: {tmp_path / 'none.whl'}\n")


@pytest.mark.parametrize("name", ["opencv-python", "opencv-python-headless", "tensorrt", "numpy"])
def test_pip_itself_is_held_back_by_the_constraints(tmp_path: Path, name: str) -> None:
    """The real pip, asked for what JetPack has: it fails instead of hiding it, and does not without the constraints."""
    wheel = tmp_path / f"{name.replace('-', '_')}-10.3.0-py3-none-any.whl"
    info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 10.3.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--ignore-installed", "--no-deps"]
    pip += ["--find-links", str(tmp_path), name]
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    held = ["--constraint", str(ROOT / "runtime/jetson-constraints.txt")]
    assert subprocess.run(pip, env=environment, capture_output=True, check=False).returncode == 0
    assert subprocess.run([*pip, *held], env=environment, capture_output=True, check=False).returncode == 1
