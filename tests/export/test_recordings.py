"""Recordings: each is checked as it comes, and read again they must be the same."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from edge_mbm.calibration import DataDigest
from edge_mbm.errors import CalibrationError, RecipeError
from edge_mbm.export.recipe import LoadedRecipe, load_recipe
from edge_mbm.export.recordings import (
    Recording,
    import_function,
    import_path,
    importable,
    recordings,
    same_recordings,
)

Load: TypeAlias = Callable[..., LoadedRecipe]

HOSTILE = """
READ = []
NAN = np.array([0, np.nan, 0, 0], np.float32)
GOOD = np.zeros(4, np.float32)


def recordings(split):
    if split == "raises":
        raise OSError("the disk is gone")  # HERE
    if split == "counted":
        for index in range(1000):
            READ.append(index)
            yield Record(str(index), {"imu": GOOD}, None)
    if split == "changing":
        READ.append(split)
        yield Record("same", {"imu": GOOD}, 0)
        yield Record("other", {"imu": np.full(4, len(READ), np.float32)}, 0)
    if split == "shrinking":
        READ.append(split)
        for index in range(5 - len(READ)):
            yield Record(str(index), {"imu": GOOD}, 0)
    broken = {
        "nan": Record("a", {"imu": NAN}, 0),
        "infinite": Record("a", {"imu": np.full(4, np.inf)}, 0),
        "stranger": Record("a", {"imu": GOOD, "smell": GOOD}, 0),
        "bare": Record("a", {}, 0),
        "list": Record("a", {"imu": [0, 0, 0, 0]}, 0),
        "tensor": Record("a", {"imu": torch.zeros(4)}, 0),
        "labelled": Record("a", {"imu": GOOD}, "low"),
        "halved": Record("a", {"imu": GOOD}, 0.5),
        "dictionary": {"id": "a", "inputs": {}},
    }
    if split in broken:
        yield broken[split]
    if split == "twice":
        yield from [Record("a", {"imu": GOOD}, 0)] * 2
    if split == "good":
        yield Record(7, {"imu": GOOD}, np.int64(1))
        yield Record("b", {"imu": GOOD}, None)
"""


@pytest.fixture(scope="module")
def hostile(loaded: Load) -> LoadedRecipe:
    return loaded(add=HOSTILE)


def of(recipe: LoadedRecipe, split: str, samples: int = 10) -> Iterator[object]:
    from msgspec.structs import replace

    return recordings(recipe, replace(recipe.data.golden, split=split, samples=samples), DataDigest())


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("raises", r"recordings\('raises'\) raised OSError: the disk is gone \(.*/project_\w+\.py:\d+\)"),
        ("empty", "gives no recordings for the split 'empty'"),
        ("nan", r"recording 0 of 'nan' \('a'\) has NaN or infinite values in 'imu'"),
        ("infinite", "has NaN or infinite values in 'imu'"),
        ("stranger", r"has \['smell'\]; modalities are \['imu'\]"),
        ("bare", "has nothing; modalities are"),
        ("list", r"has list for 'imu': give numpy arrays"),
        ("tensor", r"has Tensor for 'imu': give numpy arrays"),
        ("labelled", "is no record of an id, inputs .* and a label"),
        ("halved", "is no record of an id, inputs .* and a label"),
        ("dictionary", "is no record of an id, inputs"),
        ("twice", "recording 'a' is there twice"),
    ],
)
def test_what_is_no_recording_is_refused(hostile: LoadedRecipe, split: str, said: str) -> None:
    """With its place in the split, its id, and what is wrong."""
    with pytest.raises(CalibrationError, match=said):
        list(of(hostile, split))


def test_what_comes_is_plain(hostile: LoadedRecipe) -> None:
    """Ids are text, labels Python's whole numbers or none."""
    first, second = of(hostile, "good")
    assert (first.id, first.label, type(first.label)) == ("7", 1, int)  # type: ignore[attr-defined]
    assert second.label is None  # type: ignore[attr-defined]


def test_no_more_are_made_than_wanted(hostile: LoadedRecipe) -> None:
    """The factory is not asked for the one after the last."""
    read = import_function(hostile.data.recordings.partition(":")[0] + ":READ", "test")
    read.clear()
    assert len(list(of(hostile, "counted", samples=3))) == 3
    assert read == [0, 1, 2]


@pytest.mark.parametrize(("split", "what"), [("changing", "'other'"), ("shrinking", r"their number \(3, not 4\)")])
def test_recordings_that_change_are_refused(hostile: LoadedRecipe, split: str, what: str) -> None:
    """What was measured on the first could not be compared with the second, nor made again."""
    from msgspec.structs import replace

    import_function(hostile.data.recordings.partition(":")[0] + ":READ", "test").clear()
    wanted, digest = replace(hostile.data.golden, split=split), DataDigest()
    list(recordings(hostile, wanted, digest))
    with pytest.raises(CalibrationError, match=f"the first that changed is {what}: seed its random numbers"):
        list(same_recordings(hostile, wanted, digest.entries))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("no_such_module_at_all:load", "'no_such_module_at_all' cannot be imported .*ModuleNotFoundError.*python_path"),
        ("json:no_such", "'json' has no 'no_such'"),
        ("json:decoder.no.such", "'json' has no 'decoder.no.such'"),
    ],
)
def test_a_function_that_is_not_there_is_told(reference: str, said: str) -> None:
    """Module or name, with what to look at."""
    with pytest.raises(RecipeError, match=said):
        import_function(reference, "model")


