"""Which of a component's engines runs on this device: what was measured here decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from edge_mbm.runtime.trt.cache import EngineRecord
from edge_mbm.spec import Component, Variant

__all__ = ["Choice", "choose_engine", "variants_for"]

Records: TypeAlias = Mapping[str, EngineRecord]
"""Variant -> what is known of its engine."""

_PAYS = 1.05
"""INT8 costs accuracy, so that it must be this much faster than FP16."""
_ORDER = ("fp16", "fp32", "int8")
"""Without measurements."""


class Choice(Struct, frozen=True, kw_only=True):
    """What runs, and why."""

    variant: str
    reason: str


def variants_for(component: Component, *, dla: bool = False) -> dict[str, Variant]:
    """The variants that engines are built from: those made for TensorRT, or what runs anywhere where there are none.

    Only what kept its budget on the workstation has a graph. For the DLA it is what computes in fp16 alone: it has no
    fp32, and its int8 takes ranges from calibration, not the QuantizeLinear of a graph.
    """
    kept = {key: variant for key, variant in component.variants.items() if variant.graph is not None}
    made = {key: variant for key, variant in kept.items() if variant.target == "tensorrt"}
    found = made or {key: variant for key, variant in kept.items() if variant.target == "any"}
    return {key: variant for key, variant in found.items() if variant.precision == "fp16"} if dla else found


def choose_engine(records: Records) -> Choice | None:
    """FP16, unless INT8 was measured to be faster by enough; None where nothing is built."""
    if not records:
        return None
    ordered = sorted(records, key=lambda key: _ORDER.index(records[key].asked))
    base, *others = ordered
    small = next((key for key in others if records[key].asked == "int8"), None)
    if small is None:
        return Choice(variant=base, reason="the only engine" if len(ordered) == 1 else f"{records[base].asked} first")
    return _compare(base, small, records)


def _compare(base: str, small: str, records: Records) -> Choice:
    slow, fast = records[base].latency, records[small].latency
    if slow is None or fast is None:
        return Choice(variant=base, reason="no latency was measured: the more accurate one")
    ratio = slow.median_us / fast.median_us
    words = f"{small} is {ratio:.2f}x as fast as {base} here"
    if ratio >= _PAYS:
        return Choice(variant=small, reason=words)
    return Choice(variant=base, reason=f"{words}, and would have to be {_PAYS:.2f}x")
