"""How an export tells what it is doing."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Told of each stage and its steps; the command line draws bars from it."""

    def stage(self, title: str, total: int) -> None:
        """A stage of ``total`` steps begins; the one before is done."""
        ...

    def step(self, what: str = "") -> None:
        """One more step is done."""
        ...


class Silent:
    """A ``Progress`` that says nothing."""

    def stage(self, title: str, total: int) -> None:
        """See ``Progress.stage``."""

    def step(self, what: str = "") -> None:
        """See ``Progress.step``."""
