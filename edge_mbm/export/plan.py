"""What an export would do, found out without doing it: components, shapes, variants, and about how long it takes."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from edge_mbm.export import quantize as quantizing
from edge_mbm.export.chain import Arrays, Chain, Runner
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.origin import Origin
from edge_mbm.export.progress import Silent
from edge_mbm.export.recipe import LoadedRecipe, load_recipe
from edge_mbm.export.recordings import importable, recordings
from edge_mbm.export.recover import module_of, why_not
from edge_mbm.export.refer import describe, origin_runners
from edge_mbm.export.tokenizers import tokenizer_files
from edge_mbm.export.variants import DIALECTS, Form
from edge_mbm.spec import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Plan", "PlannedComponent", "PlannedVariant", "plan"]

# Rough costs, seconds, of what a dry run does not do: seen on two shared x86 cores with components of 1 to 25 million
# parameters. They give the order of magnitude.
_TRACE, _TRACE_PER_PARAMETER = 5.0, 4e-7
_PROBE = 1.0
_QUANTIZE, _QUANTIZE_PER_PARAMETER = 0.5, 2e-7
_CALLS_SEEN = 32  # by a graph that is tried: most are told apart by a few calls
_TIMING = 2.5
_PARSER = 1.5
_JUDGED_SHARE = 0.4  # of a search's graphs go through the held-out recordings
_ONNX_SPEEDUP = 0.7  # a graph takes less than its module

_ACTIVATIONS: Mapping[Form | None, tuple[str, ...]] = {
    "x86": ("static", "dynamic"),
    "arm": ("static", "dynamic"),
    "tensorrt": ("static",),
    None: (),
}


class PlannedVariant(msgspec.Struct, frozen=True, kw_only=True):
    """One variant to make."""

    targets: tuple[str, ...]
    """That it is for; empty: any."""
    precision: str
    presets: tuple[str, ...] = ()
    """To be tried; then mixes of the best of them with float."""
    bytes: int | None = None
    """Of the graph, estimated from the number of parameters; None where that is not known."""
    timed_here: bool = False
    """Whether this machine can measure its speed."""


class PlannedComponent(msgspec.Struct, frozen=True, kw_only=True):
    """One component as the recipe and one run on zeros describe it."""

    kind: str
    inputs: dict[str, str]
    """Name -> "float32[batch, 64]"."""
    outputs: dict[str, str]
    states: dict[str, str]
    parameters: int | None
    call_ms: float | None
    """Of one call of the model itself; None where no recording that was looked at reaches it."""
    variants: dict[str, PlannedVariant]
    recover: str = ""
    """What is to be done where no variant holds its budget."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an export of a recipe would do."""

    name: str
    targets: tuple[str, ...]
    components: dict[str, PlannedComponent]
    recordings: dict[str, int]
    """Purpose -> how many at most."""
    evaluations: int
    """Graphs that the search for each quantized variant may try."""
    seconds: dict[str, float]
    """Stage -> estimate for this machine, nothing in the cache; of the search it is the most that it may take."""

    @property
    def total_seconds(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


def plan(recipe: str | os.PathLike[str], targets: Sequence[str] = ()) -> Plan:
    """Describe the components and time the model on one recording; nothing is traced, calibrated or written.

    The model and recordings that the recipe names are the user's own code, and are run.

    Args:
        recipe: a TOML file, see ``Recipe``.
        targets: machines to make variants for, besides the recipe's own.

    Raises:
        RecipeError, CalibrationError: what the user gave is not right.
    """
    loaded = load_recipe(Path(recipe), targets)
    with importable(loaded.python_path()):
        draft = describe(Draft(loaded, Origin(loaded)), Silent())
        reading, calls = _timed(draft)
        components = {name: _component(draft, name, calls) for name in given(draft.components)}
    data = loaded.data
    return Plan(
        name=loaded.recipe.name,
        targets=loaded.recipe.targets,
        components=components,
        recordings={split: getattr(data, split).samples for split in ("calibration", "heldout", "golden")},
        evaluations=loaded.recipe.search.evaluations,
        seconds={stage: round(value, 1) for stage, value in _seconds(loaded, components, reading).items()},
    )


class _Reading(NamedTuple):
    """What it takes to get at recordings, seconds."""

    begin: float
    """Before the first: a data set may be read, or made."""
    each: float

    def all(self, count: int) -> float:
        """One pass."""
        return self.begin + count * self.each


def _timed(draft: Draft) -> tuple[_Reading, dict[str, list[float]]]:
    """What recordings take, and the seconds of every call that one makes in each component."""
    chain, calls = Chain(given(draft.components), tokenizer_files(draft.loaded)), dict[str, list[float]]()
    times: list[float] = []
    started = time.perf_counter()
    for recording in itertools.islice(recordings(draft.loaded, draft.loaded.data.heldout), 2):
        times.append(time.perf_counter() - started)
        calls = {name: [] for name in given(draft.components)}  # the first time is to warm up
        chain.run(recording, {n: _watched(runner, calls[n]) for n, runner in origin_runners(draft).items()})
        started = time.perf_counter()
    return _Reading(max(0.0, times[0] - times[-1]), times[-1]), calls


def _watched(runner: Runner, times: list[float]) -> Runner:
    def run(inputs: Arrays) -> Mapping[str, NDArray[Any]]:
        started = time.perf_counter()
        outputs = runner(inputs)
        times.append(time.perf_counter() - started)
        return outputs

    return run


def _component(draft: Draft, name: str, calls: Mapping[str, list[float]]) -> PlannedComponent:
    component = given(draft.components)[name]
    module, times = module_of(draft, name), calls.get(name, [])
    sizes = None if module is None else [(p.numel(), p.dim()) for p in module.parameters()]
    fp32 = PlannedVariant(targets=(), precision="fp32", bytes=_bytes(sizes, "fp32"), timed_here=True)
    variants = {variant: _variant(draft, name, variant, sizes) for variant in draft.variants(name)}
    return PlannedComponent(
        kind=draft.kind(name),
        inputs={key: _shape(value.tensor) for key, value in component.inputs.items()},
        outputs={key: _shape(value.tensor) for key, value in component.outputs.items()},
        states={state.input: _shape(state.tensor) for state in component.states},
        parameters=None if sizes is None else sum(count for count, _ in sizes),
        call_ms=round(1e3 * min(times), 3) if times else None,
        variants={"fp32": fp32, **variants},
        recover="distill" if why_not(draft, name) is None else "",
    )


def _variant(draft: Draft, name: str, variant: str, sizes: list[tuple[int, int]] | None) -> PlannedVariant:
    dialect = DIALECTS[variant]
    # Which of them a graph has a use for shows only in the graph.
    wanted = _ACTIVATIONS[dialect.form]
    return PlannedVariant(
        targets=tuple(target.name for target in draft.takers(name, variant)),
        precision=dialect.precision,
        presets=tuple(key for key, preset in quantizing.PRESETS.items() if preset.activations in wanted),
        bytes=_bytes(sizes, dialect.precision),
        timed_here=dialect.runs_here,
    )


def _bytes(sizes: list[tuple[int, int]] | None, precision: str) -> int | None:
    """int8 keeps biases and norms, which are no matrices, in 32 bits."""
    if sizes is None:
        return None
    per = {"fp32": (4, 4), "fp16": (2, 2), "int8": (1, 4)}[precision]
    return sum(count * per[0 if axes >= 2 else 1] for count, axes in sizes)


def _shape(tensor: TensorSpec) -> str:
    return f"{tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _seconds(loaded: LoadedRecipe, components: Mapping[str, PlannedComponent], reading: _Reading) -> dict[str, float]:
    data = loaded.data
    model_s = sum((c.call_ms or 0.0) / 1e3 for c in components.values())
    graphs = [(c, key, v) for c in components.values() for key, v in c.variants.items() if key != "fp32"]
    heldout, calibration, golden = data.heldout.samples, data.calibration.samples, data.golden.samples
    return {
        "look at the recordings": reading.all(calibration) + reading.all(heldout),
        "run the model": reading.all(heldout) + reading.all(golden) + (heldout + golden) * model_s,
        "trace": sum(_TRACE + _TRACE_PER_PARAMETER * (c.parameters or 0) + _PROBE for c in components.values()),
        "calibrate": reading.all(calibration) + calibration * 3 * model_s,
        "search": sum(_search(loaded, c, v, reading) for c, _, v in graphs if v.presets),
        "convert and check": sum(_PROBE + _PARSER * (DIALECTS[key].family == "tensorrt") for _, key, _ in graphs),
        "measure": sum(_judged(loaded, c, v, reading) for c, _, v in graphs),
    }


def _search(loaded: LoadedRecipe, component: PlannedComponent, variant: PlannedVariant, reading: _Reading) -> float:
    most = loaded.recipe.search.evaluations * (2 if component.recover else 1)
    quantize = _QUANTIZE + _QUANTIZE_PER_PARAMETER * (component.parameters or 0)
    judged = _JUDGED_SHARE * _judged(loaded, component, variant, reading)
    return most * (quantize + _PROBE + _CALLS_SEEN * _graph_s(component) + judged)


def _judged(loaded: LoadedRecipe, component: PlannedComponent, variant: PlannedVariant, reading: _Reading) -> float:
    heldout = loaded.data.heldout.samples
    return reading.all(heldout) + heldout * _graph_s(component) + _TIMING * variant.timed_here


def _graph_s(component: PlannedComponent) -> float:
    return _ONNX_SPEEDUP * (component.call_ms or 0.0) / 1e3
