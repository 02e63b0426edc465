"""Sound cut where speech begins and ends, as another encoder hears it: from a stream to utterances."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_mbm.runtime.result import Segment
from edge_mbm.runtime.ring import AudioRing
from edge_mbm.spec import Utterances, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Cut", "UtteranceRing"]

_SECOND = 1_000_000_000
_HYSTERESIS = 0.1
"""Speech goes on down to this much below the threshold, so that it does not end within a soft consonant."""
_WAITING = 8
"""Finished utterances that wait for their encoder; when more come, the oldest is given up and counted."""


class Cut(NamedTuple):
    """An utterance for its encoder."""

    samples: NDArray[np.float32]
    """float32[window's length], silence after the end."""
    t: int
    """When it was known, ns: for a finished one, a silence after its end."""
    segment: Segment


class _Speech:
    """An utterance that is not over. Places are samples since the anchor."""

    def __init__(self, begin: int, voice: int) -> None:
        self.begin = begin
        self.first = self.last = voice
        """Where voice was heard first, and up to where last."""
        self.looked = begin
        """Up to where it was when it was last looked at, or began."""


class UtteranceRing(AudioRing):
    """An audio ring whose items are utterances in place of windows.

    Samples come by ``push``, and what is heard in them by ``hear``. Memory is bounded: by the window, by the sound that
    is ahead of what was heard (``capacity``), and by the number of finished utterances that wait.

    Args:
        sample_rate: Hz.
        window: its length is the longest utterance, its hop the step between looks at an unfinished one.
        cut: where speech begins and ends.
        heard: samples of the window in which the teller hears.
        capacity: samples to hold that have not been heard.
        max_slip_ns: see ``AudioRing``.
    """

    def __init__(
        self, *, sample_rate: int, window: Window, cut: Utterances, heard: int, capacity: int, max_slip_ns: int
    ) -> None:
        self._cut = cut
        self._heard_in = heard
        self._silence, self._least, self._padding = (
            ns * sample_rate // _SECOND for ns in (cut.silence_ns, cut.speech_ns, cut.padding_ns)
        )
        self._ready: deque[Cut] = deque()
        self._said: _Speech | None = None
        self._partial: int | None = None
        """When an unfinished utterance became due to be looked at, ns."""
        self._floor = 0
        """No utterance begins before."""
        self._heard = 0
        super().__init__(
            sample_rate=sample_rate,
            length=window.length,
            hop=window.hop,
            capacity=capacity + window.length + heard + self._padding,
            max_slip_ns=max_slip_ns,
        )

    def clear(self) -> None:
        """Forget samples, anchor and what was said; the counters stay."""
        super().clear()
        self._ready.clear()
        self._silent_from(0)
        self._heard = 0

    def push(self, samples: NDArray[np.float32], t: int) -> bool:
        """See ``AudioRing.push``; what was being said before a gap ends there."""
        if self.is_on and self.bound is not None and abs(t - self.bound) > self._max_slip_ns:
            self.finish()
        ready = list(self._ready)  # what was finished is whole, whatever comes after
        broken = super().push(samples, t)
        self._ready = deque(ready)
        return broken

    def hear(self, t: int, speech: float) -> None:
        """What was heard in the window that ends at ``t``: the probability of speech."""
        if self._anchor is None or not self.is_on:
            return
        end = round((t - self._anchor) * self._rate / _SECOND)
        self._heard = end
        if speech >= self._cut.threshold or (self._said and speech >= self._cut.threshold - _HYSTERESIS):
            self._voice(end)
        if self._said is not None:
            self._look(self._said, end, t)
        self._forget(end)

    def finish(self) -> None:
        """No more comes: what is being said is over."""
        if self._said is not None and self._anchor is not None:
            end = self._index + self._end - self._begin
            self._end_at(self._said, end, self._time(end))
            self._silent_from(end)

    @property
    def next_end(self) -> int | None:
        """Before when no utterance can be known, but those that are, ns; None before the first sample."""
        if self._ready:
            return self._ready[0].t
        return None if self._anchor is None else min(self._partial or self._time(self._heard), self._time(self._heard))

    def waits(self, t: int) -> bool:
        """Whether an utterance, finished or to be looked at, was known at ``t`` or before, and not taken."""
        if self._ready:
            return self._ready[0].t <= t
        return self._partial is not None and self._partial <= t

    def passed(self, t: int) -> bool:
        """Whether all sound up to ``t`` has been heard."""
        return self._anchor is not None and self._time(self._heard) >= t

    def next_cut(self) -> Cut | None:
        """The oldest finished utterance, or else the unfinished one if it is time to look at it."""
        if self._ready:
            return self._ready.popleft()
        if self._partial is None or self._said is None:
            return None
        t, self._partial = self._partial, None
        return self._taken(self._said.begin, self._said.looked, t, is_final=False)

    def _voice(self, end: int) -> None:
        if self._said is None:
            begin = max(self._index, self._floor, end - self._heard_in - self._padding)
            self._said = _Speech(begin, max(begin, end - self._heard_in))
        self._said.last = end

    def _look(self, said: _Speech, end: int, t: int) -> None:
        """Whether it has ended, is as long as it may be, or is due to be looked at."""
        if end - said.last >= self._silence:
            self._end_at(said, end, t)
            self._silent_from(said.last)
        elif end - said.begin >= self._length:
            self._end_at(said, said.begin + self._length, t)
            self._silent_from(said.begin + self._length)  # what goes on is the next
        elif self._cut.partials and end - said.looked >= self._hop and said.last - said.first >= self._least:
            said.looked, self._partial = end, t

    def _end_at(self, said: _Speech, end: int, t: int) -> None:
        self._partial = None
        if said.last - said.first < self._least:
            return
        if len(self._ready) >= _WAITING:
            lost = self._ready.popleft().segment
            self.lost_samples += (lost.end - lost.start) * self._rate // _SECOND
        self._ready.append(self._taken(said.begin, min(end, said.begin + self._length), t, is_final=True))

    def _silent_from(self, place: int) -> None:
        self._said = self._partial = None
        self._floor = place

    def _drop_oldest(self, count: int) -> None:
        self.finish()
        super()._drop_oldest(count)
        self._silent_from(0)  # the ring counts from another sample now
        self._heard = 0

    def _taken(self, begin: int, end: int, t: int, *, is_final: bool) -> Cut:
        samples = np.zeros(self._length, np.float32)
        at = self._begin + max(begin, self._index) - self._index
        sound = self._data[at : self._begin + end - self._index]
        samples[: len(sound)] = sound[: self._length]
        return Cut(samples, t, Segment(self._time(begin), self._time(end), is_final))

    def _forget(self, end: int) -> None:
        """Sound that no utterance can need any more."""
        needed = self._said.begin if self._said is not None else max(self._floor, end - self._heard_in - self._padding)
        unneeded = min(needed - self._index, self._end - self._begin)
        if unneeded > 0:
            self._begin += unneeded
            self._index += unneeded
