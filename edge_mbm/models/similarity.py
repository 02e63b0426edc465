"""Zero-shot classification: prompts as classes, scored by how near their embeddings are to that of a picture.

As in CLIP (Radford et al. 2021, arXiv:2103.00020): the cosine of each pair, times a temperature that is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["EachLine", "Similarity", "each_line", "unit"]

_LEAST = 1e-12  # the length of a vector of zeros, such as that of a row without a prompt


class EachLine(nn.Module):
    """A text encoder that takes a list of texts at once, as ``tokens`` steps with ``lines`` give them.

    Args:
        encoder: int64[N, length] ids, and what else it takes of that shape, to float32[N, D].
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *tokens: Tensor) -> Tensor:
        """int64[B, lines, length], of ids and of what else the encoder takes, to float32[B, lines, D]."""
        return each_line(self.encoder, *tokens)


class Similarity(nn.Module):
    """The cosine of an embedding with each prompt's, times ``scale``, plus ``bias``: logits for a softmax.

    Args:
        scale: the inverse temperature, above 0; its logarithm is the parameter ``log_scale``, as it is CLIP's.
        bias: added to every logit; SigLIP's (Zhai et al. 2023, arXiv:2303.15343) sigmoids need one.
    """

    def __init__(self, scale: float = 1 / 0.07, bias: float = 0.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.register_buffer("bias", torch.tensor(bias))

    bias: Tensor

    def forward(self, embedding: Tensor, prompts: Tensor) -> Tensor:
        """float32[B, D] and float32[B, lines, D], of any length, to float32[B, lines]."""
        cosines = (unit(prompts) @ unit(embedding).unsqueeze(2)).squeeze(2)
        logits: Tensor = cosines * self.log_scale.exp() + self.bias
        return logits


def each_line(encoder: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
    """``EachLine`` as a function: tokens [B, lines, ...], each to the encoder as [B x lines, ...], and back again."""
    rows = encoder(*(tensor.flatten(0, 1) for tensor in tokens))
    return rows.reshape(-1, tokens[0].shape[1], *rows.shape[1:])


def unit(vectors: Tensor) -> Tensor:
    """float32[..., D] to the same with a length of 1; zeros stay zeros."""
    directions: Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=_LEAST)
    return directions
