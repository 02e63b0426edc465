"""What each variant costs: its error on held-out recordings, through the heads that it feeds, and its speed here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from edge_mbm.errors import ExportError
from edge_mbm.export.cache import Store, cache_folder, key_of
from edge_mbm.export.chain import Arrays, Chain, GraphRunner, Runner, downstream
from edge_mbm.export.draft import Draft, Fused, Tried, given
from edge_mbm.export.figures import error_figures
from edge_mbm.export.metric import Metric, load_metrics
from edge_mbm.export.progress import Progress
from edge_mbm.export.recordings import same_recordings
from edge_mbm.export.speed import SpeedCache, measure_speed
from edge_mbm.export.tokenizers import tokenizer_files
from edge_mbm.export.variants import runs_here
from edge_mbm.spec import Classification, Encoder, ErrorFigures, SpeedFigures, Tokens

__all__ = ["HeldOut", "Placed", "baseline", "fused_figures", "measure", "outputs", "placed", "speed_of"]


@dataclass(frozen=True)
class Placed:
    """A graph in a component's place."""

    graph: bytes
    here: bool
    """Whether it is for this machine: only then it runs at full optimisation."""

    def runner(self, name: str) -> Runner:
        """It, loaded; ``name`` is the component's, for messages."""
        return GraphRunner(self.graph, name, extended=not self.here)


def baseline(draft: Draft) -> Draft:
    """The held-out recordings through the fp32 graphs.

    Raises:
        ExportError: they overflow, where the model does not.
    """
    if draft.original is not None:
        return draft
    original = outputs(draft, {}, None)
    if fault := _not_finite(original):
        raise ExportError(f"fp32 on ONNX Runtime: {fault}, where the model does not")
    return replace(draft, original=original)


def measure(draft: Draft, progress: Progress) -> Draft:
    """Each variant in place of fp32, the rest fp32: its error on the held-out recordings, its speed here."""
    draft = baseline(draft)
    graphs, components = given(draft.graphs), given(draft.components)
    progress.stage("measure error and speed", len(graphs) + len(components))
    heldout = HeldOut(draft)
    errors: dict[Tried, ErrorFigures] = {}
    faults: dict[Tried, str] = {}
    for name, variant in graphs:
        try:
            errors[name, variant] = heldout.error(name, placed(draft, name, variant))
        except ExportError as error:
            faults[name, variant] = str(error)
        progress.step(f"{name} {variant}")
    speeds: dict[Tried, SpeedFigures] = {}
    for name in components:
        # Pair by pair, as the search timed them: what it decided on is what is written.
        here = [v for n, v in errors if n == name and runs_here(v) and v != "fp32"] or ["fp32"]
        for variant in here:
            figures = speed_of(draft, name, variant, graphs[name, variant])
            speeds |= {(name, key): value for key, value in figures.items()}
        progress.step(f"speed of {name}")
    return replace(draft, errors=errors, speeds=speeds, faults={**draft.faults, **faults})


def placed(draft: Draft, name: str, variant: str) -> Placed:
    """A variant that was made."""
    return Placed(given(draft.graphs)[name, variant], runs_here(variant))


def speed_of(draft: Draft, name: str, variant: str, graph: bytes) -> dict[str, SpeedFigures]:
    """A variant beside fp32, or fp32 alone.

    Raises:
        ExportError: it does not run.
    """
    pair = {"fp32": given(draft.fp32)[name], variant: graph}
    try:
        return measure_speed(pair, given(draft.reference).inputs[name][0], SpeedCache(cache_folder() / "speed"))
    except ExportError as error:
        raise ExportError(f"the speed of '{name}' could not be measured: {error}") from error


