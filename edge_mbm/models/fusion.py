"""Fusion heads: embeddings of any number of modalities in, logits out, where some modalities may be missing.

Every head is called ``head(*embeddings, present)``: float32[B, D] for each modality, then the mask float32[B, M], 1
where a modality is there. Where it is 0 the embedding has no influence at all, whatever it holds, NaN included. These
are the usual baselines (Baltrusaitis, Ahuja and Morency 2019): concatenation, a sum in a shared space, and attention.

For ``torch.export`` the dynamic shapes of ``*inputs`` are nested, one tuple for all: ``(({0: b}, {0: b}, {0: b}),)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_mbm.errors import InputError

__all__ = ["AttentionFusion", "ConcatFusion", "SingleModality", "SumFusion"]


class ConcatFusion(nn.Module):
    """Concatenate the embeddings, then a perceptron with one hidden layer; a learnt vector stands in for a missing one.

    Args:
        modalities: how many.
        dim: length of each embedding.
        classes: of the output.
        hidden: units of the perceptron.
    """

    def __init__(self, *, modalities: int, dim: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.absent = nn.Parameter(torch.zeros(modalities, dim))
        self.classify = nn.Sequential(nn.Linear(modalities * dim, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embeddings and mask, as the module says, to logits float32[B, classes].

        Raises:
            InputError: another number of embeddings than of modalities.
        """
        embeddings, present = _stack(inputs, modalities=self.absent.shape[0])
        known = torch.where(present, embeddings, self.absent)
        logits: Tensor = self.classify(known.flatten(1))
        return logits


class SumFusion(nn.Module):
    """Project each embedding into one space and add them; what is missing adds nothing.

    Args:
        modalities: how many.
        dim: length of each embedding.
        classes: of the output.
        hidden: dimensions of the shared space.
    """

    def __init__(self, *, modalities: int, dim: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        # Without bias, so that zeros in place of a missing embedding add exactly zero.
        self.project = nn.ModuleList(nn.Linear(dim, hidden, bias=False) for _ in range(modalities))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.classify = nn.Sequential(nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embeddings and mask, as the module says, to logits float32[B, classes].

        Raises:
            InputError: another number of embeddings than of modalities.
        """
        known = _zero_missing(*_stack(inputs, modalities=len(self.project)))
        parts = [project(known[:, index]) for index, project in enumerate(self.project)]
        logits: Tensor = self.classify(torch.stack(parts, dim=1).sum(dim=1) + self.bias)
        return logits


class AttentionFusion(nn.Module):
    """Learnt queries attend over the modalities that are there (Vaswani et al. 2017): each is weighed by what it says.

    Args:
        modalities: how many.
        dim: length of each embedding.
        classes: of the output.
        hidden: dimensions of keys and values.
        queries: how many, each with a weighting of its own.
    """

    def __init__(self, *, modalities: int, dim: int, classes: int, hidden: int = 64, queries: int = 4) -> None:
        super().__init__()
        self.key = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(modalities))
        self.value = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(modalities))
        self.query = nn.Parameter(torch.randn(queries, hidden) / math.sqrt(hidden))
        self.classify = nn.Sequential(nn.ReLU(), nn.Linear(queries * hidden, classes))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embeddings and mask, as the module says, to logits float32[B, classes].

        Raises:
            InputError: another number of embeddings than of modalities.
        """
        embeddings, present = _stack(inputs, modalities=len(self.key))
        known = _zero_missing(embeddings, present)
        keys = torch.stack([key(known[:, index]) for index, key in enumerate(self.key)], dim=1)
        values = torch.stack([value(known[:, index]) for index, value in enumerate(self.value)], dim=1)
        attended = self._weights(keys, present) @ values
        logits: Tensor = self.classify(attended.flatten(1))
        return logits

    def _weights(self, keys: Tensor, present: Tensor) -> Tensor:
        scores = (self.query @ keys.transpose(1, 2)) / math.sqrt(keys.shape[-1])
        # A large finite score, not minus infinity: with nothing present the softmax must stay finite.
        return torch.softmax(scores.masked_fill(~present.transpose(1, 2), -1e4), dim=-1)


class SingleModality(nn.Module):
    """A perceptron on one embedding: the baseline that a fusion has to beat.

    Args:
        dim: length of the embedding.
        classes: of the output.
        hidden: units of the perceptron.
    """

    def __init__(self, *, dim: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.classify = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, embedding: Tensor) -> Tensor:
        """float32[..., dim] to logits float32[..., classes]."""
        logits: Tensor = self.classify(embedding)
        return logits


def _stack(inputs: tuple[Tensor, ...], modalities: int) -> tuple[Tensor, Tensor]:
    """Embeddings float32[B, M, D] and what is present, bool[B, M, 1]."""
    *embeddings, mask = inputs
    if len(embeddings) != modalities:
        raise InputError(f"this head joins {modalities} embeddings and a mask, got {len(embeddings)} and a mask")
    return torch.stack(embeddings, dim=1), mask.unsqueeze(2) > 0.5


def _zero_missing(embeddings: Tensor, present: Tensor) -> Tensor:
    # Chosen, not multiplied: NaN times 0 is NaN.
    return embeddings.masked_fill(~present, 0.0)
