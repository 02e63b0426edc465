"""What gives results, at work: a head, or a detector or decoder by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_mbm.errors import EngineError, InputError
from edge_mbm.preprocess import as_lines
from edge_mbm.runtime.align import Aligner, Match
from edge_mbm.runtime.component import ComponentRunner
from edge_mbm.runtime.frames import FrameTimes
from edge_mbm.runtime.result import RegionsOutput, Result, TaskOutput, TextOutput, interpret
from edge_mbm.runtime.status import HeadStatus
from edge_mbm.spec import Component, Head, Input, Timing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Answering", "HeadNode", "Prompts", "Relay"]


class Prompts(NamedTuple):
    """Labels that are the lines of a text."""

    modality: str
    lines: int
    """At most."""


class Answering:
    """What gives results: it waits for its modalities, and says what came out.

    Args:
        name: the component's.
        timing: its pivot, and what it can do without.
        aligner: gathers what goes in.
        modalities: that it depends on.
        provider: execution providers of all that computes it.
        frames: of a window of video, which of its outputs' steps count, and their times.
    """

    def __init__(
        self,
        name: str,
        timing: Timing,
        aligner: Aligner,
        *,
        modalities: tuple[str, ...],
        provider: str,
        frames: FrameTimes | None = None,
    ) -> None:
        self.name = name
        self.aligner = aligner
        self.pivot = timing.pivot
        self.last: int | None = None
        """Capture time of its last result, ns."""
        self._age: int | None = None
        self._missing: tuple[str, ...] = ()
        self._timing = timing
        self._modalities = modalities
        self._provider = provider
        self._frames = frames
        self._seq = 0

    def result(self, match: Match) -> Result:
        """The answer for one settled pivot; its age is still 0.

        Raises:
            EngineError: the engine failed, or an output is not finite. A carried state starts anew.
        """
        stages = {"wait": match.wait}
        for encoded in match.inputs.values():
            stages.update(encoded.stages if encoded is not None else {})
        result = self._result(self._answer(match, stages), match, stages, self._seq)
        self._seq, self.last, self._missing = self._seq + 1, match.t, match.missing
        return result

    def handed_out(self, age: int) -> None:
        """A result of it went to the consumer at this age, ns."""
        self._age = age

    def status(self, *, enabled: bool) -> HeadStatus:
        """What it is doing."""
        return HeadStatus(
            name=self.name,
            enabled=enabled,
            results=self._seq,
            last=self.last,
            age_ns=self._age,
            missing=self._missing,
        )

    def infer(self, known: Mapping[str, Any], stages: dict[str, int]) -> tuple[Result, Mapping[str, Any]]:
        """Run on what one shot has computed so far.

        Args:
            known: "component.output" -> array, and the modalities that were given.
            stages: receives the times.

        Returns:
            The result, and the raw outputs by name.

        Raises:
            InputError: it cannot do without what is missing.
        """
        missing = tuple(modality for modality in self._modalities if modality not in known)
        needed = missing if len(missing) == len(self._modalities) else self._timing.needs(missing)
        if needed:
            raise InputError(f"head '{self.name}' cannot do without {list(needed)}: give it")
        outputs, raw = self._answer_once(known, missing, stages)
        match = Match(t=0, inputs={}, missing=missing, spread=0, wait=0, dropped=0)
        return self._result(outputs, match, stages, 0), raw

    def _answer(self, match: Match, stages: dict[str, int]) -> dict[str, TaskOutput]:
        raise NotImplementedError

    def _answer_once(
        self, known: Mapping[str, Any], missing: tuple[str, ...], stages: dict[str, int]
    ) -> tuple[dict[str, TaskOutput], Mapping[str, Any]]:
        raise NotImplementedError

    def _result(self, outputs: Mapping[str, TaskOutput], match: Match, stages: Mapping[str, int], seq: int) -> Result:
        return Result(
            head=self.name,
            seq=seq,
            t_capture=match.t,
            age=0,
            outputs=outputs if self._frames is None else self._frames.timed(outputs, match.segment),
            missing=match.missing,
            spread=match.spread,
            dropped=match.dropped,
            gated=tuple(key for key, encoded in match.inputs.items() if encoded is not None and encoded.gated),
            stage_ns=stages,
            provider=self._provider,
            segment=match.segment,
        )


class HeadNode(Answering):
    """One head with its engine; see ``Answering`` for the other arguments.

    Args:
        runner: its engine.
        head: its manifest entry.
        labels: per classifying output; of one whose labels are the lines of a text, which text, and how many lines.
    """

    def __init__(
        self, runner: ComponentRunner, head: Head, labels: Mapping[str, tuple[str, ...] | Prompts], **answering: Any
    ) -> None:
        super().__init__(runner.name, **answering)
        self._runner = runner
        self._head = head
        self._labels = labels

    def _answer(self, match: Match, stages: dict[str, int]) -> dict[str, TaskOutput]:
        try:
            outputs = self._run(self._sources(match), match.missing, stages)
            return self._interpret(outputs, self._labelled(self._texts(match)))
        except EngineError:
            self._runner.reset()
            raise

    def _answer_once(
        self, known: Mapping[str, Any], missing: tuple[str, ...], stages: dict[str, int]
    ) -> tuple[dict[str, TaskOutput], Mapping[str, Any]]:
        sources = {v.source: known.get(v.source, _zeros(v)) for v in self._head.inputs.values()}
        with self._runner.fresh_state():
            outputs = self._run(sources, missing, stages)
        labels = self._labelled(known)
        raw = {key: self._given(key, outputs, labels).copy() for key in self._head.outputs}
        return self._interpret(outputs, labels), raw

    def _sources(self, match: Match) -> dict[str, NDArray[Any]]:
        sources = {}
        for key, encoded in match.inputs.items():
            value = self._head.inputs[key]
            output = value.source.partition(".")[2]
            sources[value.source] = _zeros(value) if encoded is None else encoded.outputs[output]
        return sources

    def _run(
        self, sources: Mapping[str, Any], missing: Iterable[str], stages: dict[str, int]
    ) -> Mapping[str, NDArray[Any]]:
        present = self._head.present
        if present is not None:
            mask = self._runner.engine.inputs[present.input]
            mask[0] = [modality not in missing for modality in present.order]
        return self._runner.run(sources, stages)

    def _interpret(self, outputs: Mapping[str, Any], labels: Mapping[str, tuple[str, ...]]) -> dict[str, TaskOutput]:
        return {
            key: interpret(
                output,
                self._given(key, outputs, labels),
                labels.get(key, ()),
                f"'{self.name}.{key}'",
                prompted=isinstance(self._labels.get(key), Prompts),
            )
            for key, output in self._head.outputs.items()
        }

    def _given(self, key: str, outputs: Mapping[str, Any], labels: Mapping[str, tuple[str, ...]]) -> NDArray[Any]:
        """An output, of prompts only as far as there are any."""
        array: NDArray[Any] = outputs[key]
        return array[:, : len(labels[key])] if isinstance(self._labels.get(key), Prompts) else array

    def _texts(self, match: Match) -> dict[str, str]:
        """Per modality the text that was encoded, which a newer one may have replaced since."""
        found = {self.aligner.modalities[key]: encoded for key, encoded in match.inputs.items() if encoded is not None}
        return {modality: e.about.text for modality, e in found.items() if e.about.text is not None}

    def _labelled(self, texts: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Per classifying output its labels, of a text those that it has."""
        return {
            key: as_lines(texts[known.modality], known.lines) if isinstance(known, Prompts) else known
            for key, known in self._labels.items()
        }


