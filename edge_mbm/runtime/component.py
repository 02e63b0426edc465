"""One component at work: its preprocessing, its engine, and the state it carries."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_mbm.errors import EngineError
from edge_mbm.preprocess import build_preprocessor
from edge_mbm.runtime.engine import Engine
from edge_mbm.runtime.gate import make_gate
from edge_mbm.runtime.result import RegionsOutput, Segment, TextOutput
from edge_mbm.runtime.states import states_of
from edge_mbm.spec import Component, CropSteps, Encoder, TokenSteps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["About", "ComponentRunner", "Encoded", "Node"]

_HISTORY = 1024
"""Outputs an encoder remembers at most, whatever the other modalities do (a stalled camera must not fill memory)."""


class ComponentRunner:
    """Feeds one engine and carries its states from call to call.

    Args:
        name: the component's.
        component: of any kind but a decoder: see ``DecoderRunner``.
        engine: loaded with one of its variants.
        assets: name -> bytes of the files that its preprocessing needs.
    """

    def __init__(
        self, name: str, component: Component, engine: Engine, assets: Mapping[str, bytes] | None = None
    ) -> None:
        self.name = name
        self.component = component
        self.engine = engine
        self._states = states_of(engine, component.states)
        self._sources = frozenset(value.source for value in component.inputs.values())
        self._prepare = {
            key: build_preprocessor(value.preprocess, value.tensor, assets)
            for key, value in component.inputs.items()
            if "." not in value.source or isinstance(value.preprocess, TokenSteps | CropSteps)
        }
        self._preprocess_stage, self._infer_stage = f"preprocess.{name}", f"infer.{name}"
        self.reset()

    def run(self, sources: Mapping[str, Any], stages: dict[str, int]) -> Mapping[str, NDArray[Any]]:
        """One call; the outputs are the engine's buffers.

        Args:
            sources: per input's ``source``: a raw item of that modality, or another component's output.
            stages: receives this call's times, ns.
        """
        started = perf_counter_ns()
        given = {}
        for key, value in self.component.inputs.items():
            if key in self._prepare:
                self._prepare[key](_plain(sources[value.source]), out=self.engine.inputs[key])
            else:
                given[key] = _array(sources[value.source])
        prepared = perf_counter_ns()
        outputs = self.engine.run(given)
        self._states.carry(outputs)
        if self._prepare:
            stages[self._preprocess_stage] = prepared - started
        stages[self._infer_stage] = perf_counter_ns() - prepared
        return outputs

    def compute(self, sources: Mapping[str, Any], stages: dict[str, int]) -> dict[str, Any]:
        """As ``run``: what those get who read it, to keep."""
        outputs = self.run(sources, stages)
        return {key: outputs[key].copy() for key in self.component.outputs}

    @property
    def sources(self) -> frozenset[str]:
        """What it reads: a modality, or outputs of other components."""
        return self._sources

    def reset(self) -> None:
        """Start carried states from zeros."""
        self._states.reset()

    @contextmanager
    def fresh_state(self) -> Iterator[None]:
        """Zero states inside, the carried ones again afterwards."""
        kept = self._states.save()
        self.reset()
        try:
            yield
        finally:
            self._states.restore(kept)


def _plain(item: Any) -> Any:
    """What preprocessing takes: of a decoder's output, the text."""
    return item.text if isinstance(item, TextOutput) else item


def _array(item: Any) -> NDArray[Any]:
    """What an engine takes: of a detector's output, all its rows."""
    array: NDArray[Any] = item.padded if isinstance(item, RegionsOutput) else item
    return array


class About(NamedTuple):
    """What an item is besides its data."""

    segment: Segment | None = None
    """The utterance that it is."""
    text: str | None = None
    """Of a text, that: its lines may be labels."""


UNSAID = About()


class Encoded(NamedTuple):
    """A component's outputs for one moment: arrays, or a decoder's text."""

    t: int
    outputs: Mapping[str, Any]
    stages: Mapping[str, int]
    gated: bool = False
    """The item was skipped: these are the previous one's outputs."""
    about: About = UNSAID
    """What was read."""


class Node:
    """A component before the heads, and its recent outputs: a head takes what was current at its pivot's time."""

    def __init__(self, runner: ComponentRunner) -> None:
        self.runner = runner
        self.starts_anew = False
        """Whether its stream broke since its last run, so that carried states must start from zeros."""
        self.runs = self.failed = self.gated = 0
        self.last_ns: int | None = None
        """How long its last run took."""
        component = runner.component
        self._gate = make_gate(component.gate if isinstance(component, Encoder) else None)
        self._max_gap_ns = component.max_gap_ns if isinstance(component, Encoder) else None
        self._recent: deque[Encoded] = deque(maxlen=_HISTORY)

    def encode(self, sources: Mapping[str, Any], t: int, stages: dict[str, int], about: About = UNSAID) -> Encoded:
        """Run once, or let the previous outputs stand where the gate allows it; ``about`` as for ``Encoded``.

        Raises:
            EngineError: the engine failed, or an output is not finite; a carried state starts anew.
        """
        item = next(iter(sources.values()))  # what a gate watches is the only one
        if self._gate is not None and self._recent and self._gate.may_skip(item, t):
            self.gated += 1
            return Encoded(t, self._recent[-1].outputs, stages, gated=True)
        if self._max_gap_ns is not None and self._recent and t - self._recent[-1].t > self._max_gap_ns:
            self.runner.reset()
        started = perf_counter_ns()
        self.runs += 1
        outputs = self.runner.compute(sources, stages)
        self.last_ns = perf_counter_ns() - started
        for key, value in outputs.items():
            if isinstance(value, np.ndarray) and not np.isfinite(value).all():
                self.runner.reset()
                raise EngineError(
                    f"'{self.runner.name}.{key}' is not finite at t = {t / 1e9:.3f} s: "
                    "its input is out of the range it was made for, or the variant overflows (try --variant fp32)"
                )
        if self._gate is not None:
            self._gate.let_through(item, t)
        return Encoded(t, outputs, stages, about=about)

    def remember(self, encoded: Encoded) -> None:
        """Keep outputs for ``at``."""
        self._recent.append(encoded)

    def at(self, t: int) -> Encoded | None:
        """The newest output of time ``t`` or before."""
        return next((encoded for encoded in reversed(self._recent) if encoded.t <= t), None)

    def forget_before(self, t: int) -> None:
        """Keep what ``at`` may still be asked for from ``t`` on."""
        while len(self._recent) > 1 and self._recent[1].t <= t:
            self._recent.popleft()

    def reset(self) -> None:
        """Start carried states anew; what was encoded stays true for its time."""
        self.runner.reset()

    def clear(self) -> None:
        """Forget everything."""
        self.runner.reset()
        self._recent.clear()
