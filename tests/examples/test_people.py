"""What the example of people rests on: photos that keep their faces' places, fair pairs, and who is named by what."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.runtime import EmbeddingOutput, RegionsOutput, Result, SequenceOutput
from edge_mbm.runtime.gallery import Calibration, Gallery, Rate

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.needs("torch"), pytest.mark.needs("cv2")]
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_a_place_in_a_photo_is_followed_into_each_of_its_forms() -> None:
    """A bright spot is where the form says it has gone; only the first form leaves the photo as it is."""
    from zoo import people

    for number, form in enumerate((*people.FORMS, *people.LOOKS["far"][1:])):
        photo = np.full((120, 160, 3), 60, np.uint8)
        photo[40:49, 100:109] = 250
        picture, moved = people.altered(photo, form, np.random.default_rng(number))
        light = picture.astype(float).mean(2)
        rows, columns = np.nonzero(light > (light.max() + np.median(light)) / 2)
        assert (columns.mean(), rows.mean()) == pytest.approx(tuple(moved @ (104.0, 44.0, 1)), abs=1.5)
        assert np.array_equal(picture, photo) == (form == people.FORMS[0])


def test_the_area_is_how_often_one_person_is_nearer_than_two() -> None:
    """Against all pairs of pairs, ties counted half."""
    from zoo.people import Pairs

    genuine, impostor = RNG.integers(0, 6, 40) / 5.0, RNG.integers(2, 9, 60) / 5.0
    nearer = [(one < two) + (one == two) / 2 for one in genuine for two in impostor]
    assert Pairs(genuine, impostor).area == pytest.approx(np.mean(nearer))


def test_pairs_of_one_face_and_of_two_of_a_photo() -> None:
    """Never of two photos, where nobody knows whether a face comes again."""
    from zoo.people import Album, face_pairs

    vectors = {key: RNG.normal(size=4).astype(np.float32) for key in "abcdef"}
    first = Album({"as it is": {0: vectors["a"], 1: vectors["b"]}, "dark": {0: vectors["c"]}}, 2)
    second = Album({"as it is": {0: vectors["d"]}, "dark": {0: vectors["e"]}}, 1)
    pairs = face_pairs([first, second])

    def apart(*keys: str) -> list[float]:
        return sorted(float(np.linalg.norm(vectors[x].astype(float) - vectors[y])) for x, y in keys)

    assert sorted(pairs.genuine.tolist()) == pytest.approx(apart("ac", "de"))
    assert sorted(pairs.impostor.tolist()) == pytest.approx(apart("ab", "bc"))


@pytest.fixture
def galleries(tmp_path: Path) -> tuple[Gallery, Gallery]:
    rate = Rate(1, 1000)
    found = tuple(Gallery(tmp_path / f"{kind}.json", kind) for kind in ("face", "voice"))
    for gallery in found:
        gallery.set_calibration(Calibration(threshold=1.0, false_accept=rate, false_reject=rate))
        gallery.enrol("one", [0.0])
        gallery.enrol("two", [10.0])
    return found  # type: ignore[return-value]


def moment(*faces: float, voice: float | None) -> Result:
    """A result with faces, and a voice or none, of one number each."""
    padded, vectors = np.zeros((1, 4, 5), np.float32), np.zeros((4, 1), np.float32)
    padded[0, : len(faces)] = (0, 0, 9, 9, 0.9)
    vectors[: len(faces), 0] = faces
    outputs: dict[str, Any] = {
        "regions": RegionsOutput.of(padded),
        "faces": SequenceOutput(vectors),
        "voice": EmbeddingOutput(np.array([voice or 0.0], np.float32)),
    }
    missing = ("audio",) if voice is None else ()
    return Result(
        head="who", seq=0, t_capture=0, age=0, outputs=outputs, missing=missing, spread=0, dropped=0, stage_ns={},
        provider="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "who"),
    [
        (moment(0.5, voice=None), ["one"]),
        (moment(10.5, voice=10.5), ["two"]),
        (moment(1.2, voice=0.2), ["one"]),
        (moment(1.2, voice=None), [None]),
        (moment(0.1, 9.9, 5.0, voice=0.0), ["one", "two", None]),
        (moment(voice=10.1), ["two"]),
        (moment(voice=None), []),
    ],
)
def test_who_is_named_by_what_there_is(galleries: tuple[Gallery, Gallery], seen: Result, who: list[str | None]) -> None:
    """By a face alone, by both, by the voice where no face is seen; of several faces each by itself; or nobody."""
    name = runpy.run_path(str(ROOT / "examples" / "people.py"))["name"]
    assert [match and match.name for match in name(seen, *galleries)] == who
