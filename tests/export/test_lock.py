"""The list of recordings beside a calibration set: what changes is noticed, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_mbm.calibration import DataDigest
from edge_mbm.errors import CalibrationError
from edge_mbm.export.lock import check_lock, lock_path, write_lock
from edge_mbm.export.recipe import LoadedRecipe, load_recipe
from edge_mbm.export.recordings import importable, recordings

CHANGES = """
CHANGE = None


def recordings(split):
    rng = np.random.default_rng(sum(split.encode()))
    for index in range(5 if CHANGE == "gone" else 7 if CHANGE == "more" else 6):
        values = rng.normal(0, 1, 4).astype(np.float32)
        if CHANGE == "data" and index == 3:
            values[0] += 1
        name = "other" if CHANGE == "name" and index == 2 else f"{split}-{index}"
        yield Record(name, {"imu": values}, index % 2)
"""


@pytest.fixture
def locked(project: Callable[..., Path]) -> LoadedRecipe:
    loaded = load_recipe(project(add=CHANGES))
    write_lock(loaded)
    return loaded


def digests(loaded: LoadedRecipe, change: str | None = None) -> dict[Any, DataDigest]:
    found = {purpose: DataDigest() for purpose in ("calibration", "heldout", "golden")}
    with importable(loaded.python_path()):
        import importlib

        assert isinstance(loaded.data.recordings, str)
        module: Any = importlib.import_module(loaded.data.recordings.partition(":")[0])
        module.CHANGE = change
        for purpose, digest in found.items():
            list(recordings(loaded, getattr(loaded.data, purpose), digest))
        module.CHANGE = None
    return found


def test_the_same_recordings_pass(locked: LoadedRecipe) -> None:
    """And writing the list again gives the same bytes."""
    check_lock(locked, digests(locked))
    before = lock_path(locked).read_bytes()
    assert write_lock(locked).read_bytes() == before
    assert [path.name for path in lock_path(locked).parent.glob("*.json*")] == ["data.samples.json"]


def test_the_list_is_short_lines(locked: LoadedRecipe) -> None:
    """One for each recording, in order, with the start of its digest; and the digest of all."""
    path = lock_path(locked)
    content, found = json.loads(path.read_text()), digests(locked)
    for purpose, digest in found.items():
        assert content[purpose]["sha256"] == digest.hexdigest()
        assert list(content[purpose]["samples"].items()) == [(id_, sha[:16]) for id_, sha in digest.entries]
    lines = path.read_text().splitlines()
    assert len(lines) == sum(digest.samples for digest in found.values()) + 21
    assert max(map(len, lines)) < 90


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data", r"'calibration-3' has other data \(\w{16}, and was \w{16}\)"),
        ("name", "number 2 is 'other', and was 'calibration-2'"),
        ("gone", "number 5 is not there, and was 'calibration-5'"),
        ("more", "number 6 is 'calibration-6', and was not there"),
    ],
)
def test_a_change_is_named(locked: LoadedRecipe, change: str, says: str) -> None:
    """The first recording that differs, the list's place, and how it is renewed."""
    with pytest.raises(
        CalibrationError, match=f"'calibration' are not those of .*data.samples.json: {says}. .*--lock$"
    ):
        check_lock(locked, digests(locked, change))


def test_only_what_was_read_is_checked(locked: LoadedRecipe) -> None:
    """An export that has not come to its golden recordings yet can check the others."""
    changed = digests(locked, "data")
    check_lock(locked, {"heldout": digests(locked)["heldout"]})
    with pytest.raises(CalibrationError, match="split 'golden'"):
        check_lock(locked, {"golden": changed["golden"]})


def test_an_altered_list_is_refused(locked: LoadedRecipe) -> None:
    """Also where only its own digest was."""
    path = lock_path(locked)
    text = path.read_text()
    content = json.loads(text)
    content["golden"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match="their common sha256 differs: the list was altered"):
        check_lock(locked, digests(locked))
    path.write_text(text[:100])
    with pytest.raises(CalibrationError, match=r"data\.samples\.json is no list of recordings: .* --lock"):
        check_lock(locked, digests(locked))
    path.unlink()
    check_lock(locked, digests(locked))
