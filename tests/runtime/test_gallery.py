"""People are found again, strangers are not, and who is deleted is gone."""

from __future__ import annotations

import json
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import structs

from edge_mbm.bundle import BundleFiles
from edge_mbm.errors import InputError
from edge_mbm.runtime.gallery import Calibration, Gallery, Match, Rate, calibrate, identify_jointly, model_of
from edge_mbm.testing import tiny_bundle

DISTANCES = st.lists(st.floats(0, 2, width=32), min_size=1, max_size=30)


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    made = Gallery(tmp_path / "people.json", "a" * 64)
    made.set_calibration(calibrate([0.1, 0.2], [0.8, 0.9]))
    return made


def test_the_nearest_person_within_the_threshold(gallery: Gallery) -> None:
    """The nearest of all vectors says who; just beyond the threshold nobody; the same after reading the file."""
    gallery.enrol("Ada", [[0.0, 0.0], [3.0, 0.0]])
    gallery.enrol("Bo", [1.0, 0.0])
    for opened in (gallery, Gallery(gallery.path, "a" * 64)):
        assert opened.people == {"Ada": 2, "Bo": 1}
        found = opened.identify([0.7, 0.0])
        assert found is not None
        assert (found.name, round(found.distance, 6)) == ("Bo", 0.3)
        assert opened.identify([3.5, 0.0]) is not None
        assert opened.identify([3.51, 0.0]) is None


def test_a_deleted_person_is_nowhere_in_the_folder(gallery: Gallery) -> None:
    """Neither name nor numbers, in the file or beside it; a name unknown is an error that says who there is."""
    gallery.enrol("Ada", [0.123456789, 1.0])
    gallery.enrol("Bo", [0.5, 0.5])
    gallery.delete("Ada")
    assert list(gallery.path.parent.iterdir()) == [gallery.path]
    content = gallery.path.read_text()
    assert "Bo" in content
    assert "Ada" not in content
    assert "0.123456789" not in content
    with pytest.raises(InputError, match=r"called 'Ada': there are \['Bo'\]"):
        gallery.delete("Ada")


def test_only_the_owner_may_read_it(gallery: Gallery) -> None:
    """Also when somebody opened the file's mode before: each change restores it."""
    gallery.path.chmod(0o644)
    gallery.enrol("Ada", [1.0])
    assert stat.S_IMODE(gallery.path.stat().st_mode) == 0o600


def test_an_empty_gallery_knows_nobody_and_one_without_threshold_says_so(tmp_path: Path) -> None:
    """Who is enrolled cannot be told from strangers before pairs have said how."""
    fresh = Gallery(tmp_path / "people.json", "a" * 64)
    assert fresh.identify([1.0, 2.0]) is None
    assert not fresh.path.exists()
    fresh.enrol("Ada", [1.0, 2.0])
    with pytest.raises(InputError, match="has no threshold: calibrate"):
        fresh.identify([1.0, 2.0])


def test_another_models_vectors_are_refused(gallery: Gallery) -> None:
    """Nobody is taken for somebody because two models' numbers happen to be near."""
    with pytest.raises(InputError, match="enrol everybody anew"):
        Gallery(gallery.path, "b" * 64)


def calibrated(threshold: float, wrong: int, pairs: int) -> bytes:
    rates = {key: {"wrong": wrong, "pairs": pairs} for key in ("false_accept", "false_reject")}
    return json.dumps({"model": "x", "people": {}, "calibration": {"threshold": threshold, **rates}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"model":"x","people":{"Ada":[]}}',
        b"[" * 10000,
        calibrated(0.5, 0, 0),
        calibrated(0.5, 3, 2),
        calibrated(0.5, -1, 2),
        calibrated(-0.5, 0, 2),
    ],
)
def test_what_is_no_gallery_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    """A file that is cut short, of another kind, or that contradicts itself."""
    path = tmp_path / "people.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a gallery that can be read"):
        Gallery(path, "x")


