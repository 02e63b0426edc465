"""Clips: an encoder of single frames, and a memory of those before it, carried from call to call.

A clip is taken frame by frame, as a camera gives it, so a device encodes every frame once. What came before is in the
state, which starts as zeros and means "nothing yet". A recipe declares it as any carried state (``StateRecipe``).

**What the state means when frames are dropped.** It counts frames that were encoded, not seconds. A session prefers a
fresh frame to a complete series: while the model is busy, newer frames replace older ones. The memory is then that of a
slower camera, to which the same motion looks faster; it is never out of order, and never holds a frame twice. So what a
clip encoder learns must hold at the rates that a device may come down to: train with frames left out. A longer hole,
of which nothing can be inferred, starts the state anew: the recipe's ``max_gap_ns``.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn

from edge_mbm.errors import InputError

__all__ = ["AttentionMemory", "ClipEncoder", "GRUMemory", "Memory"]


class GRUMemory(nn.Module):
    """A GRU cell over frame embeddings (Cho et al. 2014): a summary of all that came before, of fixed size.

    It is told each frame and what changed since the one before, which the state also holds: what moves is small beside
    what is there, and a cell that has to find it by itself learns it slowly. One step a call, so its graph holds
    products and no recurrent operator, which TensorRT reads in one layout only.

    Args:
        dim: length of a frame's embedding, and of what it gives.
        hidden: units.
    """

    def __init__(self, *, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.cell = nn.GRUCell(2 * dim, hidden)
        self.project = nn.Linear(hidden, dim)

    def initial_state(self, batch: int = 1) -> Tensor:
        """Before the first frame: zeros, float32[batch, hidden + dim]."""
        return torch.zeros(batch, self.hidden + self.dim)

    def forward(self, frame: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one frame.

        Args:
            frame: its embedding, float32[B, dim].
            state: float32[B, hidden + dim].

        Returns:
            The clip's embedding up to this frame, float32[B, dim], and the next state.
        """
        summary, before = state[:, : self.hidden], state[:, self.hidden :]
        summary = self.cell(torch.cat([frame, frame - before], dim=1), summary)
        return self.project(summary), torch.cat([summary, frame], dim=1)


class AttentionMemory(nn.Module):
    """The newest frame attends over the last ``frames`` (Vaswani et al. 2017), itself among them.

    The state holds their embeddings, the oldest first, and beside each a 1: where that is 0, as in the zeros of the
    start, no frame has been yet, and nothing attends to the slot. ``filled`` counts the others.

    Args:
        dim: length of a frame's embedding, and of what it gives; a multiple of ``attention_heads``.
        frames: of the window.
        attention_heads: each with a weighting of its own.

    Raises:
        InputError: ``dim`` is no such multiple, or there are no frames.
    """

    def __init__(self, *, dim: int, frames: int = 8, attention_heads: int = 4) -> None:
        super().__init__()
        if frames < 1 or dim % attention_heads:
            raise InputError(f"a window of 1 frame or more, and equal parts of {dim} for {attention_heads} heads")
        self.dim, self.frames, self.heads = dim, frames, attention_heads
        self.age = nn.Parameter(0.02 * torch.randn(frames, dim))
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.join = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def initial_state(self, batch: int = 1) -> Tensor:
        """Before the first frame: zeros, float32[batch, frames, dim + 1]."""
        return torch.zeros(batch, self.frames, self.dim + 1)

    def filled(self, state: Tensor) -> Tensor:
        """How many frames a state holds, int64[B]."""
        return (state[:, :, self.dim] > 0.5).sum(dim=1)

    def forward(self, frame: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one frame, and let the oldest go.

        Args:
            frame: its embedding, float32[B, dim].
            state: float32[B, frames, dim + 1].

        Returns:
            The clip's embedding up to this frame, float32[B, dim], and the next state.
        """
        newest = torch.cat([frame, torch.ones_like(frame[:, :1])], dim=1).unsqueeze(1)
        next_state = torch.cat([state[:, 1:], newest], dim=1)
        seen, filled = next_state[:, :, : self.dim] + self.age, next_state[:, :, self.dim] > 0.5
        query, key, value = self._parts(self.query(frame).unsqueeze(1), self.key(seen), self.value(seen))
        scores = query @ key.transpose(2, 3) / math.sqrt(key.shape[-1])
        # Large, but finite in fp16 too; the newest is always there.
        weights = torch.softmax(scores.masked_fill(~filled[:, None, None], -1e4), dim=-1)
        attended = (weights @ value).flatten(1)
        return self.join(torch.cat([frame, attended], dim=1)), next_state

    def _parts(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Each float32[B, T, dim] split among the heads: float32[B, heads, T, dim / heads]."""
        part = self.dim // self.heads
        return tuple(tensor.reshape(*tensor.shape[:2], self.heads, part).transpose(1, 2) for tensor in tensors)


Memory: TypeAlias = GRUMemory | AttentionMemory


class ClipEncoder(nn.Module):
    """Frame by frame: an image encoder, then a memory.

    Args:
        frame: image to embedding, such as ``ConvEncoder``; several clip encoders may share one.
        memory: of as many dimensions.
    """

    def __init__(self, frame: nn.Module, memory: Memory) -> None:
        super().__init__()
        self.frame = frame
        self.memory = memory

    def initial_state(self, batch: int = 1) -> Tensor:
        """The memory's before the first frame: zeros."""
        return self.memory.initial_state(batch)

    def forward(self, image: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one frame of each stream.

        Args:
            image: as the frame encoder takes it, uint8[B, H, W, C].
            state: the memory's, from the frame before or ``initial_state``.

        Returns:
            The clip's embedding up to this frame, float32[B, dim], and the next state.
        """
        embedding, next_state = self.memory(self.frame(image), state)
        return embedding, next_state

    def every_frame(self, clip: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a clip and embed it up to every frame of it, for training: frames are encoded all at once.

        Args:
            clip: uint8[B, T, H, W, C].
            state: as for ``forward``.

        Returns:
            float32[B, T, dim], and the state after the last frame.
        """
        return self.remember(self.frame(clip.flatten(0, 1)).unflatten(0, clip.shape[:2]), state)

    def remember(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """As ``every_frame``, of frames that are encoded already: float32[B, T, dim]."""
        embeddings = []
        for frame in frames.unbind(dim=1):
            embedding, state = self.memory(frame, state)
            embeddings.append(embedding)
        return torch.stack(embeddings, dim=1), state
