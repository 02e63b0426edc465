"""Everything that an export measured and decided, as one record: ``report.json``.

No clock, no host but those of the speeds, and nothing that an equal second export would find otherwise: times of the
stages and of fine-tunes are told while they run, not kept here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from edge_mbm.calibration import CalibrationMethod, Histogram, TensorRanges
from edge_mbm.export.draft import (
    Candidate,
    Draft,
    Finding,
    GroupEffect,
    LayerError,
    Recovery,
    Searched,
    Tried,
    given,
)
from edge_mbm.export.recipe import Budget
from edge_mbm.export.targets import Target, target
from edge_mbm.spec import (
    CalibrationRecord,
    Decision,
    ErrorFigures,
    Manifest,
    ParserCheck,
    Record,
    SpeedFigures,
    Variant,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "REPORT_VERSION",
    "CandidateEvidence",
    "ComponentEvidence",
    "Evidence",
    "HeadEvidence",
    "HistogramEvidence",
    "RecoveryEvidence",
    "SearchEvidence",
    "TargetEvidence",
    "TensorEvidence",
    "VariantEvidence",
    "decode_evidence",
    "encode_evidence",
    "gather",
]

REPORT_VERSION = "1.0"
_BINS = 32
"""Of a histogram in the report; calibration counts in thousands."""


class HistogramEvidence(Record, frozen=True, kw_only=True):
    """Counts in bins of one width; one edge is at zero if the bins reach it."""

    start: float
    width: float
    counts: tuple[int, ...]


class TensorEvidence(Record, frozen=True, kw_only=True):
    """One activation of the folded graph on the calibration recordings."""

    tensor: str
    low: float
    """Lower end of the range by the recipe's method."""
    high: float
    minimum: float
    """Least value that was seen."""
    maximum: float
    all_zero: bool = False
    """Zero in every recording: its range means nothing."""
    histogram: HistogramEvidence


class CandidateEvidence(Record, frozen=True, kw_only=True):
    """One quantized graph that the search tried."""

    preset: str
    reverted: tuple[str, ...] = ()
    """Groups of nodes left in float."""
    float_nodes: int = 0
    """How many nodes these groups have."""
    tuned: bool = False
    """Made from weights that were fine-tuned."""
    sqnr_db: float | None = None
    """Of the component's own outputs on calibration calls."""
    error: ErrorFigures | None = None
    """On held-out recordings; None where it was not worth looking."""
    speed: SpeedFigures | None = None
    faults: tuple[str, ...] = ()
    """Which budgets it breaks, or why it could not be made."""


class RecoveryEvidence(Record, frozen=True, kw_only=True):
    """A fine-tune by distillation."""

    steps: int
    before_db: float
    after_db: float


class SearchEvidence(Record, frozen=True, kw_only=True):
    """The search for one variant: everything that was tried, in that order."""

    candidates: tuple[CandidateEvidence, ...]
    front: tuple[int, ...]
    """Indices of ``candidates`` that no other beats in both error and speed, fastest first."""
    chosen: int | None
    evaluations: int
    groups: tuple[GroupEffect, ...] = ()
    layers: tuple[LayerError, ...] = ()
    """Of the chosen candidate, in running order."""
    first_bad_layer: LayerError | None = None
    recovery: RecoveryEvidence | None = None
    ended: str = ""
    """Why it ended early; empty: it did not."""


class VariantEvidence(Record, frozen=True, kw_only=True):
    """One variant of one component, kept or not."""

    target: Literal["any", "x86-cpu", "arm-cpu", "tensorrt"]
    precision: Literal["fp32", "fp16", "int8"]
    decision: Decision
    bytes: int | None
    """Of its graph, also where it was not kept; None where it could not be made."""
    made_by: str = ""
    error: ErrorFigures | None = None
    speed: SpeedFigures | None = None
    parsed: tuple[ParserCheck, ...] = ()
    unparsed: str = ""
    """Why no parser of the target has seen it."""
    findings: tuple[Finding, ...] = ()
    search: SearchEvidence | None = None


