"""What a session gives: one frozen record per head and pivot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from msgspec import Struct, structs

from edge_mbm.errors import EngineError
from edge_mbm.spec import Classification, Embedding, Output, Regions, Regression, Saliency, Sequence

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = [
    "RUNNABLE_TASKS",
    "ClassificationOutput",
    "EmbeddingOutput",
    "RegionsOutput",
    "RegressionOutput",
    "Result",
    "Segment",
    "SequenceOutput",
    "TaskOutput",
    "TextOutput",
    "interpret",
]

RUNNABLE_TASKS = (Classification, Embedding, Regression, Sequence, Saliency, Regions)
"""Tasks whose head outputs this version can hand out; the manifest may describe more."""


class ClassificationOutput(Struct, frozen=True, eq=False):
    """The best class and every class's score."""

    label: str
    score: float
    index: int
    scores: NDArray[np.float32]
    """float32[classes]: probabilities for softmax and sigmoid, else what the graph gave."""
    labels: tuple[str, ...]
    prompted: bool = False
    """Whether the labels are the lines of a text, of the moment that this is about, and not the bundle's own."""

    def top(self, count: int) -> list[tuple[str, float]]:
        """The ``count`` best (label, score) pairs, best first."""
        best = np.argsort(-self.scores, kind="stable")[:count]
        return [(self.labels[i], float(self.scores[i])) for i in best]

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON; the labels too where no one could know them from the bundle."""
        labels = {"labels": list(self.labels)} if self.prompted else {}
        return {"label": self.label, "score": self.score, "scores": self.scores.tolist(), **labels}


class EmbeddingOutput(Struct, frozen=True, eq=False):
    """A vector, float32[dim]."""

    vector: NDArray[np.float32]

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"vector": self.vector.tolist()}


class RegressionOutput(Struct, frozen=True, eq=False):
    """Quantities, float32 of the output's shape without the batch axis, in ``unit``."""

    values: NDArray[np.float32]
    unit: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"values": self.values.tolist(), "unit": self.unit}


class SequenceOutput(Struct, frozen=True, eq=False):
    """One value, or one vector, per time step, or per region with zeros after the last; float32[steps, ...]."""

    values: NDArray[np.float32]
    times: NDArray[np.int64] | None = None
    """int64[steps]: capture time of each step, ns, where the steps are frames of a stream; see ``Result.segment``."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        times = {} if self.times is None else {"times": self.times.tolist()}
        return {"values": self.values.tolist(), **times}


class TextOutput(Struct, frozen=True, eq=False):
    """What a decoder wrote."""

    text: str
    tokens: tuple[int, ...]
    """Without those that every text begins with, and the one that ends it."""
    score: float
    """Mean log probability of the tokens, the ending one among them."""
    is_complete: bool
    """Whether it came to its end; False where the budget of tokens ended it."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"text": self.text, "score": self.score, "is_complete": self.is_complete}


