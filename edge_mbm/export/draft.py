"""What an export knows so far: each stage fills in its part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from edge_mbm.calibration import DataDigest, TensorRanges
from edge_mbm.export.chain import Arrays
from edge_mbm.export.origin import Origin
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.recordings import Recording
from edge_mbm.export.skeleton import Skeleton
from edge_mbm.export.targets import Kind, Target, target, variants_for
from edge_mbm.spec import CalibrationRecord, Decision, ErrorFigures, ParserCheck, SpeedFigures

__all__ = [
    "Calibrated",
    "Candidate",
    "Checked",
    "Data",
    "Draft",
    "Finding",
    "Fused",
    "GroupEffect",
    "LayerError",
    "Recovery",
    "Reference",
    "Searched",
    "Tried",
    "given",
]

T = TypeVar("T")
Tried: TypeAlias = tuple[str, str]
"""(component, variant), "fp32" among them."""


@dataclass(frozen=True)
class Data:
    """Which recordings there are: whoever reads them again holds them against these."""

    calibration: DataDigest
    heldout: DataDigest


@dataclass(frozen=True)
class Reference:
    """What the framework makes of the held-out recordings, and what its components were given on the way."""

    outputs: Sequence[Arrays]
    """Per recording, "component.output" -> array; without those whose modalities it lacks."""
    truth: Sequence[int | str | None]
    """Labels; None where no one has told."""
    inputs: Mapping[str, Sequence[Arrays]]
    """Per component, the last call's inputs on a few recordings: real data for parity and timing."""
    golden: Sequence[tuple[Recording, Arrays]]
    """The recordings that travel in the bundle, with their outputs."""


@dataclass(frozen=True)
class Calibrated:
    """The folded graphs, the values seen in them, and on what."""

    graphs: Mapping[str, bytes]
    ranges: Mapping[str, TensorRanges]
    record: CalibrationRecord
    calls: Mapping[str, Sequence[Arrays]]
    """Per component, a bounded number of the calls that calibration made, spread over its recordings."""
    keys: Mapping[str, str]
    """Per component, what ranges and calls depend on, digested."""


@dataclass(frozen=True)
class Candidate:
    """One quantized graph that the search tried, and what came of it."""

    preset: str
    """Its key in ``quantize.PRESETS``."""
    reverted: tuple[str, ...] = ()
    """Groups of nodes that stay float."""
    tuned: bool = False
    """Whether its float weights are those of a fine-tune (``Recovery``)."""
    sqnr_db: float | None = None
    """Of the component's own outputs on calibration calls against fp32, no labels needed; the lowest of the outputs."""
    error: ErrorFigures | None = None
    """On the held-out recordings, through the heads; None where it was not worth looking."""
    speed: SpeedFigures | None = None
    """On this host; None where it is not for this host, or it was not worth timing."""
    faults: tuple[str, ...] = ()
    """Which budgets it breaks, or why it could not be made or run; empty: within budget, or not looked at."""
    float_nodes: tuple[str, ...] = ()
    """Nodes of the folded graph that the reverted groups are made of."""


@dataclass(frozen=True)
class GroupEffect:
    """What quantizing one group of nodes alone does to the component's outputs."""

    group: str
    """The name of its first weighted node, with the number of others."""
    nodes: tuple[str, ...]
    sqnr_db: float
    """Of the component's outputs with only this group quantized: the lower, the more sensitive.

    Sums of activations are never quantized alone: of them, what is less wrong with all but them quantized.
    """
    share: float
    """Of the component's multiply-accumulates: an estimate of the speed lost where it stays float, 0..1."""


@dataclass(frozen=True)
class LayerError:
    """How far a tensor of the quantized graph is from the float graph's, on calibration calls."""

    node: str
    op: str
    sqnr_db: float


@dataclass(frozen=True)
class Recovery:
    """A fine-tune by distillation from the float model, and what it cost."""

    steps: int
    seconds: float
    """Wall time of the fine-tune on the host that did it."""
    host: str
    before_db: float
    """SQNR of the best preset before it."""
    after_db: float
    """And after it."""


