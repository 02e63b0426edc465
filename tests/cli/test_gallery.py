"""``edge-mbm gallery``: from photos to names, and how to be forgotten.

The photos show coloured squares on black. The detector finds what is coloured in the left and in the right half of a
photo, and the encoder gives its mean colour: engines written in numpy, in place of ONNX Runtime's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.bundle import write_bundle
from edge_mbm.cli import main
from edge_mbm.runtime import backend
from edge_mbm.spec import (
    CropSteps,
    Decision,
    Detector,
    Embedding,
    Encoder,
    Head,
    ImageModality,
    ImageSteps,
    Input,
    Manifest,
    Output,
    Regions,
    Sequence,
    TensorSpec,
    Variant,
)
from edge_mbm.testing import NullEngine

pytestmark = pytest.mark.needs("cv2")
RED, ROSE, BLUE, SKY = (200, 10, 10), (210, 30, 20), (10, 10, 200), (20, 30, 210)


def tensor(*shape: int | str, dtype: Any = "float32") -> TensorSpec:
    return TensorSpec(dtype=dtype, shape=("batch", *shape))


def manifest(*, crops: bool = True) -> Manifest:
    kept = Decision(kept=True, reason="-")
    variants = {"fp32": Variant(target="any", precision="fp32", opset=17, decision=kept, graph="g")}
    seen = ImageSteps(height=40, width=80)
    picture = Input(source="image", tensor=tensor(40, 80, 3, dtype="uint8"), preprocess=seen)
    regions = Output(tensor=tensor(2, 5), task=Regions())
    detector = Detector(inputs={"image": picture}, outputs={"regions": regions}, variants=variants, max_regions=2)
    crop = Input(source="faces.regions", tensor=tensor(8, 8, 3, dtype="uint8"), preprocess=CropSteps(height=8, width=8))
    encoder = Encoder(
        inputs={"face": crop}, outputs={"colour": Output(tensor=tensor(3), task=Embedding())}, variants=variants
    )
    head = Head(
        inputs={"each": Input(source="face.colour", tensor=tensor(2, 3))},
        outputs={"vectors": Output(tensor=tensor(2, 3), task=Sequence())},
        variants=variants,
        pivot="image",
        deadline_ns=0,
    )
    return Manifest(
        name="squares",
        modalities={"image": ImageModality()},
        components={"faces": detector} | ({"face": encoder, "who": head} if crops else {}),
        files={},
    )


def compute(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    if "regions" in outputs:
        outputs["regions"][...] = 0
        for half in range(2):
            rows, columns = np.nonzero(inputs["image"][0, :, 40 * half : 40 * half + 40].max(2) > 100)
            if len(rows):
                x, y = columns + 40 * half, rows
                outputs["regions"][0, half] = [x.min(), y.min(), x.max() + 1, y.max() + 1, 0.9]
    elif "colour" in outputs:
        outputs["colour"][0] = inputs["face"][0].mean((0, 1)) / 255


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def engine(name: str, component: Any, graph: bytes, **_: Any) -> NullEngine:
        return NullEngine(name, component, graph, compute=compute)

    monkeypatch.setattr(backend, "OnnxRuntimeEngine", engine)
    write_bundle(tmp_path / "squares.mbm", manifest(), {"g": b""})
    return tmp_path / "squares.mbm"


@pytest.fixture
def photo(tmp_path: Path) -> Any:
    """Writes a photo with a square in one half, or in both."""
    import cv2

    def write(name: str, *colours: tuple[int, int, int], size: int = 20) -> str:
        picture = np.zeros((80, 160, 3), np.uint8)
        for half, colour in enumerate(colours):
            picture[30 : 30 + size, 80 * half + 20 : 80 * half + 20 + size] = colour
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture[:, :, ::-1])
        return str(path)

    return write


@pytest.fixture
def people(photo: Any, tmp_path: Path) -> str:
    """A folder of photos of two people."""
    for number, (ada, bo) in enumerate([(RED, BLUE), (ROSE, SKY)]):
        photo(f"people/Ada/{number}.png", ada)
        photo(f"people/Bo/{number}.png", bo)
    return str(tmp_path / "people")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main(["gallery", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["gallery", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_from_photos_to_names_and_back_to_nobody(
    bundle: Path, photo: Any, people: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A photo of two says who they are; a deleted person is a stranger, and not in the file."""
    gallery, model = str(tmp_path / "who.json"), str(bundle)
    made = told(capsys, "calibrate", gallery, model, people)
    assert made["calibration"]["false_accept"] == {"wrong": 0, "pairs": 4}
    assert made["calibration"]["false_reject"] == {"wrong": 0, "pairs": 2}
    assert made["people"] == {}
    told(capsys, "enrol", gallery, model, "Ada", f"{people}/Ada")
    assert told(capsys, "enrol", gallery, model, "Bo", photo("bo.png", BLUE))["people"] == {"Ada": 2, "Bo": 1}
    party = photo("party.png", SKY, ROSE)
    found = told(capsys, "identify", gallery, model, party)
    assert [(face["box"], face["match"]["name"]) for face in found] == [
        ([20, 30, 40, 50], "Bo"),
        ([100, 30, 120, 50], "Ada"),
    ]
    assert told(capsys, "delete", gallery, "Ada")["people"] == {"Bo": 1}
    assert "Ada" not in Path(gallery).read_text()
    assert [face["match"] and face["match"]["name"] for face in told(capsys, "identify", gallery, model, party)] == [
        "Bo",
        None,
    ]


