"""The stages of an export, in order. Each says which parts of the draft it needs and which it fills in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_mbm.errors import ExportError
from edge_mbm.export.calibrate import calibrate
from edge_mbm.export.check import check
from edge_mbm.export.decide import decide
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.emit import emit
from edge_mbm.export.lock import check_lock
from edge_mbm.export.measure import measure
from edge_mbm.export.progress import Progress
from edge_mbm.export.prove import trace_and_prove
from edge_mbm.export.refer import describe, read, refer
from edge_mbm.export.search import search

__all__ = ["STAGES", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One step of the export.

    Args:
        title: for the progress bar and for messages.
        requires: fields of the draft that must be there.
        ensures: fields of the draft that are there afterwards.
        run: from draft to draft; raises when what it made is not right, so that nothing broken goes further.
    """

    title: str
    requires: tuple[str, ...]
    ensures: tuple[str, ...]
    run: Callable[[Draft, Progress], Draft]

    def __call__(self, draft: Draft, progress: Progress) -> Draft:
        """Run it, holding it to its word.

        Raises:
            ExportError: what it requires or ensures is not there.
        """
        self._check(draft, self.requires, "needs")
        after = self.run(draft, progress)
        self._check(after, self.ensures, "did not give")
        return after

    def _check(self, draft: Draft, fields: Sequence[str], verb: str) -> None:
        absent = [name for name in fields if getattr(draft, name) is None]
        if absent:
            raise ExportError(f"stage '{self.title}' {verb} {absent}: a defect in edge-mbm, please report it")


def _read(draft: Draft, progress: Progress) -> Draft:
    """The recordings, held against the list beside the calibration set, if there is one."""
    draft = read(draft, progress)
    data = given(draft.data)
    check_lock(draft.loaded, {"calibration": data.calibration, "heldout": data.heldout})
    return draft


STAGES: tuple[Stage, ...] = (
    Stage("describe", (), ("components",), describe),
    Stage("read", (), ("data",), _read),
    Stage("refer", ("components", "data"), ("reference",), refer),
    Stage("trace", ("components", "reference"), ("fp32", "exporters"), trace_and_prove),
    Stage("calibrate", ("components", "data", "fp32"), ("calibrated",), calibrate),
    Stage("emit", ("fp32", "calibrated", "reference"), ("graphs",), emit),
    Stage("search", ("fp32", "graphs", "calibrated", "data", "reference"), ("search", "original"), search),
    Stage("check", ("graphs",), ("checks",), check),
    Stage("measure", ("fp32", "graphs", "data", "reference"), ("errors", "speeds", "original"), measure),
    Stage("decide", ("errors", "speeds"), ("decisions", "fused"), decide),
)
