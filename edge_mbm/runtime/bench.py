"""How fast a bundle streams on this machine, measured where the time goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from msgspec import Struct

from edge_mbm.errors import InputError, ManifestError
from edge_mbm.preprocess import as_waveform, in_turn
from edge_mbm.runtime.bundle import Bundle
from edge_mbm.runtime.engine import EngineLoader
from edge_mbm.runtime.latency import LatencyFigures, LatencyHistogram
from edge_mbm.runtime.machine import look_at_machine
from edge_mbm.runtime.plan import plan
from edge_mbm.runtime.session import Session, SessionOptions
from edge_mbm.spec import (
    AudioModality,
    Component,
    Encoder,
    ImageSteps,
    Input,
    Manifest,
    Modality,
    SensorModality,
    TextModality,
    VideoModality,
    Window,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BenchReport", "BenchRun", "bench_bundle"]

_SECOND = 1_000_000_000
_FRAME_NS = _SECOND // 30
"""Between frames, where no audio window says how far time moves."""
_WARM_UP = 10
"""Steps before the clock counts: buffers are touched, the first windows filled."""
_BLOCK_NS = _SECOND // 5
"""Two choices of variants take turns this long, so that a throttling or busy machine slows both."""


class BenchRun(Struct, frozen=True, kw_only=True):
    """One choice of variants. A step pushes one item of every modality and polls."""

    variant: str
    components: dict[str, str]
    """Component -> the variant that ran."""
    results: int
    seconds: float
    """Spent in steps."""
    results_per_s: float
    end_to_end: LatencyFigures
    """From pushing to holding the result, once per result."""
    stages: dict[str, LatencyFigures]
    """Of each component, "preprocess.NAME" and "infer.NAME", once per step."""


class BenchReport(Struct, frozen=True, kw_only=True):
    """A measurement, with what it depends on."""

    bundle: str
    processor: str
    threads: int
    zeros: tuple[str, ...]
    """Modalities for which the bundle has no golden input, so that zeros were fed."""
    runs: tuple[BenchRun, ...]
    """One, or two that took turns."""
    speedup: dict[str, float]
    """Stage, and "end_to_end", -> the second run's median over the first's; empty for a single run."""


def bench_bundle(
    bundle: Bundle,
    options: SessionOptions | None = None,
    *,
    compare: str | None = None,
    seconds: float = 3.0,
    clock: Callable[[], int] = time.perf_counter_ns,
    load_engine: EngineLoader | None = None,
) -> BenchReport:
    """Stream a bundle's golden inputs through it as fast as it goes.

    Times given to the session are synthetic: every step is one audio hop, or a 30th of a second, after the last.

    Args:
        bundle: an opened bundle.
        options: of the session.
        compare: another choice of variants to measure in turns with ``options.variant``; where both come to the same
            graphs, one is measured.
        seconds: to spend on each choice.
        clock: monotonic ns.
        load_engine: see ``Bundle.session``.

    Raises:
        InputError: ``seconds`` is not above 0, or no such variant or head.
        ManifestError: a golden input does not fit, or the inputs lead to no result.
        EngineError, MissingDependencyError: see ``Bundle.session``.
    """
    options = options or SessionOptions()
    if not 0 < seconds <= 3600:
        raise InputError(f"seconds is {seconds}: measure for more than 0, at most 3600")
    with ExitStack() as stack:
        lanes = []
        for chosen in _choices(bundle.manifest, options, compare, load_engine):
            session = stack.enter_context(bundle.session(chosen, load_engine=load_engine))
            lanes.append(_Lane(session, _Feed(bundle, session), clock))
        _take_turns(lanes, int(seconds * _SECOND), clock)
        runs = tuple(lane.run() for lane in lanes)
    return BenchReport(
        bundle=bundle.manifest.name,
        processor=look_at_machine().processor,
        threads=options.threads,
        zeros=lanes[0].feed.zeros,
        runs=runs,
        speedup=_speedup(*runs) if len(runs) == 2 else {},
    )


def _choices(
    manifest: Manifest, options: SessionOptions, compare: str | None, load_engine: EngineLoader | None
) -> list[SessionOptions]:
    if compare is None:
        return [options]
    other = replace(options, variant=compare)
    choose = options.open_backend(load_engine).choose
    first, second = (plan(manifest, o.heads, o.variant, choose) for o in (options, other))
    return [options] if first == second else [options, other]


def _take_turns(lanes: list[_Lane], nanoseconds: int, clock: Callable[[], int]) -> None:
    """Blocks of steps in turn, until each has had its time."""
    for lane in lanes:
        lane.warm_up()
    had = 0
    while had < nanoseconds:
        block = min(_BLOCK_NS, nanoseconds - had)
        for lane in lanes:
            started = clock()
            while clock() - started < block:
                lane.step()
        had += block


def _speedup(first: BenchRun, second: BenchRun) -> dict[str, float]:
    pairs = {stage: (figures, second.stages.get(stage)) for stage, figures in first.stages.items()}
    pairs["end_to_end"] = (first.end_to_end, second.end_to_end)
    return {stage: b.p50_us / a.p50_us for stage, (a, b) in pairs.items() if b is not None and a.p50_us > 0}


class _Lane:
    """One session and its times."""

    def __init__(self, session: Session, feed: _Feed, clock: Callable[[], int]) -> None:
        self.feed = feed
        self._session = session
        self._clock = clock
        self._items = feed.steps()
        self._clear()

    def warm_up(self) -> None:
        """Steps that do not count, until results come.

        Raises:
            ManifestError: none comes.
        """
        for _ in range(_WARM_UP + self.feed.steps_to_fill):
            self.step()
        if self._end_to_end.count == 0:
            raise ManifestError(
                f"the golden inputs of '{self._session.manifest.name}' lead to no result, so there is nothing to time"
            )
        self._clear()

    def step(self) -> None:
        items = next(self._items)
        started = self._clock()
        try:
            for modality, data, t in items:
                self._session.push(modality, data, t)
            results = self._session.poll()
        except InputError as error:
            raise ManifestError(f"a golden input does not fit the bundle: {error}. Export it again.") from error
        spent = self._clock() - started
        self._spent += spent
        stages: dict[str, int] = {}
        for result in results:
            self._end_to_end.add(spent)
            stages |= result.stage_ns
        for stage, duration in stages.items():
            if stage.startswith(("preprocess.", "infer.")):
                self._stages.setdefault(stage, LatencyHistogram()).add(duration)

    def run(self) -> BenchRun:
        seconds = self._spent / _SECOND
        return BenchRun(
            variant=self._session.options.variant,
            components={p.name: p.variant for p in self._session.plan},
            results=self._end_to_end.count,
            seconds=seconds,
            results_per_s=self._end_to_end.count / seconds if seconds else 0.0,
            end_to_end=self._end_to_end.figures(),
            stages={stage: histogram.figures() for stage, histogram in self._stages.items()},
        )

    def _clear(self) -> None:
        self._spent = 0
        self._end_to_end = LatencyHistogram()
        self._stages: dict[str, LatencyHistogram] = {}


class _Item(NamedTuple):
    modality: str
    data: NDArray[Any] | str
    t: int


class _Feed:
    """Golden inputs in turn, as a camera and a microphone would give them."""

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self._modalities = {name: bundle.manifest.modalities[name] for name in session.modalities}
        components = [planned.component for planned in session.plan]
        inputs = {v.source: v for component in components for v in component.inputs.values()}
        whole = [_golden(bundle, self._modalities, sample.inputs) for sample in bundle.manifest.golden]
        golden = [moment for sample in whole for moment in _moments(sample, inputs)]
        self.zeros = tuple(name for name in self._modalities if not any(name in sample for sample in golden))
        blank = {name: _blank(bundle.manifest, components, name) for name in self._modalities}
        self._samples = [blank | sample for sample in golden] or [blank]
        windows = list(_windows(bundle.manifest, components))
        self.steps_to_fill = max((window.length // window.hop for window, _ in windows), default=0)
        self._step_ns = max((math.ceil(window.hop * _SECOND / rate) for window, rate in windows), default=_FRAME_NS)

    def steps(self) -> Iterator[list[_Item]]:
        """Per step: audio up to its end, and everything else at its end, so that no pivot has to wait."""
        end = 0
        for sample in cycle(self._samples):
            start, end = end, end + self._step_ns
            yield [item for name, data in sample.items() for item in self._items(name, data, start, end)]

    def _items(self, name: str, data: NDArray[Any] | str, start: int, end: int) -> Iterator[_Item]:
        modality = self._modalities[name]
        if not isinstance(modality, VideoModality) or isinstance(data, str):
            yield self._item(name, data, start, end)
            return
        frames = data if data.ndim == 4 else data[None]
        for index in range(*(math.ceil(t * modality.rate / _SECOND) for t in (start, end))):
            yield _Item(name, frames[index % len(frames)], math.floor(index * _SECOND / modality.rate))

    def _item(self, name: str, data: NDArray[Any] | str, start: int, end: int) -> _Item:
        modality = self._modalities[name]
        if not isinstance(modality, AudioModality) or isinstance(data, str):
            return _Item(name, data, end)
        first, last = (t * modality.sample_rate // _SECOND for t in (start, end))
        block = np.take(data, np.arange(first, last), mode="wrap")
        return _Item(name, block, first * _SECOND // modality.sample_rate)


def _golden(
    bundle: Bundle, modalities: Mapping[str, Modality], inputs: Mapping[str, str]
) -> dict[str, NDArray[Any] | str]:
    """A golden sample's inputs, audio as a mono waveform."""
    found: dict[str, NDArray[Any] | str] = {}
    for name in modalities.keys() & inputs.keys():
        data = bundle.read_sample(name, inputs[name])
        if isinstance(modalities[name], AudioModality):
            data = as_waveform(data)
        if isinstance(data, str) or data.size:
            found[name] = data
    return found


