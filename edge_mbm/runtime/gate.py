"""Gates: whether an encoder may skip an item, because what it would say was said already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_mbm.spec import Gate, SilenceGate, UnchangedGate

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ItemGate", "make_gate"]

_GRID = 32
"""Samples along each side of a frame: enough to see a hand move, and cheap at any resolution."""


class ItemGate(Protocol):
    """Decides item by item."""

    def may_skip(self, data: NDArray[Any], t: int) -> bool:
        """Whether the output of the item that was last let through stands for this one too; ``t`` in ns."""
        ...

    def let_through(self, data: NDArray[Any], t: int) -> None:
        """This item was encoded."""
        ...


def make_gate(gate: Gate | None) -> ItemGate | None:
    """The gate that a manifest declares."""
    if gate is None:
        return None
    return _Unchanged(gate) if isinstance(gate, UnchangedGate) else _Silence(gate)


class _Unchanged:
    def __init__(self, gate: UnchangedGate) -> None:
        self._gate = gate
        self._last: NDArray[np.int16] | None = None
        self._t = 0

    def may_skip(self, data: NDArray[Any], t: int) -> bool:
        if self._last is None or t - self._t > self._gate.max_ns:
            return False
        grid = _grid(data)
        # Against the frame that was encoded, not the one before: slow changes add up.
        return grid.shape == self._last.shape and float(np.abs(grid - self._last).mean()) <= self._gate.threshold

    def let_through(self, data: NDArray[Any], t: int) -> None:
        self._last, self._t = _grid(data), t


class _Silence:
    def __init__(self, gate: SilenceGate) -> None:
        self._gate = gate
        self._power = 10.0 ** (gate.threshold_db / 10.0)
        self._t: int | None = None

    def may_skip(self, data: NDArray[Any], t: int) -> bool:
        if self._t is None or t - self._t > self._gate.max_ns:
            return False
        return bool(float(np.dot(data, data)) <= self._power * len(data))

    def let_through(self, data: NDArray[Any], t: int) -> None:  # noqa: ARG002 - part of ItemGate
        self._t = t


def _grid(frame: NDArray[Any]) -> NDArray[np.int16]:
    rows, columns = (max(1, size // _GRID) for size in frame.shape[:2])
    return frame[::rows, ::columns].astype(np.int16)
