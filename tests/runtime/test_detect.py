"""Detectors in a session: what the graph gives, in pixels of the frame, as results of their own.

The frame is 100 high and 200 wide, the graph sees it at 50 x 100: twice as far in the frame as in the graph.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

import edge_mbm
from edge_mbm import Result, Session
from edge_mbm.bundle import write_bundle
from edge_mbm.errors import EngineError, ManifestError, VerificationError
from edge_mbm.runtime import RegionsOutput
from edge_mbm.runtime.verify import verify_bundle
from edge_mbm.spec import (
    Component,
    CropSteps,
    Decision,
    Detector,
    Embedding,
    Encoder,
    GoldenSample,
    Head,
    ImageModality,
    ImageSteps,
    Input,
    Manifest,
    Output,
    Regions,
    Regression,
    Sequence,
    State,
    TensorSpec,
    Variant,
)
from edge_mbm.testing import NullEngine

pytestmark = pytest.mark.needs("cv2")
MS = 1_000_000
FRAME = np.zeros((100, 200, 3), np.uint8)
STEPS = ImageSteps(height=50, width=100)
FACE, BESIDE = [10, 5, 20, 25, 0.9, 12, 10], [60, 5, 80, 25, 0.7, 70, 10]
SAME, UNSURE = [11, 6, 20, 25, 0.6, 12, 10], [60, 30, 80, 45, 0.3, 70, 40]


def variants() -> dict[str, Variant]:
    kept = Decision(kept=True, reason="-")
    return {"fp32": Variant(target="any", precision="fp32", opset=17, decision=kept, graph="g")}


def manifest(*, maps: bool = False, **fields: Any) -> Manifest:
    """A detector of an image, or of the maps that an encoder makes of one."""
    frame = TensorSpec(dtype="uint8", shape=("batch", 50, 100, 3))
    picture = {"image": Input(source="image", tensor=frame, preprocess=STEPS)}
    map_ = TensorSpec(dtype="float32", shape=("batch", 1, 2))
    encoder = Encoder(
        inputs=picture,
        outputs={key: Output(tensor=map_, task=Embedding()) for key in ("heat", "size")},
        variants=variants(),
    )
    reads = {key: Input(source=f"maps.{key}", tensor=map_) for key in ("heat", "size")}
    candidates = TensorSpec(dtype="float32", shape=("batch", 4, 7))
    detector = Detector(
        inputs=reads if maps else picture,
        outputs={"regions": Output(tensor=candidates, task=Regions(landmarks=1))},
        variants=variants(),
        max_regions=2,
    )
    components: dict[str, Component] = {"faces": structs.replace(detector, **fields)}
    return Manifest(
        name="faces",
        modalities={"image": ImageModality()},
        components=({"maps": encoder} if maps else {}) | components,
        files={},
    )


def session_of(tmp_path: Path, candidates: Any, *, maps: bool = False, **fields: Any) -> Session:
    def compute(_: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if "regions" in outputs:
            rows = candidates() if callable(candidates) else candidates
            outputs["regions"][...] = 0
            outputs["regions"][0, : len(rows)] = np.array(rows).reshape(-1, 7)

    write_bundle(tmp_path / "f.mbm", manifest(maps=maps, **fields), {"g": b""})
    return edge_mbm.load(tmp_path / "f.mbm").session(load_engine=lambda n, c, g: NullEngine(n, c, g, compute=compute))


def found(session: Session, t: int = 0) -> RegionsOutput:
    session.push("image", FRAME, t)
    [result] = session.poll()
    assert isinstance(result.output, RegionsOutput)
    return result.output


@pytest.mark.parametrize("maps", [False, True])
def test_regions_are_in_the_frame_sure_and_each_once(tmp_path: Path, *, maps: bool) -> None:
    """Twice as far, the surest first; one that covers the same, and an unsure one, do not count."""
    with session_of(tmp_path, [SAME, BESIDE, UNSURE, FACE], maps=maps) as session:
        output = found(session)
    assert output.boxes.tolist() == [[20, 10, 40, 50], [120, 10, 160, 50]]
    assert output.scores.tolist() == pytest.approx([0.9, 0.7])
    assert output.landmarks.tolist() == [[[24, 20]], [[140, 20]]]
    assert output.left_out == 0
    assert output.as_json()["regions"][0]["box"] == [20, 10, 40, 50]


def test_those_left_out_are_counted(tmp_path: Path) -> None:
    """Three faces, room for two: the surest."""
    third = [30, 30, 40, 45, 0.95, 35, 40]
    with session_of(tmp_path, [FACE, BESIDE, third]) as session:
        output = found(session)
    assert (output.scores.tolist(), output.left_out) == (pytest.approx([0.95, 0.9]), 1)


def test_an_empty_frame_is_a_result_too(tmp_path: Path) -> None:
    """Nobody there is an answer; so is it in one shot."""
    with session_of(tmp_path, []) as session:
        output = found(session)
        assert (output.boxes.shape, output.landmarks.shape) == ((0, 4), (0, 1, 2))
        assert not session.run_components(image=FRAME)["faces.regions"].any()
        assert session.run_components(image=FRAME)["faces.regions"].shape == (1, 2, 7)


def test_half_a_face_ends_at_the_frames_edge(tmp_path: Path) -> None:
    """Its landmark may lie outside."""
    with session_of(tmp_path, [[90, 40, 120, 70, 0.8, 110, 60]]) as session:
        output = found(session)
    assert (output.boxes.tolist(), output.landmarks.tolist()) == ([[180, 80, 200, 100]], [[[220, 120]]])


def test_a_region_that_is_no_number_costs_one_result(tmp_path: Path) -> None:
    """An error that says so; the next frame is looked at."""
    faces = iter([[[*FACE[:3], np.nan, *FACE[4:]]], [FACE]])
    with session_of(tmp_path, lambda: next(faces)) as session:
        session.push("image", FRAME, 0)
        with pytest.raises(EngineError, match="a region that is not finite"):
            session.poll()
        assert len(found(session, MS).boxes) == 1
        assert session.stats()["faces.failed"] == 1


@pytest.mark.parametrize(
    ("shape", "task"),
    [(("batch", 7), Regions(landmarks=1)), (("batch", 4, 7), Regions()), (("batch", 4, 5), Regression())],
)
def test_a_detector_that_cannot_work_is_refused(tmp_path: Path, shape: tuple[Any, ...], task: Any) -> None:
    """Candidates have five numbers and two for each landmark, and are regions."""
    outputs = {"regions": Output(tensor=TensorSpec(dtype="float32", shape=shape), task=task)}
    with pytest.raises(ManifestError, match=r"faces\.outputs\.regions is .*regions"):
        session_of(tmp_path, [], outputs=outputs)


def test_golden_regions_are_replayed(tmp_path: Path) -> None:
    """As they are in the frame; another place does not pass."""

    def compute(_: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        outputs["regions"][0, 0] = FACE

    def npy(array: np.ndarray) -> bytes:
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    right = np.zeros((1, 2, 7), np.float32)
    right[0, 0] = [20, 10, 40, 50, 0.9, 24, 20]
    sample = GoldenSample(id="s", inputs={"image": "f.npy"}, outputs={"faces.regions": "r.npy"})
    for reference, passes in ((right, True), (right + 3, False)):
        made = structs.replace(manifest(), golden=(sample,))
        write_bundle(tmp_path / "g.mbm", made, {"g": b"", "f.npy": npy(FRAME), "r.npy": npy(reference)})
        with edge_mbm.load(tmp_path / "g.mbm") as bundle:
            checked = verify_bundle(bundle, load_engine=lambda n, c, g: NullEngine(n, c, g, compute=compute))
        assert checked.passed == passes
    with pytest.raises(VerificationError, match=r"faces\.regions"):
        checked.check()


# --- crop by crop -----------------------------------------------------------------------------------------------------


CROP = TensorSpec(dtype="uint8", shape=("batch", 10, 10, 3))
PIXEL = TensorSpec(dtype="float32", shape=("batch", 3))
ROWS = TensorSpec(dtype="float32", shape=("batch", 2, 7))


def with_crops(*, steps: Any = CropSteps(height=10, width=10), **fields: Any) -> Manifest:  # noqa: B008 - frozen
    """The detector, an encoder that gives the middle pixel of each crop, and a head that reads both."""
    base = manifest()
    encoder = Encoder(
        inputs={"face": Input(source="faces.regions", tensor=CROP, preprocess=steps)},
        outputs={"colour": Output(tensor=PIXEL, task=Embedding())},
        variants=variants(),
    )
    colours = TensorSpec(dtype="float32", shape=("batch", 2, 3))
    who = Head(
        inputs={
            "regions": Input(source="faces.regions", tensor=ROWS),
            "colours": Input(source="middle.colour", tensor=colours),
        },
        outputs={
            "where": Output(tensor=ROWS, task=Regions(landmarks=1)),
            "vectors": Output(tensor=colours, task=Sequence()),
        },
        variants=variants(),
        pivot="image",
        deadline_ns=0,
    )
    middle = structs.replace(encoder, **fields)
    return structs.replace(base, components={**base.components, "middle": middle, "who": who})


def crops_session(tmp_path: Path, made: Manifest, candidates: Any) -> Session:
    def compute(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if "colour" in outputs:
            outputs["colour"][0] = inputs["face"][0, 5, 5]
        elif "where" in outputs:
            outputs["where"][...], outputs["vectors"][...] = inputs["regions"], inputs["colours"]
        else:
            rows = candidates()
            outputs["regions"][...] = 0
            outputs["regions"][0, : len(rows)] = np.array(rows).reshape(-1, 7)

    write_bundle(tmp_path / "c.mbm", made, {"g": b""})
    return edge_mbm.load(tmp_path / "c.mbm").session(load_engine=lambda n, c, g: NullEngine(n, c, g, compute=compute))


def frame_with(*boxes: tuple[int, int, int, int], colours: tuple[int, ...]) -> np.ndarray:
    frame = FRAME.copy()
    for (x0, y0, x1, y1), colour in zip(boxes, colours, strict=True):
        frame[y0:y1, x0:x1] = (colour, colour + 1, colour + 2)
    return frame


def colours_of(result: Result) -> list[float]:
    """What the encoder said of each region that the same result has."""
    where, vectors = result.outputs["where"], result.outputs["vectors"]
    assert isinstance(where, RegionsOutput)
    return [row[0] for row in vectors.values[: len(where.boxes)].tolist()]  # type: ignore[union-attr]


def test_an_encoder_reads_each_region_of_its_own_frame(tmp_path: Path) -> None:
    """Faces, and what is said of them, of one frame in one result: none, two, and one; zeros after the last."""
    moments = iter([[], [FACE, BESIDE], [BESIDE]])
    faces, beside = (20, 10, 40, 50), (120, 10, 160, 50)
    with crops_session(tmp_path, with_crops(), lambda: next(moments)) as session:
        for t, colours in enumerate([(10, 20), (30, 40), (50, 60)]):
            session.push("image", frame_with(faces, beside, colours=colours), t * MS)
            [result] = session.poll()
            assert colours_of(result) == [[], [30, 40], [60]][t]
            assert not result.outputs["vectors"].values[[0, 2, 1][t] :].any()  # type: ignore[union-attr]
            assert result.stage_ns.get("infer.middle", 0) > 0 or not t


def test_one_shot_says_the_same(tmp_path: Path) -> None:
    """As a stream does; of a clip, of its last frame."""
    frame = frame_with((20, 10, 40, 50), colours=(70,))
    with crops_session(tmp_path, with_crops(), lambda: [FACE]) as session:
        for given in (frame, np.stack([FRAME, frame])):
            [result] = session.infer(image=given)
            assert colours_of(result) == [70]
        assert session.run_components(image=frame)["middle.colour"].tolist() == [[[70, 71, 72], [0, 0, 0]]]


def test_who_waits_for_what_is_said_last(tmp_path: Path) -> None:
    """A head that lists the detector first gets no frame's regions with another frame's crops, whoever asks when."""
    frames = iter([[FACE], [FACE]])
    with crops_session(tmp_path, with_crops(), lambda: next(frames)) as session:
        middle = session._nodes["middle"]
        encode = middle.encode
        asked: list[Result | None] = []

        def look_before(*args: Any) -> Any:
            asked.append(session.collect_one())
            return encode(*args)

        middle.encode = look_before  # type: ignore[method-assign]
        for t, colour in enumerate((80, 90)):
            session.push("image", frame_with((20, 10, 40, 50), colours=(colour,)), t * MS)
            [result] = session.poll()
            assert colours_of(result) == [colour]
    assert asked == [None, None]


def test_landmarks_on_one_point_cost_one_result(tmp_path: Path) -> None:
    """They say no size; the next frame is looked at."""
    steps = CropSteps(height=10, width=10, landmarks=((0.3, 0.5), (0.7, 0.5)))
    two = TensorSpec(dtype="float32", shape=("batch", 2, 9))
    made = with_crops(steps=steps)
    faces, who = made.components["faces"], made.components["who"]
    assert isinstance(who, Head)
    seen = {"regions": Output(tensor=two, task=Regions(landmarks=2))}
    head = structs.replace(
        who,
        inputs={**who.inputs, "regions": Input(source="faces.regions", tensor=two)},
        outputs={**who.outputs, "where": Output(tensor=two, task=Regions(landmarks=2))},
    )
    made = structs.replace(
        made, components={**made.components, "faces": structs.replace(faces, outputs=seen), "who": head}
    )
    moments = iter([[[10, 5, 20, 25, 0.9, 12, 10, 12, 10]], [[10, 5, 20, 25, 0.9, 12, 10, 16, 10]]])

    def compute(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if "colour" in outputs:
            outputs["colour"][0] = inputs["face"][0, 5, 5]
        elif "regions" in outputs:
            outputs["regions"][0] = next(moments)

    write_bundle(tmp_path / "l.mbm", made, {"g": b""})
    with edge_mbm.load(tmp_path / "l.mbm").session(
        load_engine=lambda n, c, g: NullEngine(n, c, g, compute=compute)
    ) as session:
        session.push("image", FRAME, 0)
        with pytest.raises(EngineError, match="a region of no size"):
            session.poll()
        session.push("image", FRAME, MS)
        assert len(session.poll()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": CropSteps(height=10, width=10, landmarks=((0.1, 0.1), (0.2, 0.2)))}, "the detector gives 1 landm"),
        ({"steps": CropSteps(height=10, width=10, landmarks=((0.1, 0.1),), margin=0.2)}, "there is no margin"),
        ({"steps": CropSteps(height=10, width=10, landmarks=((0.1, 0.1),))}, "all landmarks on one point"),
        ({"states": (State(input="a", output="b", tensor=PIXEL),)}, "no window and no state"),
        ({"inputs": {"face": Input(source="image", tensor=CROP, preprocess=CropSteps(height=10, width=10))}}, "no det"),
    ],
)
def test_crops_that_cannot_be_cut_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """By what is wrong with them."""
    with pytest.raises(ManifestError, match=message):
        crops_session(tmp_path, with_crops(**change), list)


def test_who_reads_an_encoder_of_crops_gets_all_of_them(tmp_path: Path) -> None:
    """A head that expects one vector is told how many there are."""
    made = with_crops()
    who = made.components["who"]
    inputs = {**who.inputs, "colours": Input(source="middle.colour", tensor=PIXEL)}
    with pytest.raises(ManifestError, match=r"gives float32\[batch, 2, 3\]: shape and dtype"):
        crops_session(
            tmp_path,
            structs.replace(made, components={**made.components, "who": structs.replace(who, inputs=inputs)}),
            list,
        )
