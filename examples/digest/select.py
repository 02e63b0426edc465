"""Which few of many stand for all, or answer a question without repeating themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["marginal_relevance", "medoids", "most_redundant"]

_ROUNDS = 20
"""Swaps of medoids at most; each makes the sum smaller, so it ends long before."""


def marginal_relevance(
    relevance: NDArray[np.float32], similarity: NDArray[np.float32], count: int, balance: float = 0.7
) -> list[int]:
    """Maximal marginal relevance: what is relevant, and unlike what was chosen before.

    After Carbonell and Goldstein 1998, doi:10.1145/290941.291025.

    Args:
        relevance: float32[n], of each to the question.
        similarity: float32[n, n], of each to each.
        count: how many to choose; all where there are fewer.
        balance: 1 looks at relevance only, 0 at being different only.

    Returns:
        Their numbers, best first.
    """
    chosen: list[int] = []
    while len(chosen) < min(count, len(relevance)):
        repeated = similarity[:, chosen].max(1) if chosen else np.zeros(len(relevance), np.float32)
        scores = balance * relevance - (1 - balance) * repeated
        scores[chosen] = -np.inf
        chosen.append(int(scores.argmax()))
    return chosen


def medoids(similarity: NDArray[np.float32], count: int, weights: NDArray[np.float32] | None = None) -> list[int]:
    """The ones to which all others are nearest in sum: k-medoids, built greedily and improved by swaps.

    After Kaufman and Rousseeuw 1990 (PAM).

    Args:
        similarity: float32[n, n], of each to each.
        count: how many to choose; all where there are fewer.
        weights: float32[n], how much each counts, such as its length; None: all the same.

    Returns:
        Their numbers, rising.
    """
    total = len(similarity)
    gain = similarity if weights is None else similarity * weights[:, None]
    chosen: list[int] = []
    while len(chosen) < min(count, total):
        chosen.append(max((i for i in range(total) if i not in chosen), key=lambda i: _worth(gain, [*chosen, i])))
    for _ in range(_ROUNDS):
        swaps = [
            [*chosen[:place], other, *chosen[place + 1 :]]
            for place in range(len(chosen))
            for other in range(total)
            if other not in chosen
        ]
        best = max(swaps, key=lambda swap: _worth(gain, swap), default=chosen)
        if _worth(gain, best) <= _worth(gain, chosen) + 1e-6:
            break
        chosen = best
    return sorted(chosen)


def most_redundant(embeddings: NDArray[np.float32]) -> int:
    """Of at least two, the later one of the two that are most alike.

    Args:
        embeddings: unit vectors, float32[n, width].
    """
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    pair = np.unravel_index(int(similarity.argmax()), similarity.shape)
    return int(max(pair))


def _worth(gain: NDArray[np.float32], chosen: list[int]) -> float:
    return float(gain[:, chosen].max(1).sum())
