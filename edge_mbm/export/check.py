"""Every variant held against the targets that it is for: what they refuse, and what their own parser says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from edge_mbm.export.cache import Store, key_of
from edge_mbm.export.draft import Checked, Draft, Finding, Tried, given
from edge_mbm.export.lint import lint
from edge_mbm.export.progress import Progress
from edge_mbm.export.targets import Target
from edge_mbm.export.trt_check import check_trt
from edge_mbm.spec import ParserCheck

__all__ = ["check"]


def check(draft: Draft, progress: Progress) -> Draft:
    """Lint each variant for each target, show TensorRT's parser what is for TensorRT; what is refused is not kept."""
    tried = [key for key in given(draft.graphs) if key[1] != "fp32"]
    progress.stage("check against the targets", len(tried))
    checks: dict[Tried, Checked] = {}
    faults = dict(draft.faults)
    for key in tried:
        checks[key] = _checked(draft, key)
        if (fault := _fault(checks[key])) is not None:
            faults[key] = fault
        progress.step(" ".join(key))
    return replace(draft, checks=checks, faults=faults)


def _checked(draft: Draft, key: Tried) -> Checked:
    (name, variant), graph = key, given(draft.graphs)[key]
    kind, findings = draft.kind(name), list[Finding]()
    parsed: dict[str, ParserCheck] = {}
    unparsed = ""
    for target in draft.takers(name, variant):
        for found in lint(graph, target, kind=kind, name=name):
            finding = Finding(target.name, found.rule, found.severity, found.node, found.message, found.remedy)
            findings.append(finding)
        if target.family == "tensorrt" and not _errors(findings):
            records, why = _parsed(draft, name, graph, target)
            parsed |= {record.where: record for record in records}
            unparsed = unparsed or why
    return Checked(findings, tuple(parsed.values()), unparsed)


def _parsed(draft: Draft, name: str, graph: bytes, target: Target) -> tuple[Sequence[ParserCheck], str]:
    """What the parser says, or why there is none: a build takes seconds, so the answer is kept."""
    kind, store = draft.kind(name), Store("parsed")
    key = key_of(["parsed", _parser_version(), target.name, kind, hashlib.sha256(graph).hexdigest()])
    if (known := store.load(key, list[ParserCheck])) is not None:
        return known, ""
    result = check_trt(graph, target, kind=kind, name=name)
    if result.checked:
        store.store(key, list(result.records()))
    return result.records(), "" if result.checked else result.where


def _parser_version() -> str:
    with suppress(PackageNotFoundError):
        return version("tensorrt-rtx-cu13-libs")
    return ""


def _fault(checked: Checked) -> str | None:
    if errors := _errors(checked.findings):
        first, more = errors[0], f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        at = f" at '{first.node}'" if first.node else ""
        return f"{first.target} would not take it: {first.rule}{at}: {first.problem}. To mend it: {first.remedy}{more}"
    refused = [record for record in checked.parsed if not record.accepted]
    return f"refused by {refused[0].where}: {refused[0].problem}" if refused else None


def _errors(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]
