"""Quantized graphs of one component, made and looked at: what each costs in error, without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from edge_mbm.errors import ExportError
from edge_mbm.export import quantize as quantizing
from edge_mbm.export.cache import Store, key_of
from edge_mbm.export.calibrate import CALLS
from edge_mbm.export.chain import Arrays
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.graph import check_graph
from edge_mbm.export.lint import lint
from edge_mbm.export.quantize import Material, Preset
from edge_mbm.export.sensitivity import output_sqnr_db, outputs_of
from edge_mbm.export.speed import probe
from edge_mbm.export.variants import DIALECTS

__all__ = ["Bench", "Score", "Trial", "digest"]

_ROUGH = 8
"""Every so many of the kept calls are enough to tell groups apart."""


@dataclass(frozen=True)
class Trial:
    """What to make.

    Args:
        preset: its key.
        float_nodes: names of nodes that stay float.
    """

    preset: str
    float_nodes: tuple[str, ...] = ()


class Score(msgspec.Struct, frozen=True):
    """What came of a trial: an error, or why there is none."""

    sqnr_db: float | None = None
    fault: str = ""


class _Made(NamedTuple):
    graph: bytes | None
    fault: str = ""


class Bench:
    """Makes one component's candidates for one variant, and scores them; what was found out is kept.

    Args:
        draft: with calibrated ranges and calls.
        name: the component's.
        variant: a quantized one.
        material: what to quantize: the component's own, or one with tuned weights.
        key: what the material depends on, digested.
        reference: what the outputs are held against, per call of the material; None: its own graph's.
    """

    def __init__(
        self,
        draft: Draft,
        name: str,
        variant: str,
        *,
        material: Material,
        key: str,
        reference: Sequence[Arrays] | None = None,
    ) -> None:
        form = DIALECTS[variant].form
        assert form is not None
        self._draft, self._name, self._variant, self._form = draft, name, variant, form
        self.material, self._key, self._reference = material, key, reference
        self._scores, self._graphs = Store("scores"), Store("graphs")
        self._outputs = list(given(draft.components)[name].outputs)

    @property
    def here(self) -> bool:
        """Whether candidates are for this machine."""
        return DIALECTS[self._variant].runs_here

    def presets(self) -> tuple[str, ...]:
        """Worth trying, best guess first."""
        return tuple(preset.key for preset in quantizing.presets_for(self.material.graph, self._form))

    def scores(self, trials: Sequence[Trial], *, rough: bool = False) -> list[Score]:
        """What comes of several trials; those that nobody knows yet are loaded in one process before they run here.

        Args:
            trials: what to make.
            rough: to be told apart only: made from and held against a few of the calls, and the graphs are not kept.
        """
        keys = [f"{self._key_of(trial)}{'-rough' if rough else ''}" for trial in trials]
        known = [self._scores.load(key, Score) for key in keys]
        left = {key: trial for key, trial, score in zip(keys, trials, known, strict=True) if score is None}
        fresh = self._score(left, rough=rough) if left else {}
        return [score or fresh[key] for key, score in zip(keys, known, strict=True)]

    def graph(self, trial: Trial) -> bytes:
        """A trial's graph, from the cache if it is there.

        Raises:
            ExportError: it cannot be made.
        """
        key = self._key_of(trial)
        known = self._graphs.load_bytes(key)
        if known is not None:
            return known
        graph = self._quantized(trial)
        self._graphs.store_bytes(key, graph)
        return graph

    def reference(self) -> Sequence[Arrays]:
        """What the float graph makes of the calls."""
        if self._reference is None:
            self._reference = outputs_of(self.material.graph, self.material.calls, self._name, extended=False)
        return self._reference

    # --- inside ------------------------------------------------------------------------------------------------------

    def _key_of(self, trial: Trial) -> str:
        how = [self._form, self.here, repr(self._preset(trial.preset)), sorted(trial.float_nodes)]
        takers = [target.name for target in self._draft.takers(self._name, self._variant)]
        return key_of(["candidate", self._key, CALLS, how, takers])

    def _preset(self, key: str) -> Preset:
        """With the recipe's own method, where a preset has no reason for another."""
        preset, method = quantizing.PRESETS[key], self._draft.loaded.recipe.method
        return replace(preset, method=method) if preset.method == Preset(key).method else preset

    def _quantized(self, trial: Trial) -> bytes:
        return self._quantized_from(self.material, trial)

    def _quantized_roughly(self, trial: Trial) -> bytes:
        return self._quantized_from(replace(self.material, calls=self.material.calls[::_ROUGH]), trial)

    def _quantized_from(self, material: Material, trial: Trial) -> bytes:
        return quantizing.quantize(material, self._preset(trial.preset), self._form, frozenset(trial.float_nodes))

    def _score(self, trials: Mapping[str, Trial], *, rough: bool) -> dict[str, Score]:
        make, step = (self._quantized_roughly, _ROUGH) if rough else (self.graph, 1)
        made = {key: self._make(trial, make) for key, trial in trials.items()}
        graphs = {key: graph for key, (graph, _) in made.items() if graph is not None}
        faults = {key: fault for key, (graph, fault) in made.items() if graph is None}
        elsewhere = () if self.here else tuple(graphs)
        found = probe(graphs, self.material.calls[0], extended=elsewhere).faults if graphs else {}
        faults |= {key: f"the graph {fault}" for key, fault in found.items() if fault is not None}
        scores: dict[str, Score] = {}
        for key in trials:
            scores[key] = Score(fault=faults[key]) if key in faults else self._scored(graphs[key], step)
            if key not in found or found[key] is None:  # what killed a process may have been a lack of memory
                self._scores.store(key, scores[key])
        return scores

    def _make(self, trial: Trial, make: Callable[[Trial], bytes]) -> _Made:
        try:
            graph = make(trial)
            check_graph(graph, given(self._draft.components)[self._name], self._name)
            self._lint(graph)
        except ExportError as error:
            return _Made(None, str(error))
        return _Made(graph)

    def _lint(self, graph: bytes) -> None:
        """What a target would refuse need not be looked at any further."""
        kind = self._draft.kind(self._name)
        for target in self._draft.takers(self._name, self._variant):
            for finding in lint(graph, target, kind=kind, name=self._name):
                if finding.severity == "error":
                    raise ExportError(f"for {target.name}: {finding}")

    def _scored(self, graph: bytes, step: int) -> Score:
        """On every ``step``-th call."""
        try:
            got = outputs_of(graph, self.material.calls[::step], self._name, extended=not self.here)
            return Score(round(output_sqnr_db(self.reference()[::step], got, self._outputs), 3))
        except ExportError as error:
            return Score(fault=str(error))


def digest(key: str, graph: bytes) -> str:
    """What a material depends on: what its ranges and calls do, and its graph."""
    return hashlib.sha256(key.encode() + graph).hexdigest()