class Relay(Answering):
    """A detector or decoder whose outputs are results as they are; see ``Answering`` for the other arguments.

    Args:
        component: its manifest entry.
    """

    def __init__(self, name: str, component: Component, **answering: Any) -> None:
        super().__init__(name, **answering)
        self._component = component

    def _answer(self, match: Match, stages: dict[str, int]) -> dict[str, TaskOutput]:  # noqa: ARG002 - ran before
        [encoded] = match.inputs.values()
        assert encoded is not None  # it is the pivot's own
        return self._interpret(encoded.outputs)

    def _answer_once(
        self,
        known: Mapping[str, Any],
        missing: tuple[str, ...],  # noqa: ARG002 - it has one modality
        stages: dict[str, int],  # noqa: ARG002
    ) -> tuple[dict[str, TaskOutput], Mapping[str, Any]]:
        outputs = {key: known[f"{self.name}.{key}"] for key in self._component.outputs}
        return self._interpret(outputs), outputs

    def _interpret(self, outputs: Mapping[str, Any]) -> dict[str, TaskOutput]:
        return {
            key: value
            if isinstance(value, TextOutput | RegionsOutput)
            else interpret(self._component.outputs[key], value, (), f"'{self.name}.{key}'")
            for key, value in outputs.items()
        }


def _zeros(value: Input) -> NDArray[Any]:
    """What stands in for a missing modality; the present mask tells the head to look away."""
    return np.zeros(value.tensor.resolve(), value.tensor.dtype)
