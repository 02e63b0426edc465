"""Speech to text in a session: sound, utterances, a decoder step by step, and what may read its text.

No network: "voice" hears speech where it is loud, "listener" takes the loudness of an utterance, and "writer" writes as
many words as that is tenths, "one two three ...", which are counted in its state.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

import edge_mbm
from edge_mbm import DecodeOptions, Result, Session, SessionOptions
from edge_mbm.bundle import write_bundle
from edge_mbm.errors import EngineError, InputError, ManifestError, VerificationError
from edge_mbm.runtime import TextOutput
from edge_mbm.runtime.sources import ArraySource
from edge_mbm.runtime.verify import verify_bundle
from edge_mbm.spec import (
    Asset,
    AudioModality,
    Component,
    Decision,
    Decoder,
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
    State,
    TensorSpec,
    Tokens,
    TokenSteps,
    Utterances,
    Variant,
    Window,
)
from edge_mbm.testing import NullEngine

MS = 1_000_000
WORDS = "one\ntwo\nthree\nfour\nfive\n"
END, BEGIN = 0, 8  # 1 is an unknown word, then the words; the one to begin with has no score


def floats(*shape: int | str) -> TensorSpec:
    return TensorSpec(dtype="float32", shape=("batch", *shape))


def variants() -> dict[str, Variant]:
    return {
        "fp32": Variant(target="any", precision="fp32", opset=17, decision=Decision(kept=True, reason="-"), graph="g")
    }


def components() -> dict[str, Component]:
    sound = {"x": Input(source="audio", tensor=floats(10))}
    return {
        "voice": Encoder(
            inputs=sound,
            outputs={"speech": Output(tensor=floats(1), task=Regression())},
            variants=variants(),
            window=Window(length=10, hop=10),
        ),
        "listener": Encoder(
            inputs={"x": Input(source="audio", tensor=floats(400))},
            outputs={"loudness": Output(tensor=floats(1), task=Embedding())},
            variants=variants(),
            window=Window(length=400, hop=50),
            utterances=Utterances(source="voice.speech", silence_ns=30 * MS, speech_ns=20 * MS, padding_ns=10 * MS),
        ),
        "writer": Decoder(
            inputs={"loudness": Input(source="listener.loudness", tensor=floats(1))},
            outputs={"text": Output(tensor=floats(7), task=Tokens(tokenizer="words"))},
            states=(State(input="count", output="next_count", tensor=floats(1)),),
            variants=variants(),
            algorithm="autoregressive",
            tokenizer="words",
            max_tokens=7,
            start=(BEGIN,),
            end=END,
        ),
    }


def reader() -> dict[str, Component]:
    """A text encoder that reads what was written, and a head of it."""
    steps = TokenSteps(asset="words", max_length=4)
    ids = TensorSpec(dtype="int64", shape=("batch", 4))
    return {
        "text_encoder": Encoder(
            inputs={"ids": Input(source="writer.text", tensor=ids, preprocess=steps)},
            outputs={"sum": Output(tensor=floats(1), task=Embedding())},
            variants=variants(),
        ),
        "total": Head(
            inputs={"sum": Input(source="text_encoder.sum", tensor=floats(1))},
            outputs={"total": Output(tensor=floats(1), task=Regression())},
            variants=variants(),
            pivot="audio",
            deadline_ns=0,
        ),
    }


def shower() -> dict[str, Component]:
    """A sensor that shows a number, and a head that adds to it what was said of late, with 0.5 where nothing was."""
    present = Present(input="present", order=("audio", "shown"))
    return {
        "seen": Encoder(
            inputs={"shown": Input(source="shown", tensor=floats(1))},
            outputs={"number": Output(tensor=floats(1), task=Embedding())},
            variants=variants(),
        ),
        "joined": Head(
            inputs={
                "said": Input(source="text_encoder.sum", tensor=floats(1)),
                "number": Input(source="seen.number", tensor=floats(1)),
            },
            outputs={"joined": Output(tensor=floats(1), task=Regression())},
            variants=variants(),
            pivot="shown",
            tolerance_ns={"audio": 200 * MS},
            deadline_ns=0,
            present=present,
        ),
    }


def compute(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """All of the engines, told apart by their outputs."""
    if "speech" in outputs:
        outputs["speech"][...] = np.abs(inputs["x"]).max() > 0
    if "loudness" in outputs:
        outputs["loudness"][...] = np.abs(inputs["x"]).max()
    if "text" in outputs:
        count = inputs["count"][0, 0]
        assert inputs["position"][0, 0] == count
        assert (inputs["token"][0, 0] == BEGIN) == (count == 0)
        more = count + 0.5 < 10 * inputs["loudness"][0, 0]
        outputs["text"][...] = 0
        outputs["text"][0, int(2 + count) if more and count < 5 else END] = 5
        outputs["next_count"][...] = count + 1
    if "sum" in outputs:
        outputs["sum"][...] = inputs["ids"].sum()
    if "total" in outputs:
        outputs["total"][...] = inputs["sum"]
    if "number" in outputs:
        outputs["number"][...] = inputs["shown"]
    if "joined" in outputs:
        heard = inputs["present"][0, 0] > 0.5
        outputs["joined"][...] = inputs["number"] + (inputs["said"] if heard else 0.5)


def bundle(tmp_path: Path, more: Mapping[str, Component] | None = None, **fields: Any) -> edge_mbm.Bundle:
    manifest = Manifest(
        name="dictation",
        modalities={"audio": AudioModality(sample_rate=1000), **fields.pop("modalities", {})},
        components={**components(), **(more or {})},
        assets={"words": Asset(kind="tokenizer", path="words.txt")},
        files={},
        **fields,
    )
    contents = {"g": b"", "words.txt": WORDS.encode(), **fields.pop("contents", {})}
    write_bundle(tmp_path / "d.mbm", manifest, contents)
    return edge_mbm.load(tmp_path / "d.mbm")


def engine(name: str, component: Component, graph: bytes) -> NullEngine:
    return NullEngine(name, component, graph, compute=compute)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with bundle(tmp_path) as opened, opened.session(load_engine=engine) as made:
        yield made


def sound(*parts: tuple[int, float]) -> np.ndarray:
    """Milliseconds of a loudness each."""
    return np.concatenate([np.full(count, loudness, np.float32) for count, loudness in parts])


def texts(results: list[Result]) -> list[tuple[str, bool]]:
    found = []
    for result in results:
        assert isinstance(result.output, TextOutput)
        assert result.segment is not None
        found.append((result.output.text, result.segment.is_final))
    return found


SENTENCES = sound((50, 0), (60, 0.2), (100, 0), (120, 0.4), (100, 0))


def test_what_was_said_becomes_text_utterance_by_utterance(session: Session) -> None:
    """Two utterances, looked at as they grow; the result says which stretch of sound it is about."""
    results = []
    for begin in range(0, len(SENTENCES), 10):
        session.push("audio", SENTENCES[begin : begin + 10], begin * MS)
        results += session.poll()
    assert texts(results) == [
        ("one two", False),
        ("one two", True),
        ("one two three four", False),
        ("one two three four", False),
        ("one two three four", False),
        ("one two three four", True),
    ]
    segment = results[-1].segment
    assert segment is not None
    assert (segment.start // MS, segment.end // MS, results[-1].t_capture // MS) == (200, 360, 360)
    assert {"infer.writer", "infer.listener"} <= results[-1].stage_ns.keys()
    assert results[-1].as_json()["segment"] == {"start": 200 * MS, "end": 360 * MS, "is_final": True}


def test_the_one_that_hears_where_speech_is_works_for_whom_it_tells(tmp_path: Path) -> None:
    """A head that rests does not deafen those that run; when none needs speech nobody listens, until one does."""
    options = SessionOptions(heads=("writer", "total"))
    with bundle(tmp_path, reader()) as opened, opened.session(options, load_engine=engine) as session:

        def hear(begin: int) -> set[str]:
            session.push("audio", SENTENCES, begin * MS)
            return {result.head for result in session.poll()}

        def windows() -> int:
            return next(encoder.runs for encoder in session.status()[0] if encoder.name == "voice")

        session.disable("writer")
        assert hear(0) == {"total"}
        session.disable("total")
        before = windows()
        assert hear(1000) == set()
        assert windows() == before
        session.enable("writer")
        assert hear(2000) == {"writer"}
        assert windows() > before


@pytest.mark.parametrize("chunk", [7, 10, 64, 431])
def test_finished_texts_do_not_depend_on_how_the_sound_comes(session: Session, chunk: int) -> None:
    """Any block size: an unfinished utterance is looked at when it suits, a finished one is the same."""
    results = []
    for begin in range(0, len(SENTENCES), chunk):
        session.push("audio", SENTENCES[begin : begin + chunk], begin * MS)
        results += session.poll()
    results += session.finish()
    assert [text for text, is_final in texts(results) if is_final] == ["one two", "one two three four"]


def test_the_end_of_the_sound_ends_the_last_utterance(session: Session) -> None:
    """Without a silence after it."""
    session.push("audio", sound((50, 0), (60, 0.3)), 0)
    assert texts(session.finish())[-1] == ("one two three", True)
    assert session.is_over()


def test_silence_gives_nothing(session: Session) -> None:
    """Not even an empty text; and the stream is over all the same."""
    session.push("audio", sound((500, 0)), 0)
    assert session.finish() == []
    assert session.is_over()


def test_live_gives_every_finished_text(tmp_path: Path) -> None:
    """Threads and all: a consumer gets both utterances whole."""
    blocks = [(SENTENCES[begin : begin + 10], begin * MS) for begin in range(0, len(SENTENCES), 10)]
    source = ArraySource("audio", blocks, audio_rate=1000)
    with bundle(tmp_path) as opened, edge_mbm.open(opened, [source], load_engine=engine) as live:
        assert [text for text, is_final in texts(list(live)) if is_final] == ["one two", "one two three four"]


def test_a_text_can_be_read_by_a_text_encoder(tmp_path: Path) -> None:
    """Speech to text to embedding in one bundle: the words' numbers add up. The text itself can be asked for too."""
    with bundle(tmp_path, reader()) as opened:
        assert opened.manifest.default_results() == ("total",)
        with opened.session(SessionOptions(heads=("total", "writer")), load_engine=engine) as session:
            session.push("audio", sound((50, 0), (45, 0.2), (100, 0)), 0)
            results = session.finish()
    assert {r.head: r.as_json()["outputs"] for r in results if r.segment and r.segment.is_final} == {
        "writer": {"text": {"text": "one two", "score": pytest.approx(-0.04, abs=0.01), "is_complete": True}},
        "total": {"total": {"values": [5.0], "unit": None}},
    }