class ComponentEvidence(Record, frozen=True, kw_only=True):
    """One component with all its variants."""

    kind: Literal["encoder", "head", "detector", "decoder"]
    budget: Budget
    exporter: str
    """Which of torch's exporters traced it, or what made its graph."""
    variants: dict[str, VariantEvidence]
    ranges: tuple[TensorEvidence, ...]
    repairs: tuple[str, ...] = ()
    """What was changed in a graph that came as ONNX, so that it runs as the recipe describes it."""


class TargetEvidence(Record, frozen=True, kw_only=True):
    """One kind of machine that the recipe names, and what runs there."""

    title: str
    family: Literal["x86-cpu", "arm-cpu", "tensorrt"]
    runs: dict[str, str]
    """Component -> variant."""


class HeadEvidence(Record, frozen=True, kw_only=True):
    """A head against the framework, with all that the exporting machine runs, and with fp32."""

    head: str
    error: ErrorFigures
    original: ErrorFigures
    required_accuracy: float | None = None
    """By the recipe's [require]: it holds, or there would be no bundle."""


class Evidence(Record, frozen=True, kw_only=True, omit_defaults=False):
    """``report.json``."""

    format: Literal["edge-mbm-report"] = "edge-mbm-report"
    format_version: str = REPORT_VERSION
    name: str
    description: str
    heldout: str
    """The split that errors were measured on; calibration never saw it."""
    heads: tuple[HeadEvidence, ...]
    components: dict[str, ComponentEvidence]
    """In running order."""
    targets: dict[str, TargetEvidence]
    method: CalibrationMethod
    """By which ``TensorEvidence.low`` and ``high`` are drawn; a preset may use another."""
    calibration: CalibrationRecord
    recipe_sha256: str
    model_sha256: str
    versions: dict[str, str]


def encode_evidence(evidence: Evidence) -> bytes:
    """JSON in one line, keys in declaration order: equal evidence, equal bytes."""
    return msgspec.json.encode(evidence) + b"\n"


def decode_evidence(data: bytes) -> Evidence:
    """Read ``report.json``.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return msgspec.json.decode(data, type=Evidence)


def gather(draft: Draft, manifest: Manifest) -> Evidence:
    """What a finished draft knows.

    Args:
        draft: after every stage.
        manifest: of the bundle to be written, for its variants and its provenance.
    """
    data, provenance = draft.loaded.data, manifest.provenance
    assert provenance is not None, "an export always says where its bundle comes from"
    components = given(draft.components)
    return Evidence(
        name=manifest.name,
        description=manifest.description,
        heldout=data.heldout.split,
        heads=tuple(_heads(draft)),
        components={name: _component(draft, manifest, name) for name in components},
        targets={name: _target(draft, manifest, target(name)) for name in draft.loaded.recipe.targets},
        method=draft.loaded.recipe.method,
        calibration=given(draft.calibrated).record,
        recipe_sha256=provenance.recipe_sha256,
        model_sha256=provenance.model_sha256,
        versions=dict(sorted(provenance.versions.items())),
    )


def _heads(draft: Draft) -> Iterator[HeadEvidence]:
    required = draft.loaded.recipe.require.accuracy
    for fused in given(draft.fused):
        yield HeadEvidence(
            head=fused.head,
            error=fused.error,
            original=fused.original,
            required_accuracy=required.get(fused.head),
        )


# --- targets ---------------------------------------------------------------------------------------------------------


def _target(draft: Draft, manifest: Manifest, machine: Target) -> TargetEvidence:
    runs = {
        name: _choice(manifest.components[name].variants, machine, draft.kind(name)) for name in manifest.components
    }
    return TargetEvidence(title=machine.title, family=machine.family, runs=runs)


def _choice(variants: Mapping[str, Variant], machine: Target, kind: Any) -> str:
    """As the device chooses: a CPU the fastest that was measured, TensorRT the target's first that was kept."""
    kept = {key: variant for key, variant in variants.items() if variant.decision.kept}
    own = {key: v for key, v in kept.items() if v.target in ("any", machine.family)}
    if machine.family == "tensorrt":
        wanted = [key for key in machine.variants.get(kind, ()) if key in own]
        return wanted[0] if wanted else "fp32"
    return max(own, key=lambda key: _speedup(own[key]))


def _speedup(variant: Variant) -> float:
    return variant.speed.speedup if variant.speed else 1.0


