"""Where samples come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

__all__ = ["Sample", "Source"]


class Sample(NamedTuple):
    """One captured item.

    ``t`` is its capture time in ns (of the first sample, for audio); ``duration`` is how much time it covers, so that a
    recording played in real time hands audio out when its last sample would have been heard. ``rate`` is audio's, Hz.
    """

    modality: str
    data: Any
    t: int
    duration: int = 0
    rate: int | None = None


class Source(Protocol):
    """Gives samples in the order in which they become available.

    A protocol because cameras, microphones, files and the fakes of ``edge_mbm.testing`` have nothing else in common.
    """

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it gives."""
        ...

    def samples(self) -> Iterator[Sample]:
        """All samples, with times from 0 on for a recording.

        Raises:
            SourceError: it broke off.
        """
        ...

    def close(self) -> None:
        """Release the device or file; ``samples`` ends soon after. May be called twice, and from another thread."""
        ...