def test_what_is_shown_is_joined_with_what_was_said_of_late(tmp_path: Path) -> None:
    """Pictures wait for no speech: alone before it, joined from when the text is known until it is too old."""
    more, modalities = reader() | shower(), {"shown": SensorModality(shape=(1,))}
    options = SessionOptions(heads=("joined",))
    found = []
    with (
        bundle(tmp_path, more, modalities=modalities) as opened,
        opened.session(options, load_engine=engine) as session,
    ):
        samples = np.concatenate([sound((50, 0), (45, 0.2)), np.zeros(505, np.float32)])
        for begin in range(0, 600, 10):
            session.push("audio", samples[begin : begin + 10], begin * MS)
            session.push("shown", np.array([100.0], np.float32), (begin + 10) * MS)
            found += session.poll()
        [alone] = session.infer(shown=np.array([7.0], np.float32))
    assert len(found) == 60
    heard = [result for result in found if not result.missing]
    assert {float(result.output.values[0]) for result in heard} == {105.0}  # "one two": 2 + 3
    assert {float(result.output.values[0]) for result in found if result.missing} == {100.5}
    assert all(result.missing in ((), ("audio",)) for result in found)
    known = heard[-1].t_capture - 200 * MS  # when the last text was known that counted
    assert 0 <= known - heard[0].t_capture <= 100 * MS
    assert float(alone.output.values[0]) == 7.5