def _moments(
    sample: Mapping[str, NDArray[Any] | str], inputs: Mapping[str, Input]
) -> Iterator[dict[str, NDArray[Any] | str]]:
    """A sample's series item by item, all else beside each; one that is shorter stays at its last."""
    series = {name: in_turn(data, inputs[name]) for name, data in sample.items()}
    for index in range(max(map(len, series.values()), default=0)):
        yield {name: cast("NDArray[Any] | str", items[min(index, len(items) - 1)]) for name, items in series.items()}


def _blank(manifest: Manifest, components: Sequence[Component], name: str) -> NDArray[Any] | str:
    """Silence, a black picture as large as the model sees it, no words, or a sensor at rest."""
    modality = manifest.modalities[name]
    if isinstance(modality, AudioModality):
        return np.zeros(1, np.float32)
    if isinstance(modality, TextModality):
        return "" if manifest.lines(name) == 1 else "anything"
    if isinstance(modality, SensorModality):
        return np.zeros(modality.shape, np.float32)
    value = next(v for component in components for v in component.inputs.values() if v.source == name)
    steps = value.preprocess
    if isinstance(steps, ImageSteps):
        return np.zeros((steps.height, steps.width, 3), np.uint8)
    return np.zeros(value.tensor.resolve()[1:], np.uint8)


def _windows(manifest: Manifest, components: Sequence[Component]) -> Iterator[tuple[Window, float]]:
    """The windows of sound and video, each with its rate."""
    for component in components:
        for value in component.inputs.values():
            modality = manifest.modalities.get(value.source)
            window = component.window if isinstance(component, Encoder) else None
            if window is not None and isinstance(modality, AudioModality | VideoModality):
                yield window, modality.sample_rate if isinstance(modality, AudioModality) else modality.rate
