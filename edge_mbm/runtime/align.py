"""Alignment: what was known of every modality at the pivot's time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from time import perf_counter_ns
from typing import NamedTuple

from edge_mbm.runtime.component import Encoded, EncoderNode
from edge_mbm.runtime.stream import FrameStream, Stream
from edge_mbm.spec import Head

__all__ = ["Aligner", "Match"]


class Match(NamedTuple):
    """One pivot with what goes into the head for it."""

    t: int
    inputs: Mapping[str, Encoded | None]
    """Per head input; None where its modality is missing."""
    missing: tuple[str, ...]
    spread: int
    wait: int
    dropped: int


class _Pivot(NamedTuple):
    t: int
    encoded: int


class Aligner:
    """Holds a head's pivots until the other modalities have passed them, or its deadline has.

    Args:
        head: with pivot, tolerances and deadline.
        nodes: per head input, the encoder that feeds it.
        modalities: per head input, the one modality it depends on.
        streams: per modality.
        max_pending: pivots to hold; when more wait, the oldest is dropped and counted.
    """

    def __init__(
        self,
        head: Head,
        nodes: Mapping[str, EncoderNode],
        modalities: Mapping[str, str],
        streams: Mapping[str, Stream],
        max_pending: int,
    ) -> None:
        self._head = head
        self._nodes = nodes
        self._modalities = modalities
        self._streams = streams
        self._max_pending = max_pending
        self._others = tuple(dict.fromkeys(m for m in modalities.values() if m != head.pivot))
        self.pivot_node = next(nodes[key] for key, modality in modalities.items() if modality == head.pivot)
        self.overflowed = 0
        self.skipped = 0
        self.clear()

    def clear(self) -> None:
        """Forget the waiting pivots; the counters stay."""
        self._pending: deque[_Pivot] = deque()
        self._dropped_reported = self._dropped_total()

    def add(self, t: int) -> None:
        """A pivot sample has been encoded."""
        if len(self._pending) >= self._max_pending:
            self._pending.popleft()
            self.overflowed += 1
        self._pending.append(_Pivot(t, perf_counter_ns()))

    def settled(self, now: int) -> Iterator[Match]:
        """The pivots that need not wait any longer, oldest first."""
        while self._pending and self._is_settled(self._pending[0].t, now):
            pivot = self._pending.popleft()
            inputs = {key: self._current(key, pivot.t) for key in self._nodes}
            missing = tuple(dict.fromkeys(self._modalities[key] for key, value in inputs.items() if value is None))
            if missing and self._head.present is None:
                self.skipped += 1
                continue
            times = [value.t for value in inputs.values() if value is not None]
            wait = perf_counter_ns() - pivot.encoded
            yield Match(pivot.t, inputs, missing, max(times) - min(times), wait, self._take_dropped())

    @property
    def deadline(self) -> int | None:
        """When the oldest waiting pivot settles even if nothing more comes, ns."""
        return self._pending[0].t + self._head.deadline_ns if self._pending else None

    @property
    def horizon(self) -> int | None:
        """The oldest time it may still ask the encoders about: its oldest pivot's, waiting or to come; None if any."""
        return self._pending[0].t if self._pending else self._streams[self._head.pivot].bound

    def _is_settled(self, t: int, now: int) -> bool:
        return now >= t + self._head.deadline_ns or all(self._streams[m].passed(t) for m in self._others)

    def _current(self, key: str, t: int) -> Encoded | None:
        encoded = self._nodes[key].at(t)
        tolerance = self._head.tolerance_ns.get(self._modalities[key], 0)
        return encoded if encoded is not None and t - encoded.t <= tolerance else None

    def _dropped_total(self) -> int:
        stream = self._streams[self._head.pivot]
        superseded = stream.dropped if isinstance(stream, FrameStream) else 0
        return superseded + self.overflowed + self.skipped

    def _take_dropped(self) -> int:
        total = self._dropped_total()
        new, self._dropped_reported = total - self._dropped_reported, total
        return new
