"""The network: a CNN that sees, a GRU that hears, and heads that join them or do without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from av_digits.cache import cache_dir, read_arrays
from av_digits.data import LABELS, LOG_MEL
from edge_mbm.errors import EdgeMbmError
from edge_mbm.models import (
    AttentionFusion,
    ConcatFusion,
    ConvEncoder,
    GRUEncoder,
    MultimodalModel,
    SingleModality,
    SumFusion,
)

__all__ = ["FUSIONS", "MODALITIES", "STACK", "audio_encoder", "build", "load", "weights_path"]

MODALITIES = ("image", "audio")
FUSIONS = ("concat", "sum", "attention")

_DIM = 64
# Of training data, spoiled as it is.
_IMAGE_MEAN, _IMAGE_STD = 0.28, 0.36
_AUDIO_MEAN, _AUDIO_STD = -2.1, 2.4
STACK = 5  # frames of 10 ms in one step of the GRU


def build() -> MultimodalModel:
    """The model before training, from torch's random state."""
    size = {"dim": _DIM, "classes": len(LABELS)}
    joint = size | {"modalities": len(MODALITIES)}
    return MultimodalModel(
        encoders={
            "image": ConvEncoder(dim=_DIM, mean=[_IMAGE_MEAN], std=[_IMAGE_STD]),
            "audio": GRUEncoder(
                features=LOG_MEL.n_mels, hidden=128, dim=_DIM, stack=STACK, mean=_AUDIO_MEAN, std=_AUDIO_STD
            ),
        },
        heads={
            "concat": ConcatFusion(**joint),
            "sum": SumFusion(**joint),
            "attention": AttentionFusion(**joint),
            "image": SingleModality(**size),
            "audio": SingleModality(**size),
        },
    )


def load() -> MultimodalModel:
    """The model as ``python -m av_digits.train`` left it in the cache, ready to use.

    Raises:
        EdgeMbmError: it has not been trained, or its file is damaged.
    """
    path = weights_path()
    try:
        arrays = read_arrays(path)
    except (OSError, ValueError) as error:
        raise EdgeMbmError(f"no trained model in {path} ({error}). To mend it: python -m av_digits.train") from error
    model = build()
    model.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()})
    return model.eval()


def audio_encoder(model: MultimodalModel) -> GRUEncoder:
    """The model's audio encoder, typed."""
    encoder = model.encoders["audio"]
    assert isinstance(encoder, GRUEncoder)
    return encoder


def weights_path() -> Path:
    """Where training leaves the weights."""
    return cache_dir() / "weights.npz"
