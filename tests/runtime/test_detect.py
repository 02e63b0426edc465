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
from edge_mbm import Session
from edge_mbm.bundle import write_bundle
from edge_mbm.errors import EngineError, ManifestError, VerificationError
from edge_mbm.runtime import RegionsOutput
from edge_mbm.runtime.verify import verify_bundle
from edge_mbm.spec import (
    Component,
    Decision,
    Detector,
    Embedding,
    Encoder,
    GoldenSample,
    ImageModality,
    ImageSteps,
    Input,
    Manifest,
    Output,
    Regions,
    Regression,
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
    with pytest.raises(ManifestError, match=r"faces\.outputs\.regions is .*: a detector gives regions"):
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
