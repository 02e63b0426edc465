"""Every engine of a bundle, built one at a time, measured and kept; and which of them pays on this device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from msgspec import Struct

from edge_mbm.bundle import BundleFiles
from edge_mbm.errors import DeviceLostError, EngineError, InputError
from edge_mbm.runtime.plan import choose_heads, needed_by
from edge_mbm.runtime.trt.builder import BuildJob, EngineBuilder, build_with_less
from edge_mbm.runtime.trt.cache import EngineCache, EngineKey, EngineRecord, Latency
from edge_mbm.runtime.trt.choosing import Choice, choose_engine, variants_for
from edge_mbm.runtime.trt.device import workspace_bytes
from edge_mbm.runtime.trt.engine import EngineOptions, TensorRTEngine
from edge_mbm.runtime.trt.layers import DlaShare, Precisions, read_layers
from edge_mbm.runtime.trt.place import Place
from edge_mbm.runtime.trt.release import BuildSettings
from edge_mbm.spec import Component

__all__ = [
    "CompileOptions",
    "CompileReport",
    "Compiled",
    "Look",
    "Looker",
    "PlannedEngine",
    "Watch",
    "compile_bundle",
    "look_into",
    "plan_engines",
]

_WARM_UP, _RUNS = 10, 200


@dataclass(frozen=True)
class CompileOptions:
    """What is built, and how.

    Args:
        heads: whose components are built, of ``Manifest.results``; None for all components.
        rebuild: whether engines that are in the cache are built anew.
        dla: components that are built for the Deep Learning Accelerator of some Jetsons instead of the GPU.
        dla_share: the share of such a component's layers, 0..1, that must run there.
    """

    heads: tuple[str, ...] | None = None
    rebuild: bool = False
    dla: tuple[str, ...] = ()
    dla_share: float = 0.8

    def __post_init__(self) -> None:
        """Raise InputError for a share out of range."""
        if not 0 <= self.dla_share <= 1:
            raise InputError(f"the share of layers on the DLA is from 0 to 1, not {self.dla_share:g}")


class PlannedEngine(Struct, frozen=True, kw_only=True):
    """One engine to have."""

    component: str
    variant: str
    precision: str
    graph: str
    """Its path in the bundle."""
    graph_bytes: int
    key: EngineKey
    is_cached: bool
    is_dla: bool = False
    """Whether it is for the DLA, not for the GPU."""

    def __str__(self) -> str:
        return f"{self.component} {self.variant}{' on the DLA' if self.is_dla else ''}"


class Compiled(Struct, frozen=True, kw_only=True):
    """What became of one engine."""

    component: str
    variant: str
    status: Literal["built", "cached", "failed"]
    record: EngineRecord | None = None
    problem: str = ""


class CompileReport(Struct, frozen=True, kw_only=True):
    """What a compilation came to."""

    bundle: str
    release: str
    gpu: str
    engines: tuple[Compiled, ...]
    choices: dict[str, Choice]
    """Component -> what runs on this device, and why."""


class Look(Struct, frozen=True, kw_only=True):
    """What an engine says and does on the GPU that is here."""

    got: Precisions
    latency: Latency


class Looker(Protocol):
    """Asks an engine what it got and how fast it is; see ``look_into``."""

    def __call__(self, name: str, component: Component, plan: bytes, place: Place, options: EngineOptions, /) -> Look:
        """Raise EngineError where it does not load or run."""
        ...


class Watch(Protocol):
    """Is told what a compilation does."""

    def begin(self, planned: PlannedEngine) -> None:
        """An engine is built from now on."""
        ...

    def advance(self, share: float, what: str) -> None:
        """So much of it is done, 0..1."""
        ...

    def wait(self) -> None:
        """Another process builds; this one waits for it."""
        ...


def plan_engines(
    bundle: BundleFiles, place: Place, cache: EngineCache, options: CompileOptions | None = None
) -> tuple[PlannedEngine, ...]:
    """The engines that a bundle needs, in the order in which its components run; nothing is built.

    Raises:
        InputError: there is no such head, or no such component for the DLA among those that the heads need.
        EngineError: a component has no variant that TensorRT, or the DLA, could run.
    """
    options = options or CompileOptions()
    manifest = bundle.manifest
    heads = choose_heads(manifest, options.heads) if options.heads is not None else manifest.components
    needed = needed_by(manifest, heads)
    names = [name for name in manifest.order() if name in needed]
    for name in options.dla:
        if name not in names:
            raise InputError(f"there is no '{name}' to be put on the DLA; what is built are {', '.join(names)}")
    planned = (engine for name in names for engine in _planned(bundle, name, place, cache, dla=name in options.dla))
    return tuple(planned)


def compile_bundle(
    bundle: BundleFiles,
    place: Place,
    cache: EngineCache,
    builder: EngineBuilder,
    *,
    watch: Watch,
    options: CompileOptions | None = None,
    look: Looker | None = None,
) -> CompileReport:
    """Build the engines that are not in the cache yet, one at a time, and measure them.

    Args:
        bundle: opened.
        place: what they are built with and for.
        cache: where they are kept.
        builder: builds one.
        watch: is told.
        options: see ``CompileOptions``.
        look: asks an engine what it got and how fast it is; ``look_into`` unless given, and none where no GPU is.

    Raises:
        InputError: see ``plan_engines``.
        EngineError: a component has no engine in the end, with the reason; or the cache cannot be written.
        DeviceLostError: the GPU does not answer any more.
    """
    options = options or CompileOptions()
    planned = plan_engines(bundle, place, cache, options)
    look = look or (look_into if place.cuda is not None else None)
    shop = _Shop(bundle, place, cache, builder, watch, options, look)
    engines = tuple(shop.have(engine) for engine in planned)
    choices = _choices(engines)
    for engine in engines:
        if engine.component not in choices:
            raise EngineError(engine.problem)
    return CompileReport(
        bundle=bundle.manifest.name, release=str(place.release), gpu=place.gpu.name, engines=engines, choices=choices
    )


def look_into(name: str, component: Component, plan: bytes, place: Place, options: EngineOptions, /) -> Look:
    """Load an engine, read back its layers' precisions, and time its calls on zeros.

    Raises:
        EngineError: it does not load or run.
    """
    with closing(TensorRTEngine(name, component, plan, place, options)) as engine:
        for _ in range(_WARM_UP):
            engine.run({})
        times = np.array([_time(engine) for _ in range(_RUNS)])
        quarter, median, three_quarters = np.percentile(times, (25, 50, 75))
        latency = Latency(median_us=float(median), iqr_us=float(three_quarters - quarter), runs=_RUNS)
        return Look(got=read_layers(engine.describe_layers()), latency=latency)


@dataclass(frozen=True)
class _Shop:
    """See ``compile_bundle``."""

    bundle: BundleFiles
    place: Place
    cache: EngineCache
    builder: EngineBuilder
    watch: Watch
    options: CompileOptions
    look: Looker | None

    def have(self, planned: PlannedEngine) -> Compiled:
        """The engine: from the cache, or built. Another process may have built it while this one waited."""
        known = self._known(planned)
        if known is not None:
            return known
        with self.cache.building(self.watch.wait) as folder:
            return self._known(planned) or self._made(planned, folder)

    def _known(self, planned: PlannedEngine) -> Compiled | None:
        found = None if self.options.rebuild else self.cache.find(planned.key)
        if found is None or not self._is_enough(found.record.dla):
            return None
        return _compiled(planned, "cached", found.record)

    def _is_enough(self, on_dla: DlaShare | None) -> bool:
        """An engine may have been built when less of it on the DLA was wanted."""
        return on_dla is None or on_dla.able >= self.options.dla_share * on_dla.total

    def _made(self, planned: PlannedEngine, folder: Path) -> Compiled:
        self.watch.begin(planned)
        try:
            record, plan = self._build(planned, folder)
        except DeviceLostError:
            raise
        except EngineError as error:
            return Compiled(component=planned.component, variant=planned.variant, status="failed", problem=str(error))
        return _compiled(planned, "built", self.cache.store(record, plan))

    def _build(self, planned: PlannedEngine, folder: Path) -> tuple[EngineRecord, bytes]:
        started = time.perf_counter()
        job = BuildJob(
            str(planned),
            self.bundle.read(planned.graph),
            self.place.release.kind,
            str(self.place.release),
            self._settings(planned),
        )
        built = build_with_less(self.builder, job, folder, self.watch.advance)
        seconds = time.perf_counter() - started
        self.cache.keep_timing(planned.key, built.timing)
        seen = self._look(planned, built.plan)
        record = EngineRecord(
            sha256="",
            size=0,
            key=planned.key,
            component=planned.component,
            variant=planned.variant,
            asked=planned.precision,
            got={} if seen is None else seen.got,
            level=built.settings.level,
            build_s=seconds,
            latency=None if seen is None else seen.latency,
            dla=built.dla,
        )
        return record, built.plan

    def _settings(self, planned: PlannedEngine) -> BuildSettings:
        return BuildSettings(
            workspace=workspace_bytes(self.place.gpu),
            capability=self.place.capability,
            timing=self.cache.timing(planned.key),
            dla_share=self.options.dla_share if planned.is_dla else None,
        )

    def _look(self, planned: PlannedEngine, plan: bytes) -> Look | None:
        if self.look is None:
            return None
        self.watch.advance(1.0, "measuring")
        component = self.bundle.manifest.components[planned.component]
        return self.look(
            planned.component, component, plan, self.place, EngineOptions(dla_core=0 if planned.is_dla else None)
        )


def _planned(bundle: BundleFiles, name: str, place: Place, cache: EngineCache, *, dla: bool) -> Iterator[PlannedEngine]:
    manifest = bundle.manifest
    variants = variants_for(manifest.components[name], dla=dla)
    if not variants:
        what = "fp16 variant, and the DLA computes in nothing else" if dla else "variant that TensorRT can run"
        raise EngineError(f"'{name}' has no {what}: export the bundle with a TensorRT target")
    for key, variant in variants.items():
        assert variant.graph is not None
        entry = manifest.files[variant.graph]
        engine = place.key(entry.sha256, dla=dla)
        yield PlannedEngine(
            component=name,
            variant=key,
            precision=variant.precision,
            graph=variant.graph,
            graph_bytes=entry.size,
            key=engine,
            is_cached=cache.look(engine) is not None,
            is_dla=dla,
        )


def _choices(engines: tuple[Compiled, ...]) -> dict[str, Choice]:
    records: dict[str, dict[str, EngineRecord]] = {}
    for engine in engines:
        if engine.record is not None:
            records.setdefault(engine.component, {})[engine.variant] = engine.record
    chosen: Mapping[str, Choice | None] = {name: choose_engine(found) for name, found in records.items()}
    return {name: choice for name, choice in chosen.items() if choice is not None}


def _compiled(planned: PlannedEngine, status: Literal["built", "cached"], record: EngineRecord) -> Compiled:
    return Compiled(component=planned.component, variant=planned.variant, status=status, record=record)


def _time(engine: TensorRTEngine) -> float:
    engine.run({})
    return engine.device_us
