"""How commands begin and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edge_mbm
from edge_mbm import errors
from edge_mbm.cli import main
from edge_mbm.cli.terminal import clean
from edge_mbm.testing import tiny_bundle

COMMANDS = ("export", "inspect", "compare", "doctor", "verify", "bench", "run", "top", "demo")
PYTHON = [sys.executable, "-m", "edge_mbm.cli"]


def text(shown: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def test_the_version_is_the_packages(cli: Callable[..., Any]) -> None:
    """One line on stdout."""
    assert cli("--version") == (0, f"edge-mbm {edge_mbm.__version__}\n", "")


def test_help_shows_the_order_and_the_exit_codes(cli: Callable[..., Any]) -> None:
    """Every command has an example, in the order of use, and every exit code of the error tree is explained."""
    done = cli("--help")
    shown = text(done.out)
    places = [shown.index(f"edge-mbm {command} ") for command in COMMANDS]
    assert places == sorted(places)
    codes = {getattr(errors, name).exit_code for name in errors.__all__} | {0, 130}
    assert all(f" {code}  " in shown for code in codes)
    assert done.code == 0


def test_help_fits_eighty_columns() -> None:
    """No line of the examples or of the exit codes is broken."""
    environment = os.environ | {"COLUMNS": "80"}
    done = subprocess.run([*PYTHON, "--help"], env=environment, capture_output=True, text=True, check=True)
    shown = text(done.stdout)
    assert "run model.mbm --source clip.mp4    stream a recording" in shown
    assert "8  verify: other answers than meant" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: Callable[..., Any], command: str) -> None:
    """With what it does, on stdout."""
    done = cli(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"edge-mbm {command}" in text(done.out)


@pytest.mark.parametrize(
    "arguments", [("smell",), ("verify",), ("inspect", "--no-such-option", "x"), ("run", "x.mbm"), ("bench", "x", "-1")]
)
def test_wrong_usage_is_exit_code_2(cli: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    """Said on stderr, nothing on stdout."""
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "help" in text(done.err)


def test_an_error_is_one_message_and_its_exit_code(cli: Callable[..., Any], tmp_path: Path) -> None:
    """On stderr, with what and where, without a traceback; --json does not change that."""
    for extra in ([], ["--json"]):
        done = cli("verify", tmp_path / "nowhere.mbm", *extra)
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith("error: there is no bundle at ")
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("way", ["option", "environment"])
def test_debug_adds_the_traceback(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Before the same message."""
    if way == "environment":
        monkeypatch.setenv("EDGE_MBM_DEBUG", "1")
    done = cli(*(["--debug"] if way == "option" else []), "inspect", tmp_path / "nowhere.mbm")
    assert done.code == 3
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: there is no bundle")


def test_a_hostile_path_does_not_steer_the_terminal(cli: Callable[..., Any]) -> None:
    """Escapes, line breaks and rich's markup in an argument are shown, not obeyed."""
    done = cli("inspect", "[red]x[/red]\x1b]0;owned\x07\n\u202egnp.mbm")
    assert r"[red]x[/red]\x1b]0;owned\x07\n\u202egnp.mbm" in done.err
    assert not set(done.err) & {"\x1b", "\x07", "\u202e"}


def test_ctrl_c_is_exit_code_130(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a traceback, wherever it strikes."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_mbm.bundle.BundleFiles.__init__", interrupt)
    assert cli("inspect", tiny_bundle()) == (130, "", "")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not one of our errors comes out of ``main`` as it is."""

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("edge_mbm.bundle.BundleFiles.__init__", fail)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", str(tiny_bundle())])


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="pipes break otherwise here")
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_reader_that_leaves_ends_it_quietly(extra: list[str]) -> None:
    """As with ``edge-mbm inspect x.mbm | head -0``: no traceback, not a success."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [*PYTHON, "inspect", str(tiny_bundle()), *extra]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="files have no such numbers here")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_nobody_who_reads(closed: str, tmp_path: Path) -> None:
    """As a daemon may close them: the command does its work, and says what can be said."""
    out = tmp_path / "out.txt"
    command = ["sh", "-c", f'"$0" "$@" >{out} 2>&1 {closed}', *PYTHON, "verify", str(tiny_bundle())]
    assert subprocess.run(command, check=False).returncode == 0
    assert ("every byte" in out.read_text()) == (">&-" not in closed.split())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_full_disk_behind_stdout_is_said(extra: list[str]) -> None:
    """One line with the system's reason; Python's own last attempt to write fails no more."""
    with Path("/dev/full").open("w") as full:
        command = [*PYTHON, "inspect", str(tiny_bundle()), *extra]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device (--debug shows in which step)\n"


def test_an_encoding_without_the_letters_is_no_reason_to_stop() -> None:
    """ASCII terminals get escapes instead."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*PYTHON, "inspect", "/Käse"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert r"/K\xe4se" in done.stderr


BARE = """
import sys
for name in ("torch", "onnx", "onnxscript"):
    sys.modules[name] = None
import edge_mbm.cli
print(*[m for m in ("cv2", "av", "soxr", "onnxruntime", "sounddevice") if m in sys.modules])
print(*[m for m in sys.modules if m.startswith(("edge_mbm.export", "edge_mbm.calibration"))])
"""


def test_importing_it_needs_and_loads_nothing_heavy() -> None:
    """No torch or onnx at all, no libraries for video, sound and engines before they are used."""
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=True)
    assert done.stdout == "\n\n"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain \u00e9\u4e2d", "plain \u00e9\u4e2d"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("\x9b2J", r"\x9b2J"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202eabc\u2028", r"\u202eabc\u2028"),
        ("\udc80", r"\udc80"),
    ],
)
def test_what_is_not_printable_is_shown(given: str, shown: str) -> None:
    """C0 and C1 controls, bidi marks, line separators and half characters; letters stay."""
    assert clean(given) == shown
