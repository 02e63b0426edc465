"""People are found again, strangers are not, and who is deleted is gone."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.errors import InputError
from edge_mbm.runtime.gallery import Calibration, Gallery, Rate, calibrate

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


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model":"x","people":{"Ada":[]}}', b"[" * 10000])
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
    """Against every threshold that could differ, counted one by one; the rates are those at the threshold."""
    found = calibrate(genuine, impostor)
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


def test_the_threshold_survives_in_the_file(gallery: Gallery) -> None:
    """With the counts behind its rates."""
    stored = Gallery(gallery.path, "a" * 64).calibration
    assert stored == Calibration(threshold=0.5, false_accept=Rate(0, 2), false_reject=Rate(0, 2))
