"""What a run came to, in fixed memory however long it lasts."""

from __future__ import annotations

from msgspec import Struct

from edge_mbm.runtime.latency import LatencyFigures, LatencyHistogram
from edge_mbm.runtime.result import Result

__all__ = ["HeadSummary", "RunSummary", "Summary", "compute_time"]


class HeadSummary(Struct, frozen=True, kw_only=True):
    """One head's results."""

    results: int
    dropped: int
    """Pivot samples that gave no result."""
    missing: dict[str, int]
    """Modality -> results that had to do without it."""
    age: LatencyFigures
    """From capture until the result was handed out; a file played as fast as possible has no such thing."""
    compute: LatencyFigures
    """Preprocessing and inference of all its components."""


class Summary(Struct, frozen=True, kw_only=True):
    """A whole run."""

    heads: dict[str, HeadSummary]
    stages: dict[str, LatencyFigures]
    """Stage, as in ``Result.stage_ns``, -> its times."""


class RunSummary:
    """Adds up results as they come."""

    def __init__(self) -> None:
        self.newest: int | None = None
        """The newest ``t_capture`` so far, ns."""
        self._heads: dict[str, _HeadCounts] = {}
        self._stages: dict[str, LatencyHistogram] = {}

    def add(self, result: Result) -> None:
        """Count one result."""
        self.newest = result.t_capture if self.newest is None else max(self.newest, result.t_capture)
        self._heads.setdefault(result.head, _HeadCounts()).add(result)
        for stage, duration in result.stage_ns.items():
            self._stages.setdefault(stage, LatencyHistogram()).add(duration)

    def summary(self) -> Summary:
        """The figures so far."""
        return Summary(
            heads={head: counts.summary() for head, counts in self._heads.items()},
            stages={stage: histogram.figures() for stage, histogram in self._stages.items()},
        )


class _HeadCounts:
    def __init__(self) -> None:
        self._dropped = 0
        self._missing: dict[str, int] = {}
        self._age, self._compute = LatencyHistogram(), LatencyHistogram()

    def add(self, result: Result) -> None:
        self._dropped += result.dropped
        for modality in result.missing:
            self._missing[modality] = self._missing.get(modality, 0) + 1
        self._age.add(result.age)
        self._compute.add(compute_time(result))

    def summary(self) -> HeadSummary:
        return HeadSummary(
            results=self._age.count,
            dropped=self._dropped,
            missing=dict(self._missing),
            age=self._age.figures(),
            compute=self._compute.figures(),
        )


def compute_time(result: Result) -> int:
    """Preprocessing and inference that went into a result, ns; the same encoding may have served other results too."""
    return sum(duration for stage, duration in result.stage_ns.items() if stage.startswith(("preprocess.", "infer.")))
