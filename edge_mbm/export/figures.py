"""How far one set of outputs is from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edge_mbm.export.chain import Arrays
from edge_mbm.spec import ErrorFigures

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Measure", "accuracy", "agreement", "error_figures", "labels_of", "sqnr_db"]

Measure: TypeAlias = Callable[[Sequence[Arrays], Sequence[int | str]], float]
"""(outputs per recording, labels) -> how good a head is, higher is better."""

_SQNR_CAP_DB = 120.0
"""Equal outputs have no noise; a manifest's numbers are finite."""


def error_figures(
    reference: Sequence[Arrays],
    got: Sequence[Arrays],
    outputs: Iterable[str],
    heads: Sequence[str],
    truth: Sequence[int | str | None],
    *,
    metrics: Mapping[str, Measure] | None = None,
) -> ErrorFigures:
    """Everything that the manifest says of a variant's error, over the same recordings.

    A recording that lacks a modality says nothing of the outputs that need it: each output is judged on those that
    have it.

    Args:
        reference: per recording, the framework's outputs by "component.output".
        got: per recording, the outputs with the variant in place.
        outputs: the variant's own outputs; one recording has each of them at least.
        heads: classifying outputs to judge it by; the worst of them counts.
        truth: the recordings' labels, None where there is none, or nothing at all; accuracy is over those with one.
        metrics: component -> what stands in place of accuracy there.
    """
    metrics = metrics or {}
    pairs = {key: _pair(reference, got, key) for key in outputs}
    agreements = [agreement(reference, got, head) for head in heads]
    labelled = [
        (output, label) for output, label in zip(got, truth or [None] * len(got), strict=True) if label is not None
    ]
    answers, labels = [output for output, _ in labelled], [label for _, label in labelled]
    numbers = [label for label in labels if isinstance(label, int)]
    graded = (
        [h for h in heads if h.partition(".")[0] not in metrics and not _is_text(got, h)]
        if len(numbers) == len(labels)
        else []
    )
    accuracies = [accuracy(answers, head, numbers) for head in graded] if labels else []
    accuracies += [metric(answers, labels) for metric in metrics.values()] if labels else []
    return ErrorFigures(
        samples=min(len(a) for a, _ in pairs.values()),
        cosine=min((_cosine(*pair) for key, pair in pairs.items() if not _is_text(reference, key)), default=1.0),
        sqnr_db=min(sqnr_db(a, b) for a, b in pairs.values()),
        max_abs=max(float(np.abs(a - b).max()) for a, b in pairs.values()),
        agreement=min(agreements, default=None),
        accuracy=min(accuracies, default=None),
    )


def agreement(reference: Sequence[Arrays], got: Sequence[Arrays], head: str) -> float:
    """Share of recordings on which a classifying output gives the same label, or a decoder the same text."""
    if _is_text(reference, head):
        return float(np.mean(_texts(reference, head) == _texts(got, head)))
    return float(np.mean(labels_of(reference, head) == labels_of(got, head)))


def accuracy(got: Sequence[Arrays], head: str, truth: Sequence[int]) -> float:
    """Share of recordings on which a classifying output is right, of those that have it."""
    known = [label for output, label in zip(got, truth, strict=True) if head in output]
    return float(np.mean(labels_of(got, head) == np.asarray(known)))


def labels_of(outputs: Sequence[Arrays], head: str) -> NDArray[np.int64]:
    """The best class per recording that has the output: int64[recordings]."""
    return np.array([o[head].argmax() for o in outputs if head in o], np.int64)


def _is_text(outputs: Sequence[Arrays], key: str) -> bool:
    return any(key in output and output[key].dtype.kind == "U" for output in outputs)


def _texts(outputs: Sequence[Arrays], key: str) -> NDArray[Any]:
    return np.concatenate([output[key] for output in outputs if key in output])


def _pair(reference: Sequence[Arrays], got: Sequence[Arrays], key: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """An output of both, to be compared as numbers; texts are 1 where they are the same, and 0 where not."""
    if _is_text(reference, key):
        same = (_texts(reference, key) == _texts(got, key)).astype(np.float64)[:, None]
        return np.ones_like(same), same
    return _column(reference, key), _column(got, key)


def _column(outputs: Sequence[Arrays], key: str) -> NDArray[np.float64]:
    """One output over all recordings that have it, flat: float64[recordings, values].

    Of scores for prompts there are as many as the recording has prompts: zeros follow, which add nothing to any figure.
    """
    rows = [np.asarray(o[key], np.float64).reshape(-1) for o in outputs if key in o]
    width = max((len(row) for row in rows), default=0)
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Mean over the recordings; of an output of one number, which has no direction, that of all recordings together."""
    if a.shape[1] == 1:
        a, b = a.T, b.T
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # Two zero vectors are alike; a zero vector and another are not.
    same = np.where(np.abs(a - b).max(axis=1) == 0, 1.0, 0.0)
    return float(np.mean(np.divide((a * b).sum(axis=1), norms, out=same, where=norms > 0)))


def sqnr_db(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Signal to quantization-noise ratio, dB, within 120 either way: power of ``a`` over that of its error in ``b``."""
    signal, noise = float((a**2).sum()), float(((a - b) ** 2).sum())
    if noise == 0:
        return _SQNR_CAP_DB
    return float(np.clip(10 * np.log10(max(signal, 1e-30) / noise), -_SQNR_CAP_DB, _SQNR_CAP_DB))
