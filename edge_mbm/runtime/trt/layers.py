"""Which precision each layer of an engine got, as TensorRT's engine inspector tells it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

__all__ = ["DlaShare", "Precisions", "describe_layers", "read_layers"]

Precisions: TypeAlias = dict[str, int]
"""Precision ("int8", "fp16", "fp32") -> layers that compute in it."""


class DlaShare(Struct, frozen=True, kw_only=True):
    """How much of an engine runs on the Deep Learning Accelerator; the rest is the GPU's."""

    able: int
    """Layers of the network that can."""
    total: int
    """All its layers, but for constants."""

    def __str__(self) -> str:
        return f"{self.able} of {self.total} layers"


# The narrowest first: what a layer reads in int8 it computes in int8, though its scales are fp32.
_TYPES = (
    ("fp8", re.compile(r"fp8|float8|e4m3", re.IGNORECASE)),
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("bf16", re.compile(r"bf16|bfloat16", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float|tf32", re.IGNORECASE)),
)
_MOVES = ("reformat", "noop", "constant", "shape", "shuffle", "cast", "signal", "wait", "copy", "quantize")
"""Layers that only move or convert data say nothing about how the model computes."""


def read_layers(report: str) -> Precisions:
    """Count layers by precision.

    Args:
        report: of ``IEngineInspector.get_engine_information`` as JSON, from an engine built with detailed verbosity.

    Returns:
        Precision -> layers; empty where the report says nothing of types.
    """
    try:
        layers = msgspec.json.decode(report.encode()).get("Layers", [])
    except (msgspec.DecodeError, AttributeError):
        return {}
    return dict(sorted(Counter(_precisions(layers)).items()))


def describe_layers(asked: str, found: Mapping[str, int]) -> str:
    """In words what became of a precision that was asked for: "asked int8, got fp32 in 3 of 40 layers"."""
    others = {key: count for key, count in found.items() if key != asked}
    total = sum(found.values())
    if not found:
        return f"asked {asked}; the engine does not say what it got"
    if not others:
        return f"asked {asked}, got it in all {total} layers"
    return f"asked {asked}, got " + ", ".join(f"{k} in {n} of {total} layers" for k, n in sorted(others.items()))


def _precisions(layers: list[Any]) -> Iterator[str]:
    for layer in layers:
        # Without detailed verbosity a layer is only its name.
        if isinstance(layer, dict) and not _only_moves(layer) and (found := _precision(layer)) is not None:
            yield found


def _only_moves(layer: Mapping[str, Any]) -> bool:
    return any(word in str(layer.get("LayerType", "")).lower() for word in _MOVES)


def _precision(layer: Mapping[str, Any]) -> str | None:
    """The narrowest type among what it reads."""
    edges = layer.get("Inputs") or layer.get("Outputs") or ()
    said = " ".join(str(edge.get("Format/Datatype", edge.get("Datatype", ""))) for edge in edges)
    return next((name for name, pattern in _TYPES if pattern.search(said)), None)
