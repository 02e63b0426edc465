"""Splits: disjoint, lasting, and mixed."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.errors import InputError, RecipeError
from edge_mbm.export.recording_sources.split import Wanted, share_of, wanted_ids
from edge_mbm.export.recording_sources.tables import ArrayRecordings

SHARES = {"calibration": 0.5, "heldout": 0.3, "golden": 0.1}
IDS = [f"class_{k % 4}/{k:04d}" for k in range(2000)]


def of(split: str, ids: list[str] = IDS, samples: int = 10**6) -> list[str]:
    return wanted_ids(ids, SHARES, Wanted(split, samples))


def test_splits_are_disjoint_and_of_their_shares() -> None:
    """No recording is in two, a tenth is in none, and each has about its part."""
    found = {split: of(split) for split in SHARES}
    everything = [id_ for ids in found.values() for id_ in ids]
    assert len(everything) == len(set(everything))
    for split, share in SHARES.items():
        assert len(found[split]) == pytest.approx(2000 * share, abs=80)


@given(kept=st.sets(st.sampled_from(IDS)))
def test_a_recording_stays_in_its_split(kept: set[str]) -> None:
    """Whatever else is there, and in whatever order the names come."""
    for split in SHARES:
        assert of(split, sorted(kept, reverse=True)) == [id_ for id_ in of(split) if id_ in kept]


def test_the_first_few_are_of_every_class() -> None:
    """A sorted folder would give one class only; more are wanted, and the first stay the same."""
    assert {id_.partition("/")[0] for id_ in of("calibration", samples=40)} == {f"class_{k}" for k in range(4)}
    assert of("calibration", samples=40) == of("calibration", samples=80)[:40]


def test_the_place_is_the_sha256() -> None:
    """So that other programs can find out which split a recording is in."""
    for id_ in IDS[:50]:
        place = int(hashlib.sha256(id_.encode()).hexdigest()[:16], 16) / 2**64
        assert (id_ in of("calibration")) == (place < 0.5)
        assert (id_ in of("heldout")) == (0.5 <= place < 0.8)


def test_shares_are_parts_in_order() -> None:
    """Of 0 to 1; without shares a split has all of it."""
    assert share_of(SHARES, "heldout") == pytest.approx((0.5, 0.8))
    assert share_of({}, "anything") == (0, 1)


def test_a_table_says_which_splits_there_are() -> None:
    """By shares of one path, or by a path of their own; nothing else is a split."""
    shared = ArrayRecordings(path="data.npz")
    assert shared.location("golden") == "data.npz"
    assert sum(shared.shares().values()) == pytest.approx(1)
    own = ArrayRecordings(path={"train": "a.npz", "test": "b.npz"})
    assert (own.location("test"), own.shares()) == ("b.npz", {})
    with pytest.raises(RecipeError, match=r"recordings from arrays 'data.npz' has no split 'test': there are calib"):
        shared.location("test")
    with pytest.raises(RecipeError, match="has no split 'golden': there are train, test"):
        own.location("golden")


def test_shares_that_cannot_be_are_refused() -> None:
    """More than all, or of what is divided already."""
    with pytest.raises(InputError, match=r"add up to 1.2: at most 1"):
        ArrayRecordings(path="a.npz", splits={"a": 0.6, "b": 0.6})
    with pytest.raises(InputError, match="drop one"):
        ArrayRecordings(path={"a": "a.npz"}, splits={"a": 0.6})