@pytest.mark.parametrize("vector", [[np.nan, 1.0], [], [[[1.0]]], ["a", "b"], [1.0, 2.0, 3.0]])
def test_vectors_that_cannot_be_compared_are_refused(gallery: Gallery, vector: list[object]) -> None:
    """And the file is what it was."""
    gallery.enrol("Ada", [1.0, 2.0])
    before = gallery.path.read_bytes()
    with pytest.raises(InputError, match="vectors"):
        gallery.enrol("Bo", vector)
    assert gallery.path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[2J"])
def test_a_name_can_be_printed(gallery: Gallery, name: str) -> None:
    """Nothing in it steers the terminal that lists it."""
    with pytest.raises(InputError, match="name"):
        gallery.enrol(name, [1.0])


@given(DISTANCES, DISTANCES)
def test_no_other_threshold_does_better(genuine: list[float], impostor: list[float]) -> None:
    """Against every threshold that could differ, counted one by one; the rates are those at the threshold, above 0."""
    assume(any(genuine) or any(impostor))
    found = calibrate(genuine, impostor)
    assert found.threshold > 0
    assert _mistakes(found.threshold, genuine, impostor) == (found.false_accept.wrong, found.false_reject.wrong)
    achieved = found.false_accept.share + found.false_reject.share
    for threshold in (*genuine, *impostor, -1.0):
        accepted, rejected = _mistakes(threshold, genuine, impostor)
        if threshold >= 0:
            assert achieved <= accepted / len(impostor) + rejected / len(genuine) + 1e-9


def _mistakes(threshold: float, genuine: list[float], impostor: list[float]) -> tuple[int, int]:
    return sum(value <= threshold for value in impostor), sum(value > threshold for value in genuine)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_bound_is_wilsons(counts: tuple[int, int]) -> None:
    """Where what was seen lies 1.645 standard deviations of the true rate below it."""
    rate = Rate(*counts)
    bound = rate.bound
    assert rate.share <= bound + 1e-9
    deviation = (bound * (1 - bound) / rate.pairs) ** 0.5
    assert abs((bound - rate.share) - 1.6448536 * deviation) < 1e-6


@pytest.mark.parametrize(("genuine", "impostor"), [([], [1.0]), ([1.0], []), ([np.inf], [1.0]), ([-0.1], [1.0])])
def test_pairs_that_say_nothing_are_refused(genuine: list[float], impostor: list[float]) -> None:
    """No threshold is better than one out of nothing."""
    with pytest.raises(InputError, match="distances must be finite"):
        calibrate(genuine, impostor)


def test_pairs_of_the_same_photos_are_refused() -> None:
    """They are as near as nothing else will be."""
    with pytest.raises(InputError, match=r"every distance is 0.*Give photos that differ"):
        calibrate([0.0, 0.0], [0.0])


def test_the_threshold_survives_in_the_file(gallery: Gallery) -> None:
    """With the counts behind its rates."""
    stored = Gallery(gallery.path, "a" * 64).calibration
    assert stored == Calibration(threshold=0.5, false_accept=Rate(0, 2), false_reject=Rate(0, 2))


# --- several kinds of evidence ----------------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> tuple[Gallery, Gallery]:
    """Faces, which tell people apart well, and voices, which do so less well; up to 1 and up to 2 apart."""
    face, voice = (Gallery(tmp_path / f"{kind}.json", kind) for kind in ("face", "voice"))
    face.set_calibration(Calibration(threshold=1.0, false_accept=Rate(0, 1000), false_reject=Rate(0, 1000)))
    voice.set_calibration(Calibration(threshold=2.0, false_accept=Rate(100, 1000), false_reject=Rate(100, 1000)))
    for gallery in (face, voice):
        gallery.enrol("Ada", [0.0])
        gallery.enrol("Bo", [10.0])
    return face, voice


def test_a_face_and_a_voice_say_together_who_it_is(both: tuple[Gallery, Gallery]) -> None:
    """By the average of their distances in thresholds, the better kind weighing more."""
    face, voice = both
    better, worse = (gallery.calibrated.separation for gallery in both)
    found = identify_jointly([(face, [0.5]), (voice, [2.5])])
    assert found == Match("Ada", pytest.approx((better * 0.5 + worse * 1.25) / (better + worse)))
    assert better > 2 * worse
    assert identify_jointly([(face, [1.2]), (voice, [2.5])]) is None
    assert identify_jointly([(face, [1.1]), (voice, [0.2])]).name == "Ada"  # type: ignore[union-attr]


@given(st.floats(-3, 13, width=32))
def test_with_one_kind_it_is_that_kinds_answer(x: float) -> None:
    """Face or voice alone: the same person, or nobody, as that gallery says by itself."""
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery(Path(folder, "face.json"), "face")
        gallery.set_calibration(calibrate([1.0], [2.0]))
        gallery.enrol("Ada", [0.0])
        gallery.enrol("Bo", [10.0])
        alone, together = gallery.identify([x]), identify_jointly([(gallery, [x])])
    assert (alone and alone.name) == (together and together.name)


def test_whom_one_gallery_lacks_the_other_judges(both: tuple[Gallery, Gallery]) -> None:
    """Somebody whose voice nobody has is known by face; nobody is known by nothing, or in empty galleries."""
    face, voice = both
    face.enrol("Cy", [20.0])
    assert identify_jointly([(face, [20.1]), (voice, [99.0])]) == Match("Cy", pytest.approx(0.1))
    with pytest.raises(InputError, match="give at least one vector"):
        identify_jointly([])
    for gallery in both:
        for name in list(gallery.people):
            gallery.delete(name)
    assert identify_jointly([(face, [0.0]), (voice, [0.0])]) is None


def test_separation_is_d_prime() -> None:
    """Two rates of 16 % are two standard deviations apart; where nothing went wrong it is finite, and not negative."""
    rate = Rate(1587, 10000)
    assert Calibration(threshold=1, false_accept=rate, false_reject=rate).separation == pytest.approx(2, abs=1e-3)
    perfect, hopeless = (
        Calibration(threshold=1, false_accept=Rate(n, 20), false_reject=Rate(n, 20)).separation for n in (0, 20)
    )
    assert (3 < perfect < 5, hopeless) == (True, 0.1)


def test_a_gallery_is_of_the_graphs_and_steps_before_the_vectors() -> None:
    """The same for a head's change; another for a step's, or a graph's."""
    with BundleFiles(tiny_bundle()) as files:
        manifest = files.manifest
    encoder = manifest.components["image_encoder"]
    graph = encoder.variants["fp32"].graph
    assert graph is not None
    [key] = encoder.inputs
    gray = structs.replace(encoder.inputs[key], source="elsewhere")
    other_steps = structs.replace(encoder, inputs={key: gray})
    other_graph = manifest.files | {graph: structs.replace(manifest.files[graph], sha256="0" * 64)}
    other_head = {"color": structs.replace(manifest.components["color"], deadline_ns=7)}
    known = model_of(manifest, "image_encoder")
    assert model_of(structs.replace(manifest, components=manifest.components | other_head), "image_encoder") == known
    for changed in (
        structs.replace(manifest, files=other_graph),
        structs.replace(manifest, components=manifest.components | {"image_encoder": other_steps}),
    ):
        assert model_of(changed, "image_encoder") != known
    with pytest.raises(InputError, match="there is no encoder 'color'"):
        model_of(manifest, "color")
