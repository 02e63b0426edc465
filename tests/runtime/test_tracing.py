"""Results as spans."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from edge_mbm.runtime import ClassificationOutput, Result
from edge_mbm.runtime.tracing import Tracing

MS, SECOND = 1_000_000, 1_000_000_000
NOW = 1_700_000_000 * SECOND
GREEN = ClassificationOutput("green", 0.5, 1, np.array([0.5, 0.5], np.float32), ("red", "green"))
STAGES = {
    "wait": 6 * MS,
    "queue": 2 * MS,
    "preprocess.image_encoder": 1 * MS,
    "infer.image_encoder": 9 * MS,
    "preprocess.audio_encoder": 3 * MS,
    "infer.audio_encoder": 4 * MS,
    "preprocess.event": 0,
    "infer.event": 5 * MS,
}


def result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "head": "event",
        "seq": 7,
        "t_capture": 0,
        "age": 30 * MS,
        "outputs": {"logits": GREEN},
        "missing": ("audio",),
        "spread": 20 * MS,
        "dropped": 2,
        "stage_ns": STAGES,
        "provider": "x",
    }
    return Result(**fields | changes)


needs_sdk = pytest.mark.needs("opentelemetry", "opentelemetry.sdk")


def spans(given: Result, sampler: Any = None) -> list[Any]:
    """What the SDK exports for one result."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Tracing(provider.get_tracer("test"), wall=lambda: NOW).add(given)
    return list(exporter.get_finished_spans())


@needs_sdk
def test_a_result_is_a_span_from_capture_to_now() -> None:
    """With what it is about; its stages are its children."""
    found = spans(result())
    [whole] = [span for span in found if span.parent is None]
    assert (whole.name, whole.start_time, whole.end_time) == ("edge_mbm.event", NOW - 30 * MS, NOW)
    assert dict(whole.attributes) == {
        "edge_mbm.head": "event",
        "edge_mbm.seq": 7,
        "edge_mbm.dropped": 2,
        "edge_mbm.spread_ms": 20.0,
        "edge_mbm.missing": ("audio",),
        "edge_mbm.provider": "x",
    }
    children = [span for span in found if span is not whole]
    assert {span.parent.span_id for span in children} == {whole.context.span_id}
    assert {span.name for span in children} == set(STAGES)


@needs_sdk
def test_stages_are_as_long_as_measured_and_in_order() -> None:
    """Queue, then the encoders side by side, and the head's own last, up to the end."""
    start = NOW - 30 * MS
    placed = {span.name: (span.start_time - start, span.end_time - start) for span in spans(result())}
    del placed["edge_mbm.event"]
    assert {name: end - begin for name, (begin, end) in placed.items()} == STAGES
    assert placed["queue"] == (0, 2 * MS)
    assert placed["preprocess.image_encoder"] == (2 * MS, 3 * MS)
    assert placed["infer.image_encoder"] == (3 * MS, 12 * MS)
    assert placed["infer.audio_encoder"] == (5 * MS, 9 * MS)
    assert placed["wait"] == (19 * MS, 25 * MS)
    assert placed["infer.event"] == (25 * MS, 30 * MS)


@needs_sdk
def test_no_stage_ends_after_its_result() -> None:
    """Where an encoding served several results its time may be longer than this one's age."""
    found = spans(result(age=4 * MS))
    assert max(span.end_time for span in found) == NOW
    assert all(NOW - 4 * MS <= span.start_time <= span.end_time for span in found)


@needs_sdk
def test_what_is_not_sampled_costs_no_children() -> None:
    """The SDK decides; nothing is exported."""
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    assert spans(result(), ALWAYS_OFF) == []


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from edge_mbm.runtime.tracing import Tracing
tracing = Tracing()
tracing.add(None)
print(tracing.enabled)
"""


def test_without_the_package_it_does_nothing() -> None:
    """Results may be given to it all the same."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.needs("opentelemetry")
def test_without_an_sdk_nothing_is_made() -> None:
    """The API alone gives spans that record nothing."""
    Tracing(wall=lambda: NOW).add(result())
