"""The script beside the golden file still makes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from edge_mbm.bundle import BundleFiles
from edge_mbm.testing import tiny_bundle

SCRIPT = Path(__file__).with_name("make_tiny.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> BundleFiles:
    path = tmp_path_factory.mktemp("made") / "tiny.mbm"
    subprocess.run([sys.executable, str(SCRIPT), str(path)], check=True, timeout=120)
    return BundleFiles(path)


def test_the_script_makes_the_shipped_contents(made: BundleFiles) -> None:
    """Manifest, labels and golden samples byte for byte; graphs node for node, whatever onnx version writes them."""
    with BundleFiles(tiny_bundle()) as shipped:
        assert made.manifest.components == shipped.manifest.components
        assert made.manifest.files.keys() == shipped.manifest.files.keys()
        for path in shipped.manifest.files:
            if path.endswith(".onnx"):
                assert onnx.load_from_string(made.read(path)) == onnx.load_from_string(shipped.read(path))
            else:
                assert made.read(path) == shipped.read(path)
