"""``runtime/edge-mbm-power.sh`` with programs that keep a board's mode and clocks in files. No Jetson was at hand."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

# As NVIDIA's: the number in a line of its own; a mode that takes a reboot is not taken without a yes.
NVPMODEL = """#!/bin/sh
case $1 in
    -q) printf 'NVPM WARN: fan mode is not set!\\nNV Power Mode: %s\\n' "$(cat "$FAKE/mode-name")"; cat "$FAKE/mode" ;;
    -m) [ "$2" != 9 ] || read -r answer || exit 0; echo "$2" >"$FAKE/mode" ;;
esac
"""
CLOCKS = """#!/bin/sh
case ${1:-} in
    --store) cp "$FAKE/clocks" "$2" ;;
    --restore) cp "$2" "$FAKE/clocks" ;;
    "") echo locked in mode "$(cat "$FAKE/mode")" >"$FAKE/clocks" ;;
esac
"""


class Board:
    """A board with a mode and clocks, and the script's calls."""

    def __init__(self, jetson: Any, state: Path) -> None:
        self._jetson, self._state = jetson, state
        programs = jetson.fake.parent / "programs"
        jetson.program(programs / "nvpmodel", NVPMODEL)
        jetson.program(programs / "jetson_clocks", CLOCKS)
        self.programs = programs
        (jetson.fake / "mode").write_text("1\n")
        (jetson.fake / "mode-name").write_text("25W\n")
        (jetson.fake / "clocks").write_text("as the load is\n")

    def power(self, action: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._jetson.run("edge-mbm-power.sh", action, RUNTIME_DIRECTORY=str(self._state), **environment)

    @property
    def now(self) -> tuple[str, str]:
        return (self._jetson.fake / "mode").read_text().strip(), (self._jetson.fake / "clocks").read_text().strip()

    @property
    def kept(self) -> list[str]:
        return sorted(path.name for path in self._state.glob("*"))


@pytest.fixture
def board(jetson: Any, tmp_path: Path) -> Board:
    return Board(jetson, tmp_path / "state")


BEFORE = ("1", "as the load is")


def test_clocks_are_locked_and_given_back(board: Board) -> None:
    """The mode stays as it is unless one is asked for."""
    assert board.power("start").returncode == 0
    assert board.now == ("1", "locked in mode 1")
    assert board.power("stop").returncode == 0
    assert (board.now, board.kept) == (BEFORE, [])


def test_a_mode_is_taken_and_given_back(board: Board) -> None:
    """Before the clocks are locked, which are other ones in another mode; and after they are restored."""
    board.power("start", EDGE_MBM_POWER_MODE="2")
    assert board.now == ("2", "locked in mode 2")
    board.power("stop", EDGE_MBM_POWER_MODE="2")
    assert (board.now, board.kept) == (BEFORE, [])


def test_started_twice_what_was_first_is_given_back(board: Board) -> None:
    """A second start, as after a crash, does not take locked clocks for what was before."""
    for _ in range(2):
        board.power("start", EDGE_MBM_POWER_MODE="2")
    board.power("stop")
    assert board.now == BEFORE


def test_a_stop_without_a_start_changes_nothing(board: Board) -> None:
    """And is no error."""
    assert board.power("stop").returncode == 0
    assert board.now == BEFORE


def test_a_mode_that_needs_a_reboot_is_an_error_and_no_reboot(board: Board) -> None:
    """Nothing answers the question; what was before is still known."""
    done = board.power("start", EDGE_MBM_POWER_MODE="9")
    assert done.returncode == 1
    assert done.stderr == "error: power mode 9 was not taken; it may need a reboot: sudo nvpmodel -m 9\n"
    assert board.now == BEFORE
    assert board.power("stop").returncode == 0
    assert (board.now, board.kept) == (BEFORE, [])


def test_elsewhere_it_is_an_error(board: Board) -> None:
    """On a machine without NVIDIA's programs."""
    (board.programs / "jetson_clocks").unlink()
    done = board.power("start")
    assert (done.returncode, done.stderr) == (1, "error: no jetson_clocks here: this is for Jetsons\n")


def test_wrong_use_is_exit_code_2(board: Board) -> None:
    """Only start and stop."""
    assert board.power("restart").returncode == 2
