"""What a quantized graph is made from, and by which recipe of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from edge_mbm.calibration import CalibrationMethod, Percentile, TensorRanges
from edge_mbm.export.chain import Arrays

__all__ = ["Material", "Preset"]


@dataclass(frozen=True)
class Material:
    """One component, ready to be quantized.

    Args:
        name: the component's, for messages.
        graph: fp32, folded (``graph.fold``).
        ranges: histograms of the graph's activations on the calibration recordings.
        calls: a few real calls of the calibration recordings, batch 1: all of the graph's inputs by name.
    """

    name: str
    graph: bytes
    ranges: TensorRanges
    calls: Sequence[Arrays]


@dataclass(frozen=True)
class Preset:
    """Steps from a float graph to a quantized one.

    Args:
        key: its name in reports and in the manifest.
        activations: "static" ranges from calibration, or "dynamic" ones computed in the graph at every call.
        method: how a histogram becomes a range (static only).
        equalize: channels that share a scale come nearer in loudness (after Nagel et al. 2019, arXiv:1906.04721).
        smooth: SmoothQuant's alpha (Xiao et al. 2022, arXiv:2211.10438); None leaves it out.
        correct_bias: move each bias by the mean error that quantization left there (Nagel et al. 2019).
        fit_rounding: round weights so that the errors of a layer cancel each other on real data (Frantar et al. 2023,
            arXiv:2210.17323); biases are corrected with it.
    """

    key: str
    activations: Literal["static", "dynamic"] = "static"
    method: CalibrationMethod = field(default_factory=Percentile)
    equalize: bool = False
    smooth: float | None = None
    correct_bias: bool = False
    fit_rounding: bool = False
