"""Modality dropout: train a fusion to do without."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["modality_dropout"]


def modality_dropout(batch: int, modalities: int, probability: float, generator: torch.Generator) -> Tensor:
    """Masks of what is present, never with nothing (Neverova et al. 2016, ModDrop).

    In every row one modality, drawn evenly, is sure to stay.

    Args:
        batch: rows.
        modalities: columns.
        probability: that each of the other modalities goes.
        generator: of the random numbers.

    Returns:
        float32[batch, modalities] of 0 and 1.
    """
    stays = torch.rand(batch, modalities, generator=generator) >= probability
    sure = torch.randint(modalities, (batch, 1), generator=generator)
    return stays.scatter(1, sure, value=True).float()
