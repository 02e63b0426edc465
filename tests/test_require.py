"""A skip is a failure where the thing must be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ([], "1 skipped"),
        (["--require", "another"], "1 skipped"),
        (["--require", "no_such_module"], "1 error"),
        (["--require", "all"], "1 error"),
    ],
)
def test_require_turns_a_skip_into_a_failure(tmp_path: Path, options: list[str], outcome: str) -> None:
    """By the module's name or for all; without it a missing module is a skip that is reported."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.needs('no_such_module')\ndef test_it():\n    raise AssertionError\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", str(tmp_path), *options]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert outcome in done.stdout
    assert (done.returncode == 0) == (outcome == "1 skipped")
