"""Files for a device's system, held to what reads them: shells, udev, systemd and container builds."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RULES = ROOT / "runtime/71-edge-mbm.rules"
Linter = Callable[..., subprocess.CompletedProcess[str]]
MATCHES, ASSIGNS = {"==", "!="}, {"=", "+=", "-=", ":="}
# udev(7): which keys are compared, which are set, and which may be both.
KEYS = {
    "ACTION": MATCHES,
    "KERNEL": MATCHES,
    "SUBSYSTEM": MATCHES,
    "ATTR": MATCHES | ASSIGNS,
    "ENV": MATCHES | ASSIGNS,
    "SYMLINK": MATCHES | ASSIGNS,
    "GROUP": ASSIGNS,
    "MODE": ASSIGNS,
    "GOTO": {"="},
    "LABEL": {"="},
}
PAIR = re.compile(r'(?P<key>[A-Z]+)(\{(?P<attribute>[^}]+)\})?(?P<operator>==|!=|\+=|-=|:=|=)"(?P<value>[^"]*)"')


@pytest.fixture
def linter(pytestconfig: pytest.Config) -> Linter:
    """A linter of other languages than Python; they come with the development packages."""

    def lint(name: str, *files: object) -> subprocess.CompletedProcess[str]:
        program = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if program is None:
            reason = f"'{name}' is not installed: pip install 'edge-mbm[dev]'"
            if {name, "all"} & set(pytestconfig.getoption("--require")):
                pytest.fail(f"{reason}; it is required here (--require)", pytrace=False)
            pytest.skip(reason)
        return subprocess.run([program, *map(str, files)], capture_output=True, text=True, check=False)

    return lint


def shell_scripts() -> list[str]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = (ROOT / name for name in names.splitlines())
    return [str(f) for f in files if f.is_file() and re.match(rb"#!.*\b(ba)?sh\b", f.read_bytes()[:40])]


def test_shellcheck_finds_nothing_in_any_shell_script(linter: Linter) -> None:
    """Of the whole repository, found by their first lines."""
    scripts = shell_scripts()
    assert {"install.sh", "edge-mbm-power.sh", "run"} <= {Path(name).name for name in scripts}
    done = linter("shellcheck", *scripts)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_finds_nothing_in_the_container_file(linter: Linter) -> None:
    """Nor does it say how a line could be better."""
    done = linter("hadolint", ROOT / "runtime/Dockerfile")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_container_copies_what_is_there() -> None:
    """Every path that the build takes from the repository exists, and the constraints are the installer's."""
    lines = (ROOT / "runtime/Dockerfile").read_text().splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert "runtime/jetson-constraints.txt" in copied
    assert [path for path in copied if not (ROOT / path).exists()] == []


def rules() -> Iterator[list[re.Match[str]]]:
    """Each rule of the file as its pairs, parsed to the last character."""
    for line in RULES.read_text().splitlines():
        if line and not line.startswith("#"):
            pairs = [PAIR.fullmatch(part) for part in re.split(r",\s+(?=[A-Z])", line)]
            assert all(pairs), line
            yield [pair for pair in pairs if pair is not None]


def test_udev_rules_are_of_its_grammar() -> None:
    """Keys that there are, with operators that they take; comparisons do not hide as assignments."""
    for rule in rules():
        for pair in rule:
            assert pair["operator"] in KEYS[pair["key"]], pair[0]
        assert any(pair["operator"] in MATCHES or pair["key"] == "LABEL" for pair in rule)


def test_udev_rules_jump_forward_to_a_label() -> None:
    """Every GOTO has its LABEL further down, and every LABEL is jumped to."""
    gotos = [(k, pair["value"]) for k, rule in enumerate(rules()) for pair in rule if pair["key"] == "GOTO"]
    labels = {pair["value"]: k for k, rule in enumerate(rules()) for pair in rule if pair["key"] == "LABEL"}
    assert {name for _, name in gotos} == set(labels)
    assert all(k < labels[name] for k, name in gotos)


def test_udev_rules_come_when_port_and_serial_are_known() -> None:
    """After systemd's own, which find them, and before access is given to who sits there."""
    assert "60-persistent-v4l.rules" < RULES.name < "73-seat-late.rules"


@pytest.mark.parametrize(
    ("device", "links"),
    [
        ({"index": "0", "ID_V4L_CAPABILITIES": ":capture:", "ID_PATH_TAG": "usb-0_2"}, ["edge-mbm/camera-usb-0_2"]),
        (
            {"index": "0", "ID_V4L_CAPABILITIES": ":capture:", "ID_PATH_TAG": "usb-0_2", "ID_SERIAL": "Acme_7"},
            ["edge-mbm/camera-usb-0_2", "edge-mbm/camera-Acme_7"],
        ),
        ({"index": "1", "ID_V4L_CAPABILITIES": ":", "ID_PATH_TAG": "usb-0_2"}, []),
        ({"index": "0", "ID_V4L_CAPABILITIES": ":video_output:", "ID_SERIAL": "x"}, []),
        ({"subsystem": "sound", "ID_SERIAL": "x"}, []),
        ({"action": "remove", "index": "0", "ID_V4L_CAPABILITIES": ":capture:", "ID_SERIAL": "x"}, []),
    ],
)
def test_which_names_a_camera_gets(device: dict[str, str], links: list[str]) -> None:
    """By an interpreter of the rules: pictures get names by port and serial, other nodes none."""
    assert followed(device) == links


def followed(device: dict[str, str]) -> list[str]:
    """The links that the rules make, each rule followed as udev does it."""
    facts = {
        "ACTION": device.get("action", "add"),
        "SUBSYSTEM": device.get("subsystem", "video4linux"),
        "KERNEL": "video0",
    }
    links: list[str] = []
    target = None
    for rule in rules():
        if target is not None and not any(p["key"] == "LABEL" and p["value"] == target for p in rule):
            continue
        target = None
        compared = [pair for pair in rule if pair["operator"] in MATCHES]
        if all(holds(pair, facts.get(pair["key"], device.get(pair["attribute"] or "", ""))) for pair in compared):
            links += [expanded(pair["value"], device) for pair in rule if pair["key"] == "SYMLINK"]
            target = next((pair["value"] for pair in rule if pair["key"] == "GOTO"), None)
    return links


def holds(pair: re.Match[str], value: str) -> bool:
    return fnmatch.fnmatchcase(value, pair["value"]) == (pair["operator"] == "==")


def expanded(text: str, device: dict[str, str]) -> str:
    return re.sub(r"\$env\{(\w+)\}", lambda found: device[found[1]], text)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_power_profile(tmp_path: Path) -> None:
    """Not a word of complaint, given a program that exists."""
    copy = tmp_path / "edge-mbm-power.service"
    text = (ROOT / "runtime/edge-mbm-power.service").read_text()
    copy.write_text(text.replace("/opt/edge-mbm/bin/edge-mbm-power", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_power_profile_starts_what_the_installer_puts_there() -> None:
    """The unit's program is the one that install.sh copies the script to."""
    unit = (ROOT / "runtime/edge-mbm-power.service").read_text()
    [start] = re.findall(r"^ExecStart=(\S+) start$", unit, re.MULTILINE)
    assert f'place "$here/edge-mbm-power.sh" {start} 755' in (ROOT / "runtime/install.sh").read_text()
