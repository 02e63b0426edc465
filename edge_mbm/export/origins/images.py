"""From the uint8 image of the ``image`` steps to what a network takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_mbm.export.recipe import Normalize

__all__ = ["WithImages", "normalized"]


class WithImages(nn.Module):
    """A module behind uint8[batch, H, W, C] images; other inputs pass as they are.

    Args:
        module: takes float32 images.
        normalize: made of 0..255.
        channels_first: whether ``module`` takes NCHW.

    Shape:
        uint8[batch, H, W, C] -> what ``module`` makes of float32[batch, C, H, W] or float32[batch, H, W, C].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, normalize: Normalize, *, channels_first: bool = True) -> None:
        super().__init__()
        self.module = module
        self.channels_first = channels_first
        self.register_buffer("mean", torch.tensor(normalize.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(normalize.std, dtype=torch.float32))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Normalize the images among the inputs and run the module."""
        given: Tensor | tuple[Tensor, ...] = self.module(*map(self._floats, inputs))
        return given

    def _floats(self, value: Tensor) -> Tensor:
        if value.dtype is not torch.uint8 or value.ndim != 4:
            return value
        scaled = (value.to(torch.float32) - self.mean) / self.std
        return scaled.permute(0, 3, 1, 2) if self.channels_first else scaled


def normalized(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalize:
    """From figures on the scale 0..1, as most libraries keep them."""
    return Normalize(mean=tuple(255 * value for value in mean), std=tuple(255 * value for value in std))
