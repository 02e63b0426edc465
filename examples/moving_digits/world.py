"""A small world: handwritten digits that drift before a dark wall, and a camera that may turn.

The digits are real (MNIST); how they move, the camera's turns, and the noise of both sensors are made.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from av_digits import sources
from av_digits.cache import cached
from numpy.typing import NDArray

__all__ = ["MOTIONS", "RATE", "SIZE", "Drift", "digits", "draw"]

MOTIONS = ("still", "left", "right", "up", "down", "closer", "away")
RATE = 15.0  # frames a second
SIZE = 32  # pixels, a frame's side
_FOCAL = 16.0  # pixels: a camera that turns by 1 rad moves what it sees by about as many
_WAY = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_TRAINING = 8000


@dataclass(frozen=True)
class Drift:
    """A digit and a camera, both in steady motion.

    Args:
        motion: the digit's own: index into ``MOTIONS``.
        digit: uint8[28, 28].
        velocity: of the digit, pixels a frame, x and y, as a camera at rest sees it.
        zoom: how many times larger it gets with each frame.
        turn: of the camera, rad/s: pitch, yaw, roll.
        place: of the digit's centre in frame 0, pixels, x and y.
        height: of the digit in frame 0, pixels.
    """

    motion: int
    digit: NDArray[np.uint8]
    velocity: tuple[float, float]
    zoom: float
    turn: tuple[float, float, float]
    place: tuple[float, float]
    height: float

    def frame(self, time: float, rng: np.random.Generator) -> NDArray[np.uint8]:
        """What the camera sees at a time, in frames from frame 0, which may be before it: uint8[32, 32, 1]."""
        scale = self.height * self.zoom**time / 28
        pitch, yaw, _ = self.turn
        x = self.place[0] + time * (self.velocity[0] - yaw * _FOCAL / RATE)
        y = self.place[1] + time * (self.velocity[1] - pitch * _FOCAL / RATE)
        seen = cv2.warpAffine(
            self.digit, np.array([[scale, 0, x - 14 * scale], [0, scale, y - 14 * scale]]), (SIZE, SIZE)
        )
        noisy = seen + 12 * rng.standard_normal((SIZE, SIZE), np.float32)
        frame: NDArray[np.uint8] = np.clip(noisy, 0, 255).astype(np.uint8)[:, :, None]
        return frame

    def gyroscope(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """What the sensor says of the camera, float32[3], rad/s."""
        return (np.array(self.turn) + 0.03 * rng.standard_normal(3)).astype(np.float32)


def draw(motion: int, images: NDArray[np.uint8], rng: np.random.Generator) -> Drift:
    """A digit in motion; the camera turns in every other case.

    Where it is in frame 0, and how large, says nothing of how it came there: a single frame tells nothing.
    """
    name, speed = MOTIONS[motion], rng.uniform(0.6, 1.2)
    way = _WAY.get(name, (0, 0))
    growth = {"closer": 1, "away": -1}.get(name, 0) * rng.uniform(0.03, 0.06)
    pitch, yaw = rng.integers(2) * rng.uniform(-1.0, 1.0, 2)
    return Drift(
        motion=motion,
        digit=images[rng.integers(len(images))],
        velocity=(way[0] * speed, way[1] * speed),
        zoom=1 + growth,
        turn=(float(pitch), float(yaw), float(rng.uniform(-0.1, 0.1))),
        place=(float(rng.uniform(11, SIZE - 11)), float(rng.uniform(11, SIZE - 11))),
        height=float(rng.uniform(12, 20)),
    )


@functools.cache
def digits(*, unseen: bool) -> NDArray[np.uint8]:
    """MNIST's, uint8[n, 28, 28]: 8,000 to train on, or the other 2,000; fetched the first time."""
    images = cached("mnist", sources.mnist)["images"].astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order[_TRAINING:] if unseen else order[:_TRAINING]]
