"""Engines that compute nothing, for testing what is around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import EngineError
from edge_mbm.spec import Component

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NullEngine"]


class NullEngine:
    """An ``Engine`` that leaves its outputs at zero, or lets a test fill them.

    It is an ``EngineLoader`` itself: ``bundle.session(load_engine=NullEngine)`` needs no engine library at all.

    Args:
        name: the component's.
        component: its manifest entry, which gives the buffers.
        graph: ignored.
        compute: called with the input and the output buffers at each run, to fill the latter or to raise.
    """

    provider = "NullEngine"

    def __init__(
        self,
        name: str,
        component: Component,
        graph: bytes = b"",  # noqa: ARG002 - part of EngineLoader
        *,
        compute: Callable[[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]], None] | None = None,
    ) -> None:
        self.name = name
        self.inputs = {key: np.zeros(spec.resolve(), spec.dtype) for key, spec in component.graph_inputs().items()}
        self._outputs = {key: np.zeros(spec.resolve(), spec.dtype) for key, spec in component.graph_outputs().items()}
        self._compute = compute
        self.runs = 0
        self.closed = False

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """See ``Engine.run``."""
        if self.closed:
            raise EngineError(f"'{self.name}' was run after it was closed")
        for key, value in inputs.items():
            if key not in self.inputs:
                raise EngineError(f"'{self.name}' has no input '{key}'; it has {sorted(self.inputs)}")
            buffer = self.inputs[key]
            if value.shape != buffer.shape or value.dtype != buffer.dtype:
                raise EngineError(f"input '{key}' of '{self.name}' is {buffer.dtype}{list(buffer.shape)}")
            np.copyto(buffer, value)
        self.runs += 1
        if self._compute is not None:
            self._compute(self.inputs, self._outputs)
        return self._outputs

    def close(self) -> None:
        """See ``Engine.close``."""
        self.closed = True
