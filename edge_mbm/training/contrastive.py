"""Learning from pairs alone: what belongs together is near in a shared space, and what does not is far.

The symmetric cross-entropy of CLIP (Radford et al. 2021, arXiv:2103.00020), an InfoNCE (van den Oord et al. 2018,
arXiv:1807.03748) over the pairs of a batch, in both directions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_mbm.errors import InputError
from edge_mbm.models.similarity import unit

__all__ = ["MAX_LOG_SCALE", "contrastive_loss"]

MAX_LOG_SCALE = math.log(100.0)
"""A temperature of 0.01, beyond which CLIP's authors saw training become unstable."""


def contrastive_loss(first: Tensor, second: Tensor, log_scale: Tensor, classes: Tensor | None = None) -> Tensor:
    """How far the pairs of a batch are from being told from all other combinations.

    Args:
        first: embeddings of one modality, float32[B, D], of any length.
        second: of the other, row by row what belongs to ``first``.
        log_scale: the logarithm of the inverse temperature, a learnt scalar, such as ``Similarity.log_scale``; above
            ``MAX_LOG_SCALE`` it counts as that.
        classes: int64[B]; rows of one class belong together in every combination (Yang et al. 2022,
            arXiv:2204.03610), so that two photos of one thing do not repel each other's name. None: each row by itself.

    Returns:
        float32[]: the mean over both directions; ``log(B)`` where nothing is told apart.

    Raises:
        InputError: the shapes differ, or there is only one pair, which has nothing to be told from.
    """
    if first.shape != second.shape or first.dim() != 2 or len(first) < 2:
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise InputError(f"a contrastive loss needs two batches of embeddings [B, D], B at least 2: got {shapes}")
    logits = log_scale.clamp(max=MAX_LOG_SCALE).exp() * unit(first) @ unit(second).T
    wanted = _targets(len(first), classes).to(logits)
    there, back = (nn.functional.cross_entropy(rows, wanted) for rows in (logits, logits.T))
    return (there + back) / 2


def _targets(count: int, classes: Tensor | None) -> Tensor:
    """Per row the probability of each column, float32[B, B]."""
    same = torch.eye(count) if classes is None else (classes[:, None] == classes[None]).float()
    return same / same.sum(1, keepdim=True)
