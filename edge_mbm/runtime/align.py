"""Alignment: what was known of every modality at the pivot's time."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from time import perf_counter_ns
from typing import NamedTuple

from edge_mbm.runtime.component import Encoded, Node
from edge_mbm.runtime.feed import Feed
from edge_mbm.runtime.result import Segment
from edge_mbm.spec import Timing

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

    @property
    def segment(self) -> Segment | None:
        """The stretch of sound that it is about, where there is one."""
        return next((e.about.segment for e in self.inputs.values() if e is not None and e.about.segment), None)


class _Pivot(NamedTuple):
    t: int
    encoded: int


class Aligner:
    """Holds a head's pivots until the other modalities have passed them, or its deadline has.

    Args:
        timing: pivot, tolerances and deadline of what gives results.
        nodes: per head input, what feeds it.
        modalities: per head input, the one modality it depends on.
        feeds: per head input, what the first encoder on its way reads.
        pivot: the head input of the pivot modality that is ready last: when it is, so are the others of its feed.
        max_pending: pivots to hold; when more wait, the oldest is dropped and counted.
        latched: modalities that are taken as they last were, see ``Manifest.latched``.
    """

    def __init__(
        self,
        timing: Timing,
        nodes: Mapping[str, Node],
        modalities: Mapping[str, str],
        feeds: Mapping[str, Feed],
        *,
        pivot: str,
        max_pending: int,
        latched: Collection[str] = (),
    ) -> None:
        self._timing = timing
        self._nodes = nodes
        self.modalities = modalities
        self.feeds = tuple(feeds.values())
        self._max_pending = max_pending
        self._latched = frozenset(latched)
        self.pivot_node, self.pivot_feed = nodes[pivot], feeds[pivot]
        self._others = [(modalities[key], feed) for key, feed in feeds.items() if feed is not self.pivot_feed]
        self.overflowed = self.overtaken = self.skipped = self.failed = 0
        self.clear()

    def clear(self) -> None:
        """Forget the waiting pivots; the counters stay."""
        self._pending: deque[_Pivot] = deque()
        self._is_overtaken = False
        self._dropped_reported = self._dropped_total()

    def add(self, t: int) -> None:
        """A pivot sample has been encoded."""
        self._is_overtaken = True
        if len(self._pending) >= self._max_pending:
            self._pending.popleft()
            self.overflowed += 1
        self._pending.append(_Pivot(t, perf_counter_ns()))

    def settled(self, now: int) -> Iterator[Match]:
        """The pivots that need not wait any longer, oldest first."""
        while (match := self.take(now)) is not None:
            yield match

    def take(self, now: int) -> Match | None:
        """The oldest pivot, if it need not wait any longer."""
        while self._pending and self._is_settled(self._pending[0].t, now):
            pivot = self._pending.popleft()
            inputs = {key: self._current(key, pivot.t) for key in self._nodes}
            missing = tuple(dict.fromkeys(self.modalities[key] for key, value in inputs.items() if value is None))
            if self._timing.needs(missing):
                self.skipped += 1
                continue
            # A prompt of an hour ago is not an hour out of step.
            timed = [inputs[key] for key, modality in self.modalities.items() if modality not in self._latched]
            times = [value.t for value in timed if value is not None] or [pivot.t]
            wait = perf_counter_ns() - pivot.encoded
            return Match(pivot.t, inputs, missing, max(times) - min(times), wait, self._take_dropped())
        return None

    def failed_on(self, match: Match) -> None:
        """The head failed on a match: it is lost, and what it was to report is for the next one to say."""
        self.failed += 1
        self._dropped_reported -= match.dropped

    def mark(self) -> None:
        """The consumer leaves: what comes from now on overtakes what is left."""
        self._is_overtaken = False

    def keep_newest(self, now: int) -> None:
        """If a newer pivot has come since ``mark``: of the settled ones, drop all but the newest; but no utterance."""
        if self.pivot_feed.is_lossless:
            return
        if not self._is_overtaken and not self.pivot_feed.has_work:
            return
        while len(self._pending) > 1 and self._is_settled(self._pending[1].t, now):
            self._pending.popleft()
            self.overtaken += 1

    @property
    def has_settled(self) -> bool:
        """Whether a pivot waits for nothing but to be taken."""
        return bool(self._pending) and not self.lacking(self._pending[0].t)

    def is_over(self) -> bool:
        """Whether no pivot waits, and none can come."""
        return not self._pending and self.pivot_feed.is_over

    @property
    def deadline(self) -> int | None:
        """When the oldest waiting pivot settles even if nothing more comes, ns."""
        return self._pending[0].t + self._timing.deadline_ns if self._pending else None

    @property
    def horizon(self) -> int | None:
        """The oldest time it may still ask the encoders about: its oldest pivot's, waiting or to come; None if any."""
        return self._pending[0].t if self._pending else self.pivot_feed.horizon

    @property
    def waiting(self) -> int | None:
        """The oldest waiting pivot's time, ns."""
        return self._pending[0].t if self._pending else None

    def lacking(self, t: int) -> tuple[str, ...]:
        """Modalities that have not passed ``t``."""
        return tuple(dict.fromkeys(modality for modality, feed in self._others if not self._is_past(modality, feed, t)))

    def _is_past(self, modality: str, feed: Feed, t: int) -> bool:
        return feed.caught_up(t) if modality in self._latched else feed.passed(t)

    def _is_settled(self, t: int, now: int) -> bool:
        return now >= t + self._timing.deadline_ns or not self.lacking(t)

    def _current(self, key: str, t: int) -> Encoded | None:
        encoded = self._nodes[key].at(t)
        modality = self.modalities[key]
        if encoded is None or modality in self._latched:
            return encoded
        return encoded if t - encoded.t <= self._timing.tolerance_ns.get(modality, 0) else None

    def _dropped_total(self) -> int:
        unencoded = self.pivot_feed.dropped + self.pivot_node.failed
        return unencoded + self.overflowed + self.overtaken + self.skipped + self.failed

    def _take_dropped(self) -> int:
        total = self._dropped_total()
        new, self._dropped_reported = total - self._dropped_reported, total
        return new
