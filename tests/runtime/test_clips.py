"""Encoders that remember frames: what their state means in a stream, on an engine that counts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_mbm
from edge_mbm import Result, Session, SessionOptions
from edge_mbm.bundle import write_bundle
from edge_mbm.errors import InputError, ManifestError
from edge_mbm.runtime.bench import bench_bundle
from edge_mbm.spec import (
    AudioModality,
    Component,
    Decision,
    Embedding,
    Encoder,
    GoldenSample,
    Head,
    ImageModality,
    ImageSteps,
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
from edge_mbm.testing import NullEngine

MS = 1_000_000
NUMBER = TensorSpec(dtype="float32", shape=("batch", 1))
VARIANTS = {
    "fp32": Variant(target="any", precision="fp32", graph="g", opset=20, decision=Decision(kept=True, reason="-"))
}
SUM = State(input="sum", output="next_sum", tensor=NUMBER)


def remembers(source: str, **options: Any) -> Encoder:
    """An encoder that adds up what it has read: its output is its state."""
    return Encoder(
        inputs={"item": Input(source=source, **options.pop("reads", {"tensor": NUMBER}))},
        outputs={"total": Output(tensor=NUMBER, task=Embedding())},
        states=(SUM,),
        variants=VARIANTS,
        **options,
    )


def answers(pivot: str, source: str) -> Head:
    return Head(
        inputs={"total": Input(source=source, tensor=NUMBER)},
        outputs={"answer": Output(tensor=NUMBER, task=Regression())},
        variants=VARIANTS,
        pivot=pivot,
        deadline_ns=0,
    )


def add_up(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """A frame counts as its brightness, anything else as its sum; a head gives what it gets."""
    if "sum" not in inputs:
        outputs["answer"][...] = inputs["total"]
        return
    item = inputs["item"]
    outputs["total"][...] = outputs["next_sum"][...] = inputs["sum"] + (
        item.mean() if item.dtype == np.uint8 else item.sum()
    )


CAMERA = {
    "reads": {
        "tensor": TensorSpec(dtype="uint8", shape=("batch", 2, 2, 1)),
        "preprocess": ImageSteps(height=2, width=2, color="gray"),
    }
}


def frame(brightness: int) -> np.ndarray:
    return np.full((2, 2, 3), brightness, np.uint8)


def session_of(folder: Path, modality: Any, components: dict[str, Component], golden: Any = None) -> Any:
    files = {"g": b"x"} | ({"clip.npy": golden} if golden is not None else {})
    manifest = Manifest(
        name="sums",
        modalities=modality,
        components=components,
        files={},
        golden=() if golden is None else (GoldenSample(id="one", inputs={"image": "clip.npy"}, outputs={}),),
    )
    write_bundle(folder / "sums", manifest, files)
    return edge_mbm.load(folder / "sums")


def loader(name: str, component: Component, graph: bytes) -> NullEngine:
    return NullEngine(name, component, graph, compute=add_up)


def camera(folder: Path, **options: Any) -> Session:
    encoder = remembers("image", **CAMERA, **options)
    components = {"clip": encoder, "answer": answers("image", "clip.total")}
    session: Session = session_of(folder, {"image": ImageModality()}, components).session(load_engine=loader)
    return session


def value(result: Result) -> float:
    return float(result.output.as_json()["values"][0])


def totals(session: Session, frames: Mapping[int, int]) -> list[float]:
    """What it answers, each frame by itself: ms -> brightness."""
    found = []
    for t, brightness in frames.items():
        session.push("image", frame(brightness), t * MS)
        found += [value(result) for result in session.poll()]
    return found


def test_a_stream_remembers_and_one_shot_does_not_disturb_it(tmp_path: Path) -> None:
    """The state goes from frame to frame; a clip handed in at once has a memory of its own."""
    with camera(tmp_path) as session:
        assert totals(session, {0: 1, 40: 2}) == [1, 3]
        clip = np.stack([frame(5), frame(6), frame(7)])
        [shot] = session.infer(image=clip)
        assert value(shot) == 18
        assert totals(session, {80: 4}) == [7]


def test_a_clip_of_no_frames_is_refused(tmp_path: Path) -> None:
    """There is nothing to remember, and nothing to answer."""
    with camera(tmp_path) as session, pytest.raises(InputError, match="series of no items"):
        session.infer(image=np.zeros((0, 2, 2, 3), np.uint8))


def test_a_dropped_frame_is_one_that_was_never_there(tmp_path: Path) -> None:
    """Two frames before the encoder looks: it takes the newer, and remembers what it took, in order, once."""
    with camera(tmp_path) as session:
        session.push("image", frame(1), 0)
        session.poll()
        session.push("image", frame(10), 40 * MS)
        session.push("image", frame(100), 80 * MS)
        [result] = session.poll()
        assert (value(result), result.dropped) == (101, 1)


@pytest.mark.parametrize(("gap", "expected"), [(500, [1, 3, 7]), (501, [1, 3, 4]), (9000, [1, 3, 4])])
def test_a_hole_in_the_stream_starts_the_memory_anew(tmp_path: Path, gap: int, expected: list[float]) -> None:
    """Half a second between two frames is bridged, and not a millisecond more."""
    with camera(tmp_path, max_gap_ns=500 * MS) as session:
        assert totals(session, {0: 1, 40: 2, 40 + gap: 4}) == expected


def test_without_a_limit_a_memory_bridges_any_hole(tmp_path: Path) -> None:
    """As ever: a state goes on until it is reset."""
    with camera(tmp_path) as session:
        assert totals(session, {0: 1, 3_600_000: 2}) == [1, 3]


def test_a_reset_forgets(tmp_path: Path) -> None:
    """After ``reset`` the first frame is the first."""
    with camera(tmp_path) as session:
        assert totals(session, {0: 1, 40: 2}) == [1, 3]
        session.reset()
        assert totals(session, {0: 4}) == [4]


def chained(folder: Path) -> Session:
    """Sound -> an encoder with a state -> another one that feeds on it."""
    window = {"tensor": TensorSpec(dtype="float32", shape=("batch", 100))}
    components: dict[str, Component] = {
        "first": remembers("audio", reads=window, window=Window(length=100, hop=100)),
        "second": remembers("first.total"),
        "answer": answers("audio", "second.total"),
    }
    bundle = session_of(folder, {"audio": AudioModality(sample_rate=1000)}, components)
    session: Session = bundle.session(SessionOptions(), load_engine=loader)
    return session


def test_a_break_reaches_every_memory_behind_it(tmp_path: Path) -> None:
    """After lost samples, and after a rest, encoders that feed on others start anew as those do."""
    ones = np.ones(100, np.float32)
    with chained(tmp_path) as session:
        session.push("audio", ones, 0)
        session.push("audio", ones, 100 * MS)
        assert [value(result) for result in session.poll()] == [100, 300]
        session.push("audio", ones, 5000 * MS)
        assert [value(result) for result in session.poll()] == [100]
        session.disable("answer")
        session.enable("answer")
        session.push("audio", ones, 5100 * MS)
        assert [value(result) for result in session.poll()] == [100]


def test_a_series_of_vectors_is_taken_in_turn(tmp_path: Path) -> None:
    """A sensor's log in one shot gives what its stream gives."""
    reads = {"tensor": TensorSpec(dtype="float32", shape=("batch", 2))}
    components: dict[str, Component] = {
        "log": remembers("imu", reads=reads),
        "answer": answers("imu", "log.total"),
    }
    bundle = session_of(tmp_path, {"imu": SensorModality(shape=(2,))}, components)
    log = np.arange(6, dtype=np.float32).reshape(3, 2)
    with bundle.session(load_engine=loader) as session:
        streamed = []
        for index, vector in enumerate(log):
            session.push("imu", vector, index * MS)
            streamed += [value(result) for result in session.poll()]
        assert value(session.infer(imu=log)[0]) == streamed[-1] == 15


def test_bench_streams_the_frames_of_a_golden_clip(tmp_path: Path) -> None:
    """Every frame is a step; it takes whole clips for what they are."""
    import io

    stream = io.BytesIO()
    np.save(stream, np.stack([frame(1), frame(2)]))
    components = {"clip": remembers("image", **CAMERA), "answer": answers("image", "clip.total")}
    bundle = session_of(tmp_path, {"image": ImageModality()}, components, stream.getvalue())
    report = bench_bundle(bundle, seconds=0.05, load_engine=loader)
    assert report.zeros == ()
    assert report.runs[0].results > 2


def test_a_limit_without_a_state_is_refused(tmp_path: Path) -> None:
    """It would promise what nothing does."""
    plain = Encoder(
        inputs={"item": Input(source="image", **CAMERA["reads"])},
        outputs={"total": Output(tensor=NUMBER, task=Embedding())},
        variants=VARIANTS,
        max_gap_ns=1,
    )
    with pytest.raises(ManifestError, match=r"components\.clip\.max_gap_ns is given, but it carries no state"):
        session_of(tmp_path, {"image": ImageModality()}, {"clip": plain, "answer": answers("image", "clip.total")})
