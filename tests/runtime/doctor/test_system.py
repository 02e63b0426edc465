"""Memory, disk, groups, and commands that really run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_mbm.runtime.doctor import Check, Probes, User
from edge_mbm.runtime.doctor.probes import run_within

Finding = Callable[..., Check]
Boards = Mapping[str, Any]


def test_little_memory_is_said(boards: Boards, finding: Finding) -> None:
    """With what frees it; on a Jetson that is mostly the desktop."""
    check = finding(boards["6.2"].but({"proc/meminfo": "MemTotal: 7802564 kB\nMemAvailable: 812340 kB\n"}), "memory")
    assert (check.status, check.detail) == ("warning", "0.8 GiB free of 7.4 GiB")
    assert "multi-user.target" in (check.remedy or "")


@pytest.mark.parametrize(
    ("swaps", "status", "detail"),
    [
        ("Filename\tType\tSize\tUsed\tPriority\n", "warning", "none"),
        ("Filename\tType\tSize\tUsed\tPriority\n/swapfile file 8388604 0 -2\n", "ok", "8.0 GiB (file)"),
        ("rubbish\nwithout numbers\n\n", "warning", "none"),
    ],
)
def test_swap(boards: Boards, finding: Finding, swaps: str, status: str, detail: str) -> None:
    """None is a finding: a build of engines that needs more than there is gets killed."""
    check = finding(boards["6.2"].but({"proc/swaps": swaps}), "swap")
    assert (check.status, check.detail) == (status, detail)


def test_little_disk_is_said_for_the_folder_that_fills(
    boards: Boards, finding: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the cache's file system, wherever that is."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/data/cache")
    asked: list[Path] = []
    check = finding(boards["6.2"], "disk", free=lambda path: asked.append(path) or 1_000_000_000)
    assert (check.status, check.detail) == ("warning", "0.9 GiB free for /data/cache/edge-mbm")
    assert asked == [Path("/data/cache/edge-mbm")]
    assert finding(boards["6.2"], "disk", free=lambda _: None).status == "warning"


def test_a_group_that_is_missing_is_named(boards: Boards, finding: Finding) -> None:
    """And the line adds just that one; root needs none."""
    check = finding(boards["6.2"], "groups", user=User(uid=1000, gids=frozenset({1000, 44, 29})))
    assert (check.status, check.detail) == ("warning", "this process is not in render")
    assert "usermod -aG render $USER" in (check.remedy or "")
    assert finding(boards["6.2"], "groups", user=User(uid=0, gids=frozenset({0}))).detail == "root"


def test_groups_count_where_their_devices_are(boards: Boards, doctor: Any) -> None:
    """A machine without cameras, GPU and sound needs nobody in any group."""
    none = dict.fromkeys(("dev/nvmap", "dev/video0", "dev/dri/renderD128", "dev/snd/pcmC0D0c"))
    found = doctor(boards["6.2"].but(none), user=User(uid=1000, gids=frozenset()))
    assert "groups" not in {check.name for check in found.system}


def test_a_command_that_hangs_is_given_up(tmp_path: Path) -> None:
    """It is killed, and the outcome says how long it was waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # nobody ever writes into it
    outcome = run_within(["cat", str(pipe)], 0.2)
    assert (outcome.code, outcome.failure) == (124, "nothing happened for 0.2 s")


def test_what_a_hanging_command_started_ends_with_it(tmp_path: Path) -> None:
    """Or else every look at a machine on which something hangs would leave more of it there."""
    pipe, written = tmp_path / "pipe", tmp_path / "pid"
    os.mkfifo(pipe)
    assert run_within(["sh", "-c", f"cat {pipe} & echo $! >{written}; wait"], 0.5).code == 124
    while lives(int(written.read_text())):  # it is killed, and dies soon
        os.sched_yield()


def lives(pid: int) -> bool:
    """Whether it is there, and no zombie that nobody has asked about."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_commands_really_run(tmp_path: Path) -> None:
    """With their exit codes; one that is not there, or may not be run, is not found."""
    probes = Probes()
    assert probes.run(["sh", "-c", "echo out; echo err >&2; exit 3"]).code == 3
    assert probes.run(["sh", "-c", "kill -9 $$"]).failure == "crashed with SIGKILL"
    assert not probes.run(["no-such-command-anywhere"]).found
    (tmp_path / "plain").write_text("not a program")
    assert not probes.run([str(tmp_path / "plain")]).found


def test_disk_and_user_are_this_machines(tmp_path: Path) -> None:
    """A folder that is not there yet is on the file system of its nearest parent."""
    probes = Probes()
    assert (probes.free_bytes(tmp_path / "not" / "yet") or 0) > 0
    assert os.getegid() in probes.user().gids
