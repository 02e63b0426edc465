"""What one encoder reads of one modality, and what it is busy with: so that it can work beside the others."""

from __future__ import annotations

from edge_mbm.runtime.frames import FrameWindows, VideoStream
from edge_mbm.runtime.ring import AudioRing
from edge_mbm.runtime.stream import AudioStream, FrameSlot, FrameStream, Work
from edge_mbm.runtime.utterance import UtteranceRing

__all__ = ["FOREVER", "Feed"]

FOREVER = 1 << 62
"""Later than any time, ns."""


class Feed:
    """The newest frame, or the next window of sound or of frames, for one encoder.

    Args:
        encoder: its name.
        stream: of the modality.
        part: the encoder's own slot, ring or windows of that stream.
    """

    def __init__(
        self, encoder: str, stream: FrameStream | AudioStream | VideoStream, part: FrameSlot | AudioRing | FrameWindows
    ) -> None:
        self.encoder = encoder
        self.stream = stream
        self.held_until: int | None = None
        """Before this time, ns, nothing is taken: newer frames replace older ones. None: anything at once."""
        self.min_interval_ns = 0
        """Frames closer than this to the one taken before are left to be replaced."""
        self.teller: Feed | None = None
        """Of the encoder that tells this one where speech is."""
        self.part = part
        self._busy: int | None = None
        self._last: int | None = None

    @property
    def dropped(self) -> int:
        """Frames, or windows of them, that this encoder never saw."""
        return 0 if isinstance(self.part, AudioRing) else self.part.dropped

    @property
    def is_busy(self) -> bool:
        """Whether an item is on its way."""
        return self._busy is not None

    @property
    def has_work(self) -> bool:
        """Whether an item waits to be taken, and will be."""
        return self.part.waits(FOREVER) and not self._is_let_by()

    @property
    def is_lossless(self) -> bool:
        """Whether each item counts, however late: an utterance, or a stretch of video, is not in the next one too."""
        return isinstance(self.part, UtteranceRing | FrameWindows)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do, and nothing can come."""
        told = self.teller is None or self.teller.is_over
        return told and self.stream.ended and not self.has_work and not self.is_busy

    @property
    def horizon(self) -> int | None:
        """The earliest time that an item may still have, on its way, waiting or to come, ns; None before the first."""
        known = [t for t in (self._busy, self.part.next_end) if t is not None]
        return min(known, default=self.stream.bound)

    def finish_utterance(self) -> None:
        """Where the sound has ended, and the teller has heard all of it: so has what was being said."""
        if isinstance(self.part, UtteranceRing) and self.teller is not None and self.teller.is_over:
            self.part.finish()

    def take(self, now: int | None = None) -> Work | None:
        """The next item, on its way until ``done``; None if there is none, or one is on its way, or it is held."""
        if self._busy is not None or self._is_held(now):
            return None
        work = self._take()
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
        waits = self.part.waits(t) and not self._is_let_by()
        return not waits and not on_its_way

    def switch(self, *, on: bool) -> None:
        """Let the encoder rest, because no running head needs it, or work again from what comes next."""
        if on != self.part.is_on:
            self.part.is_on = on
            self.part.clear()

    def clear(self) -> None:
        """Forget what waits; what is on its way is done."""
        self._busy = self._last = None
        self.part.clear()

    def _is_held(self, now: int | None) -> bool:
        return self.held_until is not None and (now is None or now < self.held_until)

    def _has_come(self, t: int) -> bool:
        if self.stream.ended:
            return True
        if isinstance(self.part, AudioRing | FrameWindows):
            return self.part.passed(t)
        return self.stream.bound is not None and self.stream.bound >= t

    def _take(self) -> Work | None:
        if isinstance(self.part, FrameWindows):
            window = self.part.next_window()
            return None if window is None else Work(window.frames, window.t, None, window.segment)
        return self._take_sound() if isinstance(self.part, AudioRing) else self._take_frame(self.part)

    def _take_frame(self, slot: FrameSlot) -> Work | None:
        return None if self._is_let_by() else slot.take()

    def _is_let_by(self) -> bool:
        """Whether the frame that waits came too soon after the last one: it is left to be replaced."""
        if not self.min_interval_ns or self._last is None:
            return False
        return self.part.waits(self._last + self.min_interval_ns - 1)

    def _take_sound(self) -> Work | None:
        if isinstance(self.part, UtteranceRing):
            cut = self.part.next_cut()
            return None if cut is None else Work(cut.samples, cut.t, None, cut.segment)
        assert isinstance(self.part, AudioRing)
        window = self.part.next_window()
        # The ring writes on while the encoder reads.
        return None if window is None else Work(window[0].copy(), window[1], None)
