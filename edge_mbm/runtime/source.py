"""Where samples come from, and what is known of their times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

__all__ = ["MEDIA", "Sample", "Source", "Timing"]


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


class Timing(NamedTuple):
    """Which clock a source's times are on, and how far they may be off."""

    clock: Literal["media", "monotonic"]
    """Either "media", from 0 on; or "monotonic": ``time.monotonic_ns`` of a device."""
    uncertainty_ns: int = 0
    """How far a time may be from the moment of capture."""


MEDIA = Timing("media")
"""A recording's own time base."""


class Source(Protocol):
    """Gives samples in the order in which they become available.

    A protocol because cameras, microphones, files and the fakes of ``edge_mbm.testing`` have nothing else in common.
    """

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it gives."""
        ...

    @property
    def timing(self) -> Timing:
        """Which clock its times are on."""
        ...

    def samples(self) -> Iterator[Sample]:
        """All samples; a recording's from 0 on, a device's as they are captured.

        Raises:
            SourceError: it broke off.
        """
        ...

    def close(self) -> None:
        """Release the device or file; ``samples`` ends soon after. May be called twice, and from another thread."""
        ...
