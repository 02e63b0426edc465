"""README's commands are run, one after the other, as a newcomer would type them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What runs this very test, or would install a release that is not out yet.
NOT_RUN = ("make test", "pip install", "git clone", "cd edge-mbm")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(NOT_RUN)]


def run(command: list[str] | str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # The test's own make flags must not leak into the make it starts.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
    return subprocess.run(  # noqa: PLW1510 - the caller looks at the exit code
        command,
        cwd=ROOT,
        env=environment | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
        shell=isinstance(command, str),
    )


def test_the_map_is_what_the_modules_say() -> None:
    """The map holds every module with the first line of its docstring; `scripts/readme_map.py` makes it."""
    made = run([sys.executable, "scripts/readme_map.py"])
    assert made.stdout == (ROOT / "README.md").read_text()


@pytest.mark.timeout(1800)
def test_every_command_of_the_readme_runs() -> None:
    """The shell commands succeed in the order in which they stand, `make demo` first."""
    (ROOT / "session.mcap").unlink(missing_ok=True)  # a recording is never replaced
    listed = commands()
    assert listed[0] == "make demo"
    for command in listed:
        done = run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.mark.timeout(600)
def test_every_python_snippet_of_the_readme_runs() -> None:
    """The Python examples work on what the demo left behind (this test runs after the commands)."""
    snippets = blocks("python")
    assert snippets
    for snippet in snippets:
        done = run([sys.executable, "-c", snippet])
        assert done.returncode == 0, f"{snippet}\n{done.stderr[-4000:]}"
