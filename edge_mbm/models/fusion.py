"""Fusion heads: embeddings of any number of modalities in, logits out, where some modalities may be missing.

Every head is called ``head(*embeddings, present)``: float32[B, D] for each modality, then the mask float32[B, M], 1
where a modality is there. Where it is 0 the embedding has no influence at all, whatever it holds, NaN included. These
are the usual baselines (Baltrusaitis, Ahuja and Morency 2019): concatenation, a sum in a shared space, and attention;
and two that weigh more finely: gated units, and a transformer whose modalities meet in a bottleneck. What each is good
for, and what it costs, is measured in ``docs/fusion.md``.

For ``torch.export`` the dynamic shapes of ``*inputs`` are nested, one tuple for all: ``(({0: b}, {0: b}, {0: b}),)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edge_mbm.errors import InputError

__all__ = ["AttentionFusion", "BottleneckFusion", "ConcatFusion", "GatedFusion", "SingleModality", "SumFusion"]

_NEVER = -1e4
"""The score of what is missing: large, but finite, so that with nothing present a softmax is too, in fp16 as well."""


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
        return torch.softmax(scores.masked_fill(~present.transpose(1, 2), _NEVER), dim=-1)


class GatedFusion(nn.Module):
    """A gated multimodal unit (Arevalo et al. 2017): every hidden unit asks all modalities which of them to believe.

    With two modalities the gates are the paper's, z and 1 - z. With more they are a softmax over the modalities, which
    is the same for two; over those that are there, so that what is missing gets none of it.

    Args:
        modalities: how many.
        dim: length of each embedding.
        classes: of the output.
        hidden: units.
    """

    def __init__(self, *, modalities: int, dim: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.transform = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(modalities))
        # The mask is among what the gates see: a zero that stands in must not be read as a zero that was measured.
        self.gate = nn.Linear(modalities * (dim + 1), modalities * hidden)
        self.classify = nn.Linear(hidden, classes)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embeddings and mask, as the module says, to logits float32[B, classes].

        Raises:
            InputError: another number of embeddings than of modalities.
        """
        embeddings, present = _stack(inputs, modalities=len(self.transform))
        known = _zero_missing(embeddings, present)
        said = torch.stack([torch.tanh(layer(known[:, i])) for i, layer in enumerate(self.transform)], dim=1)
        logits: Tensor = self.classify((self._gates(known, present) * said).sum(dim=1))
        return logits

    def _gates(self, known: Tensor, present: Tensor) -> Tensor:
        """How much of each modality each unit takes, float32[B, M, hidden]; they sum to 1 over the modalities."""
        scores = self.gate(torch.cat([known, present.to(known.dtype)], dim=2).flatten(1))
        scores = scores.unflatten(1, (len(self.transform), -1))
        return torch.softmax(scores.masked_fill(~present, _NEVER), dim=1)


