"""Each result as OpenTelemetry spans, where that is installed; nothing otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from edge_mbm.runtime.result import Result

__all__ = ["Tracing"]


class _Part(NamedTuple):
    """One stage, placed in time: ns since the capture."""

    name: str
    start: int
    end: int


class Tracing:
    """Turns results into spans: one from capture until the result was handed out, and one in it for each stage.

    How long a stage took is measured; where it stands in the result's time is put together from the order of a
    sample's way: it waits for its encoder, the encoders work side by side, then the head waits for the others and runs
    last. Which spans are kept and where they go is the OpenTelemetry SDK's business; without one nothing is made.

    Args:
        tracer: an ``opentelemetry.trace.Tracer``; the global provider's if None, and none where the API is missing.
        wall: ns since 1970: spans are the one place where wall time belongs.
    """

    def __init__(self, tracer: Any = None, *, wall: Callable[[], int] = time.time_ns) -> None:
        self._tracer = tracer if tracer is not None else _global_tracer()
        self._wall = wall

    @property
    def enabled(self) -> bool:
        """Whether there is anything to trace with."""
        return self._tracer is not None

    def add(self, result: Result) -> None:
        """Trace one result that was handed out just now."""
        if self._tracer is None:
            return
        end = self._wall()
        start = end - result.age
        span = self._tracer.start_span(f"edge_mbm.{result.head}", start_time=start, attributes=_attributes(result))
        if span.is_recording():
            context = _context(span)
            for part in _placed(result):
                child = self._tracer.start_span(part.name, context=context, start_time=start + part.start)
                child.end(end_time=start + part.end)
        span.end(end_time=end)


def _attributes(result: Result) -> dict[str, Any]:
    return {
        "edge_mbm.head": result.head,
        "edge_mbm.seq": result.seq,
        "edge_mbm.dropped": result.dropped,
        "edge_mbm.spread_ms": result.spread / 1e6,
        "edge_mbm.missing": result.missing,
        "edge_mbm.provider": result.provider,
    }


def _placed(result: Result) -> Iterator[_Part]:
    """Stages in the order of a sample's way; what would end after the result does is cut there."""
    stages = result.stage_ns
    own = [f"preprocess.{result.head}", f"infer.{result.head}"]
    encoders = dict.fromkeys(name.partition(".")[2] for name in stages if "." in name and name not in own)
    queued = stages.get("queue", 0)
    yield from _in_a_row(["queue"], result, 0)
    done = queued
    for encoder in encoders:
        names = [f"preprocess.{encoder}", f"infer.{encoder}"]
        yield from _in_a_row(names, result, queued)
        done = max(done, queued + sum(stages.get(name, 0) for name in names))
    last = sum(stages.get(name, 0) for name in ["wait", *own])
    yield from _in_a_row(["wait", *own], result, max(done, result.age - last))


def _in_a_row(names: list[str], result: Result, start: int) -> Iterator[_Part]:
    for name in names:
        if name in result.stage_ns:
            end = start + result.stage_ns[name]
            yield _Part(name, min(start, result.age), min(end, result.age))
            start = end


def _global_tracer() -> Any:
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an optional package
    except ImportError:
        return None
    return trace.get_tracer("edge_mbm")


def _context(span: Any) -> Any:
    from opentelemetry import trace  # noqa: PLC0415 - an optional package

    return trace.set_span_in_context(span)
