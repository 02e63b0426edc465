"""Tracing, and the proof that a graph computes what the model does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from edge_mbm.errors import EdgeMbmError, ExportError, ParityError, TraceError
from edge_mbm.export.chain import Arrays, GraphRunner, Runner
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.graph import check_graph, normalize
from edge_mbm.export.progress import Progress
from edge_mbm.export.skeleton import Skeleton
from edge_mbm.export.speed import probe
from edge_mbm.export.trace import EXPORTERS, trace

__all__ = ["PARITY_BATCHES", "trace_and_prove"]

PARITY_BATCHES = (1, 2, 5)
"""A frozen batch passes at one size."""
_PARITY_RTOL = 1e-3
"""Against the largest value of an output: fp32 arithmetic in another order differs by less than a tenth of this."""


def trace_and_prove(draft: Draft, progress: Progress) -> Draft:
    """An fp32 graph of each component that computes what the model does; the second exporter where the first fails."""
    components = given(draft.components)
    graphs: dict[str, bytes] = {}
    exporters: dict[str, str] = {}
    failed: dict[str, list[EdgeMbmError]] = {}
    progress.stage("trace to ONNX and check parity", len(components))
    for exporter in EXPORTERS:
        left = {name: component for name, component in components.items() if name not in graphs}
        with closing(trace(draft.loaded, left, exporter)) as outcomes:
            for name, outcome in outcomes:
                try:
                    graphs[name] = _proven(draft, name, outcome)
                    exporters[name] = exporter
                    progress.step(name)
                except ExportError as error:
                    failed.setdefault(name, []).append(error)
    if lost := {name: failed[name] for name in components if name not in graphs}:
        raise _explained(lost)
    return replace(draft, fp32={name: graphs[name] for name in components}, exporters=exporters)


def _proven(draft: Draft, name: str, outcome: bytes | TraceError) -> bytes:
    if isinstance(outcome, TraceError):
        raise outcome
    component = given(draft.components)[name]
    graph = normalize(outcome, component, name)
    check_graph(graph, component, name)
    calls = given(draft.reference).inputs[name]
    if fault := probe({"fp32": graph}, calls[0]).faults["fp32"]:
        raise TraceError(f"the graph of '{name}' {fault}")
    _check_parity(draft, name, GraphRunner(graph, name))
    return graph


def _check_parity(draft: Draft, name: str, runner: Runner) -> None:
    """The same outputs and next states as the model's, on real inputs, at several batch sizes."""
    component = given(draft.components)[name]
    calls = given(draft.reference).inputs[name]
    for batch in PARITY_BATCHES:
        inputs = _batched(component, calls[:batch])
        expected, got = draft.origin.run(name, inputs), runner(inputs)
        for key, want in expected.items():
            have = got[key]
            if have.shape != want.shape:
                raise ParityError(
                    f"'{name}.{key}' is {list(have.shape)} from the graph, {list(want.shape)} from the model"
                )
            off = float(np.abs(have.astype(np.float64) - want.astype(np.float64)).max(initial=0.0))
            reach = float(np.abs(want.astype(np.float64)).max(initial=0.0))
            if not off <= _PARITY_RTOL * max(1e-6, reach):
                raise ParityError(
                    f"'{name}.{key}' differs from the model's by up to {off:.3g} at batch {batch}, where values reach "
                    f"{reach:.3g}: the exported graph computes something else"
                )


def _batched(component: Skeleton, calls: Sequence[Arrays]) -> Arrays:
    """Calls at batch 1 joined along the axis that each tensor calls "batch"."""
    specs = component.graph_inputs()
    return {
        key: np.concatenate([call[key] for call in calls], axis=spec.shape.index("batch"))
        for key, spec in specs.items()
    }


def _explained(failed: Mapping[str, Sequence[EdgeMbmError]]) -> EdgeMbmError:
    """Everything that failed, with both exporters' words: one round of mending, not one for each component."""
    lines = [f"{', '.join(failed)} could not be exported, with either of torch's exporters:"]
    for name, errors in failed.items():
        lines += [f"  {name}, {exporter}: {error}" for exporter, error in zip(EXPORTERS, errors, strict=True)]
    first = next(iter(failed.values()))[0]
    return type(first)("\n".join(lines))
