"""What a rule says of a graph, and what a rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from edge_mbm.export.lint.view import View
from edge_mbm.export.targets import Kind, Target

__all__ = ["Case", "Finding", "Problem", "Rule", "Severity"]

Severity: TypeAlias = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One broken rule at one place.

    ``node`` is the name of an operator or a tensor, "" where it is the whole graph.
    """

    rule: str
    severity: Severity
    node: str
    message: str
    remedy: str

    def __str__(self) -> str:
        at = f" at '{self.node}'" if self.node else ""
        return f"{self.severity} {self.rule}{at}: {self.message}. To mend it: {self.remedy}"


class Problem(NamedTuple):
    """A finding but for its rule: where, what, and what to do."""

    node: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """What a graph is held against."""

    view: View
    target: Target
    kind: Kind

    @property
    def tensorrt(self) -> bool:
        """Whether TensorRT will read the graph."""
        return self.target.family == "tensorrt"


@dataclass(frozen=True)
class Rule:
    """A check with its name; an error means refused, or silently wrong, on the target: a warning, slow or risky."""

    name: str
    severity: Severity
    check: Callable[[Case], Iterator[Problem]]

    def findings(self, case: Case) -> Iterator[Finding]:
        """What it finds."""
        for problem in self.check(case):
            yield Finding(self.name, self.severity, *problem)
