"""A modality that the package has no name for, from a recipe to a live answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.needs("torch", "onnx", "onnxruntime")
def test_a_new_modality_needs_no_change_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six numbers of a robot's inertial sensor: exported by a recipe, streamed from a function, and right."""
    from edge_mbm.export import export_bundle

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = export_bundle(ROOT / "export" / "imu_posture.toml", tmp_path / "imu.mbm")
    error = manifest.components["posture"].variants["fp32"].error
    assert error is not None
    assert error.accuracy is not None
    assert error.accuracy > 0.95
    command = [sys.executable, str(ROOT / "examples" / "imu_posture.py"), str(tmp_path / "imu.mbm")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    answers = [line.split()[0] for line in done.stdout.splitlines()]
    assert answers[0] == "upright"
    assert "shaken" in answers
    assert answers[-1] == "fallen"
