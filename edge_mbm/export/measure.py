"""What each variant costs: its error on held-out recordings, through the heads that it feeds, and its speed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edge_mbm.errors import ExportError
from edge_mbm.export.cache import cache_folder
from edge_mbm.export.chain import Arrays, Chain, GraphRunner, Runner, downstream
from edge_mbm.export.draft import Draft, Fused, Tried, given
from edge_mbm.export.figures import error_figures
from edge_mbm.export.progress import Progress
from edge_mbm.export.recordings import same_recordings
from edge_mbm.export.speed import SpeedCache, measure_speed
from edge_mbm.export.variants import DIALECTS
from edge_mbm.spec import Classification, ErrorFigures, Head, SpeedFigures

__all__ = ["fused_figures", "measure", "outputs"]


def measure(draft: Draft, progress: Progress) -> Draft:
    """Each variant in place of fp32, the rest fp32: its error on the held-out recordings, its speed here."""
    graphs, reference = given(draft.graphs), given(draft.reference)
    progress.stage("measure error and speed", len(graphs) + len(given(draft.components)))
    errors: dict[Tried, ErrorFigures] = {}
    original = outputs(draft, {}, None)
    if fault := _not_finite(original):
        raise ExportError(f"fp32 on ONNX Runtime: {fault}, where the model does not")
    faults: dict[Tried, str] = {}
    for name, variant in graphs:
        got = original if variant == "fp32" else outputs(draft, {name: variant}, original)
        if fault := _not_finite(got):
            faults[name, variant] = fault
            continue
        heads = _judges(draft, name)
        own = [f"{name}.{key}" for key in given(draft.components)[name].outputs]
        errors[name, variant] = error_figures(reference.outputs, got, own, heads, reference.truth)
        progress.step(f"{name} {variant}")
    speeds: dict[Tried, SpeedFigures] = {}
    for name in given(draft.components):
        here = {v: graphs[n, v] for n, v in errors if n == name and (v == "fp32" or DIALECTS[v].runs_here)}
        try:
            figures = measure_speed(here, reference.inputs[name][0], SpeedCache(cache_folder() / "speed"))
        except ExportError as error:
            raise ExportError(f"the speed of '{name}' could not be measured: {error}") from error
        speeds |= {(name, variant): figure for variant, figure in figures.items()}
        progress.step(f"speed of {name}")
    return replace(draft, errors=errors, speeds=speeds, faults={**draft.faults, **faults})


def _not_finite(got: Sequence[Arrays]) -> str | None:
    """Half precision overflows: no figure can be taken of that."""
    for key in (key for values in got for key, value in values.items() if not np.isfinite(value).all()):
        return f"it gives NaN or infinite values in '{key}' on the held-out recordings"
    return None


def outputs(draft: Draft, variants: Mapping[str, str], original: Sequence[Arrays] | None) -> list[Arrays]:
    """The held-out recordings through the graphs; what no changed component feeds is taken from ``original``."""
    components, graphs = given(draft.components), given(draft.graphs)
    changed = downstream(components, variants)
    runners: dict[str, Runner] = {}
    for name in components if original is None else changed:
        variant = variants.get(name, "fp32")
        extended = variant != "fp32" and not DIALECTS[variant].runs_here
        runners[name] = GraphRunner(graphs[name, variant], name, extended=extended)
    chain = Chain(components)
    same = same_recordings(draft.loaded, draft.loaded.data.heldout, given(draft.data).heldout.entries)
    found = []
    for index, recording in enumerate(same):
        known = {} if original is None else _unchanged(original[index], changed)
        found.append(chain.run(recording, runners, known))
    return found


def _unchanged(outputs: Arrays, changed: Sequence[str]) -> Arrays:
    return {key: value for key, value in outputs.items() if key.partition(".")[0] not in changed}


def _judges(draft: Draft, name: str) -> list[str]:
    """Classifying outputs to judge a component by: a head's own, or those of the default heads that it feeds."""
    components = given(draft.components)
    fed = [n for n in downstream(components, {name: ""}) if isinstance(components[n], Head)]
    preferred = [n for n in fed if n == name or (name not in fed and n in draft.loaded.recipe.heads())]
    return [
        f"{head}.{key}"
        for head in preferred or fed
        for key, output in components[head].outputs.items()
        if isinstance(output.task, Classification)
    ]


def fused_figures(draft: Draft, quantized: Mapping[str, str], original: Sequence[Arrays]) -> list[Fused]:
    """Every head with all these variants in place at once, against all fp32."""
    reference, components = given(draft.reference), given(draft.components)
    got = outputs(draft, quantized, original) if quantized else original
    fused = []
    for name, component in components.items():
        if isinstance(component, Head):
            own = [f"{name}.{key}" for key in component.outputs]
            judges = [key for key in _judges(draft, name) if key in own]
            figures = [
                error_figures(reference.outputs, outputs, own, judges, reference.truth) for outputs in (got, original)
            ]
            fused.append(Fused(name, *figures))
    return fused
