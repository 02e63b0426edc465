"""What a run adds up to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_mbm.runtime import EmbeddingOutput, Result
from edge_mbm.runtime.summary import RunSummary, compute_time

MS = 1_000_000


def result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "head": "event",
        "seq": 0,
        "t_capture": 0,
        "age": 10 * MS,
        "outputs": {"e": EmbeddingOutput(np.zeros(1, np.float32))},
        "missing": (),
        "spread": 0,
        "dropped": 0,
        "stage_ns": {"preprocess.a": MS, "infer.a": 2 * MS, "wait": 5 * MS, "queue": 7 * MS},
        "provider": "x",
    }
    return Result(**fields | changes)


def test_compute_is_preprocessing_and_inference() -> None:
    """Waiting and queueing are not work."""
    assert compute_time(result()) == 3 * MS


def test_heads_are_added_up_by_themselves() -> None:
    """Results, drops, what was missing, ages."""
    run = RunSummary()
    for k in range(1, 101):
        run.add(result(age=k * MS, dropped=k % 2, missing=("audio",) if k <= 30 else (), t_capture=k))
    run.add(result(head="color", age=7 * MS))
    heads = run.summary().heads
    assert (heads["event"].results, heads["event"].dropped, heads["event"].missing) == (100, 50, {"audio": 30})
    assert heads["event"].age.p50_us == pytest.approx(50_000, rel=0.01)
    assert heads["event"].age.max_us == 100_000
    assert heads["event"].compute.p99_us == pytest.approx(3000, rel=0.01)
    assert heads["color"].results == 1
    assert run.newest == 100


def test_stages_are_added_up_over_all_heads() -> None:
    """Each under its name."""
    run = RunSummary()
    run.add(result())
    run.add(result(head="color", stage_ns={"infer.a": 4 * MS}))
    stages = run.summary().stages
    assert {stage: figures.count for stage, figures in stages.items()} == {
        "preprocess.a": 1,
        "infer.a": 2,
        "wait": 1,
        "queue": 1,
    }
    assert stages["infer.a"].max_us == 4000


def test_nothing_is_a_summary_too() -> None:
    """Empty."""
    run = RunSummary()
    assert (run.newest, run.summary().heads, run.summary().stages) == (None, {}, {})
