"""Encoders and heads under one roof, by name, as a recipe refers to them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["MultimodalModel"]


class MultimodalModel(nn.Module):
    """Named encoders and heads; ``get_submodule("heads.attention")`` is what a recipe's ``module`` means.

    Args:
        encoders: modality -> encoder; their order is the order of a head's embeddings.
        heads: name -> fusion head.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.heads = nn.ModuleDict(dict(heads))

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """What every head makes of the modalities' embeddings.

        Encoders run at rates of their own and carry states of their own, so they are called by name.

        Args:
            embeddings: modality -> float32[B, D], one for each encoder.
            present: float32[B, M], columns in the encoders' order.

        Returns:
            Head -> its output.
        """
        ordered = [embeddings[modality] for modality in self.encoders]
        return {name: head(*ordered, present) for name, head in self.heads.items()}
