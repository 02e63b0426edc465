"""Which components a session runs, and in which variant, decided before anything is loaded."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge_mbm.errors import InputError, ManifestError
from edge_mbm.runtime.frames import watch_problem
from edge_mbm.runtime.result import RUNNABLE_TASKS
from edge_mbm.spec import (
    AudioModality,
    Component,
    Decoder,
    Encoder,
    Head,
    ImageModality,
    Manifest,
    SensorModality,
    TextModality,
    Variant,
    VideoModality,
)

__all__ = ["Planned", "choose_heads", "choose_variant", "needed_by", "plan"]

_RUNNABLE_MODALITIES = (ImageModality, VideoModality, AudioModality, TextModality, SensorModality)
_CPU_TARGETS = {"x86_64": "x86-cpu", "amd64": "x86-cpu", "aarch64": "arm-cpu", "arm64": "arm-cpu"}


@dataclass(frozen=True)
class Planned:
    """One component as it will run."""

    name: str
    component: Component
    variant: str
    graph: str


def plan(
    manifest: Manifest,
    heads: Iterable[str] | None = None,
    variant: str = "auto",
    choose: Callable[[Manifest, str, str], str] | None = None,
) -> tuple[Planned, ...]:
    """The components that the heads need, in an order that can be run, each with its variant.

    Args:
        manifest: of the bundle.
        heads: what to run of ``Manifest.results``; None means its default ones.
        variant: "auto" takes the fastest that was kept for this machine's CPU; a name takes that one, and fp32 where
            a component does not have it.
        choose: the variant of a component, by name, of one that is wanted; ``choose_variant``'s unless given.

    Raises:
        InputError: no such head or variant.
        ManifestError: the heads need something that this version cannot run.
    """
    _check_variant_exists(manifest, variant)
    needed = needed_by(manifest, choose_heads(manifest, heads))
    planned = []
    for name in manifest.order():
        if name in needed:
            component = _runnable(manifest, name)
            chosen = choose(manifest, name, variant) if choose else choose_variant(name, component, variant)
            planned.append(Planned(name, component, chosen, component.variants[chosen].graph or ""))
    return tuple(planned)


def choose_heads(manifest: Manifest, heads: Iterable[str] | None) -> tuple[str, ...]:
    """What gives results: as asked for, or by default.

    Raises:
        InputError: a name that gives none, or none at all.
    """
    known = manifest.results()
    chosen = tuple(heads) if heads is not None else manifest.default_results()
    for head in chosen:
        if head not in known:
            raise InputError(f"there is no head '{head}' in '{manifest.name}'; it has {sorted(known)}")
    if not chosen:
        raise InputError(f"no head to run: '{manifest.name}' has {sorted(known)}")
    return chosen


def choose_variant(name: str, component: Component, wanted: str = "auto", machine: str | None = None) -> str:
    """The variant of one component that runs on this machine's CPU.

    Args:
        name: the component's, for messages.
        component: with its variants.
        wanted: "auto", or a variant's name (fp32 where the component does not have it).
        machine: as ``platform.machine()`` gives; this one's if None.

    Raises:
        ManifestError: no variant that was kept runs on a CPU of this kind.
    """
    target = _CPU_TARGETS.get((machine or platform.machine()).lower())
    runnable = {key: v for key, v in component.variants.items() if v.graph and v.target in ("any", target)}
    if not runnable:
        raise ManifestError(f"'{name}' has no variant for this machine: it has {sorted(component.variants)}")
    if wanted in runnable:
        return wanted
    if wanted != "auto" and "fp32" in runnable:
        return "fp32"
    return max(runnable, key=lambda key: _speedup(runnable[key]))


def _speedup(variant: Variant) -> float:
    return variant.speed.speedup if variant.speed else 1.0


def _check_variant_exists(manifest: Manifest, variant: str) -> None:
    known = {key for c in manifest.components.values() for key, v in c.variants.items() if v.graph}
    if variant != "auto" and variant not in known:
        raise InputError(f"no component of '{manifest.name}' has the variant '{variant}'; there are {sorted(known)}")


def needed_by(manifest: Manifest, names: Iterable[str]) -> set[str]:
    """Components, and all that must run before them."""
    needed: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += manifest.upstream_of(name)
    return needed


def _runnable(manifest: Manifest, name: str) -> Component:
    """The component, if everything about it can run in this version."""
    component = manifest.components[name]
    if isinstance(component, Decoder) and component.algorithm != "autoregressive":
        raise ManifestError(f"'{name}' decodes by {component.algorithm}: this edge-mbm decodes token by token")
    if isinstance(component, Encoder) and component.window and not _reads_stream(manifest, component):
        raise ManifestError(f"'{name}' has a window, which this edge-mbm can only slide over audio and video")
    for value in component.inputs.values():
        modality = manifest.modalities.get(value.source)
        if modality is not None and not isinstance(modality, _RUNNABLE_MODALITIES):
            raise ManifestError(f"'{name}' reads '{value.source}', a modality that this edge-mbm cannot run yet")
        if isinstance(modality, VideoModality) and (problem := watch_problem(component, value.source)) is not None:
            raise ManifestError(f"'{name}' {problem}")
    for key, output in component.outputs.items():
        if isinstance(component, Head) and not isinstance(output.task, RUNNABLE_TASKS):
            raise ManifestError(f"'{name}.{key}' is a {type(output.task).__name__} task, which cannot run yet")
    return component


def _reads_stream(manifest: Manifest, component: Encoder) -> bool:
    sources = [manifest.modalities.get(value.source) for value in component.inputs.values()]
    return any(isinstance(modality, AudioModality | VideoModality) for modality in sources)