# --- components and variants -----------------------------------------------------------------------------------------


def _component(draft: Draft, manifest: Manifest, name: str) -> ComponentEvidence:
    variants = manifest.components[name].variants
    ranges = given(draft.calibrated).ranges[name]
    return ComponentEvidence(
        kind=draft.kind(name),
        budget=draft.loaded.recipe.budget_of(name),
        exporter=given(draft.exporters)[name],
        variants={key: _variant(draft, (name, key), variant) for key, variant in variants.items()},
        ranges=tuple(_tensors(ranges, draft.loaded.recipe.method)),
        repairs=() if (origin := draft.origin.graph(name)) is None else origin.repaired.notes,
    )


def _variant(draft: Draft, key: Tried, variant: Variant) -> VariantEvidence:
    graph = given(draft.graphs).get(key)
    checked, searched = (draft.checks or {}).get(key), (draft.search or {}).get(key)
    return VariantEvidence(
        target=variant.target,
        precision=variant.precision,
        decision=variant.decision,
        bytes=None if graph is None else len(graph),
        made_by=draft.made_by.get(key, ""),
        error=variant.error,
        speed=variant.speed,
        parsed=checked.parsed if checked else (),
        unparsed=checked.unparsed if checked else "",
        findings=tuple(checked.findings) if checked else (),
        search=_search(searched) if searched else None,
    )


def _search(searched: Searched) -> SearchEvidence:
    candidates = list(searched.candidates)
    return SearchEvidence(
        candidates=tuple(_candidate(candidate) for candidate in candidates),
        front=tuple(candidates.index(candidate) for candidate in searched.front()),
        chosen=None if searched.chosen is None else candidates.index(searched.chosen),
        evaluations=searched.evaluations,
        groups=tuple(searched.groups),
        layers=tuple(searched.layers),
        first_bad_layer=searched.first_bad_layer(),
        recovery=_recovery(searched.recovery) if searched.recovery else None,
        ended=searched.ended,
    )


def _candidate(candidate: Candidate) -> CandidateEvidence:
    return CandidateEvidence(
        preset=candidate.preset,
        reverted=candidate.reverted,
        float_nodes=len(candidate.float_nodes),
        tuned=candidate.tuned,
        sqnr_db=candidate.sqnr_db,
        error=candidate.error,
        speed=candidate.speed,
        faults=candidate.faults,
    )


def _recovery(recovery: Recovery) -> RecoveryEvidence:
    return RecoveryEvidence(steps=recovery.steps, before_db=recovery.before_db, after_db=recovery.after_db)


# --- calibration -----------------------------------------------------------------------------------------------------


def _tensors(ranges: TensorRanges, method: CalibrationMethod) -> Iterator[TensorEvidence]:
    asleep = set(ranges.all_zero)
    by_method = ranges.ranges(method)
    for name, histogram in ranges.histograms.items():
        (low, high), (minimum, maximum) = by_method[name], histogram.minmax()
        yield TensorEvidence(
            tensor=name,
            low=low,
            high=high,
            minimum=minimum,
            maximum=maximum,
            all_zero=name in asleep,
            histogram=_coarse(histogram),
        )


def _coarse(histogram: Histogram) -> HistogramEvidence:
    """The same counts in at most 32 bins, by joining neighbours from zero outwards."""
    counts, zero = histogram.counts, len(histogram.counts) // 2
    used = np.flatnonzero(counts)
    first, last = int(used[0]) - zero, int(used[-1]) - zero
    shift = next(s for s in range(zero.bit_length() + 1) if (last >> s) - (first >> s) < _BINS)
    joined = _joined(counts[used[0] : used[-1] + 1], first, shift)
    width = histogram.bin_width * 2.0**shift
    return HistogramEvidence(start=(first >> shift) * width, width=width, counts=tuple(joined.tolist()))


def _joined(counts: NDArray[np.int64], first: int, shift: int) -> NDArray[np.int64]:
    """Counts of the bins from ``first`` on, added up where ``bin >> shift`` is the same."""
    places = (np.arange(first, first + len(counts)) >> shift) - (first >> shift)
    return np.bincount(places, weights=counts).astype(np.int64)
