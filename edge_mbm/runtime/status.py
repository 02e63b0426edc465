"""What a live stream is doing, as plain records: for people, exporters of metrics, and watchdogs."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

__all__ = ["EncoderStatus", "HeadStatus", "LiveStatus", "SourceState", "SourceStatus"]

SourceState: TypeAlias = Literal["starting", "live", "stalled", "reconnecting", "ended"]


class SourceStatus(Struct, frozen=True, kw_only=True):
    """One source. Times are monotonic ns."""

    name: str
    state: SourceState
    since: int
    """When it entered this state."""
    modalities: tuple[str, ...]
    samples: int
    """Handed on since the start."""
    last: int | None
    """Capture time of the newest sample."""
    stalls: int
    reconnects: int
    error: str | None
    """What last went wrong, in words."""
    uncertainty_ns: int
    drift_ppm: float | None = None
    """Audio: how fast the device's clock runs against the monotonic one."""


class EncoderStatus(Struct, frozen=True, kw_only=True):
    """One encoder at work."""

    name: str
    runs: int
    failed: int
    """Runs that gave an error or no finite output: each costs one result."""
    gated: int
    """Items for which the previous output stood, because nothing had changed."""
    last_ns: int | None
    """Time of its last run."""
    min_interval_ns: int
    """How far apart its runs are held now, by the governor; 0 for as they come."""


class HeadStatus(Struct, frozen=True, kw_only=True):
    """One head."""

    name: str
    enabled: bool
    results: int
    last: int | None
    """Capture time of the last result."""
    age_ns: int | None
    """Age of the last result when it was handed out."""
    missing: tuple[str, ...]
    """What the last result had to do without."""


class LiveStatus(Struct, frozen=True, kw_only=True):
    """One moment of a live stream."""

    t: int
    """Monotonic ns."""
    sources: tuple[SourceStatus, ...]
    encoders: tuple[EncoderStatus, ...]
    heads: tuple[HeadStatus, ...]
    losses: dict[str, int]
    """Everything that was lost since the start, "name.cause" -> count."""
    notes: tuple[str, ...] = ()
    """What the stream has adapted to, in words ("image_encoder held to 10 Hz: overload")."""
