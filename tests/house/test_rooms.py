"""The shape of the house, kept by tests where no linter looks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOT_FOLDERS = ("export", "calibration", "runtime")


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return listing.splitlines()


@pytest.mark.parametrize("folder", ROOT_FOLDERS)
def test_root_folders_hold_no_python(folder: str) -> None:
    """Code mapped from root folders into the package would break type checkers and wheels, mostly silently."""
    assert not [str(path) for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("folder", ROOT_FOLDERS)
def test_root_folders_say_where_the_code_is(folder: str) -> None:
    """Each of the three has a page that leads to its room in the package."""
    assert f"edge_mbm/{folder}" in (ROOT / folder / "README.md").read_text()


def test_readme_maps_every_folder_and_module() -> None:
    """A newcomer finds every folder, and every room and module of the package, in the README's map."""
    readme = (ROOT / "README.md").read_text()
    top = {path.split("/")[0] for path in tracked() if "/" in path and not path.startswith(".")}
    rooms = {path.split("/")[1] for path in tracked() if path.startswith("edge_mbm/") and path.endswith(".py")}
    missing = [name for name in sorted(top | rooms - {"__init__.py"}) if name not in readme]
    assert not missing


def test_nothing_large_is_committed() -> None:
    """Weights and data sets are loaded from the packages that ship them, never committed."""
    large = [path for path in tracked() if (ROOT / path).is_file() and (ROOT / path).stat().st_size > 1_000_000]
    assert not large


def test_the_fault_matrix_names_tests_that_exist() -> None:
    """Each row of docs/faults.md is shown by a test of that name."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    written = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 20
    assert named <= written
