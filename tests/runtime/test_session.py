"""The clock-free core. On the tiny bundle every right answer can be computed in the head:

windows of 100 ms, a level that moves half-way to each window's loudness, and scores that give it back (``level``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

import edge_mbm
from edge_mbm import Result, Session, SessionOptions
from edge_mbm.bundle import write_bundle
from edge_mbm.errors import EngineError, InputError, ManifestError, SessionClosedError
from edge_mbm.runtime import ClassificationOutput
from edge_mbm.spec import (
    AudioModality,
    Component,
    Decision,
    Embedding,
    Encoder,
    Head,
    Input,
    Manifest,
    Output,
    Regression,
    SensorModality,
    State,
    TensorSpec,
    Variant,
    Window,
)
from edge_mbm.testing import NullEngine, tiny_bundle

MS = 1_000_000
BLACK = np.zeros((8, 8, 3), np.uint8)
ort = pytest.mark.needs("onnxruntime")


def tiny(load_engine: Any = None, **options: Any) -> Session:
    return edge_mbm.load(tiny_bundle()).session(SessionOptions(**options), load_engine=load_engine)


def loud(milliseconds: int, loudness: float = 0.5) -> np.ndarray:
    return np.full(milliseconds, loudness, np.float32)


def level(result: Result) -> float:
    """What the audio encoder said, read back from the scores over a black frame; 0 where audio is missing."""
    output = result.output
    assert isinstance(output, ClassificationOutput)
    return math.log(output.scores[3] / output.scores[0]) / 8


def levels(loudness: Iterable[float]) -> list[float]:
    found = [0.0]
    for value in loudness:
        found.append((found[-1] + value) / 2)
    return found[1:]


def plain(results: Iterable[Result]) -> list[dict[str, Any]]:
    """All that a replay repeats."""
    return [{k: v for k, v in r.as_json().items() if k not in ("age", "stage_ns")} for r in results]


# --- alignment -------------------------------------------------------------------------------------------------------


@ort
def test_a_pivot_takes_the_newest_window_that_had_ended() -> None:
    """At 250 ms it is the window that ended at 200 ms; the spread says so."""
    with tiny() as session:
        session.push("audio", loud(400), 0)
        session.push("image", BLACK, 250 * MS)
        [result] = session.poll()
        assert level(result) == pytest.approx(levels([0.5, 0.5])[-1], abs=1e-5)
        assert (result.missing, result.spread, result.t_capture) == ((), 50 * MS, 250 * MS)


@ort
@pytest.mark.parametrize(("t", "is_present"), [(300, True), (450, True), (500, True), (501, False), (900, False)])
def test_tolerance_is_the_greatest_age(t: int, is_present: bool) -> None:
    """With 200 ms of tolerance a window that ended at 300 ms serves up to 500 ms, and not a millisecond longer."""
    with tiny() as session:
        session.push("audio", loud(300), 0)
        session.push("image", BLACK, t * MS)
        [result] = session.finish()
        assert result.missing == (() if is_present else ("audio",))
        assert level(result) == pytest.approx(levels([0.5] * 3)[-1] if is_present else 0, abs=1e-5)
        assert result.spread == ((t - 300) * MS if is_present else 0)


@ort
def test_the_deadline_ends_the_waiting() -> None:
    """Nothing a nanosecond before 300 ms have passed; then a result that says what is missing."""
    with tiny() as session:
        session.push("image", BLACK, 1000 * MS)
        assert session.poll(1300 * MS - 1) == []
        assert session.deadline() == 1300 * MS
        [result] = session.poll(1300 * MS)
        assert result.missing == ("audio",)
        assert result.age >= 300 * MS
        assert session.deadline() is None


@ort
def test_a_pivot_does_not_wait_for_what_cannot_change_it() -> None:
    """With sound up to 250 ms a pivot at 299 ms is settled, for the next window ends at 300; one at 300 ms waits."""
    with tiny() as session:
        session.push("audio", loud(250), 0)
        session.push("image", BLACK, 299 * MS)
        [result] = session.poll(299 * MS)
        assert result.missing == ()
        session.push("image", BLACK, 300 * MS)
        assert session.poll(310 * MS) == []
        session.push("audio", loud(50), 250 * MS)
        [result] = session.poll(310 * MS)
        assert level(result) == pytest.approx(levels([0.5] * 3)[-1], abs=1e-5)
        assert result.spread == 0


IMAGES = [(t * MS, "image") for t in (40, 110, 199, 200, 390, 610, 611, 1240)]
BLOCKS = [(t * MS, "audio") for t in range(0, 1000, 50)]


@ort
@given(st.randoms(use_true_random=False), st.sampled_from(["image", "audio", None]))
@settings(max_examples=40, deadline=None)
def test_the_answer_does_not_depend_on_who_comes_first(chance: random.Random, hurry: str | None) -> None:
    """Any interleaving of the two modalities, one far ahead of the other included, gives the same results."""
    loudness = np.abs(np.sin(np.arange(1000) / 77)).astype(np.float32)
    queues = {"image": list(IMAGES), "audio": list(BLOCKS)}
    got = []
    with tiny() as session:
        while any(queues.values()):
            names = [name for name, queue in queues.items() if queue]
            name = hurry if hurry in names and chance.random() < 0.9 else chance.choice(names)
            t, _ = queues[name].pop(0)
            session.push(name, BLACK if name == "image" else loudness[t // MS : t // MS + 50], t)
            got += session.poll(now=0)
        got += session.finish(now=0)
    ended = levels(loudness.reshape(10, 100).mean(axis=1))
    expected = []
    for t, _ in IMAGES:
        windows = min(t // (100 * MS), 10)
        fresh = windows > 0 and t - windows * 100 * MS <= 200 * MS
        expected.append((t, pytest.approx(ended[windows - 1] if fresh else 0, abs=1e-4), () if fresh else ("audio",)))
    assert [(r.t_capture, level(r), r.missing) for r in got] == expected
    assert [r.seq for r in got] == list(range(len(IMAGES)))


@pytest.mark.needs("onnxruntime", "cv2")
def test_a_replay_repeats_itself() -> None:
    """With ``now`` left out two runs give the same results, to the bit."""
    frames = np.random.default_rng(0).integers(0, 255, (30, 40, 50, 3), np.uint8)

    def run() -> list[dict[str, Any]]:
        found = []
        with tiny(heads=("event", "color")) as session:
            for k, frame in enumerate(frames):
                session.push("image", frame, k * 33 * MS)
                session.push("audio", np.sin(np.arange(33) * (k + 1)).astype(np.float32), k * 33 * MS)
                found += session.poll()
            return plain([*found, *session.finish()])

    first = run()
    assert len(first) == 60
    assert first == run()


# --- state -----------------------------------------------------------------------------------------------------------


@ort
@given(st.lists(st.integers(1, 300), min_size=1, max_size=10))
@settings(max_examples=30, deadline=None)
def test_a_stream_in_any_pieces_equals_one_shot(pieces: list[int]) -> None:
    """The carried level after 700 ms is that of ``infer`` on the whole."""
    whole = np.random.default_rng(1).uniform(-1, 1, 700).astype(np.float32)
    with tiny() as session:
        [once] = session.infer(image=BLACK, audio=whole)
        position = 0
        while position < len(whole):
            size = pieces[position % len(pieces)]
            session.push("audio", whole[position : position + size], position * MS)
            session.poll()
            position += size
        session.push("image", BLACK, 700 * MS)
        [streamed] = session.poll()
    assert level(streamed) == pytest.approx(level(once), abs=1e-6)
    assert level(once) == pytest.approx(levels(np.abs(whole.reshape(7, 100)).mean(axis=1))[-1], abs=1e-4)


@ort
def test_a_gap_starts_the_state_anew() -> None:
    """After lost samples the level is that of a fresh start, and the gap is counted."""
    with tiny() as session:
        session.push("audio", loud(300), 0)
        session.poll()
        session.push("audio", loud(100), 500 * MS)
        session.push("image", BLACK, 600 * MS)
        [result] = session.poll()
        assert level(result) == pytest.approx(0.25, abs=1e-5)
        assert session.stats()["audio.gaps"] == 1


@ort
def test_infer_leaves_the_stream_as_it_was() -> None:
    """One-shot calls in between change neither state, nor times, nor numbering."""

    def run(*, interrupted: bool) -> list[dict[str, Any]]:
        found = []
        with tiny() as session:
            for k in range(6):
                session.push("audio", loud(100, 0.1 * k), k * 100 * MS)
                session.push("image", BLACK, (k + 1) * 100 * MS)
                if interrupted:
                    session.infer(image=BLACK + 200, audio=loud(500, 0.9))
                found += session.poll()
                if interrupted:
                    session.infer(audio=loud(100, 0.9))
        return plain(found)

    assert run(interrupted=True) == run(interrupted=False)


@ort
def test_reset_forgets_everything_but_the_counters() -> None:
    """Afterwards earlier times are welcome again and the level starts from zero; losses and numbers go on."""
    with tiny() as session:
        session.push("audio", loud(500), 5000 * MS)
        session.push("image", BLACK, 5100 * MS)
        session.push("image", BLACK, 5200 * MS)
        assert [r.seq for r in session.poll()] == [0]
        session.reset()
        assert session.deadline() is None
        session.push("audio", loud(100), 0)
        session.push("image", BLACK, 100 * MS)
        [result] = session.poll()
        assert level(result) == pytest.approx(0.25, abs=1e-5)
        assert (result.seq, session.stats()["image.superseded"]) == (1, 1)


# --- one shot --------------------------------------------------------------------------------------------------------


@ort
def test_a_missing_modality_is_masked_and_said() -> None:
    """The head sees a mask: without audio "loud" scores as nothing, without the image the colours do."""
    red = BLACK.copy()
    red[:, :, 0] = 255
    with tiny() as session:
        [both] = session.infer(image=red, audio=loud(100, 4.0))
        [seen] = session.infer(image=red)
        [heard] = session.infer(audio=loud(100, 4.0))
    for result, logits, missing in (
        (both, [8, 0, 0, 16], ()),
        (seen, [8, 0, 0, 0], ("audio",)),
        (heard, [0, 0, 0, 16], ("image",)),
    ):
        scores = np.exp(logits) / np.exp(logits).sum()
        assert isinstance(result.output, ClassificationOutput)
        np.testing.assert_allclose(result.output.scores, scores, rtol=1e-4)
        assert result.missing == missing


@ort
def test_run_components_gives_every_raw_output() -> None:
    """By "component.output", with a batch axis: what golden samples are compared with."""
    with tiny() as session:
        outputs = session.run_components(image=BLACK + 51, audio=loud(100, 0.5))
    assert outputs.keys() == {"image_encoder.color", "audio_encoder.level", "event.logits"}
    np.testing.assert_allclose(outputs["image_encoder.color"], [[0.2, 0.2, 0.2]], atol=1e-6)
    np.testing.assert_allclose(outputs["event.logits"], [[1.6, 1.6, 1.6, 2.0]], atol=1e-5)


def test_what_a_head_cannot_do_without_is_asked_for() -> None:
    """No inputs at all, a lone head without its image, and less than one window of sound."""
    with tiny(NullEngine, heads=("color",)) as session, pytest.raises(InputError, match=r"'color'.*image"):
        session.infer(audio=loud(100))
    with tiny(NullEngine) as session:
        with pytest.raises(InputError, match="'event'"):
            session.infer()
        with pytest.raises(InputError, match=r"99 samples.*100"):
            session.infer(image=BLACK, audio=loud(99))


# --- heads and losses ------------------------------------------------------------------------------------------------


def test_only_what_the_heads_need_is_loaded() -> None:
    """With "color" alone there is no audio encoder, and audio is accepted and ignored."""
    with tiny(NullEngine, heads=("color",)) as session:
        assert session.engines.keys() == {"image_encoder", "color"}
        assert session.modalities == ("image",)
        session.push("audio", loud(100), 0)
        session.push("image", BLACK, 0)
        assert [r.head for r in session.poll()] == ["color"]


def test_each_head_gives_its_own_results() -> None:
    """Both heads answer every frame, numbered apart, the one that need not wait first in time."""
    with tiny(NullEngine, heads=("event", "color")) as session:
        session.push("image", BLACK, 0)
        assert [(r.head, r.seq) for r in session.poll(0)] == [("color", 0)]
        session.push("image", BLACK, 300 * MS)
        assert [(r.head, r.seq) for r in session.poll(300 * MS)] == [("event", 0), ("color", 1)]


def test_a_disabled_head_does_not_answer_one_shots() -> None:
    """Nor does it ask for the modality that only it needs."""
    with edge_mbm.load(tiny_bundle()) as bundle, bundle.session(SessionOptions(heads=("event", "color"))) as session:
        session.disable("color")
        assert [result.head for result in session.infer(audio=np.zeros(100, np.float32))] == ["event"]
        session.enable("color")
        assert {result.head for result in session.infer(image=BLACK)} == {"event", "color"}


def test_what_a_failed_result_was_to_report_the_next_one_reports() -> None:
    """Four frames were replaced by the one on which the head failed: the next result counts all five."""
    fails = False

    def compute(inputs: Any, _: Any) -> None:
        if fails and "color" in inputs:
            raise EngineError("a passing fault")

    def engine(name: str, component: Component, graph: bytes) -> NullEngine:
        return NullEngine(name, component, graph, compute=compute)

    with tiny(engine, heads=("color",)) as session:
        for t in range(5):
            session.push("image", BLACK, t)
        fails = True
        with pytest.raises(EngineError, match="a passing fault"):
            session.poll()
        fails = False
        session.push("image", BLACK, 5)
        assert [result.dropped for result in session.poll()] == [5]
        assert session.stats()["color.failed"] == 1


def test_frames_that_were_replaced_are_reported() -> None:
    """Three frames before a poll are one result that says two were dropped; losses from outside are added."""
    with tiny(NullEngine, heads=("color",)) as session:
        for t in (1, 2, 3):
            session.push("image", BLACK, t)
        session.count_dropped("image", 4)
        assert [(r.t_capture, r.dropped) for r in session.poll()] == [(3, 6)]
        session.push("image", BLACK, 4)
        assert [r.dropped for r in session.poll()] == [0]
        assert {cause: n for cause, n in session.stats().items() if n} == {"image.superseded": 6}


def test_waiting_pivots_are_bounded_and_counted() -> None:
    """Of ten frames that wait for sound with room for four, the newest four are answered."""
    with tiny(NullEngine, max_pending=4) as session:
        for t in range(10):
            session.push("image", BLACK, t)
            assert session.poll(now=0) == []
        results = session.finish(now=0)
        assert [(r.t_capture, r.dropped) for r in results] == [(6, 6), (7, 0), (8, 0), (9, 0)]
        assert session.stats()["event.overflowed"] == 6


def test_audio_nobody_encodes_is_bounded_and_counted() -> None:
    """Beyond the buffer the oldest is given up; the sum of encoded and lost is what was pushed."""
    with tiny(NullEngine, audio_buffer_s=1.0) as session:
        for k in range(50):
            session.push("audio", loud(100), k * 100 * MS)
        session.poll()
        runs = session.engines["audio_encoder"].runs  # type: ignore[attr-defined]
        assert runs * 100 + session.stats()["audio.lost_samples"] == 5000
        assert 10 <= runs <= 11


@pytest.mark.parametrize("stalled", ["image", "audio"])
def test_an_hour_without_one_modality_takes_no_memory(stalled: str) -> None:
    """Whichever stops, what is held stays bounded while the other goes on, and results come as far as they can."""
    with tiny(NullEngine) as session:
        session.push("image", BLACK, 0)
        session.push("audio", loud(100), 0)
        session.poll(0)
        count = 0
        for second in range(1, 3601):
            t = second * 1000 * MS
            if stalled == "audio":
                session.push("image", BLACK, t)
            else:
                session.push("audio", loud(1000), t - 900 * MS)
            count += len(session.poll(t))
            held = [len(node._recent) for node in session._nodes.values()]
            held += [len(head.aligner._pending) for head in session._heads]
            assert max(held) <= 1024
        if stalled == "audio":
            assert count >= 3599
            assert max(held) < 10
        assert session.stats()["audio.lost_samples"] == 0


# --- wrong use -------------------------------------------------------------------------------------------------------


BAD = {
    "unknown modality": ("smell", BLACK, 0, r"'smell'.*audio.*image"),
    "frame of floats": ("image", BLACK.astype(np.float32), 0, r"uint8\[H, W, 3\]"),
    "frame with alpha": ("image", np.zeros((8, 8, 4), np.uint8), 0, r"uint8\[8, 8, 4\]"),
    "no frame": ("image", None, 0, "frame"),
    "NaN in audio": ("audio", np.array([0, np.nan], np.float32), 0, "NaN"),
    "audio of int32": ("audio", np.zeros(9, np.int32), 0, "int32"),
    "time as a float": ("image", BLACK, 0.5, "whole nanoseconds"),
    "no time": ("image", BLACK, None, "whole nanoseconds"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_data_is_refused_where_it_is_handed_in(name: str) -> None:
    """``push`` raises an InputError that says what came; nothing is kept of it, and the session goes on."""
    modality, data, t, message = BAD[name]
    with tiny(NullEngine) as session:
        with pytest.raises(InputError, match=message):
            session.push(modality, data, t)  # type: ignore[arg-type]
        session.push("audio", loud(100), 0)
        session.push("image", BLACK, 100 * MS)
        assert [r.missing for r in session.poll()] == [()]


@pytest.mark.needs("soxr")
def test_any_whole_number_is_a_sample_rate() -> None:
    """A driver's type, kept, would overflow after days of counting in ns; times stay plain ints. Others are refused."""
    with tiny(heads=("event",)) as session:
        for block, rate in enumerate((np.int64(8000), np.float64(8000), 8000.0, np.uint16(8000))):
            session.push("audio", np.zeros(800, np.float32), block * 100 * MS, rate=rate)  # type: ignore[arg-type]
        assert type(session.newest) is int
        for wrong in ("8000", 8000.5, np.nan, [8000]):
            with pytest.raises(InputError, match=r"whole Hz"):
                session.push("audio", np.zeros(800, np.float32), 1000 * MS, rate=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rate", "hop"), [(10**9, 100), (10**30, 100), (1000, 1 << 31)])
def test_sound_that_no_microphone_gives_is_refused_before_memory_is_taken(tmp_path: Path, rate: int, hop: int) -> None:
    """A manifest from anywhere may say so: it is said, where numpy would run out of memory or of numbers."""
    with edge_mbm.load(tiny_bundle()) as bundle:
        contents = {path: bundle.read(path) for path in bundle.manifest.files}
        encoder = bundle.manifest.components["audio_encoder"]
        assert isinstance(encoder, Encoder)
        window = Window(length=100, hop=hop)
        manifest = structs.replace(
            bundle.manifest,
            modalities=dict(bundle.manifest.modalities) | {"audio": AudioModality(sample_rate=rate)},
            components=dict(bundle.manifest.components) | {"audio_encoder": structs.replace(encoder, window=window)},
        )
    write_bundle(tmp_path / "x.mbm", manifest, contents)
    engines = Engines()
    with edge_mbm.load(tmp_path / "x.mbm") as bundle, pytest.raises(ManifestError, match=f"every {hop} at {rate} Hz"):
        bundle.session(load_engine=engines)
    assert all(engine.closed for engine in engines.made)


def test_time_that_goes_back_is_refused() -> None:
    """For frames and for sound, with both times in the message."""
    with tiny(NullEngine) as session:
        session.push("image", BLACK, 1000)
        session.push("audio", loud(100), 1000)
        for modality, data in (("image", BLACK), ("audio", loud(100))):
            with pytest.raises(InputError, match=rf"'{modality}' at t = 999 ns.*1000"):
                session.push(modality, data, 999)


def test_numpy_integers_are_times_too() -> None:
    """What a driver's clock gives, and the result's time is a plain int that JSON can hold."""
    with tiny(NullEngine, heads=("color",)) as session:
        session.push("image", BLACK, np.int64(7))  # type: ignore[arg-type]
        [result] = session.poll()
        assert type(result.t_capture) is int
        msgspec.json.encode(result.as_json())


def test_a_closed_session_says_so() -> None:
    """Every call, and closing twice is fine; the engines were closed with it."""
    session = tiny(NullEngine)
    session.close()
    session.close()
    for call in (
        lambda: session.push("image", BLACK, 0),
        session.poll,
        session.finish,
        session.reset,
        lambda: session.infer(image=BLACK),
        lambda: session.end("image"),
    ):
        with pytest.raises(SessionClosedError):
            call()
    assert all(engine.closed for engine in session.engines.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options",
    [{"threads": 0}, {"threads": 10**6}, {"max_pending": 0}, {"audio_buffer_s": 0}, {"audio_buffer_s": math.nan}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """When they are made, not when they bite."""
    with pytest.raises(InputError, match=r"from 1 to 1024|at least 1"):
        SessionOptions(**options)


# --- engines that fail -----------------------------------------------------------------------------------------------


class Engines:
    """A loader that remembers its engines and fails where it is told to."""

    def __init__(self, fail_loading: str = "", compute: Any = None) -> None:
        self.made: list[NullEngine] = []
        self._fail_loading = fail_loading
        self._compute = compute

    def __call__(self, name: str, component: Component, graph: bytes) -> NullEngine:
        if name == self._fail_loading:
            raise EngineError(f"'{name}' does not load")
        engine = NullEngine(name, component, graph, compute=self._compute)
        self.made.append(engine)
        return engine


def test_engines_are_closed_when_a_later_one_does_not_load() -> None:
    """A failure half-way leaves nothing behind."""
    engines = Engines(fail_loading="event")
    with pytest.raises(EngineError, match="does not load"):
        tiny(engines)
    assert len(engines.made) == 2
    assert all(engine.closed for engine in engines.made)


def test_engines_are_closed_when_the_bundle_turns_out_wrong(tmp_path: Path) -> None:
    """Labels that cannot be read show after the engines are loaded; they are freed too."""
    bundle = edge_mbm.load(tiny_bundle())
    contents = {path: bundle.read(path) for path in bundle.manifest.files}
    write_bundle(tmp_path / "x.mbm", bundle.manifest, contents | {"labels/events.txt": b"\xff"})
    engines = Engines()
    with pytest.raises(edge_mbm.EdgeMbmError, match=r"events\.txt"):
        edge_mbm.load(tmp_path / "x.mbm").session(load_engine=engines)
    assert len(engines.made) == 3
    assert all(engine.closed for engine in engines.made)


def test_an_encoder_that_gives_nan_is_an_error_and_starts_anew() -> None:
    """The message has the output and the time; the carried state, which may be poisoned, is zeros again."""
    calls = 0

    def compute(_: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        nonlocal calls
        calls += "level" in outputs
        for value in outputs.values():
            value[...] = np.nan if calls == 2 and "level" in outputs else 1

    with tiny(Engines(compute=compute)) as session:
        session.push("audio", loud(200), 0)
        with pytest.raises(EngineError, match=r"'audio_encoder\.level' is not finite at t = 0\.200 s"):
            session.poll()
        assert not session.engines["audio_encoder"].inputs["state"].any()
        session.push("audio", loud(100), 200 * MS)
        session.push("image", BLACK, 300 * MS)
        assert [r.missing for r in session.poll()] == [()]


# --- other shapes of bundle, on the null engine ----------------------------------------------------------------------


def variants() -> dict[str, Variant]:
    return {
        "fp32": Variant(
            target="any", precision="fp32", decision=Decision(kept=True, reason="x"), opset=20, graph="g.onnx"
        )
    }


def vector(size: int = 2) -> TensorSpec:
    return TensorSpec(dtype="float32", shape=("batch", size))


def sensors(tmp_path: Path, **head: Any) -> edge_mbm.Bundle:
    """Two vectors, of which one goes through a chain of two encoders, and a head that may miss neither."""

    def encoder(source: str) -> Encoder:
        return Encoder(
            inputs={"x": Input(source=source, tensor=vector())},
            outputs={"y": Output(tensor=vector(), task=Embedding())},
            variants=variants(),
        )

    options: dict[str, Any] = {"pivot": "imu", "deadline_ns": 10, "tolerance_ns": {"wind": 5}} | head
    manifest = Manifest(
        name="sensors",
        modalities={"imu": SensorModality(shape=(2,)), "wind": SensorModality(shape=(2,))},
        components={
            "drift": Head(
                inputs={"a": Input(source="second.y", tensor=vector()), "b": Input(source="gust.y", tensor=vector())},
                outputs={"out": Output(tensor=vector(), task=Regression(unit="m"))},
                variants=variants(),
                **options,
            ),
            "second": encoder("first.y"),
            "first": encoder("imu"),
            "gust": encoder("wind"),
        },
        files={},
    )
    write_bundle(tmp_path / "sensors.mbm", manifest, {"g.onnx": b""})
    return edge_mbm.load(tmp_path / "sensors.mbm")


def add(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    for value in outputs.values():
        value[...] = sum(inputs.values()) + 1


def test_encoders_feed_encoders(tmp_path: Path) -> None:
    """A chain runs through in one poll: (1 + 1 + 1) through two encoders, (5 + 1) through one, their sum and 1."""
    with sensors(tmp_path).session(load_engine=Engines(compute=add)) as session:
        session.push("wind", [5.0, 50.0], 0)
        session.push("imu", np.array([1, 10]), 3)
        [result] = session.finish()
        assert result.output.as_json() == {"values": [3 + 6 + 1, 12 + 51 + 1], "unit": "m"}
        assert result.spread == 3
        assert {"infer.second", "infer.gust", "infer.drift", "wait"} <= result.stage_ns.keys()
        [once] = session.infer(imu=[1.0, 10.0], wind=[5.0, 50.0])
        assert once.output.as_json() == result.output.as_json()


def test_without_a_mask_an_incomplete_pivot_is_skipped_and_counted(tmp_path: Path) -> None:
    """No result rather than a wrong one; the next complete one reports it as dropped."""
    with sensors(tmp_path).session(load_engine=NullEngine) as session:
        session.push("imu", [0, 0], 100)
        assert session.poll(110) == []
        session.push("wind", [0, 0], 115)
        session.push("imu", [0, 0], 116)
        [result] = session.poll(130)
        assert (result.t_capture, result.dropped, result.missing) == (116, 1, ())
        assert session.stats()["drift.skipped"] == 1


def test_a_head_with_a_state_keeps_it_through_one_shots(tmp_path: Path) -> None:
    """A recurrent head's carried state is the stream's: ``infer`` starts from zeros and gives it back."""
    bundle = sensors(tmp_path, states=(State(input="s", output="next_s", tensor=vector()),))
    with bundle.session(load_engine=Engines(compute=add)) as session:
        session.push("wind", [0.0, 0.0], 0)
        for t, expected in ((1, 2 + 1 + 0 + 1), (2, 2 + 1 + 4 + 1), (3, 2 + 1 + 8 + 1)):
            session.push("imu", [0.0, 0.0], t)
            [result] = session.poll(100)
            [once] = session.infer(imu=[0.0, 0.0], wind=[0.0, 0.0])
            assert result.output.as_json()["values"] == [expected] * 2
            assert once.output.as_json()["values"] == [4, 4]


@pytest.mark.parametrize("data", [[1, 2, 3], [1.0, np.nan], ["a", "b"], [[1], [2, 3]], 5])
def test_sensor_data_is_checked(tmp_path: Path, data: object) -> None:
    """Another shape, NaN, text, ragged lists and numbers are an InputError when pushed."""
    with sensors(tmp_path).session(load_engine=NullEngine) as session, pytest.raises(InputError):
        session.push("imu", data, 0)


def test_a_wait_longer_than_the_memory_of_the_encoders(tmp_path: Path) -> None:
    """With hundreds of pivots waiting, each is still answered with its own encoding."""
    bundle = sensors(tmp_path, deadline_ns=10**9, tolerance_ns={"wind": 10**9})
    options = SessionOptions(max_pending=500)
    with bundle.session(options, load_engine=Engines(compute=add)) as session:
        session.push("wind", [0.0, 0.0], -1)
        for k in range(400):
            session.push("imu", [float(k), 0.0], k)
            session.poll(0)
        results = session.finish(0)
        values = [r.output.as_json()["values"][0] for r in results]
        assert values == [(k + 2) + (0 + 1) + 1 for k in range(400)]


@ort
def test_a_graph_that_cannot_run_is_said_by_onnxruntime(tmp_path: Path) -> None:
    """An empty graph passes the digest and fails where it is loaded, with the component's name."""
    with pytest.raises(EngineError, match=r"could not load '(gust|first)'"):
        sensors(tmp_path).session()


def test_what_a_late_window_needs_is_not_forgotten(tmp_path: Path) -> None:
    """A slow encoder of sound is a second behind: its window of then meets what was felt then, not what is felt now."""

    def compute(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        for key, output in outputs.items():
            output[...] = inputs["felt"] if key == "out" else inputs["x"].max()

    kept: dict[str, Any] = {"variants": variants()}
    manifest = Manifest(
        name="late",
        modalities={"sound": AudioModality(sample_rate=1000), "force": SensorModality(shape=(2,))},
        components={
            "hear": Encoder(
                inputs={"x": Input(source="sound", tensor=vector(10))},
                outputs={"y": Output(tensor=vector(1), task=Embedding())},
                window=Window(length=10, hop=10),
                **kept,
            ),
            "feel": Encoder(
                inputs={"x": Input(source="force", tensor=vector())},
                outputs={"y": Output(tensor=vector(1), task=Embedding())},
                **kept,
            ),
            "both": Head(
                inputs={
                    "heard": Input(source="hear.y", tensor=vector(1)),
                    "felt": Input(source="feel.y", tensor=vector(1)),
                },
                outputs={"out": Output(tensor=vector(1), task=Regression())},
                pivot="sound",
                deadline_ns=0,
                tolerance_ns={"force": 1_000 * MS},
                **kept,
            ),
        },
        files={},
    )
    write_bundle(tmp_path / "late.mbm", manifest, {"g.onnx": b""})
    with (
        edge_mbm.load(tmp_path / "late.mbm") as bundle,
        bundle.session(load_engine=Engines(compute=compute)) as session,
    ):
        for t, force in ((5, 1.0), (900, 2.0)):
            session.push("force", np.full(2, force, np.float32), t * MS)
            session.encode_next("feel")
            session.push("sound", loud(500), (0 if t == 5 else 500) * MS)
            assert session.collect_one() is None
        session.encode_next("hear")
        result = session.collect_one()
        assert result is not None
        assert (result.t_capture, result.as_json()["outputs"]["out"]["values"]) == (10 * MS, [1.0])
