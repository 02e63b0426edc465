"""What an export knows so far: each stage fills in its part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from edge_mbm.calibration import DataDigest, TensorRanges
from edge_mbm.export.chain import Arrays
from edge_mbm.export.origin import Origin
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.recordings import Recording
from edge_mbm.export.skeleton import Skeleton
from edge_mbm.spec import CalibrationRecord, Decision, ErrorFigures, SpeedFigures

__all__ = ["Calibrated", "Data", "Draft", "Fused", "Reference", "Tried", "given"]

T = TypeVar("T")
Tried: TypeAlias = tuple[str, str]
"""(component, variant), "fp32" among them."""


@dataclass(frozen=True)
class Data:
    """Which recordings there are: whoever reads them again holds them against these."""

    calibration: DataDigest
    heldout: DataDigest


@dataclass(frozen=True)
class Reference:
    """What the framework makes of the held-out recordings, and what its components were given on the way."""

    outputs: Sequence[Arrays]
    """Per recording, "component.output" -> array; without those whose modalities it lacks."""
    truth: Sequence[int]
    """Labels; empty if not every recording has one."""
    inputs: Mapping[str, Sequence[Arrays]]
    """Per component, the last call's inputs on a few recordings: real data for parity and timing."""
    golden: Sequence[tuple[Recording, Arrays]]
    """The recordings that travel in the bundle, with their outputs."""


@dataclass(frozen=True)
class Calibrated:
    """The folded graphs, the values seen in them, and on what."""

    graphs: Mapping[str, bytes]
    ranges: Mapping[str, TensorRanges]
    record: CalibrationRecord


@dataclass(frozen=True)
class Fused:
    """A head's accuracy and agreement with what this kind of machine runs, all chosen variants together."""

    head: str
    error: ErrorFigures
    original: ErrorFigures


@dataclass(frozen=True)
class Draft:
    """An export in the making. A field that no stage has filled yet is None."""

    loaded: LoadedRecipe
    origin: Origin
    components: Mapping[str, Skeleton] | None = None
    """In running order."""
    data: Data | None = None
    reference: Reference | None = None
    exporters: Mapping[str, str] | None = None
    fp32: Mapping[str, bytes] | None = None
    calibrated: Calibrated | None = None
    graphs: Mapping[Tried, bytes] | None = None
    """Every variant that could be made, fp32 among them."""
    faults: Mapping[Tried, str] = field(default_factory=dict)
    """Why a variant could not be made or run."""
    errors: Mapping[Tried, ErrorFigures] | None = None
    speeds: Mapping[Tried, SpeedFigures] | None = None
    decisions: Mapping[Tried, Decision] | None = None
    fused: Sequence[Fused] | None = None

    def variants(self) -> tuple[str, ...]:
        """Wanted besides fp32."""
        return ("x86-cpu-int8", "trt-fp16")


def given(part: T | None) -> T:
    """A part of the draft that the stage's ``requires`` has checked to be there."""
    assert part is not None
    return part
