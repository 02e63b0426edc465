"""A minute of a robot's life; `python benchmarks/soak.py --minutes 30` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_a_minute_with_faults_leaks_nothing_and_loses_nothing_uncounted() -> None:
    """A source that fails and comes back, a slow consumer, an engine that raises: memory, threads, ages, counts."""
    command = [sys.executable, "benchmarks/soak.py", "--minutes", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
