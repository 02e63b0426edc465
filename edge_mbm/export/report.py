"""The report that travels in the bundle: a page for people, and the same as data."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge_mbm.errors import MissingDependencyError
from edge_mbm.export import plots
from edge_mbm.export.draft import Draft
from edge_mbm.export.evidence import (
    ComponentEvidence,
    Evidence,
    TargetEvidence,
    TensorEvidence,
    VariantEvidence,
    encode_evidence,
    gather,
)
from edge_mbm.spec import Manifest

__all__ = ["REPORT_DATA", "REPORT_PAGE", "page", "report"]

REPORT_PAGE = "report.html"
REPORT_DATA = "report.json"
_TEMPLATE = "report.html.j2"
_LOWEST = 8
"""Layers, groups and tensors in a table; the data has all."""


def report(draft: Draft, manifest: Manifest) -> dict[str, bytes]:
    """Both files, by their path in the bundle.

    Args:
        draft: after every stage.
        manifest: of the bundle to be written; its ``files`` may still be empty.

    Raises:
        MissingDependencyError: matplotlib or Jinja is not installed.
    """
    evidence = gather(draft, manifest)
    return {REPORT_DATA: encode_evidence(evidence), REPORT_PAGE: page(evidence).encode()}


def page(evidence: Evidence) -> str:
    """One HTML document that needs nothing else: no script, no font, no picture from elsewhere.

    Whatever a recipe or a stranger's graph named is escaped. Equal evidence gives equal text.

    Raises:
        MissingDependencyError: matplotlib or Jinja is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - only an export needs it
        from markupsafe import Markup  # noqa: PLC0415 - Jinja's own
    except ImportError as absent:
        raise MissingDependencyError("jinja2", "the report", "pip install 'edge-mbm[export]'") from absent
    source = importlib.resources.files("edge_mbm.export").joinpath(_TEMPLATE).read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "size": _size, "short": plots.short}
    return environment.from_string(source).render(
        e=evidence,
        matters=matters(evidence),
        kept=sum(v.decision.kept for v in _variants(evidence)),
        tried=sum(1 for _ in _variants(evidence)),
        totals={name: _total(evidence, target) for name, target in evidence.targets.items()},
        hosts=sorted({v.speed.host for v in _variants(evidence) if v.speed}),
        drawn={name: _drawn(name, component, Markup) for name, component in evidence.components.items()},
        fused=Markup(plots.plot_fused(evidence.heads)) if evidence.heads else None,  # noqa: S704
        bad_layer_db=plots.BAD_LAYER_DB,
    )


def _variants(evidence: Evidence) -> Iterator[VariantEvidence]:
    for component in evidence.components.values():
        yield from component.variants.values()


def _number(value: float | None, digits: int = 3, unit: str = "") -> str:
    return "\u2013" if value is None else f"{value:,.{digits}f}{unit}"


def _size(count: int | None) -> str:
    if count is None:
        return "\u2013"
    return f"{count / 1024:,.0f} KiB" if count < 10 << 20 else f"{count / (1 << 20):,.1f} MiB"


# --- what it costs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Total:
    """All components of a bundle on one target, against all fp32."""

    bytes: int
    fp32_bytes: int
    speedup: float | None
    """Of one call of each component; None where not everything that runs there was measured."""


def _total(evidence: Evidence, target: TargetEvidence) -> Total:
    pairs = [
        (evidence.components[n].variants[v], evidence.components[n].variants["fp32"]) for n, v in target.runs.items()
    ]
    is_host = all(chosen.speed is not None for chosen, _ in pairs) and target.family == _host_family(evidence)
    times = [sum(side.speed.median_us for side in sides if side.speed) for sides in zip(*pairs, strict=True)]
    return Total(
        bytes=sum(chosen.bytes or 0 for chosen, _ in pairs),
        fp32_bytes=sum(original.bytes or 0 for _, original in pairs),
        speedup=times[1] / times[0] if is_host and times[0] else None,
    )


def _host_family(evidence: Evidence) -> str | None:
    """Of the machine that exported: the only one whose own variants it could time."""
    return next((v.target for v in _variants(evidence) if v.target != "any" and v.speed is not None), None)


# --- what needs a look -----------------------------------------------------------------------------------------------

Weight = Literal["error", "lost", "note"]
_ORDER: tuple[Weight, ...] = ("error", "lost", "note")


@dataclass(frozen=True)
class Matter:
    """Something that failed or deserves a look, and what to do."""

    weight: Weight
    """"error": refused by a target; "lost": a variant that does not ship; "note": worth knowing."""
    where: tuple[str, ...]
    what: str
    remedy: str


