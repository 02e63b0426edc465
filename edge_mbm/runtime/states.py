"""States that a component carries from call to call: in the engine's buffers, or where the engine keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_mbm.spec import State

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_mbm.runtime.engine import Engine

__all__ = ["HostStates", "States", "states_of"]

Arrays = Mapping[str, "NDArray[Any]"]


class States(Protocol):
    """The carried states of one engine.

    A protocol because of where they are: an engine on a GPU that copied a decoder's cache to the host and back for each
    token would do little else. Such an engine has an attribute ``states``.
    """

    def carry(self, outputs: Arrays) -> None:
        """What the last run gave is what the next one takes; ``outputs`` are that run's."""
        ...

    def reset(self) -> None:
        """Start from zeros."""
        ...

    def hold(self, inputs: Arrays) -> None:
        """Inputs that every run from now on takes, until others are held: what a decoder reads throughout a text."""
        ...

    def save(self) -> dict[str, NDArray[Any]]:
        """Copies on the host, by the input's name."""
        ...

    def restore(self, saved: Arrays) -> None:
        """Go on from what ``save`` gave."""
        ...


class HostStates:
    """States in the input buffers of an engine.

    Args:
        engine: has a buffer for each.
        states: of its component.
    """

    def __init__(self, engine: Engine, states: tuple[State, ...]) -> None:
        self._engine = engine
        self._states = states

    def carry(self, outputs: Arrays) -> None:
        """See ``States.carry``."""
        for state in self._states:
            np.copyto(self._engine.inputs[state.input], outputs[state.output])

    def reset(self) -> None:
        """See ``States.reset``."""
        for state in self._states:
            self._engine.inputs[state.input][...] = 0

    def hold(self, inputs: Arrays) -> None:
        """See ``States.hold``."""
        for key, value in inputs.items():
            np.copyto(self._engine.inputs[key], value)

    def save(self) -> dict[str, NDArray[Any]]:
        """See ``States.save``."""
        return {state.input: self._engine.inputs[state.input].copy() for state in self._states}

    def restore(self, saved: Arrays) -> None:
        """See ``States.restore``."""
        for key, value in saved.items():
            np.copyto(self._engine.inputs[key], value)


def states_of(engine: Engine, states: tuple[State, ...]) -> States:
    """The engine's own way of carrying them, or else its buffers."""
    own: States | None = getattr(engine, "states", None)
    return own or HostStates(engine, states)