class BottleneckFusion(nn.Module):
    """A transformer for each modality, and a few tokens between them through which all must pass (Nagrani et al. 2021).

    In every layer each modality attends to its own tokens and the bottleneck's; then the bottleneck is the mean of what
    the modalities that are there made of it. So the cost grows with the number of modalities, not with its square. The
    answer is the mean of what the modalities that are there say. The encoders before it are the layers without fusion.

    Args:
        modalities: how many.
        dim: length of each token.
        classes: of the output.
        hidden: dimensions of the transformer; a multiple of ``attention_heads``.
        tokens: that each modality gives: 1, an embedding float32[B, dim]; or more, a sequence float32[B, tokens, dim].
        bottlenecks: tokens of the bottleneck.
        layers: at least 2; after the first the bottleneck knows all modalities, and in the second they hear of it.
        attention_heads: of each layer.

    Raises:
        InputError: ``layers``, ``hidden`` or ``tokens`` are not as said.
    """

    def __init__(
        self,
        *,
        modalities: int,
        dim: int,
        classes: int,
        hidden: int = 64,
        tokens: Sequence[int] | None = None,
        bottlenecks: int = 4,
        layers: int = 2,
        attention_heads: int = 4,
    ) -> None:
        super().__init__()
        self.tokens = tuple(tokens or (1,) * modalities)
        if layers < 2 or hidden % attention_heads or len(self.tokens) != modalities:
            raise InputError(
                f"a bottleneck needs 2 layers or more ({layers}), hidden units in equal parts for its attention heads "
                f"({hidden} for {attention_heads}), and the tokens of each modality ({self.tokens} for {modalities})"
            )
        self.embed = nn.ModuleList(nn.Linear(dim, hidden) for _ in self.tokens)
        self.place = nn.ParameterList(0.02 * torch.randn(count, hidden) for count in self.tokens)
        self.bottleneck = nn.Parameter(0.02 * torch.randn(bottlenecks, hidden))
        self.layers = nn.ModuleList(_BottleneckLayer(modalities, hidden, attention_heads) for _ in range(layers))
        self.classify = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, classes)) for _ in self.tokens
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embeddings or token sequences, and mask, as the module says, to logits float32[B, classes].

        Raises:
            InputError: another number of embeddings than of modalities.
        """
        given, present = _split(inputs, modalities=len(self.tokens))
        streams = [self._embed(index, tensor, present[:, index]) for index, tensor in enumerate(given)]
        shared = self.bottleneck.expand(streams[0].shape[0], -1, -1)
        for layer in self.layers:
            streams, shared = layer(streams, shared, present)
        said = [say(stream.mean(dim=1)) for say, stream in zip(self.classify, streams, strict=True)]
        return _mean_of_present(torch.stack(said, dim=1), present)

    def _embed(self, index: int, given: Tensor, present: Tensor) -> Tensor:
        """A modality's tokens in the transformer's space, float32[B, tokens, hidden]; constants where it is missing."""
        tokens = given.reshape(given.shape[0], self.tokens[index], -1)
        embedded: Tensor = self.embed[index](tokens.masked_fill(~present.unsqueeze(2), 0.0)) + self.place[index]
        return embedded


class _BottleneckLayer(nn.Module):
    """Each modality attends to itself and to the bottleneck, which then is what those that are there made of it."""

    def __init__(self, modalities: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_TransformerLayer(hidden, heads) for _ in range(modalities))

    def forward(self, streams: list[Tensor], shared: Tensor, present: Tensor) -> tuple[list[Tensor], Tensor]:
        joined = [part(torch.cat([own, shared], 1)) for part, own in zip(self.parts, streams, strict=True)]
        counts = [own.shape[1] for own in streams]
        heard = torch.stack([both[:, count:] for both, count in zip(joined, counts, strict=True)], dim=1)
        streams = [both[:, :count] for both, count in zip(joined, counts, strict=True)]
        return streams, _mean_of_present(heard, present.unsqueeze(3))


class _TransformerLayer(nn.Module):
    """Attention and a perceptron, normalised before each (Xiong et al. 2020): float32[B, T, hidden] to the same."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden)
        self.attend = nn.Linear(hidden, 3 * hidden)
        self.join = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.think = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._attention(self.norm1(tokens))
        thought: Tensor = tokens + self.think(self.norm2(tokens))
        return thought

    def _attention(self, tokens: Tensor) -> Tensor:
        parts = self.attend(tokens).chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        # Written out: at opset 20 it is MatMul and Softmax either way, and so it is the same in every version of torch.
        weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(key.shape[-1]), dim=-1)
        joined: Tensor = self.join((weights @ value).transpose(1, 2).flatten(2))
        return joined


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


def _split(inputs: tuple[Tensor, ...], modalities: int) -> tuple[list[Tensor], Tensor]:
    """The embeddings, and what is present, bool[B, M, 1]."""
    *embeddings, mask = inputs
    if len(embeddings) != modalities:
        raise InputError(f"this head joins {modalities} embeddings and a mask, got {len(embeddings)} and a mask")
    return embeddings, mask.unsqueeze(2) > 0.5


def _stack(inputs: tuple[Tensor, ...], modalities: int) -> tuple[Tensor, Tensor]:
    """Embeddings float32[B, M, D] and what is present, bool[B, M, 1]."""
    embeddings, present = _split(inputs, modalities)
    return torch.stack(embeddings, dim=1), present


def _zero_missing(embeddings: Tensor, present: Tensor) -> Tensor:
    # Chosen, not multiplied: NaN times 0 is NaN.
    return embeddings.masked_fill(~present, 0.0)


def _mean_of_present(values: Tensor, present: Tensor) -> Tensor:
    """The mean over the modalities that are there, of float32[B, M, ...]; zeros where none is."""
    count = present.to(values.dtype).sum(dim=1).clamp(min=1.0)
    return _zero_missing(values, present).sum(dim=1) / count
