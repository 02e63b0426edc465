"""The network: one encoder of frames with a memory of either kind, or without; a gyroscope's encoder; three heads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from av_digits.cache import cached
from torch import Tensor
from torch.nn.functional import cross_entropy

from edge_mbm.models import (
    AttentionMemory,
    ClipEncoder,
    ConcatFusion,
    ConvEncoder,
    GRUMemory,
    MultimodalModel,
    SensorEncoder,
)
from edge_mbm.training import FitOptions, fit, modality_dropout
from moving_digits.data import FRAMES, Streams, streams
from moving_digits.world import MOTIONS

__all__ = ["HEADS", "build", "load", "train"]

HEADS = ("gru", "attention", "single")
_DIM = 64
_STEPS = 500
_DROPPED = 0.25  # share of frames that training leaves out


def build() -> MultimodalModel:
    """The model before training, from torch's random state. All clip encoders share the frame encoder."""
    frame = ConvEncoder(widths=(8, 16, 32), dim=_DIM, grid=4, mean=[0.1], std=[0.2])
    encoders = {
        "gru": ClipEncoder(frame, GRUMemory(dim=_DIM)),
        "attention": ClipEncoder(frame, AttentionMemory(dim=_DIM, frames=FRAMES)),
        "single": frame,
        "gyroscope": SensorEncoder(features=3, dim=_DIM, std=0.5),
    }
    return MultimodalModel(
        encoders, {name: ConcatFusion(modalities=2, dim=_DIM, classes=len(MOTIONS)) for name in HEADS}
    )


def train(steps: int = _STEPS, seed: int = 0, dropped: float = _DROPPED) -> MultimodalModel:
    """Train all three heads and their encoders on the same streams, with modality dropout.

    Args:
        steps: of the optimizer.
        seed: of weights, data and dropout.
        dropped: share of frames that are left out.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    dropout = torch.Generator().manual_seed(seed)
    batches = streams(32, 100 + seed, dropped)
    fit(model, batches, lambda batch: _loss(model, batch, dropout), FitOptions(steps=steps, seed=seed))
    return model


def load() -> MultimodalModel:
    """The trained model; the first time that these files are as they are it is trained, then kept in the cache."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    version = hashlib.sha256(b"\0".join(file.read_bytes() for file in sources)).hexdigest()[:12]
    arrays = cached(
        f"moving_digits-{version}", lambda: {name: value.numpy() for name, value in train().state_dict().items()}
    )
    model = build()
    model.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()})
    return model.eval()


def _loss(model: MultimodalModel, batch: Streams, dropout: torch.Generator) -> Tensor:
    clip, labels = torch.from_numpy(batch.frames), torch.from_numpy(batch.labels)
    told = labels >= 0
    frames: Tensor = model.encoders["single"](clip.flatten(0, 1)).unflatten(0, labels.shape)
    turn = model.encoders["gyroscope"](torch.from_numpy(batch.turns)[told])
    present = modality_dropout(len(turn), 2, 0.2, dropout)
    losses = [
        cross_entropy(model.heads[name](_seen(model, name, frames)[told], turn, present), labels[told])
        for name in HEADS
    ]
    return torch.stack(losses).sum()


def _seen(model: MultimodalModel, name: str, frames: Tensor) -> Tensor:
    encoder = model.encoders[name]
    return (
        encoder.remember(frames, encoder.initial_state(len(frames)))[0] if isinstance(encoder, ClipEncoder) else frames
    )
