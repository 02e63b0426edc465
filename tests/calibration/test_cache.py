"""The range cache: exact, keyed by all that matters, and never half a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_mbm.calibration import (
    RangeCache,
    TensorRanges,
    load_ranges,
    pack_ranges,
    range_key,
    save_ranges,
    unpack_ranges,
)
from edge_mbm.errors import CalibrationError, InputError

KEY = range_key(b"graph", "0" * 64, b"steps")


def some(count: int = 3, seed: int = 0) -> TensorRanges:
    ranges = TensorRanges()
    generator = np.random.default_rng(seed)
    ranges.update({f"tensor_{k}": generator.standard_normal(5000).astype(np.float32) * 10.0**k for k in range(count)})
    return ranges


def rectified(count: int) -> TensorRanges:
    ranges = TensorRanges()
    generator = np.random.default_rng(3)
    ranges.update({f"t{k}": np.maximum(generator.standard_normal(5000), 0) for k in range(count)})
    return ranges


@given(
    tensors=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        hnp.arrays(np.float64, st.integers(0, 9), elements=st.floats(allow_nan=False, allow_infinity=False)),
        max_size=5,
    )
)
@settings(max_examples=100, deadline=None)
def test_what_is_packed_comes_back_identical(tensors: dict[str, np.ndarray]) -> None:
    """Any names, NUL included, tensors without values, none at all: the same histograms in the same order."""
    ranges = TensorRanges()
    ranges.update(tensors)
    found = unpack_ranges(pack_ranges(ranges))
    assert pack_ranges(found) == pack_ranges(ranges)
    assert found == ranges
    assert list(found.histograms) == list(tensors)


def test_round_trip_through_the_folder(tmp_path: Path) -> None:
    """The folder is made; another key finds nothing; storing again replaces; what was loaded can go on collecting."""
    cache = RangeCache(tmp_path / "new" / "folder")
    assert cache.load(KEY) is None
    cache.store(KEY, some(seed=1))
    cache.store(KEY, some())
    found = RangeCache(tmp_path / "new" / "folder").load(KEY)
    assert found == some()
    assert cache.load(range_key(b"another", "0" * 64, b"steps")) is None
    found.update({"tensor_0": np.full(1, 1e9)})
    assert found != some()
    assert cache.load(KEY) == some()


def test_numpy_reads_the_file_without_pickles(tmp_path: Path) -> None:
    """So a curious user needs no tool of ours."""
    RangeCache(tmp_path).store(KEY, some())
    [path] = tmp_path.iterdir()
    with np.load(path, allow_pickle=False) as stored:
        assert stored["counts"].sum() == 3 * 5000


def test_files_are_compact(tmp_path: Path) -> None:
    """A hundred tensors, 6.4 MB in memory, are less than a tenth of that."""
    RangeCache(tmp_path).store(KEY, rectified(100))
    [path] = tmp_path.iterdir()
    assert path.stat().st_size < 640_000


def test_damage_anywhere_is_as_if_absent(tmp_path: Path) -> None:
    """One flipped bit in any byte, or any length cut off: None, and storing again mends it."""
    cache = RangeCache(tmp_path)
    ranges = TensorRanges()
    ranges.update({"x": np.array([1.0, 2.0])})
    cache.store(KEY, ranges)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        assert cache.load(KEY) is None
        path.write_bytes(whole[:position])
        assert cache.load(KEY) is None
    path.write_bytes(whole + b"\0")
    assert cache.load(KEY) is None
    cache.store(KEY, ranges)
    assert cache.load(KEY) == ranges


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or Ctrl-C before the last step: the old ranges are still there, and no litter."""
    cache = RangeCache(tmp_path)
    cache.store(KEY, some())
    for step, failure in (("fsync", OSError("disk full")), ("replace", KeyboardInterrupt())):

        def fail(*_: object, failure: BaseException = failure) -> None:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(type(failure)):
                cache.store(KEY, some(seed=9))
        assert cache.load(KEY) == some()
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_key_is_no_path(tmp_path: Path, key: str) -> None:
    """What did not come from ``range_key`` is refused, before it names a file."""
    for use in (RangeCache(tmp_path).load, lambda key: RangeCache(tmp_path).store(key, some())):
        with pytest.raises(InputError, match="64 hexadecimal digits"):
            use(key)
    assert not list(tmp_path.iterdir())


def test_the_key_changes_with_each_part() -> None:
    """Graph, data, steps, and where one ends and the next begins."""
    parts = [
        (b"graph", "0" * 64, b"steps"),
        (b"graph2", "0" * 64, b"steps"),
        (b"graph", "1" * 64, b"steps"),
        (b"graph", "0" * 64, b"steps2"),
        (b"graph0", "0" * 63, b"steps"),
        (b"graph", "0" * 64 + "s", b"teps"),
    ]
    keys = {range_key(*part) for part in parts}
    assert len(keys) == len(parts)
    assert range_key(*parts[0]) == KEY
    assert all(len(key) == 64 for key in keys)


def test_parts_from_several_machines_become_the_whole(tmp_path: Path) -> None:
    """Each saves what it saw; merged in any order, the bytes are those of one machine that saw all."""
    generator = np.random.default_rng(5)
    batches = [{"x": generator.normal(0, k + 1, 500), "y": np.maximum(generator.normal(size=9), 0)} for k in range(6)]
    for part in range(3):
        seen = TensorRanges()
        for batch in batches[part::3]:
            seen.update(batch)
        save_ranges(tmp_path / "parts" / f"{part}.npz", seen)
    whole = TensorRanges()
    for batch in batches:
        whole.update(batch)
    a, b, c = (load_ranges(tmp_path / "parts" / f"{part}.npz") for part in range(3))
    assert pack_ranges(a.merge(b).merge(c)) == pack_ranges(c.merge(b.merge(a))) == pack_ranges(whole)


def test_a_part_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Absent or damaged, with its path: a part left out quietly would narrow the ranges."""
    with pytest.raises(CalibrationError, match=r"no calibrated ranges at .*absent.npz"):
        load_ranges(tmp_path / "absent.npz")
    (tmp_path / "cut.npz").write_bytes(pack_ranges(some())[:-9])
    with pytest.raises(CalibrationError, match=r"cut\.npz: these are no calibrated ranges .* or they are damaged"):
        load_ranges(tmp_path / "cut.npz")
