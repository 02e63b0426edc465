"""Tracing, and the proof that a graph computes what the model does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np

from edge_mbm.errors import EdgeMbmError, ExportError, ParityError, TraceError
from edge_mbm.export.cache import Store, key_of
from edge_mbm.export.chain import Arrays, GraphRunner, Runner
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.graph import check_graph, normalize
from edge_mbm.export.progress import Progress
from edge_mbm.export.skeleton import Skeleton
from edge_mbm.export.speed import probe
from edge_mbm.export.trace import EXPORTERS, trace

__all__ = ["IMPORTED", "PARITY_BATCHES", "trace_and_prove"]

IMPORTED = "imported"
"""In place of an exporter's name: the component came as an ONNX graph."""

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
    for name in components:
        if (origin := draft.origin.graph(name)) is not None:
            graphs[name] = _proven(draft, name, origin.repaired.graph)
            exporters[name] = IMPORTED
            progress.step(name)
    keys = _keys(draft)
    for name, (graph, exporter) in _kept(draft, keys).items():
        graphs[name], exporters[name] = graph, exporter
        progress.step(name)
    for exporter in EXPORTERS:
        left = {name: component for name, component in components.items() if name not in graphs}
        with closing(trace(draft.loaded, left, exporter)) as outcomes:
            for name, outcome in outcomes:
                try:
                    graphs[name] = _proven(draft, name, outcome)
                    exporters[name] = exporter
                    Store("traced").store_bytes(keys[name], f"{exporter}\n".encode() + graphs[name])
                    progress.step(name)
                except ExportError as error:
                    failed.setdefault(name, []).append(error)
    if lost := {name: failed[name] for name in components if name not in graphs}:
        raise _explained(lost)
    return replace(draft, fp32={name: graphs[name] for name in components}, exporters=exporters)


def _keys(draft: Draft) -> dict[str, str]:
    """What each graph depends on, digested, but for the code of the model: parity shows whether that has changed."""
    recipe, model = draft.loaded.recipe, draft.origin.sha256()
    return {
        name: key_of(["traced", model, recipe.model, recipe.components[name], component, recipe.opset])
        for name, component in given(draft.components).items()
    }


def _kept(draft: Draft, keys: Mapping[str, str]) -> dict[str, tuple[bytes, str]]:
    """Graphs of an export before, with their exporters, as far as they still compute what the model does."""
    found: dict[str, tuple[bytes, str]] = {}
    for name, key in keys.items():
        if draft.origin.graph(name) is not None or (stored := Store("traced").load_bytes(key)) is None:
            continue
        exporter, _, graph = stored.partition(b"\n")
        with suppress(ExportError):
            _check_parity(draft, name, GraphRunner(graph, name))
            found[name] = graph, exporter.decode()
    return found


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
    for batch in PARITY_BATCHES if draft.origin.batch_free(name) else (1,):
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
                    f"{reach:.3g}: {_why(draft, name, batch)}"
                )


def _why(draft: Draft, name: str, batch: int) -> str:
    if batch > 1 and draft.origin.graph(name) is not None:
        return "samples of one batch meet in this graph. Give its model batch = 'one': a device runs one at a time"
    return "the exported graph computes something else"


def _batched(component: Skeleton, calls: Sequence[Arrays]) -> Arrays:
    """Calls at batch 1 joined along the axis that each tensor calls "batch"."""
    specs = component.graph_inputs()
    return {
        key: np.concatenate([call[key] for call in calls], axis=spec.shape.index("batch") if len(calls) > 1 else 0)
        for key, spec in specs.items()
    }


def _explained(failed: Mapping[str, Sequence[EdgeMbmError]]) -> EdgeMbmError:
    """Everything that failed, with both exporters' words: one round of mending, not one for each component."""
    lines = [f"{', '.join(failed)} could not be exported, with either of torch's exporters:"]
    for name, errors in failed.items():
        lines += [f"  {name}, {exporter}: {error}" for exporter, error in zip(EXPORTERS, errors, strict=True)]
    first = next(iter(failed.values()))[0]
    return type(first)("\n".join(lines))
