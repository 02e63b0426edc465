"""What users install."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    [built] = out.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Recipes, tests and examples stay in the repository; type marker, schema and tiny bundle travel."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "edge_mbm",
        next(n for n in names if ".dist-info" in n).split("/")[0],
    }
    assert {"edge_mbm/py.typed", "edge_mbm/testing/tiny.mbm", "edge_mbm/manifest.schema.json"} <= set(names)


def test_wheel_asks_for_nothing_heavy(wheel: Path) -> None:
    """A plain install brings no torch, no onnx, no OpenCV and no engine: a device keeps its own builds."""
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith("METADATA")]
    lines = archive.read(metadata).decode().splitlines()
    base = {
        line.split()[1].split(">")[0] for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line
    }
    assert base == {"numpy", "msgspec", "typer", "rich"}
