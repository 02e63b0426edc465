"""Prompts on the command line: given several times, or typed in one line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.bundle import write_bundle
from edge_mbm.cli import main
from edge_mbm.runtime import backend, load
from edge_mbm.runtime.recording import Recorder, RecordOptions
from edge_mbm.spec import (
    Asset,
    Classification,
    Component,
    Decision,
    Embedding,
    Encoder,
    Head,
    Input,
    Manifest,
    Output,
    SensorModality,
    TensorSpec,
    TextModality,
    TokenSteps,
    Variant,
)
from edge_mbm.testing import NullEngine

SAMPLES = 20  # half a second: in real time the first ones come before what was typed has been read
ONE = TensorSpec(dtype="float32", shape=("batch", 1))


def written(folder: Path, lines: int) -> tuple[str, str]:
    """A bundle that takes so many prompts, and a recording of a sensor for it."""
    rows = (lines,) if lines > 1 else ()
    scores = TensorSpec(dtype="float32", shape=("batch", lines))
    ids = TensorSpec(dtype="int64", shape=("batch", *rows, 4))
    variant = Variant(
        target="any", precision="fp32", decision=Decision(kept=True, reason="x"), opset=20, graph="g.onnx"
    )
    steps = TokenSteps(asset="words", max_length=4, lines=lines)

    def part(kind: Any, inputs: dict[str, Input], output: Output, **fields: Any) -> Any:
        return kind(inputs=inputs, outputs={"y": output}, variants={"fp32": variant}, **fields)

    see = part(Encoder, {"x": Input(source="imu", tensor=ONE)}, Output(tensor=ONE, task=Embedding()))
    read = part(
        Encoder, {"ids": Input(source="prompt", tensor=ids, preprocess=steps)}, Output(tensor=scores, task=Embedding())
    )
    inputs = {"seen": Input(source="see.y", tensor=ONE), "meant": Input(source="read.y", tensor=scores)}
    which = part(Head, inputs, Output(tensor=scores, task=Classification(labels="prompt")), pivot="imu", deadline_ns=0)
    manifest = Manifest(
        name="prompts",
        modalities={"imu": SensorModality(shape=(1,)), "prompt": TextModality()},
        components={"see": see, "read": read, "which": which},
        assets={"words": Asset(kind="tokenizer", path="words.txt")},
        files={},
    )
    write_bundle(folder / "prompts.mbm", manifest, {"g.onnx": b"", "words.txt": b"red\nmug\n"})
    bundle = load(folder / "prompts.mbm").manifest
    with Recorder(folder / "a.mcap", bundle, RecordOptions(max_bytes=1 << 20), only=["imu"]) as recorder:
        for t in range(SAMPLES):
            recorder.push("imu", [t], t * 25_000_000, wait=True)
    return str(folder / "prompts.mbm"), str(folder / "a.mcap")


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command; the exit code, and the labels of each result. The second prompt scores best, if there is one."""

    def engine(name: str, component: Component, graph: bytes, threads: int = 1) -> NullEngine:
        def compute(inputs: Any, outputs: Any) -> None:
            outputs["y"][...] = np.arange(outputs["y"].shape[1]) % 2

        return NullEngine(name, component, graph, compute=compute)

    monkeypatch.setattr(backend, "OnnxRuntimeEngine", engine)

    def run(*options: str, lines: int = 3, stdin: str = "") -> tuple[int, list[list[str]]]:
        bundle, recording = written(tmp_path, lines)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        out = tmp_path / "results.jsonl"
        code = main(["run", bundle, "--source", recording, *options, "--output", str(out)])
        results = out.read_text().splitlines() if out.exists() else []
        return code, [json.loads(line)["outputs"]["y"]["labels"] for line in results]

    return run


def test_prompts_are_given_one_by_one(ran: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each --prompt is a class; the printed answer is the best of them."""
    assert ran("--fast", "--prompt", "a red mug", "--prompt", "a cat; or a dog") == (
        0,
        [["a red mug", "a cat; or a dog"]] * SAMPLES,
    )
    assert "a cat; or a dog 0.731" in capsys.readouterr().out


def test_prompts_are_typed_in_one_line(ran: Any) -> None:
    """With semicolons between them."""
    code, labels = ran("--prompt", "-", stdin="a red mug; a cat ;\n")
    assert code == 0
    assert {tuple(found) for found in labels} == {("a red mug", "a cat")}


def test_a_text_that_is_one_keeps_its_semicolons(ran: Any) -> None:
    """Where a bundle takes no list of prompts, what is typed is one."""
    code, labels = ran("--text", "-", lines=1, stdin="red; mug\n")
    assert code == 0
    assert {tuple(found) for found in labels} == {("red; mug",)}


@pytest.mark.parametrize(
    ("options", "lines", "stdin", "message"),
    [
        (["--prompt", "a", "--prompt", "b", "--prompt", "c", "--prompt", "d"], 3, "", "has 4 prompts"),
        (["--prompt", ""], 3, "", "the text is empty"),
        (["--prompt", "x" * 10_001], 3, "", "10000 characters"),
        (["--prompt", "a", "--prompt", "b"], 1, "", "takes one prompt at a time, and there are 2"),
        (["--prompt", "-"], 3, " ; ;\n", "the text is empty"),
        (["--prompt", "-"], 3, "", "there was none"),
        (["--prompt", "-", "--prompt", "a"], 3, "", "leave out the others"),
    ],
)
def test_prompts_that_do_not_fit_are_wrong_usage(
    ran: Any, capsys: pytest.CaptureFixture[str], *, options: list[str], lines: int, stdin: str, message: str
) -> None:
    """One message and exit code 2, before anything is streamed."""
    assert ran(*options, lines=lines, stdin=stdin) == (2, [])
    assert message in " ".join(capsys.readouterr().err.split())
