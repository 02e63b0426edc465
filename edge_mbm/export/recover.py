"""What no mix of precisions can hold: the component's weights tuned against its own float self, and traced again."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from edge_mbm.calibration import TensorRanges
from edge_mbm.errors import ExportError, InputError, ParityError, TraceError
from edge_mbm.export import calibrate
from edge_mbm.export.cache import Store, key_of
from edge_mbm.export.chain import Arrays, Chain, GraphRunner, downstream
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.graph import check_graph, fold, normalize
from edge_mbm.export.progress import Progress
from edge_mbm.export.recordings import same_recordings
from edge_mbm.export.speed import host, probe
from edge_mbm.export.tokenizers import tokenizer_files
from edge_mbm.export.trace import EXPORTERS, trace
from edge_mbm.export.weights import load_weights, pack_weights
from edge_mbm.training.distill import DistillOptions, distill

__all__ = ["Recovered", "module_of", "recover", "why_not"]

_PARITY_RTOL = 1e-3
_BATCH = 8


@dataclass(frozen=True)
class Recovered:
    """A component with tuned weights, ready to be quantized."""

    graph: bytes
    """fp32, folded."""
    ranges: TensorRanges
    key: str
    """What the ranges depend on, digested."""
    steps: int
    seconds: float
    host: str


class _Tuned(msgspec.Struct, frozen=True):
    steps: int
    seconds: float
    host: str


def why_not(draft: Draft, name: str) -> str | None:
    """Why a component is not tuned: "" where the recipe does not offer it; None where it can be."""
    if draft.loaded.recipe.components[name].recover is None:
        return ""
    module = module_of(draft, name)
    if module is None:
        return "no fine-tune: its model is no torch module"
    if not any(parameter.is_floating_point() for parameter in module.parameters()):
        return "no fine-tune: it has no weights"
    return None


def module_of(draft: Draft, name: str) -> nn.Module | None:
    """A component's torch module; None where its model is of another kind."""
    return draft.origin.module(name) if draft.origin.graph(name) is None else None


def recover(draft: Draft, name: str, progress: Progress) -> Recovered:
    """Tune a component's weights by distillation from its float self, then trace and calibrate it again.

    The weights, and how long they took, are kept in the cache: the next export takes them from there.

    Raises:
        ExportError, CalibrationError: it cannot be tuned, traced or calibrated.
    """
    calibrated = given(draft.calibrated)
    tuned, weights = _weights(draft, name, progress)
    graph = _traced(draft, name, weights)
    folded = {**calibrated.graphs, name: fold(graph, name)}
    after = replace(draft, fp32={**given(draft.fp32), name: graph})
    key = calibrate.key(after, folded, name)
    progress.stage(f"calibrate {name} again", draft.loaded.data.calibration.samples)
    ranges, _ = calibrate.collect(after, folded, {name: key}, progress)
    return Recovered(folded[name], ranges[name], key, tuned.steps, tuned.seconds, tuned.host)


def _weights(draft: Draft, name: str, progress: Progress) -> tuple[_Tuned, bytes]:
    options, store = DistillOptions(), Store("tuned")
    fp32 = hashlib.sha256(given(draft.fp32)[name]).hexdigest()
    key = key_of(["tuned", given(draft.calibrated).keys[name], fp32, repr(options)])
    known, weights = store.load(f"{key}.cost", _Tuned), store.load_bytes(f"{key}.npz")
    if known is not None and weights is not None:
        return known, weights
    module, started, counted = copy.deepcopy(draft.origin.module(name)), time.monotonic(), [0]

    def on_step(step: int, total: int) -> None:
        if counted[0] == 0:
            progress.stage(f"fine-tune {name}", total)
        counted[0] = total
        progress.step(f"step {step}")

    try:
        better = distill(module, partial(_batches, draft, name), options, on_step)
    except MemoryError as error:
        raise ExportError(f"tuning '{name}' ran out of memory: close other programs") from error
    except (InputError, FloatingPointError) as error:
        raise ExportError(f"'{name}' could not be tuned: {error}") from error
    tuned = _Tuned(counted[0], round(time.monotonic() - started, 1), host())
    weights = pack_weights(better)
    store.store_bytes(f"{key}.npz", weights)
    store.store(f"{key}.cost", tuned)
    return tuned, weights


