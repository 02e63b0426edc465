"""A torch module's weights as one file of plain arrays, for another process or another export."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["load_weights", "pack_weights"]


def pack_weights(module: nn.Module) -> bytes:
    """All parameters and buffers by name, as an ``.npz`` without pickles."""
    stream = io.BytesIO()
    arrays = {key: tensor.detach().cpu().numpy() for key, tensor in _tensors(module).items()}
    np.savez(stream, **arrays)  # type: ignore[arg-type] # names, not numpy's own keyword
    return stream.getvalue()


def load_weights(module: nn.Module, weights: bytes) -> None:
    """Put packed values in place of a module's own.

    Args:
        module: of the same structure as the one that was packed.
        weights: from ``pack_weights``.
    """
    tensors = _tensors(module)
    with np.load(io.BytesIO(weights), allow_pickle=False) as stored, torch.no_grad():
        for key in stored.files:
            value: NDArray[Any] = stored[key]
            tensors[key].copy_(torch.from_numpy(value))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Not state_dict(): it lacks the buffers that are not to be saved. What is shared is there once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