def test_one_shot_takes_one_utterance(session: Session) -> None:
    """However quiet its ends are; a stream's state is left as it is. Longer ones are refused."""
    [result] = session.infer(audio=sound((100, 0), (20, 0.3)))
    assert isinstance(result.output, TextOutput)
    assert (result.output.text, result.output.is_complete) == ("one two three", True)
    with pytest.raises(InputError, match="an utterance of 401 samples: at most 400"):
        session.infer(audio=sound((401, 0.1)))


def test_the_budget_ends_a_text(tmp_path: Path) -> None:
    """It says that it is not complete."""
    options = SessionOptions(decoding=DecodeOptions(max_tokens=2))
    with bundle(tmp_path) as opened, opened.session(options, load_engine=engine) as session:
        [result] = session.infer(audio=sound((50, 0.5)))
    assert isinstance(result.output, TextOutput)
    assert (result.output.text, result.output.is_complete) == ("one two", False)


@pytest.mark.parametrize("beams", [1, 3])
def test_beams_find_the_same_where_nothing_is_in_doubt(tmp_path: Path, beams: int) -> None:
    """Each hypothesis has its own state, or the words would be out of place."""
    options = SessionOptions(decoding=DecodeOptions(beams=beams))
    with bundle(tmp_path) as opened, opened.session(options, load_engine=engine) as session:
        [result] = session.infer(audio=sound((50, 0.4)))
    assert isinstance(result.output, TextOutput)
    assert result.output.text == "one two three four"


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"beams": 65}, {"max_tokens": 0}])
def test_options_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    """Where they are made."""
    with pytest.raises(InputError, match="beams is from 1 to 64"):
        DecodeOptions(**wrong)