def _batches(draft: Draft, name: str) -> Iterator[tuple[Tensor, ...]]:
    """What the component is given on the calibration recordings, upstream all in float; read anew at each pass."""
    specs = given(draft.components)[name].graph_inputs()
    while True:
        waiting: list[Arrays] = []
        for call in _calls(draft, name):
            waiting.append(call)
            if len(waiting) == _BATCH:
                yield _joined(waiting, specs)
                waiting = []
        if waiting:
            yield _joined(waiting, specs)


def _calls(draft: Draft, name: str) -> Iterator[Arrays]:
    """At batch 1; there are some, since calibration has seen them."""
    components = given(draft.components)
    feeding = {n: c for n, c in components.items() if name in downstream(components, [n])}
    runners = {n: GraphRunner(given(draft.fp32)[n], n) for n in feeding}
    chain, data = Chain(feeding, tokenizer_files(draft.loaded)), draft.loaded.data.calibration
    for recording in same_recordings(draft.loaded, data, given(draft.data).calibration.entries):
        made: list[tuple[str, Arrays]] = []
        chain.run(recording, runners, on_call=partial(_remember, made))
        yield from (inputs for n, inputs in made if n == name)


def _remember(made: list[tuple[str, Arrays]], name: str, inputs: Arrays) -> None:
    made.append((name, inputs))


def _joined(calls: Sequence[Arrays], specs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Calls at batch 1 as one, along the axis that each tensor calls "batch"."""
    return tuple(
        torch.from_numpy(np.concatenate([call[key] for call in calls], axis=spec.shape.index("batch")))
        for key, spec in specs.items()
    )


def _traced(draft: Draft, name: str, weights: bytes) -> bytes:
    """The tuned component's graph, which computes what the tuned module does."""
    store, component = Store("traced"), given(draft.components)[name]
    exporter = next(known for known in EXPORTERS if known == given(draft.exporters)[name])
    fp32 = hashlib.sha256(given(draft.fp32)[name] + weights).hexdigest()
    key = key_of(["tuned", fp32, exporter, draft.loaded.recipe.opset])
    if (kept := store.load_bytes(key)) is not None:
        return kept
    [(_, outcome)] = list(trace(draft.loaded, {name: component}, exporter, weights={name: weights}))
    if isinstance(outcome, TraceError):
        raise outcome
    graph = normalize(outcome, component, name)
    check_graph(graph, component, name)
    call = given(draft.calibrated).calls[name][0]
    if fault := probe({"fp32": graph}, call).faults["fp32"]:
        raise TraceError(f"the graph of the fine-tuned '{name}' {fault}")
    _check_parity(draft, name, weights, graph, call)
    store.store_bytes(key, graph)
    return graph


def _check_parity(draft: Draft, name: str, weights: bytes, graph: bytes, call: Arrays) -> None:
    module = copy.deepcopy(draft.origin.module(name))
    load_weights(module, weights)
    with torch.inference_mode():
        made = module(*(torch.tensor(value) for value in call.values()))
    tensors = list(made) if isinstance(made, list | tuple) else [made]
    got = GraphRunner(graph, name)(call)
    for want, key in zip(tensors, given(draft.components)[name].graph_outputs(), strict=True):
        off = float((want - torch.from_numpy(got[key])).abs().max())
        if not off <= _PARITY_RTOL * max(1e-6, float(want.abs().max())):
            raise ParityError(f"the fine-tuned '{name}.{key}' differs from its module's by up to {off:.3g}")
