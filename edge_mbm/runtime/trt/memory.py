"""What a loaded engine holds, and the states that stay with it on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import EngineError
from edge_mbm.runtime.trt.cuda import Cuda
from edge_mbm.spec import Component, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DeviceStates", "Loaded", "free", "kept_states"]


@dataclass
class Loaded:
    """All that is freed, in this order from top to bottom."""

    graph: int | None = None
    context: Any = None
    engine: Any = None
    runtime: Any = None
    device: dict[str, Any] = field(default_factory=dict)
    """Memory of the GPU by tensor; empty where the GPU works in the host's."""
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Page-locked memory of the host, as outputs."""
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    start: Any = None
    end: Any = None
    stream: Any = None


def free(cuda: Cuda, loaded: Loaded) -> None:
    """Everything, in order, with the context current; a GPU that is lost has nothing left to free."""
    with suppress(cuda.driver.Error), cuda.current():
        if loaded.graph is not None:
            with suppress(EngineError):
                cuda.graphs.destroy(loaded.graph)
        loaded.graph = loaded.context = None
        loaded.engine = None
        loaded.runtime = None
        for allocation in loaded.device.values():
            with suppress(cuda.driver.Error):
                allocation.free()
        # Not freed by hand: who still holds a view of one may read it.
        loaded.device.clear()
        loaded.inputs.clear()
        loaded.outputs.clear()
        loaded.start = loaded.end = loaded.stream = None


def kept_states(component: Component) -> tuple[State, ...]:
    """Of its states, those that nobody but the next run reads: they need never leave the GPU."""
    return tuple(state for state in component.states if state.output not in component.outputs)


class DeviceStates:
    """States of an engine that has memory of its own on the GPU. ``States``.

    Args:
        component: whose states they are.
        cuda: the GPU.
        loaded: has memory for both ends of each.
        guard: within it the engine is not run by another thread, its context is current and errors are explained.
        hold: writes inputs that no run copies from then on.
    """

    def __init__(
        self,
        component: Component,
        cuda: Cuda,
        loaded: Loaded,
        *,
        guard: Callable[[str], AbstractContextManager[None]],
        hold: Callable[[Mapping[str, NDArray[Any]]], None],
    ) -> None:
        self._kept = {state.input: state for state in kept_states(component)}
        self._shown = [state for state in component.states if state.input not in self._kept]
        self._driver, self._loaded = cuda.driver, loaded
        self._guard, self.hold = guard, hold

    def carry(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """See ``States.carry``: a copy within the GPU, queued before the next run."""
        with self._guard("carry the states of"):
            for key, state in self._kept.items():
                to, where = self._loaded.device[key], self._loaded.device[state.output]
                self._driver.memcpy_dtod_async(to, where, _size(state), self._loaded.stream)
        for state in self._shown:
            np.copyto(self._loaded.inputs[state.input], outputs[state.output])

    def reset(self) -> None:
        """See ``States.reset``."""
        with self._guard("reset the states of"):
            for key, state in self._kept.items():
                self._driver.memset_d8_async(self._loaded.device[key], 0, _size(state), self._loaded.stream)
        for state in self._shown:
            self._loaded.inputs[state.input][...] = 0

    def save(self) -> dict[str, NDArray[Any]]:
        """See ``States.save``."""
        saved = {state.input: self._loaded.inputs[state.input].copy() for state in self._shown}
        with self._guard("save the states of"):
            self._loaded.stream.synchronize()
            for key, state in self._kept.items():
                saved[key] = np.empty(state.tensor.resolve(), state.tensor.dtype)
                self._driver.memcpy_dtoh(saved[key], self._loaded.device[key])
        return saved

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """See ``States.restore``."""
        with self._guard("restore the states of"):
            self._loaded.stream.synchronize()
            for key, value in saved.items():
                if key in self._kept:
                    self._driver.memcpy_htod(self._loaded.device[key], np.ascontiguousarray(value))
                else:
                    np.copyto(self._loaded.inputs[key], value)


def _size(state: State) -> int:
    shape = state.tensor.resolve()
    return int(np.prod(shape)) * np.dtype(state.tensor.dtype).itemsize