def test_what_is_said_of_strangers_is_bounded_by_how_many_were_looked_at(
    bundle: Path, people: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No mistake among four pairs is no promise: the bound says so."""
    assert main(["gallery", "calibrate", str(tmp_path / "who.json"), str(bundle), people]) == 0
    assert "Two people taken for one: 0 of 4 pairs (below 40.3% with 95 % confidence)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_photo_of_nobody_or_of_several_enrols_none(
    bundle: Path, photo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which photo it is, and what to do; the good one before it is not kept either."""
    gallery, model, good = str(tmp_path / "who.json"), str(bundle), photo("good.png", RED)
    for bad, problem in (
        (photo("empty.png"), "empty.png: nobody is found on it"),
        (photo("two.png", RED, BLUE), "two.png: 2 faces are found on it"),
    ):
        assert problem in refused(capsys, "enrol", gallery, model, "Ada", good, bad)
    assert not Path(gallery).exists()


def test_what_cannot_be_used_is_said(
    bundle: Path, photo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A photo that is missing or none, an empty folder, one person, no gallery, a bundle without faces."""
    gallery, model = str(tmp_path / "who.json"), str(bundle)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no photo")
    photo("one/Ada/0.png", RED)
    write_bundle(tmp_path / "bare.mbm", manifest(crops=False), {"g": b""})
    bare, red = str(tmp_path / "bare.mbm"), photo("red.png", RED)
    for arguments, problem in (
        (("enrol", gallery, model, "Ada", str(tmp_path / "nowhere.png")), "there is no photo"),
        (("enrol", gallery, model, "Ada", str(tmp_path / "text.png")), "is no photo that OpenCV can read"),
        (("enrol", gallery, model, "Ada", str(tmp_path / "empty")), "there are no photos in"),
        (("enrol", gallery, model, "Ada", red, "--encoder", "faces"), "no encoder 'faces'"),
        (("calibrate", gallery, model, str(tmp_path / "one")), "has photos of 1 people"),
        (("list", gallery), "there is no gallery at"),
        (("enrol", gallery, bare, "Ada", red), "has no encoders that read a detector's regions"),
    ):
        assert problem in refused(capsys, *arguments)


def test_faces_are_not_named_before_a_threshold_is_known(
    bundle: Path, photo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor by another model's vectors."""
    gallery, red = str(tmp_path / "who.json"), photo("red.png", RED)
    told(capsys, "enrol", gallery, str(bundle), "Ada", red)
    assert "has no threshold: calibrate it" in refused(capsys, "identify", gallery, str(bundle), red)
    write_bundle(tmp_path / "other.mbm", manifest(), {"g": b"other"})
    assert "enrol everybody anew" in refused(capsys, "identify", gallery, str(tmp_path / "other.mbm"), red)
