"""``edge-mbm run --service``, and the unit that starts it."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_mbm.testing import tiny_bundle

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "runtime/edge-mbm.service"
needs_all = pytest.mark.needs("av", "cv2", "soxr", "onnxruntime")
# The folders are not in a wheel, which is what devices' tests run against.
needs_unit = pytest.mark.skipif(not UNIT.is_file(), reason="the unit is not installed with the package")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        yield listening


def started(clip: Path, tmp_path: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge_mbm.cli", "run", str(tiny_bundle()), "--source", str(clip)]
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"} | environment
    inherited = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    return subprocess.Popen(
        [*command, "--service", *more],
        env=inherited | told,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def heard_until(systemd: socket.socket, wanted: str) -> list[str]:
    lines: list[str] = []
    while wanted not in lines:
        lines.append(systemd.recv(65536).decode())
    return lines


@needs_all
def test_a_services_life(systemd: socket.socket, long_clip: Path, tmp_path: Path) -> None:
    """READY, WATCHDOG as results come; SIGTERM ends it: STOPPING, exit code 0, whole lines, a summary in the log."""
    out = tmp_path / "r.jsonl"
    process = started(long_clip, tmp_path, "--output", str(out))
    assert "WATCHDOG=1" not in heard_until(systemd, "READY=1")
    words = heard_until(systemd, "WATCHDOG=1") + heard_until(systemd, "WATCHDOG=1")
    assert any(re.fullmatch(r"STATUS=results: event [1-9]\d*; image\+audio live", line) for line in words)
    process.send_signal(signal.SIGTERM)
    stopping = heard_until(systemd, "STOPPING=1")
    shown, log = process.communicate(timeout=60)
    assert (process.returncode, shown) == (0, "")
    assert "READY=1" not in stopping
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert re.search(rf"info cli.service: head 'event': {len(results)} results, \d+ dropped, age p50 ", log)
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} (info|warning) [a-z_.]+: ", line) for line in log.splitlines())
    assert log.splitlines()[-1].endswith("'tiny' stops as it was told to")


@needs_all
def test_a_service_ends_with_its_source(systemd: socket.socket, clip: Path, tmp_path: Path) -> None:
    """Exit code 0, so that it is not restarted; under the journal, lines carry priorities instead of times."""
    process = started(clip, tmp_path, JOURNAL_STREAM="8:1")
    shown, log = process.communicate(timeout=60)
    assert (process.returncode, shown) == (0, "")
    assert all(re.match(r"<[46]>[a-z_.]+: ", line) for line in log.splitlines())
    assert heard_until(systemd, "STOPPING=1")


@needs_all
def test_a_service_runs_without_a_service_manager(clip: Path, tmp_path: Path) -> None:
    """By hand, to try it; and its log can be made quieter, as any command's."""
    process = started(clip, tmp_path, NOTIFY_SOCKET="", EDGE_MBM_LOG_LEVEL="error")
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def test_a_service_is_not_in_a_hurry(cli: Callable[..., Any], tmp_path: Path) -> None:
    """It runs at real time: --fast is refused."""
    done = cli("run", tiny_bundle(), "--source", tmp_path / "x.mp4", "--service", "--fast")
    assert done.code == 2
    assert "leave out --fast" in done.err


@needs_all
def test_sigterm_is_as_it_was_afterwards(cli: Callable[..., Any], clip: Path) -> None:
    """A program that runs a service in a function keeps its own handler."""
    before = signal.getsignal(signal.SIGTERM)
    assert cli("run", tiny_bundle(), "--source", clip, "--service", "--limit", 1).code == 0
    assert signal.getsignal(signal.SIGTERM) is before


@needs_all
def test_the_log_level_is_for_every_command(cli: Callable[..., Any], clip: Path) -> None:
    """On stderr; an unknown one is refused with those there are."""
    assert "'tiny' starts" in cli("--log-level", "info", "run", tiny_bundle(), "--source", clip, "--service").err
    assert cli("--log-level", "error", "run", tiny_bundle(), "--source", clip, "--service").err == ""
    done = cli("--log-level", "loud", "doctor")
    assert done.code == 2
    assert "warning" in done.err


# --- the unit --------------------------------------------------------------------------------------------------------


class _Repeated(dict[str, Any]):
    """Keeps every value of a key that stands several times, as systemd does."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self and isinstance(value, list):
            self[key].extend(value)
        else:
            super().__setitem__(key, value)


def unit() -> dict[str, dict[str, list[str]]]:
    parser = configparser.RawConfigParser(strict=False, dict_type=_Repeated, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return {name: {key: value.split("\n") for key, value in parser[name].items()} for name in parser.sections()}


@needs_unit
def test_the_unit_starts_what_exists(cli: Callable[..., Any]) -> None:
    """The command and its options are the program's; the file that names bundle and options names both."""
    [start] = unit()["Service"]["ExecStart"]
    program, command, bundle, *options = start.split()
    assert (Path(program).name, command, bundle) == ("edge-mbm", "run", "${EDGE_MBM_BUNDLE}")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", cli("run", "--help").out)
    # Without braces: systemd divides the value into words.
    assert options == ["$EDGE_MBM_OPTIONS", "--service"]
    lines = [line.removeprefix("# ") for line in (ROOT / "runtime/edge-mbm.env").read_text().splitlines()]
    said = [line.partition("=")[2] for line in lines if line.startswith("EDGE_MBM_OPTIONS=")]
    assert len(said) == 2
    assert all(word in shown for line in (*said, *options) for word in line.split() if word.startswith("--"))
    assert {"EDGE_MBM_BUNDLE", "EDGE_MBM_LOG_LEVEL"} <= {line.partition("=")[0] for line in lines}


@needs_unit
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("WatchdogSec", "30"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", "2 3 7"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("DynamicUser", "yes"),
        ("DevicePolicy", "closed"),
        ("MemoryMax", "4G"),
        ("CapabilityBoundingSet", ""),
    ],
)
def test_the_unit_is_watched_and_locked_up(key: str, value: str) -> None:
    """What its promises hang on."""
    assert unit()["Service"][key] == [value]


@needs_unit
def test_the_unit_reaches_cameras_and_microphones() -> None:
    """By the names that the kernel gives their drivers."""
    allowed = unit()["Service"]["DeviceAllow"]
    assert {"char-video4linux rw", "char-alsa rw"} <= set(allowed)
    assert "PrivateDevices" not in unit()["Service"]


@needs_unit
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Not a word of complaint, given a program that exists."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/edge-mbm/bin/edge-mbm", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