@dataclass(frozen=True)
class Searched:
    """The search for one component's quantized variant: everything that was tried, and what was taken."""

    candidates: Sequence[Candidate]
    """In the order in which they were tried."""
    chosen: Candidate | None
    """Of ``candidates``; None if none could be made. It may break the budget: then nothing was within."""
    evaluations: int
    """Graphs made and looked at, those of the sensitivity analysis among them."""
    groups: Sequence[GroupEffect] = ()
    """Empty where a preset alone is within budget."""
    layers: Sequence[LayerError] = ()
    """Of the chosen candidate, in running order."""
    recovery: Recovery | None = None
    ended: str = ""
    """Why it ended before it had tried all that it would, or why no fine-tune was done; empty: neither."""

    def front(self) -> tuple[Candidate, ...]:
        """The Pareto front, fastest first: candidates than which none has both a higher SQNR and more speed.

        Where speed is unmeasured fewer float nodes count as faster.
        """
        known = [c for c in self.candidates if c.sqnr_db is not None]
        best, front = -math.inf, list[Candidate]()
        for candidate in sorted(known, key=lambda c: (-_pace(c), -(c.sqnr_db or 0.0))):
            if candidate.sqnr_db is not None and candidate.sqnr_db > best:
                best = candidate.sqnr_db
                front.append(candidate)
        return tuple(front)

    def first_bad_layer(self, least_db: float = 20.0) -> LayerError | None:
        """The first layer whose error is above a hundredth of its signal's power (20 dB), or another share."""
        return next((layer for layer in self.layers if layer.sqnr_db < least_db), None)


def _pace(candidate: Candidate) -> float:
    return candidate.speed.speedup if candidate.speed else -float(len(candidate.float_nodes))


@dataclass(frozen=True)
class Finding:
    """What the linter has to say of a graph and a target."""

    target: str
    rule: str
    severity: str
    """ "error": the target would refuse it or compute it wrongly; "warning": it costs speed."""
    node: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Checked:
    """A variant held against the targets that take it."""

    findings: Sequence[Finding] = ()
    parsed: tuple[ParserCheck, ...] = ()
    unparsed: str = ""
    """Why no parser of the target has seen it."""


@dataclass(frozen=True)
class Fused:
    """A head's accuracy and agreement with what this kind of machine runs, all chosen variants together."""

    head: str
    error: ErrorFigures
    original: ErrorFigures


@dataclass(frozen=True)
class Draft:
    """An export in the making. A field that no stage has filled yet is None."""

    loaded: LoadedRecipe
    origin: Origin
    components: Mapping[str, Skeleton] | None = None
    """In running order."""
    data: Data | None = None
    reference: Reference | None = None
    exporters: Mapping[str, str] | None = None
    fp32: Mapping[str, bytes] | None = None
    calibrated: Calibrated | None = None
    graphs: Mapping[Tried, bytes] | None = None
    """Every variant that could be made, fp32 among them."""
    faults: Mapping[Tried, str] = field(default_factory=dict)
    """Why a variant could not be made or run."""
    errors: Mapping[Tried, ErrorFigures] | None = None
    speeds: Mapping[Tried, SpeedFigures] | None = None
    decisions: Mapping[Tried, Decision] | None = None
    fused: Sequence[Fused] | None = None
    original: Sequence[Arrays] | None = None
    """The held-out recordings through the fp32 graphs, as ``Reference.outputs``."""
    search: Mapping[Tried, Searched] | None = None
    """Of the quantized variants."""
    checks: Mapping[Tried, Checked] | None = None
    """Of every variant but fp32 that could be made."""
    made_by: Mapping[Tried, str] = field(default_factory=dict)
    """Which quantizer or converter made a variant, and what it left in float."""

    def kind(self, component: str) -> Kind:
        """What kind of component it is, as in the manifest."""
        kind: Kind = given(self.components)[component].__struct_config__.tag  # type: ignore[assignment] # as it says
        return kind

    def variants(self, component: str) -> tuple[str, ...]:
        """Wanted of a component besides fp32: what the recipe's targets take of its kind."""
        return variants_for(self.loaded.recipe.targets, self.kind(component))

    def takers(self, component: str, variant: str) -> tuple[Target, ...]:
        """The recipe's targets that a component's variant is for."""
        named = (target(name) for name in self.loaded.recipe.targets)
        return tuple(t for t in named if variant in t.variants.get(self.kind(component), ()))


def given(part: T | None) -> T:
    """A part of the draft that the stage's ``requires`` has checked to be there."""
    assert part is not None
    return part
