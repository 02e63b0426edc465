"""Prompts typed at run time as the classes of a head: one a line, each with its score.

The text encoder gives each line the id of its first word ("red" 2, "mug" 3, "tea" 4; 0 for a row without a line), and
the head scores a line by how near that is to what the sensor says.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import edge_mbm
from edge_mbm import Session
from edge_mbm.bundle import write_bundle
from edge_mbm.errors import InputError, ManifestError, SourceError
from edge_mbm.runtime import load
from edge_mbm.runtime.bench import bench_bundle
from edge_mbm.runtime.compare import replay_both
from edge_mbm.runtime.recording import Recorder, RecordOptions, ReplaySource
from edge_mbm.runtime.result import ClassificationOutput, Result
from edge_mbm.runtime.sinks import JsonLines
from edge_mbm.runtime.sources import SensorSource
from edge_mbm.runtime.verify import verify_bundle
from edge_mbm.spec import (
    Asset,
    Classification,
    Component,
    Decision,
    Embedding,
    Encoder,
    GoldenSample,
    Head,
    Input,
    Manifest,
    Output,
    Present,
    SensorModality,
    TensorSpec,
    TextModality,
    TokenSteps,
    Variant,
    decode_manifest,
    encode_manifest,
)
from edge_mbm.testing import NullEngine

LINES, LENGTH = 3, 4
ONE = TensorSpec(dtype="float32", shape=("batch", 1))
ROWS = TensorSpec(dtype="float32", shape=("batch", LINES, 1))
SCORES = TensorSpec(dtype="float32", shape=("batch", LINES))
IDS = TensorSpec(dtype="int64", shape=("batch", LINES, LENGTH))
FILES = {"g.onnx": b"", "tokenizers/words.txt": b"red\nmug\ntea\n"}


def component(kind: Any, inputs: dict[str, Input], output: Output, **fields: Any) -> Any:
    variant = Variant(
        target="any", precision="fp32", decision=Decision(kept=True, reason="x"), opset=20, graph="g.onnx"
    )
    return kind(inputs=inputs, outputs={"y": output}, variants={"fp32": variant}, **fields)


def described(**head: Any) -> Manifest:
    """A sensor, and prompts that are encoded in two steps: what was said must reach the head through both."""
    steps = TokenSteps(asset="words", max_length=LENGTH, lines=LINES)
    said = {"ids": Input(source="prompt", tensor=IDS, preprocess=steps)}
    joined = {"seen": Input(source="see.y", tensor=ONE), "meant": Input(source="mean.y", tensor=ROWS)}
    scores = Output(tensor=SCORES, task=Classification(labels="prompt"))
    options: dict[str, Any] = {"pivot": "imu", "deadline_ns": 0} | head
    return Manifest(
        name="prompts",
        modalities={"imu": SensorModality(shape=(1,)), "prompt": TextModality()},
        components={
            "see": component(Encoder, {"x": Input(source="imu", tensor=ONE)}, Output(tensor=ONE, task=Embedding())),
            "read": component(Encoder, said, Output(tensor=ROWS, task=Embedding())),
            "mean": component(
                Encoder, {"x": Input(source="read.y", tensor=ROWS)}, Output(tensor=ROWS, task=Embedding())
            ),
            "which": component(Head, joined, scores, **options),
        },
        assets={"words": Asset(kind="tokenizer", path="tokenizers/words.txt")},
        files={},
    )


def engine(name: str, part: Component, graph: bytes) -> NullEngine:
    def compute(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if name == "read":
            outputs["y"][...] = inputs["ids"][:, :, :1]
        elif name == "which":
            outputs["y"][...] = -np.abs(inputs["meant"][:, :, 0] - inputs["seen"])
        else:
            outputs["y"][...] = inputs["x"]

    return NullEngine(name, part, graph, compute=compute)


def opened(folder: Path, **head: Any) -> Session:
    write_bundle(folder / "prompts.mbm", described(**head), FILES)
    return load(folder / "prompts.mbm").session(load_engine=engine)


def answer(result: Result) -> ClassificationOutput:
    assert isinstance(result.output, ClassificationOutput)
    return result.output


def test_the_best_prompt_is_the_label_as_it_was_typed(tmp_path: Path) -> None:
    """Scores are a softmax over the prompts that there are, in their order, from a stream and in one shot alike."""
    with opened(tmp_path) as session:
        session.push("prompt", " Red!\n\nmug of tea \r\n", 0)
        session.push("imu", [3.2], 1)
        [streamed] = session.poll(1)
        [once] = session.infer(prompt="Red!\nmug of tea", imu=[3.2])
        near, far = np.exp(-0.2), np.exp(-1.2)
        for output in (answer(streamed), answer(once)):
            assert (output.label, output.index, output.labels) == ("mug of tea", 1, ("Red!", "mug of tea"))
            np.testing.assert_allclose(output.scores, [far / (near + far), near / (near + far)], rtol=1e-6)
            assert output.top(5) == [("mug of tea", output.score), ("Red!", pytest.approx(1 - output.score))]
        # A row without a line would have been nearest.
        assert answer(session.infer(prompt="mug", imu=[0.0])[0]).scores.tolist() == [1.0]


def test_the_labels_are_those_of_the_text_that_was_scored(tmp_path: Path) -> None:
    """A pivot of before a new text is answered with the old prompts, though the new ones are encoded already."""
    with opened(tmp_path) as session:
        session.push("prompt", "red\nmug", 0)
        session.encode_next("read")
        session.push("imu", [2.0], 1)
        session.encode_next("see")
        session.push("prompt", "tea", 2)
        session.encode_next("read")
        before = session.collect_one(2)
        session.push("imu", [2.0], 3)
        session.encode_next("see")
        after = session.collect_one(3)
        assert before is not None
        assert after is not None
        assert (answer(before).label, answer(before).labels) == ("red", ("red", "mug"))
        assert (answer(after).label, answer(after).labels) == ("tea", ("tea",))


def test_a_head_that_may_lack_a_modality_may_not_lack_its_prompts(tmp_path: Path) -> None:
    """Without them there is nothing to choose between: it gives no result, and says so in one shot."""
    present = Present(input="present", order=("imu", "prompt"))
    with opened(tmp_path, present=present, pivot="prompt", tolerance_ns={"imu": 10}) as session:
        session.push("prompt", "red\ntea", 0)
        [without_sensor] = session.poll(100)
        assert (without_sensor.missing, answer(without_sensor).label) == (("imu",), "red")
        with pytest.raises(InputError, match=r"cannot do without \['prompt'\]"):
            session.infer(imu=[2.0])
    with opened(tmp_path, present=present) as session:
        session.push("imu", [2.0], 1)
        assert session.poll(1) == []
        assert session.stats()["which.skipped"] == 1
    with pytest.raises(SourceError, match=r"needs \['prompt'\]"):
        edge_mbm.open(tmp_path / "prompts.mbm", [SensorSource("imu", lambda: 0.0, 5)], load_engine=engine)


REFUSED = [
    ("", "the text is empty"),
    (" \n\t\r\n", "the text is empty"),
    ("a\nb\nc\nd", "has 4 prompts, one a line, and the bundle has room for 3"),
    ("a" * 10_001, "at most 10000 characters"),
    (["red", "mug"], "a text is a str"),
    (b"red", "a text is a str"),
    ("red\n\ud800", "no valid Unicode"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_cannot_be_prompts_is_refused_where_it_is_said(tmp_path: Path, text: Any, message: str) -> None:
    """On pushing and in one shot; the last prompts stand."""
    with opened(tmp_path) as session:
        session.push("prompt", "red\ntea", 0)
        with pytest.raises(InputError, match=message):
            session.push("prompt", text, 1)
        with pytest.raises(InputError, match=message):
            session.infer(prompt=text, imu=[0.0])
        session.push("imu", [2.0], 2)
        assert [answer(result).labels for result in session.poll(2)] == [("red", "tea")]


@pytest.mark.parametrize("text", ["ein roter Becher\n一个红杯子", "😀", "zzzz", "\u202ered", "a" * 9_999, "x\x00y"])
def test_words_that_the_tokenizer_lacks_are_still_prompts(tmp_path: Path, text: str) -> None:
    """Another language, an emoji, one long word: each is a class of its own, labelled as it was typed."""
    with opened(tmp_path) as session:
        [result] = session.infer(prompt=text, imu=[1.0])
        assert answer(result).labels == tuple(text.split("\n"))
        assert answer(result).index == 0


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from(["red", "mug", "tea", "blue sky"]), min_size=1, max_size=3), max_size=6),
    pushes=st.lists(st.booleans(), max_size=20),
)
def test_whatever_comes_in_whatever_order(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]], pushes: list[bool]
) -> None:
    """Every result has the labels of the newest text of its own time or before, and a score for each."""
    expected: list[tuple[str, ...]] = []
    current: tuple[str, ...] | None = None
    coming = iter(texts)
    with opened(tmp_path_factory.mktemp("prompts")) as session:
        results: list[Result] = []
        for t, is_text in enumerate(pushes):
            if is_text and (lines := next(coming, None)) is not None:
                session.push("prompt", "\n".join(lines), t)
                current = tuple(lines)
            else:
                session.push("imu", [2.0], t)
                expected += [] if current is None else [current]
            results += session.poll(t)
    assert [answer(result).labels for result in results] == expected
    assert all(len(answer(result).scores) == len(answer(result).labels) for result in results)


# --- what is kept and told -------------------------------------------------------------------------------------------


def golden(folder: Path, text: bytes, scores: list[float], **head: Any) -> edge_mbm.Bundle:
    buffers = {name: io.BytesIO() for name in ("golden/imu.npy", "golden/scores.npy")}
    np.save(buffers["golden/imu.npy"], np.array([2.0], np.float32))
    np.save(buffers["golden/scores.npy"], np.array([scores], np.float32))
    files = FILES | {name: buffer.getvalue() for name, buffer in buffers.items()} | {"golden/prompt.txt": text}
    inputs = {"imu": "golden/imu.npy", "prompt": "golden/prompt.txt"}
    sample = GoldenSample(id="one", inputs=inputs, outputs={"which.y": "golden/scores.npy"})
    write_bundle(folder / "golden.mbm", replace(described(**head), golden=(sample,)), files)
    return load(folder / "golden.mbm")


def test_golden_prompts_are_replayed(tmp_path: Path) -> None:
    """The reference has the scores of the prompts that there are; one more or less is a bundle to export again."""
    assert verify_bundle(golden(tmp_path, b"red\ntea", [0.0, -2.0]), load_engine=engine).passed
    assert not verify_bundle(golden(tmp_path, b"red\ntea", [0.0, -1.0]), load_engine=engine).passed
    with pytest.raises(ManifestError, match=r"the graph gives float32\[1, 2\]"):
        verify_bundle(golden(tmp_path, b"red\ntea", [0.0, -2.0, -2.0]), load_engine=engine)
    with pytest.raises(ManifestError, match=r"golden 'one' does not fit.*empty"):
        verify_bundle(golden(tmp_path, b"\n", [0.0]), load_engine=engine)


def test_two_bundles_are_compared_on_their_prompts(tmp_path: Path) -> None:
    """The answers of the same bundle agree, score by score."""
    bundle = golden(tmp_path, b"red\ntea", [0.0, -2.0])
    found = {output.output: output for output in replay_both(bundle, bundle, load_engine=engine).outputs}
    assert (found["which.y"].agreement, found["which.y"].max_abs, found["which.y"].samples) == (1.0, 0.0, 1)


def test_a_bundle_without_golden_prompts_can_be_timed(tmp_path: Path) -> None:
    """A made-up prompt stands in, since none at all is refused."""
    write_bundle(tmp_path / "prompts.mbm", described(), FILES)
    ticks = itertools.count(step=1_000_000)
    report = bench_bundle(load(tmp_path / "prompts.mbm"), seconds=0.1, clock=lambda: next(ticks), load_engine=engine)
    assert report.zeros
    assert "infer.mean" in report.runs[0].stages


def test_a_result_tells_its_prompts_to_scripts(tmp_path: Path) -> None:
    """As JSON it has the labels beside the scores: no one could know them from the bundle."""
    with opened(tmp_path) as session:
        [result] = session.infer(prompt="red\ntea", imu=[2.0])
    lines = io.BytesIO()
    with JsonLines(lines, 0) as sink:
        sink.write(result)
    assert b'"labels":["red","tea"]' in lines.getvalue().replace(b": ", b":").replace(b", ", b",")


def test_recorded_prompts_are_replayed(tmp_path: Path) -> None:
    """From a recording come the prompts and the answers that there were."""
    write_bundle(tmp_path / "prompts.mbm", described(), FILES)
    bundle = load(tmp_path / "prompts.mbm")
    samples: list[tuple[str, Any]] = [("prompt", "red\nmug"), ("imu", [3]), ("prompt", "tea\nred"), ("imu", [3])]
    with Recorder(tmp_path / "a.mcap", bundle.manifest, RecordOptions(max_bytes=1 << 20)) as recorder:
        for t, (modality, data) in enumerate(samples):
            recorder.push(modality, data, t, wait=True)
    with edge_mbm.open(bundle, ReplaySource(tmp_path / "a.mcap"), realtime=False, load_engine=engine) as stream:
        assert [(answer(r).label, answer(r).labels) for r in stream] == [
            ("mug", ("red", "mug")),
            ("tea", ("tea", "red")),
        ]


# --- live ------------------------------------------------------------------------------------------------------------


def test_prompts_are_changed_while_a_stream_runs(tmp_path: Path) -> None:
    """As a sequence or one a line; what is refused changes nothing, and says so at once."""
    write_bundle(tmp_path / "prompts.mbm", described(), FILES)
    sensor, seen = SensorSource("imu", lambda: 3.0, 500), list[tuple[str, ...]]()
    with edge_mbm.open(tmp_path / "prompts.mbm", [sensor], text=["red", "mug"], load_engine=engine) as live:
        for result in live:
            labels = answer(result).labels
            if not seen or labels != seen[-1]:
                seen.append(labels)
                if len(seen) == 1:
                    for wrong in ("", "a\nb\nc\nd", ["a", "b", "c", "d"], [], [3]):
                        with pytest.raises(InputError):
                            live.say(wrong)  # type: ignore[arg-type]
                    live.say("tea\nred")
                elif len(seen) == 2:
                    live.say(["mug"])
                else:
                    break
    assert seen == [("red", "mug"), ("tea", "red"), ("mug",)]


def test_prompts_that_do_not_fit_are_refused_where_a_stream_is_opened(tmp_path: Path) -> None:
    """Before anything is loaded or captured."""
    write_bundle(tmp_path / "prompts.mbm", described(), FILES)
    for text, message in ((["a", "b", "c", "d"], "has 4 prompts"), ("", "empty")):
        with pytest.raises(InputError, match=message):
            edge_mbm.open(tmp_path / "prompts.mbm", [SensorSource("imu", lambda: 0.0, 5)], text=text)


# --- the manifest ----------------------------------------------------------------------------------------------------


def changed(component_name: str, **fields: Any) -> Manifest:
    manifest = described()
    components = dict(manifest.components)
    components[component_name] = replace(components[component_name], **fields)
    return replace(manifest, components=components)


def with_labels(name: str) -> Manifest:
    scores = Output(tensor=SCORES, task=Classification(labels=name))
    return changed("which", outputs={"y": scores})


WRONG = [
    (with_labels("imu"), "'imu', which is no text"),
    (with_labels("nothing"), "names the asset 'nothing'"),
    (
        replace(described(), assets={"words": Asset(kind="tokenizer", path="tokenizers/words.txt"),
                                     "prompt": Asset(kind="labels", path="tokenizers/words.txt")}),
        "'prompt', an asset and a modality",
    ),
    (
        changed("which", outputs={"y": Output(tensor=ONE, task=Classification(labels="prompt"))}),
        r"which.outputs.y is float32\[batch, 1\], but 'prompt' has 3 lines",
    ),
    (
        changed("read", outputs={"y": Output(tensor=ROWS, task=Classification(labels="prompt"))}),
        "only a head that depends on it can score",
    ),
    (
        changed(
            "read",
            inputs={
                "ids": described().components["read"].inputs["ids"],
                "mask": Input(
                    source="prompt",
                    tensor=TensorSpec(dtype="int64", shape=("batch", LENGTH)),
                    preprocess=TokenSteps(asset="words", max_length=LENGTH, gives="mask"),
                ),
            },
        ),
        "mask.preprocess.lines is 1, but 'prompt' is taken as 3 lines",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("manifest", "message"), WRONG)
def test_a_manifest_whose_prompts_do_not_fit_is_refused(tmp_path: Path, manifest: Manifest, message: str) -> None:
    """With the field that is wrong, before anything of it runs."""
    with pytest.raises(ManifestError, match=message):
        write_bundle(tmp_path / "wrong.mbm", manifest, FILES)


def test_a_head_may_have_the_name_of_a_modality(tmp_path: Path) -> None:
    """Nothing reads it then, though the names are alike."""
    manifest = described()
    components = dict(manifest.components)
    components["prompt"] = components.pop("which")
    write_bundle(tmp_path / "same.mbm", replace(manifest, components=components), FILES)
    assert load(tmp_path / "same.mbm").manifest.heads().keys() == {"prompt"}


def test_prompts_survive_the_manifest_file(tmp_path: Path) -> None:
    """Read again it is the same; of a bundle of one prompt nothing of all this is written."""
    write_bundle(tmp_path / "prompts.mbm", described(), FILES)
    manifest = load(tmp_path / "prompts.mbm").manifest
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert manifest.lines("prompt") == LINES
    assert b'"lines"' not in encode_manifest(manifest).replace(b'"lines": 3', b"")
