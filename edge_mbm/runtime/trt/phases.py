"""TensorRT's nested progress as one share.

A builder tells of phases, each of so many steps; a step of one may be a phase of its own. The share done of a phase
is its steps done and, of the step it is at, the share of the phase inside.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Phases"]


@dataclass
class _Phase:
    parent: str
    done: int
    total: int


class Phases:
    """What is done of a build, from what its monitor tells."""

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._best = 0.0

    def step(self, name: str, parent: str, done: int, total: int) -> float:
        """Take one message in; ``done`` below 0 ends the phase.

        Returns:
            The share done, 0..1. It never goes back, though TensorRT may find that there is more to do.
        """
        if done < 0:
            ended = self._open.pop(name, None)
            share = 1.0 if ended is not None and not self._open else self._share()
        else:
            self._open[name] = _Phase(parent, done, max(total, 1))
            share = self._share()
        self._best = max(self._best, min(share, 1.0))
        return self._best

    def _share(self) -> float:
        outermost = next((name for name, phase in self._open.items() if phase.parent not in self._open), None)
        return 0.0 if outermost is None else self._share_of(outermost, len(self._open))

    def _share_of(self, name: str, depth: int) -> float:
        phase = self._open[name]
        inside = next((key for key, other in self._open.items() if other.parent == name and key != name), None)
        partial = self._share_of(inside, depth - 1) if inside is not None and depth > 0 else 0.0
        return min(phase.done + partial, phase.total) / phase.total
