"""Every variant that is a plain conversion, as far as it can be made and run; quantized ones are searched for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edge_mbm.errors import ExportError
from edge_mbm.export.draft import Draft, Tried, given
from edge_mbm.export.graph import check_graph
from edge_mbm.export.half import to_fp16
from edge_mbm.export.progress import Progress
from edge_mbm.export.speed import probe
from edge_mbm.export.variants import DIALECTS

__all__ = ["emit", "left_float"]

_SHOWN = 6


def emit(draft: Draft, progress: Progress) -> Draft:
    """fp32 and half precision, each loaded and run in a process of its own before anything else touches it."""
    graphs: dict[Tried, bytes] = {(name, "fp32"): graph for name, graph in given(draft.fp32).items()}
    faults, made_by = dict(draft.faults), dict(draft.made_by)
    components = given(draft.components)
    progress.stage("emit the variants", len(components))
    for name in components:
        for variant in draft.variants(name):
            if (why := draft.origin.float_only(name)) is not None:
                faults[name, variant] = why
            elif DIALECTS[variant].form is None:
                try:
                    graphs[name, variant], made_by[name, variant] = _half(draft, name)
                except ExportError as error:
                    faults[name, variant] = str(error)
        progress.step(name)
    return replace(draft, graphs=graphs, faults=faults, made_by=made_by)


def _half(draft: Draft, name: str) -> tuple[bytes, str]:
    calibrated = given(draft.calibrated)
    graph, kept = to_fp16(calibrated.graphs[name], calibrated.ranges[name], name)
    check_graph(graph, given(draft.components)[name], name)
    # Beyond extended optimisations some fp16 graphs crash ONNX Runtime.
    fault = probe({"fp16": graph}, given(draft.reference).inputs[name][0], extended=["fp16"]).faults["fp16"]
    if fault is not None:
        raise ExportError(f"the graph {fault}")
    return graph, f"fp16 by calibrated ranges; {left_float(kept)}"


def left_float(nodes: Sequence[str]) -> str:
    """What a conversion left in float, in words short enough for the manifest."""
    if not nodes:
        return "nothing left in float32"
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return f"in float32: {', '.join(nodes[:_SHOWN])}{more}"
