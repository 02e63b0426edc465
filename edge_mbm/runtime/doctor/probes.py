"""How the machine is looked at: files under one root, and commands with a time limit. Tests give their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from msgspec import Struct

__all__ = ["Outcome", "Probes", "User", "last_line", "read_number", "read_text", "run_within"]

_PYTHON_PATIENCE_S = 60
_COMMAND_PATIENCE_S = 10
# What shells and timeout(1) say.
_NOT_FOUND, _TOO_LONG = 127, 124
# Enough for every file of interest; what is larger is none of them.
_MOST_BYTES = 256 * 1024


class Outcome(Struct, frozen=True, kw_only=True):
    """How a command, or a piece of Python, ended in a process of its own."""

    code: int
    """The exit code; below 0 the signal that killed it, 127 if there is no such command, 124 if it took too long."""
    output: str
    errors: str

    @property
    def found(self) -> bool:
        """Whether there is such a command."""
        return self.code != _NOT_FOUND

    @property
    def failure(self) -> str:
        """What went wrong, in a line, if something did."""
        if self.code < 0:
            names = {number.value: number.name for number in signal.Signals}
            return f"crashed with {names.get(-self.code, f'signal {-self.code}')}"
        return last_line(self.errors) or f"exit code {self.code}"


class User(Struct, frozen=True, kw_only=True):
    """Whose process this is."""

    uid: int
    gids: frozenset[int]
    """Groups of this process; those of the user's that came after the login are not among them."""


def run_within(command: Sequence[str], patience_s: float) -> Outcome:
    """Run a command that must not hold anything up.

    Args:
        command: the program, looked for on PATH, and its arguments.
        patience_s: after which it is killed, seconds.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | {"LC_ALL": "C", "SYSTEMD_PAGER": ""},
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(code=_NOT_FOUND, output="", errors=f"{command[0]}: {error.strerror}")
    try:
        output, errors = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        return Outcome(code=_TOO_LONG, output="", errors=f"nothing happened for {patience_s:g} s")
    finally:
        _end(process)
    return Outcome(code=process.returncode, output=output, errors=errors)


def _end(process: subprocess.Popen[str]) -> None:
    """With all that it started; one that hangs in a driver does not die, and is left behind."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _run(command: Sequence[str]) -> Outcome:
    return run_within(command, _COMMAND_PATIENCE_S)


def _run_python(script: str) -> Outcome:
    # This process's own path: what is found there must be what edge-mbm itself would find.
    script = f"import sys; sys.path[:] = {sys.path!r}\n{script}"
    return run_within([sys.executable, "-c", script], _PYTHON_PATIENCE_S)


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


def _free_bytes(path: Path) -> int | None:
    """Of the file system that a path is on, or will be once it is made."""
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def _user() -> User:
    return User(uid=os.geteuid(), gids=frozenset(os.getgroups()) | {os.getegid()})


@dataclass(frozen=True)
class Probes:
    """How the machine is looked at.

    Args:
        run_python: a script to its outcome, in a process of its own: a native library may crash on import.
        run: a command to its outcome, within a few seconds.
        is_there: whether a module can be found, without importing it.
        version: a distribution's version, or None.
        free_bytes: of the file system that a path is on, or None.
        user: whose process this is.
        root: where ``dev``, ``proc``, ``etc``, ``sys`` and ``usr`` are.
    """

    run_python: Callable[[str], Outcome] = _run_python
    run: Callable[[Sequence[str]], Outcome] = _run
    is_there: Callable[[str], bool] = _is_there
    version: Callable[[str], str | None] = _version
    free_bytes: Callable[[Path], int | None] = _free_bytes
    user: Callable[[], User] = _user
    root: Path = Path("/")


def read_text(path: Path) -> str | None:
    """A file's text without blanks and zeros around it, or None."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
    except (OSError, ValueError):
        return None
    return data.decode("utf-8", errors="replace").strip("\0 \n\t")


def read_number(path: Path) -> int | None:
    """A file's number, or None."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def last_line(text: str) -> str:
    """The last one that is not empty."""
    return (text.strip().splitlines() or [""])[-1].strip()
