"""Text as a modality: two inputs from one text, and a text that counts until the next.

The text encoder's answer is 100 times the first id and the number of tokens; the head adds what the sensor says. Of the
vocabulary "red" is 2 and "mug" is 3, so "red mug" is 202 and "mug" is 301.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import edge_mbm
from edge_mbm import Result, Session
from edge_mbm.bundle import write_bundle
from edge_mbm.errors import BundleIntegrityError, EngineError, InputError, ManifestError
from edge_mbm.runtime import load
from edge_mbm.runtime.recording import Recorder, RecordOptions, ReplaySource
from edge_mbm.runtime.sources import SensorSource, TextSource
from edge_mbm.runtime.verify import verify_bundle
from edge_mbm.spec import (
    Asset,
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
    Regression,
    SensorModality,
    TensorSpec,
    TextModality,
    TokenSteps,
    Variant,
)
from edge_mbm.testing import NullEngine, tiny_bundle

SECOND, HOUR = 1_000_000_000, 3_600_000_000_000
ONE = TensorSpec(dtype="float32", shape=("batch", 1))
IDS = TensorSpec(dtype="int64", shape=("batch", 4))


def component(kind: Any, inputs: dict[str, Input], task: Any, **fields: Any) -> Any:
    variant = Variant(
        target="any", precision="fp32", decision=Decision(kept=True, reason="x"), opset=20, graph="g.onnx"
    )
    return kind(inputs=inputs, outputs={"y": Output(tensor=ONE, task=task)}, variants={"fp32": variant}, **fields)


def described(**head: Any) -> Manifest:
    """A sensor and a prompt, joined ten seconds after at the latest; neither may be missing."""
    ids, mask = (TokenSteps(asset="words", max_length=4, gives=gives) for gives in ("ids", "mask"))  # type: ignore[arg-type]
    text = {
        "ids": Input(source="prompt", tensor=IDS, preprocess=ids),
        "mask": Input(source="prompt", tensor=IDS, preprocess=mask),
    }
    joined = {"seen": Input(source="see.y", tensor=ONE), "meant": Input(source="read.y", tensor=ONE)}
    options: dict[str, Any] = {"pivot": "imu", "deadline_ns": 10 * SECOND} | head
    return Manifest(
        name="text",
        modalities={"imu": SensorModality(shape=(1,)), "prompt": TextModality()},
        components={
            "see": component(Encoder, {"x": Input(source="imu", tensor=ONE)}, Embedding()),
            "read": component(Encoder, text, Embedding()),
            "join": component(Head, joined, Regression(), **options),
        },
        assets={"words": Asset(kind="tokenizer", path="tokenizers/words.txt")},
        files={},
    )


FILES = {"g.onnx": b"", "tokenizers/words.txt": b"red\nmug\n"}


class Engines:
    """A loader; ``fail`` is a text's first id on which reading fails."""

    def __init__(self, fail: int | None = None) -> None:
        self.fail = fail
        self.broken = ""
        self.runs: list[str] = []

    def __call__(self, name: str, part: Component, graph: bytes) -> NullEngine:
        def compute(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
            self.runs.append(name)
            if name == self.broken:
                raise EngineError("broken")
            if name == "read":
                if inputs["ids"][0, 0] == self.fail:
                    raise EngineError("cannot read")
                outputs["y"][...] = 100 * inputs["ids"][0, 0] + inputs["mask"].sum()
            else:
                outputs["y"][...] = sum(value for key, value in inputs.items() if key != "present")

        return NullEngine(name, part, graph, compute=compute)


MASK = {"present": Present(input="present", order=("imu", "prompt"))}


def opened(folder: Path, engines: Engines | None = None, **head: Any) -> Session:
    write_bundle(folder / "text.mbm", described(**head), FILES)
    return load(folder / "text.mbm").session(load_engine=engines or Engines())


def value(result: Result) -> float:
    found: list[float] = result.output.as_json()["values"]
    return found[0]


def test_ids_and_mask_of_one_text_reach_one_encoder(tmp_path: Path) -> None:
    """In one run of it, from a stream and in one shot alike."""
    engines = Engines()
    with opened(tmp_path, engines) as session:
        session.push("prompt", "A RED mug!", 0)
        session.push("imu", [0.5], 1)
        [result] = session.poll()
        assert value(result) == pytest.approx(103.5)
        assert engines.runs.count("read") == 1
        assert result.stage_ns.keys() >= {"preprocess.read", "infer.read"}
        [once] = session.infer(prompt="red mug", imu=[0.5])
        assert value(once) == pytest.approx(202.5)
        assert session.run_components(prompt="mug", imu=[0.0])["read.y"].tolist() == [[301.0]]


def test_a_text_counts_until_the_next(tmp_path: Path) -> None:
    """An hour later too, at once, and without being out of step; from its own time on, and not before."""
    with opened(tmp_path) as session:
        session.push("prompt", "red mug", 5)
        session.push("imu", [0.0], 6)
        session.push("imu", [1.0], HOUR)
        [result] = session.poll(HOUR)
        assert (value(result), result.spread, result.missing) == (203, 0, ())
        session.push("imu", [2.0], HOUR + 1)
        session.push("prompt", "mug", HOUR + 2)
        [before] = session.poll(HOUR + 2)
        session.push("imu", [3.0], HOUR + 2)
        [after] = session.poll(HOUR + 2)
        assert [value(before), value(after)] == [204, 304]


def test_without_a_text_nothing_is_waited_for(tmp_path: Path) -> None:
    """A head with a mask does without at once, one without skips and counts; ten seconds of deadline play no part."""
    with opened(tmp_path, **MASK) as session:
        session.push("imu", [7.0], 1)
        [result] = session.poll(1)
        assert (result.missing, value(result)) == (("prompt",), 7)
        assert value(session.infer(imu=[7.0])[0]) == 7
    with opened(tmp_path) as session:
        session.push("imu", [7.0], 1)
        assert session.poll(1) == []
        assert session.stats()["join.skipped"] == 1
        session.push("prompt", "mug", 2)
        session.push("imu", [7.0], 3)
        [result] = session.poll(3)
        assert (value(result), result.dropped) == (308, 1)
        with pytest.raises(InputError, match="cannot do without"):
            session.infer(imu=[7.0])


def test_a_pivot_that_is_skipped_holds_no_encoder_back(tmp_path: Path) -> None:
    """Nor one on which the head fails: a consumer that still waits gets the next one."""
    engines = Engines()
    with opened(tmp_path, engines) as session:
        for t, text, fails in ((1, None, False), (2, "mug", True), (3, None, False)):
            if text is not None:
                session.push("prompt", text, t)
                assert session.encode_next("read", t)
            session.push("imu", [0.0], t)
            assert session.encode_next("see", t)
            engines.broken = "join" if fails else ""
            if fails:
                with pytest.raises(EngineError, match="broken"):
                    session.collect_one(t)
            else:
                result = session.collect_one(t)
                assert (result is None) == (t == 1)


def test_a_tolerance_makes_a_text_age(tmp_path: Path) -> None:
    """Named there it is a modality like the others: it is waited for, grows too old, and is part of the spread."""
    with opened(tmp_path, **MASK, tolerance_ns={"prompt": 100}) as session:
        session.push("prompt", "mug", 0)
        for t, missing, spread in ((100, (), 100), (201, ("prompt",), 0)):
            session.push("imu", [0.0], t)
            assert session.poll(t) == []
            [result] = session.poll(t + 10 * SECOND)
            assert (result.missing, result.spread) == (missing, spread)


def test_a_text_that_came_is_read_before_what_came_later(tmp_path: Path) -> None:
    """Whoever of the two encoders is faster: a pivot waits for a text that is on its way, and for no other."""
    with opened(tmp_path) as session:
        session.push("prompt", "mug", 0)
        session.push("imu", [0.0], 1)
        assert session.encode_next("see")
        assert session.collect_one(1) is None
        assert "prompt" in session.explain(1)["join"]
        assert session.encode_next("read")
        result = session.collect_one(1)
        assert result is not None
        assert value(result) == 301


def test_the_encoder_of_a_text_that_cannot_be_read_keeps_the_last(tmp_path: Path) -> None:
    """The failure is told once and counted, and the pivot does not hang on it."""
    with opened(tmp_path, Engines(fail=3)) as session:
        session.push("prompt", "red", 0)
        assert session.poll(0) == []
        session.push("prompt", "mug", 1)
        session.push("imu", [0.0], 2)
        with pytest.raises(EngineError, match="cannot read"):
            session.poll(2)
        [result] = session.poll(2)
        assert (value(result), session.stats()["read.failed"]) == (201, 1)


def test_a_text_that_came_while_the_head_was_off_counts(tmp_path: Path) -> None:
    """A prompt is a state, not an event: after ``enable`` it is the newest one; after ``reset`` it is none."""
    with opened(tmp_path) as session:
        session.push("prompt", "red", 0)
        session.poll(0)
        session.disable("join")
        session.push("prompt", "mug", 1)
        session.push("imu", [0.0], 2)
        assert session.poll(2) == []
        session.enable("join")
        session.push("imu", [0.0], 3)
        assert [value(result) for result in session.poll(3)] == [301]
        session.reset()
        session.push("imu", [0.0], 4)
        assert session.poll(4) == []


def test_a_text_may_be_the_pivot(tmp_path: Path) -> None:
    """One result for each, with the newest of the sensor."""
    with opened(tmp_path, pivot="prompt", tolerance_ns={"imu": HOUR}) as session:
        for t in range(0, 40, 10):
            session.push("imu", [t], t)
            session.poll(t)
        session.push("prompt", "mug", 25)
        session.push("imu", [40], 40)
        assert [(r.t_capture, value(r), r.spread) for r in session.poll(40)] == [(25, 321, 5)]


@pytest.mark.parametrize("data", [b"red", 3, ["red"], "x" * 10_001, "\ud800"])
def test_what_is_no_text_is_refused_on_pushing(tmp_path: Path, data: object) -> None:
    """And in one shot; the last text stands."""
    with opened(tmp_path) as session:
        session.push("prompt", "mug", 0)
        with pytest.raises(InputError):
            session.push("prompt", data, 1)
        with pytest.raises(InputError):
            session.infer(prompt=data, imu=[0.0])
        session.push("imu", [0.0], 2)
        assert [value(result) for result in session.poll(2)] == [301]


def test_a_wrong_vocabulary_is_said_when_the_session_is_made(tmp_path: Path) -> None:
    """With the asset's name, before any text has come."""
    write_bundle(tmp_path / "text.mbm", described(), FILES | {"tokenizers/words.txt": b"red\nred\n"})
    with pytest.raises(ManifestError, match="the tokenizer 'words' has 'red' twice"):
        load(tmp_path / "text.mbm").session(load_engine=Engines())


# --- golden samples --------------------------------------------------------------------------------------------------


def golden(folder: Path, text: bytes) -> edge_mbm.Bundle:
    arrays = {"golden/0.imu.npy": np.array([0.5], np.float32), "golden/r.npy": np.array([[202.5]], np.float32)}
    for path, array in arrays.items():
        (folder / path).parent.mkdir(exist_ok=True)
        np.save(folder / path, array)
    files = FILES | {path: (folder / path).read_bytes() for path in arrays} | {"golden/0.prompt.txt": text}
    inputs = {"imu": "golden/0.imu.npy", "prompt": "golden/0.prompt.txt"}
    sample = GoldenSample(id="one", inputs=inputs, outputs={"join.y": "golden/r.npy"})
    write_bundle(folder / "text.mbm", replace(described(), golden=(sample,)), files)
    return load(folder / "text.mbm")


def test_a_golden_text_is_replayed(tmp_path: Path) -> None:
    """Stored as UTF-8; another text gives another answer, and what is no text at all is damage."""
    assert verify_bundle(golden(tmp_path, b"red mug"), load_engine=Engines()).passed
    assert not verify_bundle(golden(tmp_path, b"mug"), load_engine=Engines()).passed
    with pytest.raises(BundleIntegrityError, match=r"golden/0\.prompt\.txt"):
        verify_bundle(golden(tmp_path, b"\xff"), load_engine=Engines())
    with pytest.raises(ManifestError, match=r"golden 'one' does not fit.*characters"):
        verify_bundle(golden(tmp_path, b"a" * 10_001), load_engine=Engines())


# --- live ------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_changed_while_a_stream_runs(tmp_path: Path) -> None:
    """From the consumer's own thread; results follow, and none comes before the first text."""
    prompt = TextSource("prompt")
    seen: list[float] = []
    write_bundle(tmp_path / "text.mbm", described(), FILES)
    sources = [SensorSource("imu", lambda: 0.0, 500), prompt]
    with edge_mbm.open(tmp_path / "text.mbm", sources, load_engine=Engines()) as live:
        prompt.set("red mug")
        for result in live:
            if not seen or value(result) != seen[-1]:
                seen.append(value(result))
            if seen == [202]:
                prompt.set("mug")
            if len(seen) == 2:
                break
    assert seen == [202, 301]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edge-mbm")]


def test_a_prompt_is_said_where_a_stream_is_opened(tmp_path: Path) -> None:
    """The first one with it; others are said later, and one that is too long is refused and changes nothing."""
    write_bundle(tmp_path / "text.mbm", described(), FILES)
    sensor, seen = SensorSource("imu", lambda: 0.0, 500), list[float]()
    with edge_mbm.open(tmp_path / "text.mbm", [sensor], text="red mug", load_engine=Engines()) as live:
        for result in live:
            if not seen or value(result) != seen[-1]:
                seen.append(value(result))
            if seen == [202]:
                with pytest.raises(InputError, match="10000 characters"):
                    live.say("a" * 10_001)
                live.say("mug")
            if len(seen) == 2:
                break
    assert seen == [202, 301]


def test_a_recording_is_played_with_a_prompt(tmp_path: Path) -> None:
    """As fast as possible, from its beginning; it cannot be changed then, since nothing says when that would be."""
    write_bundle(tmp_path / "text.mbm", described(), FILES)
    bundle = load(tmp_path / "text.mbm")
    with Recorder(tmp_path / "a.mcap", bundle.manifest, RecordOptions(max_bytes=1 << 20), only=["imu"]) as recorder:
        for t in range(3):
            recorder.push("imu", [t], t, wait=True)
    options: dict[str, Any] = {"realtime": False, "load_engine": Engines()}
    with edge_mbm.open(bundle, tmp_path / "a.mcap", text="mug", **options) as stream:
        assert [value(result) for result in stream] == [301, 302, 303]
        with pytest.raises(InputError, match="no text to change"):
            stream.say("red")


def test_a_prompt_that_nothing_takes_is_refused(tmp_path: Path) -> None:
    """By a bundle without text, or beside a source that gives the text."""
    write_bundle(tmp_path / "text.mbm", described(), FILES)
    sources = [SensorSource("imu", lambda: 0.0, 500), TextSource("prompt")]
    with pytest.raises(InputError, match="a source gives 'prompt' already"):
        edge_mbm.open(tmp_path / "text.mbm", sources, text="mug", load_engine=Engines())
    with pytest.raises(InputError, match="'tiny' takes no text"):
        edge_mbm.open(tiny_bundle(), [SensorSource("image", lambda: 0.0, 5)], text="mug")


def test_a_recorded_prompt_is_replayed(tmp_path: Path) -> None:
    """From a recording the answers are those that the session gave."""
    write_bundle(tmp_path / "text.mbm", described(), FILES)
    bundle = load(tmp_path / "text.mbm")
    samples: list[tuple[str, Any]] = [
        ("prompt", "red"),
        *[("imu", [k]) for k in range(3)],
        ("prompt", "mug"),
        ("imu", [9]),
    ]
    given = []
    with bundle.session(load_engine=Engines()) as session:
        options = RecordOptions(max_bytes=1 << 20)
        with Recorder(tmp_path / "a.mcap", bundle.manifest, options) as recorder:
            for t, (modality, data) in enumerate(samples, start=1):
                session.push(modality, data, t)
                recorder.push(modality, data, t, wait=True)
                given += [value(result) for result in session.poll()]
    with edge_mbm.open(bundle, ReplaySource(tmp_path / "a.mcap"), realtime=False, load_engine=Engines()) as stream:
        assert [value(result) for result in stream] == given == [201, 202, 203, 310]