def test_a_text_comes_word_by_word_for_those_who_ask(session: Session) -> None:
    """Each piece is what its token adds; together they are the text."""
    pieces = list(session.generate("writer", audio=sound((50, 0.3))))
    assert [piece.text for piece in pieces] == ["one", " two", " three", ""]


def test_who_stops_asking_ends_the_text(tmp_path: Path) -> None:
    """No step is computed that nobody waits for, and the next text is whole."""
    made: dict[str, NullEngine] = {}

    def load(name: str, component: Component, graph: bytes) -> NullEngine:
        made[name] = engine(name, component, graph)
        return made[name]

    with bundle(tmp_path) as opened, opened.session(load_engine=load) as session:
        for piece in session.generate("writer", audio=sound((50, 0.5))):
            if piece.text == " two":
                break
        assert made["writer"].runs == 2
        assert "".join(p.text for p in session.generate("writer", audio=sound((50, 0.5)))) == "one two three four five"


def test_generate_refuses_what_is_no_decoder(session: Session) -> None:
    """By name, with those that there are."""
    with pytest.raises(InputError, match=r"no decoder 'listener'.*\['writer'\]"):
        next(session.generate("listener", audio=sound((50, 0.5))))
    with pytest.raises(InputError, match="decoder 'writer' cannot do without 'audio'"):
        next(session.generate("writer"))


def test_a_step_that_fails_costs_one_text(tmp_path: Path) -> None:
    """The error says where; the next utterance is written."""

    def fragile(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        compute(inputs, outputs)
        if "text" in outputs and 0.15 < inputs["loudness"][0, 0] < 0.25:
            outputs["text"][...] = np.nan

    def load(name: str, component: Component, graph: bytes) -> NullEngine:
        return NullEngine(name, component, graph, compute=fragile)

    with bundle(tmp_path) as opened, opened.session(load_engine=load) as session:
        session.push("audio", sound((50, 0), (45, 0.2), (100, 0), (45, 0.4), (100, 0)), 0)
        with pytest.raises(EngineError, match="'writer' are not finite after 0 tokens"):
            session.finish()
        assert texts(session.poll()) == [("one two three four", True)]
        assert session.stats()["writer.failed"] == 1


# --- verify ----------------------------------------------------------------------------------------------------------


def golden(tmp_path: Path, text: str) -> edge_mbm.Bundle:
    file = io.BytesIO()
    np.save(file, sound((50, 0.3)))
    sample = GoldenSample(id="s", inputs={"audio": "a.npy"}, outputs={"writer.text": "t.txt"})
    manifest = bundle(tmp_path).manifest
    contents = {"g": b"", "words.txt": WORDS.encode(), "a.npy": file.getvalue(), "t.txt": text.encode()}
    write_bundle(tmp_path / "golden.mbm", structs.replace(manifest, golden=(sample,), files={}), contents)
    return edge_mbm.load(tmp_path / "golden.mbm")


def test_a_golden_text_is_replayed_word_by_word(tmp_path: Path) -> None:
    """Equal texts pass; one wrong word of an fp32 graph does not."""
    with golden(tmp_path, "one two three") as opened:
        [check] = verify_bundle(opened, load_engine=engine).replays[0].outputs
        assert (check.passed, check.agreement, check.sqnr_db) == (True, 1.0, 120.0)
    with golden(tmp_path, "one too three") as opened:
        found = verify_bundle(opened, load_engine=engine)
        assert found.replays[0].outputs[0].agreement == 0.0
        with pytest.raises(VerificationError, match=r"writer\.text"):
            found.check()


# --- manifests that cannot work --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "field", "value", "message"),
    [
        ("writer", "start", (), "writer.start is empty"),
        ("writer", "max_tokens", 1, "no room for a text"),
        ("writer", "end", 7, "names token 7"),
        ("writer", "suppress", (9,), "names token 9"),
        ("writer", "token", "count", "'count' twice"),
        ("writer", "inputs", {"x": Input(source="audio", tensor=floats(1))}, "reads a modality directly"),
        ("listener", "utterances", Utterances(source="listener.loudness"), "cycle"),
        ("listener", "utterances", Utterances(source="writer.text"), "cycle"),
        ("listener", "utterances", Utterances(source="voice.gender"), "which no encoder gives"),
        ("listener", "window", None, "needs a window"),
    ],
)
def test_a_manifest_that_cannot_work_is_refused(
    tmp_path: Path, component: str, field: str, value: Any, message: str
) -> None:
    """Where it says so."""
    opened = bundle(tmp_path).manifest
    broken = structs.replace(opened.components[component], **{field: value})
    with pytest.raises(ManifestError, match=message):
        structs.replace(opened, components={**opened.components, component: broken}).check()
