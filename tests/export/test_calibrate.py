"""Which calls calibration keeps: spread over the recordings, and bounded whatever their number and size."""

from __future__ import annotations

import numpy as np
import pytest

from edge_mbm.export import calibrate
from edge_mbm.export.calibrate import CALLS, _Sampler


def kept(count: int, floats: int) -> list[int]:
    """Of which recordings calls are kept, one call of some numbers each."""
    sampler = _Sampler(["encoder"])
    for index in range(count):
        sampler.add({"encoder": [{"x": np.full(floats, index, np.float32)}]})
    return [int(call["x"][0]) for call in sampler.calls["encoder"]]


@pytest.mark.parametrize("count", [1, 100, CALLS, CALLS + 1, 1000])
def test_calls_are_few_and_spread_evenly(count: int) -> None:
    """Every so many recordings, never more than the bound, and more than half of it where there are enough."""
    found = kept(count, 1)
    assert min(count, CALLS // 2) <= len(found) <= CALLS
    assert len(set(np.diff(found))) <= 1
    assert found[0] == 0


@pytest.mark.parametrize(("floats", "most"), [(10, 25), (100, 2), (1000, 1)])
def test_large_calls_are_fewer(floats: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are kept stay within the bytes allowed, but for a single one, which is always kept."""
    monkeypatch.setattr(calibrate, "_CALL_BYTES", 1000)
    found = kept(200, floats)
    assert most / 2 <= len(found) <= most
    assert found[0] == 0
