"""A stream that has to last: camera and microphone in real time, with faults thrown in.

    python benchmarks/soak.py [--minutes N]

The tiny bundle with both of its heads, on ONNX Runtime. Camera and microphone are supervised and break off every few
seconds; the encoders raise now and then; every 15 s the consumer is slow for 3 s. Checked: memory's slope, the number
of threads, that every frame is accounted for, and that no result is older than its bound. The exit code is 1 if a check
fails.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import edge_mbm
from edge_mbm.errors import EngineError, SourceError
from edge_mbm.runtime.engine import OnnxRuntimeEngine
from edge_mbm.runtime.source import Source, Timing
from edge_mbm.runtime.sources.supervise import Supervised, Supervision
from edge_mbm.spec import Component
from edge_mbm.testing import tiny_bundle

_FPS, _RATE, _BLOCK = 30, 1000, 100
_CYCLE_S, _SLOW_S, _SLOW_SINK_S = 15.0, 3.0, 0.1
_DEADLINE_S = 0.3  # of the head that also hears
# Two heads' results may wait behind a slow sink each, the machine is not ours alone.
_SLACK_S = 0.15
_BOUND_S = _DEADLINE_S + 2 * _SLOW_SINK_S + 1 / _FPS + _SLACK_S
_SLOPE_MB = 1.0


class Device:
    """A camera or a microphone that breaks off after a while, and gives on where time is when it's opened again."""

    timing = Timing("monotonic")

    def __init__(self, modality: str, period_s: float, lasts_s: float, given: Counter[str]) -> None:
        self.modalities = (modality,)
        self._modality, self._period, self._lasts, self._given = modality, int(period_s * 1e9), lasts_s, given
        self._closed = threading.Event()
        self._rng = np.random.default_rng(0)

    def samples(self) -> Iterator[edge_mbm.Sample]:
        begun = time.monotonic_ns()
        for k in range(1, int(self._lasts * 1e9) // self._period):
            due = begun + k * self._period
            if self._closed.wait(max(0.0, (due - time.monotonic_ns()) / 1e9)):
                return
            self._given[self._modality] += 1
            yield self._sample(due)
        raise SourceError("unplugged")

    def close(self) -> None:
        self._closed.set()

    def _sample(self, due: int) -> edge_mbm.Sample:
        if self._modality == "image":
            return edge_mbm.Sample("image", self._rng.integers(0, 256, (48, 64, 3), np.uint8), due)
        sound = self._rng.uniform(-1, 1, _BLOCK).astype(np.float32)
        return edge_mbm.Sample("audio", sound, due - self._period, self._period, _RATE)


class Until:
    """Ends a source when the time is up, and counts what came of it: what the stream is to account for."""

    def __init__(self, source: Supervised, end: float) -> None:
        self.source, self.passed = source, 0
        self.modalities = source.modalities
        self._end = end

    @property
    def timing(self) -> Timing:
        return self.source.timing

    def samples(self) -> Iterator[edge_mbm.Sample]:
        for sample in self.source.samples():
            self.passed += 1
            yield sample
            if time.monotonic() > self._end:
                return

    def close(self) -> None:
        self.source.close()


class Shaky(OnnxRuntimeEngine):
    """Fails every ``every``th run."""

    every = 0

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self._runs = getattr(self, "_runs", 0) + 1
        if self.every and self._runs % self.every == 0:
            raise EngineError("a fault that the soak test threw in")
        return super().run(inputs)


def shaky(name: str, component: Component, graph: bytes) -> Shaky:
    engine = Shaky(name, component, graph)
    engine.every = {"image_encoder": 97, "audio_encoder": 41, "event": 211}.get(name, 0)
    return engine


@dataclass
class Log:
    """What the consumer saw."""

    results: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    oldest_ms: float = 0.0
    memory: list[tuple[float, float]] = field(default_factory=list)
    threads: list[tuple[float, int]] = field(default_factory=list)

    def note(self, result: edge_mbm.Result, elapsed: float) -> None:
        self.results[result.head] += 1
        self.dropped[result.head] += result.dropped
        self.missing += bool(result.missing)
        self.oldest_ms = max(self.oldest_ms, (time.monotonic_ns() - result.t_capture) / 1e6)
        if not self.memory or elapsed - self.memory[-1][0] > 0.5:
            self.memory.append((elapsed, resident()))
            self.threads.append((elapsed, threading.active_count()))


def resident() -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1e3


def soak(seconds: float) -> tuple[Log, edge_mbm.Live, dict[str, Until], Counter[str]]:
    given: Counter[str] = Counter()
    end = time.monotonic() + seconds
    patience = Supervision(backoff_s=(0.1, 0.5), seed=0)

    def supervised(modality: str, period_s: float, lasts_s: float) -> Until:
        def device() -> Source:
            return Device(modality, period_s, lasts_s, given)

        return Until(Supervised(modality, device, (modality,), audio_blocks=50, options=patience), end)

    sources = {"image": supervised("image", 1 / _FPS, 7.0), "audio": supervised("audio", _BLOCK / _RATE, 11.0)}
    options = edge_mbm.SessionOptions(heads=("event", "color"))
    log, begun = Log(), time.monotonic()
    live = edge_mbm.open(tiny_bundle(), list(sources.values()), options=options, load_engine=shaky)
    with live:
        for result in live:
            elapsed = time.monotonic() - begun
            log.note(result, elapsed)
            if elapsed % _CYCLE_S > _CYCLE_S - _SLOW_S:
                time.sleep(_SLOW_SINK_S)
    return log, live, sources, given


Check = tuple[str, float, str, bool]
"""What, measured, what it should be, whether it is."""


def checks(
    log: Log, live: edge_mbm.Live, sources: dict[str, Until], given: Counter[str], before: int
) -> Iterator[Check]:
    lost = live.session.stats()
    yield "memory, MB/min", slope(log.memory), f"< {_SLOPE_MB:g}", slope(log.memory) < _SLOPE_MB
    early, late = halves(log.threads)
    yield "threads, at most, second half over first", late - early, "0", late <= early
    yield "threads left behind", threading.active_count() - before, "0", threading.active_count() <= before
    yield "oldest result, ms", log.oldest_ms, f"<= {_BOUND_S * 1e3:.0f}", log.oldest_ms <= _BOUND_S * 1e3
    for name, source in sources.items():
        # What waits when a connection breaks is not passed on; frames among it are superseded by whatever comes next.
        gap = given[name] - source.passed - sum(source.source.losses().values())
        breaks = source.source.status().reconnects + 1
        yield f"{name}: given by the device, neither passed on nor counted", gap, f"0 .. {breaks}", 0 <= gap <= breaks
    for head in ("event", "color"):
        causes = ("overflowed", "overtaken", "skipped", "failed")
        gone = (
            lost["image.superseded"] + lost["image_encoder.failed"] + sum(lost[f"{head}.{cause}"] for cause in causes)
        )
        gap = sources["image"].passed - log.results[head] - gone
        yield f"{head}: frames that are neither a result nor counted", gap, "0", gap == 0
        reported = gone - log.dropped[head]
        yield f"{head}: losses that no result reported", reported, "0 .. 2, at the end", 0 <= reported <= 2


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Per minute, of the last three quarters."""
    x, y = np.array(points[len(points) // 4 :]).T
    return float(np.polyfit(x / 60, y, 1)[0])


def halves(points: Sequence[tuple[float, int]]) -> tuple[int, int]:
    counts = [count for _, count in points]
    return max(counts[: len(counts) // 2]), max(counts[len(counts) // 2 :])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    minutes, console = parser.parse_args().minutes, Console()
    logging.getLogger("edge_mbm").setLevel(logging.ERROR)  # the faults are on purpose
    before = threading.active_count()
    log, live, sources, given = soak(60 * minutes)
    time.sleep(0.2)  # what was told to end, ends
    found = list(checks(log, live, sources, given, before))
    lost = {name: count for name, count in live.session.stats().items() if count}
    reconnects = {name: source.source.status().reconnects for name, source in sources.items()}
    console.print(f"{minutes:g} min; results {dict(log.results)}, {log.missing} with a modality missing")
    console.print(f"reconnects {reconnects}; lost {lost}; memory {log.memory[0][1]:.1f} -> {log.memory[-1][1]:.1f} MB")
    table = Table(title="soak")
    for column in ("", "measured", "should be", ""):
        table.add_column(column, justify="right" if column else "left")
    for what, measured, should, fine in found:
        table.add_row(what, f"{measured:.2f}".removesuffix(".00"), should, "met" if fine else "missed")
    console.print(table)
    return 0 if all(fine for *_, fine in found) else 1


if __name__ == "__main__":
    sys.exit(main())
