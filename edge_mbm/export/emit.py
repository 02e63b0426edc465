"""Every variant of every component, as far as it can be made and run."""

from __future__ import annotations

from dataclasses import replace

from edge_mbm.errors import ExportError
from edge_mbm.export.draft import Draft, Tried, given
from edge_mbm.export.graph import check_graph
from edge_mbm.export.progress import Progress
from edge_mbm.export.speed import probe
from edge_mbm.export.variants import DIALECTS, quantizable

__all__ = ["emit"]


def emit(draft: Draft, progress: Progress) -> Draft:
    """Every variant of every component, each loaded and run in a process of its own before anything else touches it."""
    calibrated, reference = given(draft.calibrated), given(draft.reference)
    graphs: dict[Tried, bytes] = {(name, "fp32"): graph for name, graph in given(draft.fp32).items()}
    faults: dict[Tried, str] = {}
    progress.stage("emit the variants", len(calibrated.graphs))
    for name, folded in calibrated.graphs.items():
        for variant in draft.variants():
            try:
                graphs[name, variant] = _emitted(draft, name, variant, folded)
            except ExportError as error:
                faults[name, variant] = str(error)
        made = {variant: graphs[name, variant] for variant in draft.variants() if (name, variant) in graphs}
        # As they are loaded later: only what runs elsewhere stops at extended optimisations.
        elsewhere = [variant for variant in made if not DIALECTS[variant].runs_here]
        for key, fault in probe(made, reference.inputs[name][0], extended=elsewhere).faults.items():
            if fault is not None:
                del graphs[name, key]
                faults[name, key] = f"the graph {fault}"
        progress.step(name)
    return replace(draft, graphs=graphs, faults=faults)


def _emitted(draft: Draft, name: str, variant: str, folded: bytes) -> bytes:
    dialect, calibrated = DIALECTS[variant], given(draft.calibrated)
    if dialect.needs_ranges and not quantizable(folded):
        raise ExportError("there is nothing to quantize: no convolution or matrix product with constant weights")
    graph = dialect.emit(folded, calibrated.ranges[name].ranges(draft.loaded.recipe.method), name)
    check_graph(graph, given(draft.components)[name], name)
    return graph
