"""What one encoder reads of one modality, and what it is busy with: so that it can work beside the others."""

from __future__ import annotations

from edge_mbm.runtime.ring import AudioRing
from edge_mbm.runtime.stream import AudioStream, FrameSlot, FrameStream, Work

__all__ = ["FOREVER", "Feed"]

FOREVER = 1 << 62
"""Later than any time, ns."""


class Feed:
    """The newest frame, or the next window of sound, for one encoder.

    Args:
        encoder: its name.
        stream: of the modality.
        part: the encoder's own slot or ring of that stream.
    """

    def __init__(self, encoder: str, stream: FrameStream | AudioStream, part: FrameSlot | AudioRing) -> None:
        self.encoder = encoder
        self.stream = stream
        self.held_until: int | None = None
        """Before this time, ns, nothing is taken: newer frames replace older ones. None: anything at once."""
        self.min_interval_ns = 0
        """Frames closer than this to the one taken before are left to be replaced."""
        self._part = part
        self._busy: int | None = None
        self._last: int | None = None

    @property
    def dropped(self) -> int:
        """Frames that this encoder never saw."""
        return self._part.dropped if isinstance(self._part, FrameSlot) else 0

    @property
    def is_busy(self) -> bool:
        """Whether an item is on its way."""
        return self._busy is not None

    @property
    def has_work(self) -> bool:
        """Whether an item waits to be taken, and will be."""
        return self._part.waits(FOREVER) and not self._is_let_by()

    def take(self, now: int | None = None) -> Work | None:
        """The next item, on its way until ``done``; None if there is none, or one is on its way, or it is held."""
        if self._busy is not None or self._is_held(now):
            return None
        work = self._take_window() if isinstance(self._part, AudioRing) else self._take_frame(self._part)
        if work is not None:
            self._busy = self._last = work.t
            if self.held_until is not None:
                self.held_until = FOREVER  # one item ahead of whoever comes back for it
        return work

    def done(self) -> None:
        """What was taken has been encoded, or failed."""
        self._busy = None

    def passed(self, t: int) -> bool:
        """Whether the encoder has seen everything of time ``t`` or before that can come."""
        return self._has_come(t) and self.caught_up(t)

    def caught_up(self, t: int) -> bool:
        """Whether the encoder has seen everything of time ``t`` or before that has come."""
        on_its_way = self._busy is not None and self._busy <= t
        waits = self._part.waits(t) and not self._is_let_by()
        return not waits and not on_its_way

    def switch(self, *, on: bool) -> None:
        """Let the encoder rest, because no running head needs it, or work again from what comes next."""
        if on != self._part.is_on:
            self._part.is_on = on
            self._part.clear()

    def clear(self) -> None:
        """Forget what waits; what is on its way is done."""
        self._busy = self._last = None
        self._part.clear()

    def _is_held(self, now: int | None) -> bool:
        return self.held_until is not None and (now is None or now < self.held_until)

    def _has_come(self, t: int) -> bool:
        if self.stream.ended:
            return True
        if isinstance(self._part, AudioRing):
            return self._part.passed(t)
        return self.stream.bound is not None and self.stream.bound >= t

    def _take_frame(self, slot: FrameSlot) -> Work | None:
        return None if self._is_let_by() else slot.take()

    def _is_let_by(self) -> bool:
        """Whether the frame that waits came too soon after the last one: it is left to be replaced."""
        if not self.min_interval_ns or self._last is None:
            return False
        return self._part.waits(self._last + self.min_interval_ns - 1)

    def _take_window(self) -> Work | None:
        assert isinstance(self._part, AudioRing)
        window = self._part.next_window()
        # The ring writes on while the encoder reads.
        return None if window is None else Work(window[0].copy(), window[1], None)
