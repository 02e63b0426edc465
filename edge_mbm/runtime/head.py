"""A head at work: it waits for its modalities, runs, and says what came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_mbm.errors import EngineError, InputError
from edge_mbm.preprocess import as_lines
from edge_mbm.runtime.align import Aligner, Match
from edge_mbm.runtime.component import ComponentRunner
from edge_mbm.runtime.result import Result, TaskOutput, interpret
from edge_mbm.runtime.status import HeadStatus
from edge_mbm.spec import Head, Input

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HeadNode", "Prompts"]


class Prompts(NamedTuple):
    """Labels that are the lines of a text."""

    modality: str
    lines: int
    """At most."""


class HeadNode:
    """One head with its aligner.

    Args:
        runner: its engine.
        head: its manifest entry.
        aligner: gathers what goes in.
        modalities: that it depends on.
        labels: per classifying output; of one whose labels are the lines of a text, which text, and how many lines.
        provider: execution providers of the head and of the encoders that feed it.
    """

    def __init__(
        self,
        runner: ComponentRunner,
        head: Head,
        aligner: Aligner,
        *,
        modalities: tuple[str, ...],
        labels: Mapping[str, tuple[str, ...] | Prompts],
        provider: str,
    ) -> None:
        self.name = runner.name
        self.aligner = aligner
        self.pivot = head.pivot
        self.last: int | None = None
        """Capture time of its last result, ns."""
        self._age: int | None = None
        self._missing: tuple[str, ...] = ()
        self._runner = runner
        self._head = head
        self._modalities = modalities
        self._labels = labels
        self._provider = provider
        self._seq = 0

    def result(self, match: Match) -> Result:
        """The answer for one settled pivot; its age is still 0.

        Raises:
            EngineError: the engine failed, or an output is not finite. The head's carried state starts anew.
        """
        stages = {"wait": match.wait}
        for encoded in match.inputs.values():
            stages.update(encoded.stages if encoded is not None else {})
        try:
            outputs = self._run(self._sources(match), match.missing, stages)
            result = self._result(outputs, match, stages, self._seq, self._labelled(self._texts(match)))
        except EngineError:
            self._runner.reset()
            raise
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

    def infer(self, known: Mapping[str, Any], stages: dict[str, int]) -> tuple[Result, Mapping[str, NDArray[Any]]]:
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
        needed = missing if len(missing) == len(self._modalities) else self._head.needs(missing)
        if needed:
            raise InputError(f"head '{self.name}' cannot do without {list(needed)}: give it")
        sources = {v.source: known.get(v.source, _zeros(v)) for v in self._head.inputs.values()}
        with self._runner.fresh_state():
            outputs = self._run(sources, missing, stages)
        match = Match(t=0, inputs={}, missing=missing, spread=0, wait=0, dropped=0)
        labels = self._labelled(known)
        result = self._result(outputs, match, stages, 0, labels)
        return result, {key: self._given(key, outputs, labels).copy() for key in self._head.outputs}

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

    def _result(
        self,
        outputs: Mapping[str, Any],
        match: Match,
        stages: Mapping[str, int],
        seq: int,
        labels: Mapping[str, tuple[str, ...]],
    ) -> Result:
        return Result(
            head=self.name,
            seq=seq,
            t_capture=match.t,
            age=0,
            outputs=self._interpret(outputs, labels),
            missing=match.missing,
            spread=match.spread,
            dropped=match.dropped,
            gated=tuple(key for key, encoded in match.inputs.items() if encoded is not None and encoded.gated),
            stage_ns=stages,
            provider=self._provider,
        )

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
        return {modality: encoded.text for modality, encoded in found.items() if encoded.text is not None}

    def _labelled(self, texts: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Per classifying output its labels, of a text those that it has."""
        return {
            key: as_lines(texts[known.modality], known.lines) if isinstance(known, Prompts) else known
            for key, known in self._labels.items()
        }


def _zeros(value: Input) -> NDArray[Any]:
    """What stands in for a missing modality; the present mask tells the head to look away."""
    return np.zeros(value.tensor.resolve(), value.tensor.dtype)