def test_a_module_that_fails_is_told_with_the_line(project: Callable[..., Path]) -> None:
    """The user's, not importlib's."""
    recipe = load_recipe(project(add="undefined_name  # HERE"))
    with importable(recipe.python_path()), pytest.raises(RecipeError) as caught:
        import_function(recipe.recipe.model, "model")
    [file] = Path(recipe.python_path()[0]).glob("*.py")
    assert f"NameError: name 'undefined_name' is not defined ({file}:{len(file.read_text().splitlines())})" in str(
        caught.value
    )


def test_another_projects_module_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    """Two projects in one process may both have a ``model.py``: the second is refused, not given the first's."""
    for folder, value in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_name_twice.py").write_text(f"value = {value}\n")
    try:
        with importable((str(tmp_path / "one"),)):
            assert import_function("same_name_twice:value", "model") == 1
        with (
            importable((str(tmp_path / "two"),)),
            pytest.raises(RecipeError, match="imported another 'same_name_twice'"),
        ):
            import_function("same_name_twice:value", "model")
    finally:
        sys.modules.pop("same_name_twice", None)


def test_the_import_path_is_as_it_was_afterwards(tmp_path: Path) -> None:
    """Also where the folder was on it already, and where an error ends it."""
    before = list(sys.path)
    context = importable((str(tmp_path), before[-1]))
    context.__enter__()
    assert sys.path[:2] == [str(tmp_path), before[-1]]
    assert not context.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert sys.path == before


def test_other_processes_find_what_this_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the import path, absolute, the standard library first, whatever lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("relative")
    entries = import_path().split(":")
    assert str(tmp_path / "relative") in entries
    assert all(Path(entry).is_absolute() for entry in entries)
    assert Path(entries[0], "json", "__init__.py").is_file()


TABLE = """
recordings = {{ from = "arrays", path = "arrays/*.npz" }}
calibration = {{ split = "calibration", samples = 4 }}
heldout = {{ split = "heldout", samples = 100 }}
golden = {{ split = "golden", samples = 2 }}
"""


@pytest.fixture
def tabled(loaded: Load) -> LoadedRecipe:
    """A project whose recordings are rows of a file beside its calibration set."""
    recipe = loaded(data=TABLE)
    (recipe.path.parent / "arrays").mkdir()
    save(recipe)
    return recipe


def save(recipe: LoadedRecipe, rows: int = 60, **changes: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    arrays = {"imu": rng.normal(size=(rows, 4)).astype(np.float32), "label": np.arange(rows) % 2} | changes
    np.savez(recipe.path.parent / "arrays" / "a.npz", **arrays)


def test_a_table_says_where_recordings_are(
    tabled: LoadedRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the calibration set's folder, whichever is the current one; as many as are wanted; splits share none."""
    monkeypatch.chdir(tmp_path)
    found = {s.split: [r.id for r in recordings(tabled, s)] for s in (tabled.data.calibration, tabled.data.heldout)}
    assert len(found["calibration"]) == 4
    assert 15 < len(found["heldout"]) < 40
    assert not set(found["calibration"]) & set(found["heldout"])
    assert found["calibration"][0].startswith("arrays/a.npz[")


@pytest.mark.parametrize(
    ("split", "rows", "imu", "says"),
    [
        ("test", 60, None, r"recordings from arrays 'arrays/\*.npz' has no split 'test': there are calib"),
        ("golden", 1, None, "there are none for the split 'golden'; give it a larger share"),
        ("heldout", 60, np.nan, "has NaN or infinite values in 'imu': leave such recordings out"),
    ],
)
def test_a_table_that_gives_nothing_usable_is_told(
    tabled: LoadedRecipe, split: str, rows: int, imu: float | None, says: str
) -> None:
    """A split that it has not, one that is empty, values that are none."""
    save(tabled, rows, **({} if imu is None else {"imu": np.full((rows, 4), imu, np.float32)}))
    with pytest.raises((CalibrationError, RecipeError), match=says):
        list(of(tabled, split))


def test_a_file_that_changes_between_passes_is_told(tabled: LoadedRecipe) -> None:
    """What was measured on the first pass is not to be compared with the second."""
    digest = DataDigest()
    wanted = tabled.data.heldout
    first = [r.id for r in recordings(tabled, wanted, digest)]
    save(tabled, imu=np.ones((60, 4), np.float32))
    with pytest.raises(CalibrationError, match=f"changed while the export was reading .* is '{re.escape(first[0])}'"):
        list(same_recordings(tabled, wanted, digest.entries))


def test_one_recording_is_a_calibration_set(tabled: LoadedRecipe) -> None:
    """It is given, and nothing else; what that is worth is for the report to say."""
    save(tabled, rows=1)
    given = [r.id for s in ("calibration", "heldout") for r in some_of(tabled, s)]
    assert given == ["arrays/a.npz[0]"]


def some_of(recipe: LoadedRecipe, split: str) -> list[Recording]:
    try:
        return list(of(recipe, split))  # type: ignore[arg-type]
    except CalibrationError:
        return []
