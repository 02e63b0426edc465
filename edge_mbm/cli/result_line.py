"""One result as one line, in columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edge_mbm.bundle import BundleFiles
from edge_mbm.cli.terminal import clean
from edge_mbm.runtime.result import (
    ClassificationOutput,
    RegionsOutput,
    RegressionOutput,
    Result,
    SequenceOutput,
    TaskOutput,
    TextOutput,
)
from edge_mbm.runtime.summary import compute_time
from edge_mbm.spec import Classification, Component

__all__ = ["ResultLine"]

_SHOWN = 4
"""Values of a vector."""
_WIDEST = 48


class ResultLine:
    """Lays results out so that they stand below each other.

    Args:
        bundle: whose heads and labels say how wide the columns are.
        heads: that run.
        origin: see ``Live.origin``.
        realtime: whether ages mean anything.
    """

    def __init__(self, bundle: BundleFiles, heads: Iterable[str], *, origin: int, realtime: bool) -> None:
        results, chosen = bundle.manifest.results(), set(heads)
        running = [(name, bundle.manifest.components[name]) for name in results if name in chosen]
        self._head = max(4, *(len(name) for name, _ in running))
        self._answer = min(_WIDEST, max(6, *(_width(bundle, head) for _, head in running)))
        self._origin = origin
        self._realtime = realtime

    def header(self) -> str:
        """The columns' names; durations are in ms."""
        times = ("age ms", "prep.", "infer", "wait") if self._realtime else ("prep. ms", "infer")
        return self._join(("time s", "head", "answer"), times, ("drop", "without"))

    def line(self, result: Result) -> str:
        """One result."""
        prepared = sum(t for stage, t in result.stage_ns.items() if stage.startswith("preprocess."))
        inside = [prepared, compute_time(result) - prepared]
        times = [result.age, *inside, result.stage_ns.get("wait", 0)] if self._realtime else inside
        is_over = result.segment is None or result.segment.is_final
        answer = ", ".join(_answers(result)) + ("" if is_over else " ...")
        # What was said is worth a line that is out of step; what is still being said is not.
        says = is_over and any(isinstance(output, TextOutput) for output in result.outputs.values())
        shown = answer if says or len(answer) <= _WIDEST else answer[: _WIDEST - 3] + "..."
        return self._join(
            (f"{(result.t_capture - self._origin) / 1e9:.3f}", result.head, shown),
            [f"{t / 1e6:.2f}" for t in times],
            (str(result.dropped), ", ".join(result.missing) or "-"),
        )

    def _join(self, what: tuple[str, str, str], times: Iterable[str], losses: tuple[str, str]) -> str:
        (time, head, answer), (dropped, missing) = what, losses
        columns = "".join(f" {t:>8}" for t in times)
        return f"{time:>9}  {head:<{self._head}}  {answer:<{self._answer}} {columns} {dropped:>5}  {missing}"


def _answers(result: Result) -> Iterator[str]:
    for key, output in result.outputs.items():
        yield f"{key}: {_answer(output)}" if len(result.outputs) > 1 else _answer(output)


def _answer(output: TaskOutput) -> str:
    if isinstance(output, ClassificationOutput):
        return f"{clean(output.label)} {output.score:.3f}"
    if isinstance(output, RegionsOutput):
        return _regions(output)
    if isinstance(output, TextOutput):
        return clean(output.text)
    if isinstance(output, RegressionOutput):
        return f"{_values(output.values.reshape(-1).tolist())} {clean(output.unit or '')}".rstrip()
    if isinstance(output, SequenceOutput):
        return f"{len(output.values)} steps, at most {output.values.max():.3g}"
    return f"{_values(output.vector.tolist())} ({len(output.vector)} values)"


def _regions(output: RegionsOutput) -> str:
    """How many, and where the surest is: its middle, width and height."""
    count = len(output.boxes)
    if not count:
        return "none"
    x0, y0, x1, y1 = output.boxes[0].tolist()
    where = f"{output.scores[0]:.2f} at {(x0 + x1) / 2:.0f}, {(y0 + y1) / 2:.0f}, {x1 - x0:.0f} x {y1 - y0:.0f}"
    return f"{count}{f' of {count + output.left_out}' if output.left_out else ''}: {where}"


def _values(values: list[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values[:_SHOWN]) + (" ..." if len(values) > _SHOWN else "")


def _width(bundle: BundleFiles, head: Component) -> int:
    """Of the widest answer of a head with one classification; others are about as wide as four numbers."""
    [task, *more] = [output.task for output in head.outputs.values()]
    if more or not isinstance(task, Classification) or bundle.manifest.is_prompted(task):
        return _WIDEST
    return max((len(clean(label)) for label in bundle.read_labels(task.labels)), default=0) + len(" 0.000")
