"""Encoders: one modality in, an embedding out. What they take is what a camera or log-mel gives, unscaled."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edge_mbm.errors import InputError

__all__ = ["ConvEncoder", "GRUEncoder", "SensorEncoder"]


class ConvEncoder(nn.Module):
    """A small CNN with batch normalisation (Ioffe and Szegedy 2015) and average pooling (Lin et al. 2014).

    Scaling and the channel order happen inside, so the exported graph takes camera bytes.

    Args:
        widths: channels of each 3x3 convolution; between two of them the image is halved.
        dim: length of the embedding.
        grid: features are averaged in this many rows and columns: 1 is blind to where a thing is, which helps to say
            what it is, and hides how it moves. The last features' height and width should be multiples of it.
        mean: of each input channel over the training images, on a scale of 0 to 1; there are as many channels as these.
        std: the same.

    Raises:
        InputError: ``mean`` and ``std`` differ in length, or something is empty.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 64, 64),
        dim: int = 64,
        grid: int = 1,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.25,),
    ) -> None:
        super().__init__()
        if not widths or not mean or len(mean) != len(std) or grid < 1:
            raise InputError(
                f"a ConvEncoder needs widths, a grid of 1 or more, and a mean and a std per channel: "
                f"{widths}, {grid}, {mean}, {std}"
            )
        self.register_buffer("offset", 255.0 * torch.tensor(mean))
        self.register_buffer("scale", 1.0 / (255.0 * torch.tensor(std)))
        stages = [_conv(inputs, outputs) for inputs, outputs in itertools.pairwise((len(mean), *widths))]
        halved = [layer for stage in stages for layer in (stage, nn.MaxPool2d(2))]
        self.features = nn.Sequential(*halved[:-1])
        self.grid = grid
        self.project = nn.Linear(widths[-1] * grid * grid, dim)

    def forward(self, image: Tensor) -> Tensor:
        """Embed a batch of images.

        Args:
            image: uint8[B, H, W, C]; H and W at least 2 ** (len(widths) - 1).

        Returns:
            float32[B, dim].
        """
        pixels = (image.to(torch.float32) - self.offset) * self.scale
        features = self.features(pixels.permute(0, 3, 1, 2))
        embedding: Tensor = self.project(self._pooled(features))
        return embedding

    def _pooled(self, features: Tensor) -> Tensor:
        if self.grid == 1:
            return features.mean(dim=(2, 3))
        return nn.functional.adaptive_avg_pool2d(features, self.grid).flatten(1)


class GRUEncoder(nn.Module):
    """A GRU over feature frames (Cho et al. 2014) that carries its state from chunk to chunk.

    A stream cut into chunks gives what the whole would, so a device encodes every chunk once.

    Args:
        features: per frame.
        hidden: units of each layer.
        dim: length of the embedding.
        layers: of the GRU.
        stack: frames joined into one step of the GRU; a chunk holds a multiple of it. The fewer steps, the faster it
            trains and runs, and the shorter the past that it must remember.
        mean: of the features over the training data: one, or one per feature.
        std: the same.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        features: int,
        hidden: int = 96,
        dim: int = 64,
        layers: int = 1,
        stack: int = 1,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(mean).expand(features).clone())
        self.register_buffer("scale", (1.0 / torch.tensor(std)).expand(features).clone())
        self.stack = stack
        self.gru = nn.GRU(features * stack, hidden, layers, batch_first=True)
        self.project = nn.Linear(hidden, dim)

    def initial_state(self, batch: int = 1) -> Tensor:
        """The state before a stream's first chunk: zeros, float32[layers, batch, hidden]."""
        return torch.zeros(self.gru.num_layers, batch, self.gru.hidden_size)

    def every_step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a chunk and embed every step of it, for training.

        Args:
            features: float32[B, T, features].
            state: float32[layers, B, hidden].

        Returns:
            The embedding after each stack of frames, float32[B, T / stack, dim], and the next state, as ``forward``.

        Raises:
            InputError: T is not a multiple of ``stack``.
        """
        outputs, next_state = self._run(features, state)
        return self.project(outputs), next_state

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a chunk.

        Args:
            features: float32[B, T, features]; T is fixed in an exported graph.
            state: float32[layers, B, hidden], from the chunk before or ``initial_state``.

        Returns:
            The embedding after the last frame, float32[B, dim], and the next state, float32[layers, B, hidden].

        Raises:
            InputError: T is not a multiple of ``stack``.
        """
        outputs, next_state = self._run(features, state)
        return self.project(outputs[:, -1]), next_state

    def _run(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if features.shape[1] % self.stack:
            raise InputError(f"a chunk is a multiple of {self.stack} frames long, got {features.shape[1]}")
        steps = ((features - self.offset) * self.scale).reshape(features.shape[0], -1, self.gru.input_size)
        outputs, next_state = self.gru(steps, state)
        return outputs, next_state


class SensorEncoder(nn.Module):
    """A perceptron on a vector of readings, such as an inertial sensor's.

    Args:
        features: numbers in a reading.
        widths: units of each hidden layer.
        dim: length of the embedding.
        mean: of the readings over the training data: one, or one per number.
        std: the same. Left at 0 and 1, readings go in as they come, which learns badly where their units differ much.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        features: int,
        widths: Sequence[int] = (64,),
        dim: int = 64,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(mean).expand(features).clone())
        self.register_buffer("scale", (1.0 / torch.tensor(std)).expand(features).clone())
        hidden = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise((features, *widths))]
        self.layers = nn.Sequential(*hidden, nn.Linear((features, *widths)[-1], dim))

    def forward(self, reading: Tensor) -> Tensor:
        """float32[B, features] to the embedding float32[B, dim]."""
        embedding: Tensor = self.layers((reading - self.offset) * self.scale)
        return embedding


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),  # the normalisation's shift is its bias
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