def matters(evidence: Evidence) -> list[Matter]:
    """Everything that is not as wished, the worst first; what is said of several places is said once."""
    places: dict[tuple[Weight, str, str], list[str]] = {}
    for name, component in evidence.components.items():
        for weight, where, what, remedy in _matters_of(name, component):
            places.setdefault((weight, what, remedy), []).append(where)
    found = [
        Matter(weight, tuple(dict.fromkeys(where)), what, remedy) for (weight, what, remedy), where in places.items()
    ]
    return sorted(found, key=lambda matter: _ORDER.index(matter.weight))


_Said = tuple[Weight, str, str, str]


def _matters_of(name: str, component: ComponentEvidence) -> Iterator[_Said]:
    for key, variant in component.variants.items():
        said = _matters_of_shipped(variant) if variant.decision.kept else _matters_of_lost(name, component, variant)
        yield from ((weight, f"{name} {key}", what, remedy) for weight, what, remedy in said)
        if variant.search is not None and variant.search.ended:
            yield "note", f"{name} {key}", f"the search ended early: {variant.search.ended}", "give it more in [search]"
    asleep = [tensor.tensor for tensor in component.ranges if tensor.all_zero]
    if asleep:
        named = ", ".join(asleep[:_LOWEST]) + (f" and {len(asleep) - _LOWEST} more" if len(asleep) > _LOWEST else "")
        what = f"zero in every recording, so that their range means nothing: {named}"
        yield "note", name, what, "add recordings to the calibration set that wake them"


def _matters_of_shipped(variant: VariantEvidence) -> Iterator[tuple[Weight, str, str]]:
    for check in variant.parsed:
        if not check.accepted:
            yield "error", f"{check.where}: {check.problem}", "change the node that it names, or leave the variant out"
    for finding in variant.findings:
        weight: Weight = "error" if finding.severity == "error" else "note"
        yield weight, f"{finding.target}, {finding.node}: {finding.problem}", finding.remedy
    if variant.unparsed:
        yield "note", f"seen by no parser of its target: {variant.unparsed}", "compile it on the device"


def _matters_of_lost(
    name: str, component: ComponentEvidence, variant: VariantEvidence
) -> Iterator[tuple[Weight, str, str]]:
    """Once, with the reason: what a linter or parser had against it is in there."""
    yield "lost", variant.decision.reason, _remedy(name, component, variant)


def _remedy(name: str, component: ComponentEvidence, variant: VariantEvidence) -> str:
    if refused := [finding.remedy for finding in variant.findings if finding.severity == "error"]:
        return refused[0]
    if variant.bytes is None or not all(check.accepted for check in variant.parsed):
        return "as the reason says; another variant runs in its place"
    if variant.speed is not None and variant.speed.speedup < component.budget.min_speedup:
        return "nothing to do: another variant is faster here"
    if variant.search is not None and variant.search.recovery is None:
        return f'set recover = "distill" in [components.{name}], or loosen its budget'
    return "loosen its budget, or calibrate on more recordings"


# --- a component's section -------------------------------------------------------------------------------------------


def _drawn(name: str, component: ComponentEvidence, markup: Any) -> dict[str, Any]:
    """A component's plots and the rows beside them."""
    searched = {key: v.search for key, v in component.variants.items() if v.search is not None}
    return {
        "variants": markup(plots.plot_variants(name, component.variants)),
        "ranges": markup(plots.plot_ranges(name, component.ranges)) if component.ranges else None,
        "searches": {k: markup(plots.plot_search(f"{name} {k}", s)) for k, s in searched.items() if s.front},
        "layers": {k: markup(plots.plot_layers(f"{name} {k}", s)) for k, s in searched.items() if s.layers},
        "lowest": {k: sorted(s.layers, key=lambda layer: layer.sqnr_db)[:_LOWEST] for k, s in searched.items()},
        "groups": {k: sorted(s.groups, key=lambda group: group.sqnr_db)[:_LOWEST] for k, s in searched.items()},
        "tensors": [(t, markup(plots.plot_histogram(t.histogram))) for t in _most_cut(component.ranges)],
    }


def _most_cut(ranges: Sequence[TensorEvidence]) -> Iterable[TensorEvidence]:
    """The tensors of whose values the method leaves out the most, by how far these reach."""
    return sorted(ranges, key=_share_kept)[:_LOWEST]


def _share_kept(tensor: TensorEvidence) -> float:
    seen = max(tensor.maximum, 0.0) - min(tensor.minimum, 0.0)
    return min(1.0, (tensor.high - tensor.low) / seen) if seen > 0 else 1.0
