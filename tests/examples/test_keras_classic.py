"""A Keras model of an image and a text, from its file to a stream with a prompt, by a recipe alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_mbm.bundle import BundleFiles
from edge_mbm.runtime import load
from edge_mbm.runtime.recording import Recorder, RecordOptions
from edge_mbm.spec import TextModality

ROOT = Path(__file__).parents[2]
FILES = ("examples/keras_classic.py", "export/keras_classic.toml", "calibration/keras_classic.toml")


pytestmark = [pytest.mark.needs("torch", "onnx", "onnxruntime", "keras"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What it prints, and the bundle that it makes."""
    folder = tmp_path_factory.mktemp("keras")
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, str(folder / "examples" / "keras_classic.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=570, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout, folder / "build" / "keras_classic" / "keras_classic.mbm"


def test_a_keras_file_becomes_a_stream_with_a_prompt(example: tuple[str, Path]) -> None:
    """Right on pictures that training never saw, equal to Keras on the golden samples, and the prompt decides live."""
    printed, bundle = example
    first, *answers = printed.splitlines()
    assert float(first.rpartition(" ")[2]) > 0.9
    said = [(line.partition("  ")[0].split()[-1].strip("?").lower(), line.split()[3]) for line in answers]
    # It is bright when the stream begins, dark in its middle, and bright at its end, whatever is asked by then.
    assert said[:2] == [("dusk", "yes"), ("dusk", "no")]
    assert "night" in [word for word, _ in said]
    assert said[-1] == ("noon", "yes")
    with BundleFiles(bundle) as files:
        assert isinstance(files.manifest.modalities["text"], TextModality)
        assert files.read(files.manifest.assets["words"].path).startswith(b"\n[UNK]\n")
        texts = [files.read(sample.inputs["text"]).decode() for sample in files.manifest.golden]
        assert all(text.isprintable() and len(text) > 10 for text in texts)


def run(bundle: Path, *arguments: object, typed: str = "") -> list[float]:
    """``edge-mbm run``, and the probabilities that it gives."""
    command = [sys.executable, "-m", "edge_mbm.cli", "run", bundle, *arguments, "--output", "-"]
    done = subprocess.run(map(str, command), input=typed, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line)["outputs"]["probability"]["values"][0] for line in done.stdout.splitlines()]


def test_a_prompt_is_given_on_the_command_line(example: tuple[str, Path], tmp_path: Path) -> None:
    """Grey pictures are brighter than dusk and darker than noon; what is typed while they run decides from then on."""
    bundle, grey = example[1], np.full((224, 224, 3), 128, np.uint8)
    with load(bundle) as opened:
        options = RecordOptions(max_bytes=64 << 20)
        with Recorder(tmp_path / "grey.mcap", opened.manifest, options, only=["image"], timing="media") as recorder:
            for number in range(40):
                recorder.push("image", grey, number * 50_000_000, wait=True)
    source = ("--source", tmp_path / "grey.mcap")
    assert min(run(bundle, *source, "--fast", "--text", "brighter than dusk")) > 0.5
    assert max(run(bundle, *source, "--fast", "--prompt", "brighter than noon")) < 0.5
    answers = run(bundle, *source, "--text", "-", typed=f"brighter than dusk\n{'x' * 10_001}\nbrighter than noon\n")
    assert len(answers) > 10
    assert answers[-1] < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--text", "-"], "there was none"), (["--text", "-", "--fast"], "give the text itself")],
)
def test_a_prompt_that_cannot_be_typed_is_asked_for(
    example: tuple[str, Path], arguments: list[str], message: str
) -> None:
    """An empty stdin, or a recording that is over before anyone could type."""
    command = [sys.executable, "-m", "edge_mbm.cli", "run", str(example[1]), "--source", "none.mcap", *arguments]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert message in done.stderr