class RegionsOutput(Struct, frozen=True, eq=False):
    """Where a detector found something in the frame, the surest first."""

    @classmethod
    def of(cls, padded: NDArray[np.float32], left_out: int = 0) -> Self:
        """The regions in an array as ``padded`` has it."""
        known = padded[0][padded[0, :, 4] > 0]
        return cls(
            boxes=known[:, :4],
            scores=known[:, 4],
            landmarks=known[:, 5:].reshape(len(known), (known.shape[1] - 5) // 2, 2),
            left_out=left_out,
            padded=padded,
        )

    boxes: NDArray[np.float32]
    """float32[n, 4]: x0, y0, x1, y1 in pixels of the frame, within it."""
    scores: NDArray[np.float32]
    """float32[n]."""
    landmarks: NDArray[np.float32]
    """float32[n, landmarks, 2]: x, y in pixels of the frame; they may lie outside."""
    left_out: int
    """How many more there were than it may give (``Detector.max_regions``); of a head, which cannot know, 0."""
    padded: NDArray[np.float32]
    """float32[1, max_regions, 5 + 2 * landmarks]: all of it, as those get it who read it, with zeros after the last."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        regions = zip(self.boxes.tolist(), self.scores.tolist(), self.landmarks.tolist(), strict=True)
        return {
            "regions": [{"box": box, "score": score, "landmarks": marks} for box, score, marks in regions],
            "left_out": self.left_out,
        }


TaskOutput: TypeAlias = (
    ClassificationOutput | EmbeddingOutput | RegionsOutput | RegressionOutput | SequenceOutput | TextOutput
)


class Segment(Struct, frozen=True):
    """A stretch of sound that was cut where speech begins and ends, or of video. Times are monotonic ns."""

    start: int
    """Capture time of its first sample or frame."""
    end: int
    """And after its last; of an unfinished one, so far."""
    is_final: bool
    """False where speech was still going on: a later result has more of it, with the same ``start``."""


class Result(Struct, frozen=True, kw_only=True, eq=False):
    """One head's answer about one moment of its pivot modality. Times are monotonic ns."""

    head: str
    seq: int
    """Counts this head's results from 0; a replay gives the same numbers."""
    t_capture: int
    """When the pivot sample was captured, on the clock of ``push``."""
    age: int
    """From that capture until the result was handed out, ns."""
    outputs: Mapping[str, TaskOutput]
    missing: tuple[str, ...]
    """Modalities that the head had to do without."""
    spread: int
    """Between the oldest and the newest capture time that went in, ns; latched texts apart, which have no age."""
    dropped: int
    """Pivot samples that were skipped since this head's previous result."""
    stage_ns: Mapping[str, int]
    """Where the time went: "queue", "preprocess.NAME", "infer.NAME" and "wait" (for other modalities)."""
    provider: str
    """The execution providers that computed it, joined with "+"."""
    gated: tuple[str, ...] = ()
    """Inputs whose encoder skipped its item, since nothing had changed: the previous output stood."""
    segment: Segment | None = None
    """The utterance that it is about, where sound is cut into such; the frames it is about, where they are windowed."""

    @property
    def output(self) -> TaskOutput:
        """The only output of a head that has one; its first otherwise."""
        return next(iter(self.outputs.values()))

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON; ``age`` and ``stage_ns`` are the only ones a replay does not repeat."""
        return {
            "head": self.head,
            "seq": self.seq,
            "t_capture": self.t_capture,
            "outputs": {key: value.as_json() for key, value in self.outputs.items()},
            "missing": list(self.missing),
            "spread": self.spread,
            "dropped": self.dropped,
            "gated": list(self.gated),
            **({} if self.segment is None else {"segment": structs.asdict(self.segment)}),
            "provider": self.provider,
            "age": self.age,
            "stage_ns": dict(self.stage_ns),
        }


def interpret(
    output: Output, array: NDArray[Any], labels: tuple[str, ...], where: str, *, prompted: bool = False
) -> TaskOutput:
    """Turn a head's raw output, batch 1, into what its task means.

    Args:
        output: what it is.
        array: its values.
        labels: of a classification.
        where: names it, for messages.
        prompted: see ``ClassificationOutput``.

    Raises:
        EngineError: the output is not finite, or has not one value per label.
    """
    values: NDArray[np.float32] = array[0].astype(np.float32)
    if not np.isfinite(values).all():
        raise EngineError(
            f"{where} is not finite: an input is out of the range the model was made for, or it overflows"
        )
    if isinstance(output.task, Classification):
        found = _classify(output.task, values.reshape(-1), labels, where)
        return structs.replace(found, prompted=True) if prompted else found
    if isinstance(output.task, Regions):
        return RegionsOutput.of(values[None])
    if isinstance(output.task, Regression):
        return RegressionOutput(values, output.task.unit)
    if isinstance(output.task, Sequence | Saliency):
        return SequenceOutput(values)
    return EmbeddingOutput(values.reshape(-1))


def _classify(
    task: Classification, values: NDArray[np.float32], labels: tuple[str, ...], where: str
) -> ClassificationOutput:
    if len(labels) != len(values):
        raise EngineError(f"{where} has {len(values)} classes and {len(labels)} labels: export the bundle again")
    if task.activation == "softmax":
        # In float64, where the difference of two float32 cannot overflow.
        exponentials = np.exp(values.astype(np.float64) - values.max())
        values = (exponentials / exponentials.sum()).astype(np.float32)
    elif task.activation == "sigmoid":
        # tanh is exact where exp would overflow.
        values = 0.5 * (1 + np.tanh(0.5 * values))
    index = int(values.argmax())
    return ClassificationOutput(labels[index], float(values[index]), index, values, labels)