class HeldOut:
    """The held-out recordings, for variants to be judged on; what was found out is kept for the next export.

    Args:
        draft: with fp32's own outputs (``baseline``).
    """

    def __init__(self, draft: Draft) -> None:
        self._draft, self._original = draft, given(draft.original)
        self._metrics = load_metrics(draft.loaded.recipe)
        self._store, self._everything = Store("errors"), self._digest()

    def error(self, name: str, candidate: Placed) -> ErrorFigures:
        """A component's error with a graph in its place, the rest fp32.

        Raises:
            ExportError: it gives NaN or infinite values.
        """
        own = hashlib.sha256(candidate.graph).hexdigest()
        key = key_of(["error", self._everything, name, own, candidate.here])
        if (known := self._store.load(key, ErrorFigures)) is not None:
            return known
        is_fp32 = candidate.graph == given(self._draft.fp32)[name]
        figures = self.judged(name, None if is_fp32 else candidate.runner(name))
        self._store.store(key, figures)
        return figures

    def judged(self, name: str, runner: Runner | None) -> ErrorFigures:
        """As ``error``, of whatever computes the component; None is fp32, which has been run. Nothing is kept.

        Raises:
            ExportError: it gives NaN or infinite values.
        """
        draft, reference = self._draft, given(self._draft.reference)
        got = self._original if runner is None else outputs(draft, {name: runner}, self._original)
        if fault := _not_finite(got):
            raise ExportError(fault)
        own = [f"{name}.{key}" for key in given(draft.components)[name].outputs]
        metrics = _metrics_of(draft, name, self._metrics)
        figures = error_figures(reference.outputs, got, own, _judges(draft, name), reference.truth, metrics=metrics)
        fed = {key: self._sqnr_db(got, key) for key in self._fed(name)}
        return msgspec.structs.replace(figures, fed_sqnr_db=fed)

    def _fed(self, name: str) -> list[str]:
        """Outputs of the components that it feeds."""
        components = given(self._draft.components)
        return [f"{n}.{key}" for n in downstream(components, [name]) if n != name for key in components[n].outputs]

    def _sqnr_db(self, got: Sequence[Arrays], key: str) -> float:
        return error_figures(given(self._draft.reference).outputs, got, [key], [], []).sqnr_db

    def _digest(self) -> str:
        """Everything that figures depend on besides the candidate."""
        draft, reference = self._draft, given(self._draft.reference)
        components = {n: msgspec.structs.replace(c, variants={}) for n, c in given(draft.components).items()}
        seen = hashlib.sha256()
        for values in (*reference.outputs, *self._original):
            for key, value in values.items():
                seen.update(f"{key} {value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        return key_of(
            [
                given(draft.data).heldout.hexdigest(),
                components,
                {name: hashlib.sha256(graph).hexdigest() for name, graph in given(draft.fp32).items()},
                list(reference.truth),
                {name: hashlib.sha256(data).hexdigest() for name, data in tokenizer_files(draft.loaded).items()},
                {name: [m.reference, m.source_sha256()] for name, m in self._metrics.items()},
                draft.loaded.recipe.default_heads,
                seen.hexdigest(),
            ]
        )


def _not_finite(got: Sequence[Arrays]) -> str | None:
    """Half precision overflows: no figure can be taken of that."""
    numbers = ((key, value) for values in got for key, value in values.items() if value.dtype.kind != "U")
    for key in (key for key, value in numbers if not np.isfinite(value).all()):
        return f"it gives NaN or infinite values in '{key}' on the held-out recordings"
    return None


def outputs(draft: Draft, replaced: Mapping[str, Runner], original: Sequence[Arrays] | None) -> list[Arrays]:
    """The held-out recordings through the graphs; what no replaced component feeds is taken from ``original``.

    Args:
        draft: with data and fp32 graphs.
        replaced: what stands in fp32's place, by component.
        original: the outputs without any; None runs everything.
    """
    components, fp32 = given(draft.components), given(draft.fp32)
    changed = downstream(components, replaced)
    runners = {
        name: replaced[name] if name in replaced else Placed(fp32[name], here=True).runner(name)
        for name in (components if original is None else changed)
    }
    chain = Chain(components, tokenizer_files(draft.loaded))
    same = same_recordings(draft.loaded, draft.loaded.data.heldout, given(draft.data).heldout.entries)
    found = []
    for index, recording in enumerate(same):
        known = {} if original is None else _unchanged(original[index], changed)
        found.append(chain.run(recording, runners, known))
    return found


def _unchanged(outputs: Arrays, changed: Sequence[str]) -> Arrays:
    return {key: value for key, value in outputs.items() if key.partition(".")[0] not in changed}


def _heads(draft: Draft, name: str) -> list[str]:
    """What to judge a component by: itself, or those of the default heads that it feeds."""
    components, answering = given(draft.components), draft.loaded.recipe.answering()
    fed = [n for n in downstream(components, {name: ""}) if n in answering]
    preferred = [n for n in fed if n == name or (name not in fed and n in draft.loaded.recipe.heads())]
    return preferred or fed


def _judges(draft: Draft, name: str) -> list[str]:
    """The classifying outputs, and the texts, of the heads to judge a component by."""
    return [
        f"{head}.{key}"
        for head in _heads(draft, name)
        for key, output in given(draft.components)[head].outputs.items()
        if isinstance(output.task, Classification | Tokens)
    ]


def _metrics_of(draft: Draft, name: str, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    return {head: metrics[head] for head in _heads(draft, name) if head in metrics}


def fused_figures(draft: Draft, quantized: Mapping[str, str]) -> list[Fused]:
    """Every head with all these variants in place at once, against all fp32."""
    reference, components, original = given(draft.reference), given(draft.components), given(draft.original)
    runners = {name: placed(draft, name, variant).runner(name) for name, variant in quantized.items()}
    got = outputs(draft, runners, original) if runners else original
    metrics = load_metrics(draft.loaded.recipe)
    fused = []
    for name, component in components.items():
        if not isinstance(component, Encoder):
            own = [f"{name}.{key}" for key in component.outputs]
            judges = [key for key in _judges(draft, name) if key in own]
            mine = {head: metric for head, metric in metrics.items() if head == name}
            figures = [
                error_figures(reference.outputs, outputs, own, judges, reference.truth, metrics=mine)
                for outputs in (got, original)
            ]
            fused.append(Fused(name, *figures))
    return fused
