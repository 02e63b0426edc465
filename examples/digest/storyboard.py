"""What is kept of each shot, however long the video is, and which of it make a summary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from digest.select import marginal_relevance, medoids, most_redundant
from digest.shots import Shot

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Scene", "Storyboard"]


@dataclass(frozen=True)
class Scene:
    """One shot, told.

    Args:
        shot: when.
        t: of the picture, ns.
        jpeg: the picture.
        vector: unit vector of what it is about.
        labels: what is in it with scores, best first; empty without a model for it.
        notes: by heading, what else is known: a transcript, who is in it.
    """

    shot: Shot
    t: int
    jpeg: bytes = field(repr=False)
    vector: NDArray[np.float32] = field(repr=False)
    labels: tuple[tuple[str, float], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


class Storyboard:
    """The scenes so far. Beyond ``most``, the one that is most like an earlier one goes, and is counted.

    Args:
        most: scenes at most.
    """

    def __init__(self, most: int = 200) -> None:
        self._most = most
        self.scenes: list[Scene] = []
        self.left_out = 0

    def add(self, scene: Scene) -> None:
        """Keep a scene."""
        self.scenes.append(scene)
        if len(self.scenes) > self._most:
            del self.scenes[most_redundant(self._vectors())]
            self.left_out += 1

    def summary(self, count: int, query: NDArray[np.float32] | None = None) -> list[Scene]:
        """A few scenes.

        Args:
            count: how many at most.
            query: unit vector of what is asked for: best first, then; None: those that stand for most of the video, in
                their order.
        """
        if not self.scenes:
            return []
        vectors = self._vectors()
        similarity = vectors @ vectors.T
        if query is not None:
            chosen = marginal_relevance(vectors @ query, similarity, count)
        else:
            chosen = medoids(similarity, count, np.array([scene.shot.frames for scene in self.scenes], np.float32))
        return [self.scenes[index] for index in chosen]

    def _vectors(self) -> NDArray[np.float32]:
        return np.stack([scene.vector for scene in self.scenes])
