"""How often the answers about a recording were right, given its truth file."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import msgspec
from msgspec import Struct

from edge_mbm.errors import InputError
from edge_mbm.runtime.result import ClassificationOutput, Result

__all__ = ["HeadScore", "Scorer", "Segment", "Tally", "Truth", "read_truth"]

_SECOND = 1_000_000_000


class Segment(Struct, frozen=True, kw_only=True):
    """A stretch of a recording in which one label is right. Times are media seconds.

    Results with ``answer_from`` <= t < ``answer_to`` are asked for; before that nobody could know, after it the next
    one may already be meant.
    """

    start: float
    end: float
    label: str
    answer_from: float
    answer_to: float
    spoiled: tuple[str, ...] = ()
    """Modalities that were made useless on purpose."""


class Truth(Struct, frozen=True, kw_only=True):
    """A truth file: ``{"segments": [...]}``."""

    segments: tuple[Segment, ...]
    """In the order of time; their answer intervals do not overlap."""


class Tally(Struct, frozen=True, kw_only=True):
    """What was asked and what was right."""

    segments: int
    segments_right: int
    """The most frequent label in the interval is the right one; of several as frequent the earliest counts."""
    unanswered: int
    """Segments without a single result; they are not right."""
    results: int
    results_right: int


class HeadScore(Struct, frozen=True, kw_only=True):
    """One head's answers."""

    all: Tally
    by_spoiled: dict[str, Tally]
    """The same by what was spoiled: "clean", "image", "audio", "image+audio"."""


def read_truth(path: str | os.PathLike[str]) -> Truth:
    """Read and check a truth file; unknown keys are ignored.

    Raises:
        InputError: no such file, not JSON, a wrong type (with the path to it), or an interval that is not one.
    """
    try:
        truth = msgspec.json.decode(Path(path).read_bytes(), type=Truth)
    except OSError as error:
        raise InputError(f"the truth file {path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not a truth file: {error}") from error
    for number, segment in enumerate(truth.segments):
        _check(segment, f"{path}: segments[{number}]")
    ordered = sorted(truth.segments, key=lambda segment: segment.answer_from)
    for first, second in pairwise(ordered):
        if second.answer_from < first.answer_to:
            raise InputError(
                f"{path}: the answers to '{first.label}' and '{second.label}' overlap at {second.answer_from} s: "
                "a result can be asked for one label only"
            )
    return Truth(segments=tuple(ordered))


def _check(segment: Segment, where: str) -> None:
    for first, last in (("start", "end"), ("answer_from", "answer_to")):
        low, high = getattr(segment, first), getattr(segment, last)
        if not (math.isfinite(low) and math.isfinite(high) and 0 <= low < high):
            raise InputError(
                f"{where} has {first} = {low} and {last} = {high}: both are seconds from 0 on, {first} before {last}"
            )


class Scorer:
    """Counts right answers as results come; memory grows with the truth file, never with the run.

    Args:
        truth: of the recording.
    """

    def __init__(self, truth: Truth) -> None:
        self._segments = truth.segments
        self._froms = [round(segment.answer_from * _SECOND) for segment in truth.segments]
        self._tos = [round(segment.answer_to * _SECOND) for segment in truth.segments]
        # Head -> per segment: label -> how often; a dict keeps the order in which the labels came.
        self._counts: dict[str, list[dict[str, int]]] = {}

    def add(self, result: Result, t: int) -> None:
        """Count a result; heads whose first output is not a classification have no label to be right.

        Args:
            result: any head's.
            t: its media time, ns.
        """
        output = result.output
        if not isinstance(output, ClassificationOutput):
            return
        counts = self._counts.setdefault(result.head, [{} for _ in self._segments])
        index = bisect_right(self._froms, t) - 1
        if index >= 0 and t < self._tos[index]:
            counts[index][output.label] = counts[index].get(output.label, 0) + 1

    def scores(self, until: int | None = None) -> dict[str, HeadScore]:
        """Per head, how it did.

        Args:
            until: where the run was broken off, ns of media time; segments whose answers begin after it are not held
                against anybody. None when all of the recording was played.
        """
        asked = [k for k, start in enumerate(self._froms) if until is None or start <= until]
        return {head: self._score(counts, asked) for head, counts in self._counts.items()}

    def _score(self, counts: list[dict[str, int]], asked: list[int]) -> HeadScore:
        groups: dict[str, list[int]] = {}
        for index in asked:
            groups.setdefault("+".join(self._segments[index].spoiled) or "clean", []).append(index)
        return HeadScore(
            all=self._tally(counts, asked),
            by_spoiled={name: self._tally(counts, groups[name]) for name in sorted(groups, key=_clean_first)},
        )

    def _tally(self, counts: list[dict[str, int]], indices: Iterable[int]) -> Tally:
        pairs = [(self._segments[index].label, counts[index]) for index in indices]
        return Tally(
            segments=len(pairs),
            segments_right=sum(_majority(found) == label for label, found in pairs),
            unanswered=sum(not found for _, found in pairs),
            results=sum(sum(found.values()) for _, found in pairs),
            results_right=sum(found.get(label, 0) for label, found in pairs),
        )


def _majority(found: dict[str, int]) -> str | None:
    return max(found, key=found.__getitem__, default=None)


def _clean_first(name: str) -> tuple[bool, str]:
    return name != "clean", name
