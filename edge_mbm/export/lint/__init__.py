"""A graph held against its target before anything runs it: what is refused, and what is taken and computed wrongly."""

from __future__ import annotations

import onnx

from edge_mbm.errors import TraceError
from edge_mbm.export.graph import first_line
from edge_mbm.export.lint.finding import Case, Finding, Rule, Severity
from edge_mbm.export.lint.half import HALF, decomposed_normalizations
from edge_mbm.export.lint.quantized import QUANTIZED
from edge_mbm.export.lint.structure import STRUCTURE
from edge_mbm.export.lint.view import View, attribute
from edge_mbm.export.targets import Kind, Target

__all__ = ["RULES", "Finding", "Rule", "Severity", "View", "attribute", "decomposed_normalizations", "lint"]

RULES: tuple[Rule, ...] = (*STRUCTURE, *QUANTIZED, *HALF)
"""All but "size", which is checked before a graph is read."""
_LIMIT = 2**31 - 1
"""protobuf's, in bytes."""


def lint(graph: bytes, target: Target, *, kind: Kind, name: str) -> tuple[Finding, ...]:
    """Everything in a graph that a target refuses, computes wrongly, or computes slowly.

    Args:
        graph: of any precision; what it is, the rules see from its operators.
        target: to run it on.
        kind: the component's; some kinds are to stay in float.
        name: the component's, for messages.

    Returns:
        Errors before warnings, else in the order of ``RULES``; empty where all is well.

    Raises:
        TraceError: it is no ONNX model.
    """
    if len(graph) > _LIMIT:
        remedy = "take a smaller model, or cut it into several components"
        return (Finding("size", "error", "", f"it has {len(graph) / 1e9:.1f} GB, ONNX takes 2 at most", remedy),)
    case = Case(View(_parse(graph, name)), target, kind)
    findings = [finding for rule in RULES for finding in rule.findings(case)]
    return tuple(sorted(findings, key=lambda finding: finding.severity))


def _parse(graph: bytes, name: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's exceptions share no base with ours
        raise TraceError(f"the graph of '{name}' is not an ONNX model: {first_line(error)}") from error
