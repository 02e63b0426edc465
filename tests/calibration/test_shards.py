"""Several processes calibrate as one does."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from edge_mbm.calibration import TensorRanges, collect_in_shards, pack_ranges
from edge_mbm.errors import CalibrationError, InputError

MODULE = """
import itertools

import numpy as np

from edge_mbm.calibration import TensorRanges
from edge_mbm.errors import CalibrationError


def collect(shard, shards):
    generator = np.random.default_rng(0)
    found = TensorRanges()
    recordings = (generator.normal(0, 1 + k, 300) for k in range(11))
    for values in itertools.islice(recordings, shard, None, shards):
        found.update({"x": values, "relu": np.maximum(values, 0)})
    return found


def fail(shard, shards):
    raise CalibrationError(f"shard {shard} of {shards} has no data")
"""


def test_shards_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, with two processes and in this one; and what fails in one of them is told here."""
    (tmp_path / "sharded_recordings.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("sharded_recordings")
    one = pack_ranges(module.collect(0, 1))
    assert pack_ranges(collect_in_shards(module.collect, 2)) == one
    assert pack_ranges(collect_in_shards(module.collect, 1)) == one
    parts = [module.collect(shard, 3) for shard in range(3)]
    assert pack_ranges(parts[2].merge(parts[0]).merge(parts[1])) == one
    with pytest.raises(CalibrationError, match="shard 0 of 2 has no data"):
        collect_in_shards(module.fail, 2)


def test_no_worker_is_refused() -> None:
    """Nothing would be collected."""
    with pytest.raises(InputError, match="at least one worker, got 0"):
        collect_in_shards(lambda shard, shards: TensorRanges(), 0)
