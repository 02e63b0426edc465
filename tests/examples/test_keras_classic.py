"""A Keras model of an image and a text, from its file to a stream with a prompt, by a recipe alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_mbm.bundle import BundleFiles
from edge_mbm.spec import TextModality

ROOT = Path(__file__).parents[2]
FILES = ("examples/keras_classic.py", "export/keras_classic.toml", "calibration/keras_classic.toml")


@pytest.mark.needs("torch", "onnx", "onnxruntime", "keras")
@pytest.mark.timeout(600)
def test_a_keras_file_becomes_a_stream_with_a_prompt(tmp_path: Path) -> None:
    """Right on pictures that training never saw, equal to Keras on the golden samples, and the prompt decides live."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, str(tmp_path / "examples" / "keras_classic.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=570, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    first, *answers = done.stdout.splitlines()
    assert float(first.rpartition(" ")[2]) > 0.9
    said = [(line.partition("  ")[0].split()[-1].strip("?").lower(), line.split()[3]) for line in answers]
    # It is bright when the stream begins, dark in its middle, and bright at its end, whatever is asked by then.
    assert said[:2] == [("dusk", "yes"), ("dusk", "no")]
    assert "night" in [word for word, _ in said]
    assert said[-1] == ("noon", "yes")
    with BundleFiles(tmp_path / "build" / "keras_classic" / "keras_classic.mbm") as files:
        assert isinstance(files.manifest.modalities["text"], TextModality)
        assert files.read(files.manifest.assets["words"].path).startswith(b"\n[UNK]\n")
        texts = [files.read(sample.inputs["text"]).decode() for sample in files.manifest.golden]
        assert all(text.isprintable() and len(text) > 10 for text in texts)
