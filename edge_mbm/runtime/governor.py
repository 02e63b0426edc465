"""Lowers the rates of encoders while the machine is overloaded or too hot, the least important first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edge_mbm.errors import InputError
from edge_mbm.runtime.heat import Heat
from edge_mbm.runtime.session import Session
from edge_mbm.runtime.status import LiveStatus
from edge_mbm.spec import AudioModality, Head, Manifest, TextModality, VideoModality

__all__ = ["Action", "Governor", "GovernorOptions", "Lever", "levers"]

_SECOND = 1_000_000_000
_SLOWEST = 4
"""Encoders run on every frame, every second, or every fourth: slower is as good as off."""
_LOOKS = 100
"""In a window, at most."""
_COOLER_C = 5.0
"""Beyond the margin, before rate is given back."""
_IDLE = 0.25
"""Encoders at work, on average, below which they are not what the machine is busy with."""
_MOST_PATIENCE = 8
"""How far the recovery time grows when giving rate back does not last."""


@dataclass(frozen=True)
class GovernorOptions:
    """When to step in, and whom to slow down first.

    Args:
        importance: encoder -> how important it is; the least important are slowed down first. Those left out count as
            0; among equals, encoders that only support a head come before those that its pivot comes from.
        window_s: how long something must go on before it counts, seconds.
        lost_share: of the frames that a pivot's encoder should have run on; more lost than this is overload.
        age_s: age of results above which it is overload, seconds; None for any.
        margin_c: degrees below the machine's own throttling at which it is too hot.
        power_w: what the machine may draw, W; None for what its sensors allow.
        recovery_s: how long all must be well before rate is given back, seconds. It doubles, up to eight times, while
            giving back brings the overload back.

    Raises:
        InputError: a number out of range.
    """

    importance: Mapping[str, float] = field(default_factory=dict)
    window_s: float = 5.0
    lost_share: float = 0.25
    age_s: float | None = None
    margin_c: float = 3.0
    power_w: float | None = None
    recovery_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise InputError for a number out of range."""
        positive = (self.window_s, self.recovery_s, self.age_s or 1.0, self.power_w or 1.0)
        if not all(0 < value < 1e6 for value in positive) or not 0 < self.lost_share < 1:
            raise InputError("window_s, recovery_s, age_s and power_w are above 0, lost_share is between 0 and 1")
        if not 0 <= self.margin_c <= 50:
            raise InputError(f"margin_c is 0 to 50 degrees, got {self.margin_c}")


class Lever(NamedTuple):
    """An encoder that can be held: one of frames, since sound has no frames to leave out."""

    encoder: str
    modality: str
    is_pivot: bool
    """Whether a head's pivot comes from it."""


class Action(NamedTuple):
    """What to do: ``session.hold_rate(action.encoder, action.min_interval_ns)``."""

    encoder: str
    min_interval_ns: int
    """0 for as they come."""
    note: str
    """Why, in words."""


class _Counts(NamedTuple):
    """What has come and been taken since the start, and how long the last run of each encoder took."""

    taken: Mapping[str, int]
    superseded: Mapping[str, int]
    last_ns: Mapping[str, int]


class _Verdict(NamedTuple):
    """What one moment's age, heat or power says."""

    strained: str | None = None
    """What is above its limit, in words."""
    is_easy: bool = True
    """Whether all is well below its limit, so that rate may be given back."""

    def __or__(self, other: _Verdict) -> _Verdict:
        return _Verdict(self.strained or other.strained, self.is_easy and other.is_easy)


class _Look(NamedTuple):
    """One status, and what is wrong in it at that moment."""

    t: int
    counts: _Counts
    verdict: _Verdict


class _Held(NamedTuple):
    """One encoder at a part of its rate."""

    factor: int
    rate_hz: float
    why: str


def levers(session: Session) -> tuple[Lever, ...]:
    """What of a session can be held."""
    manifest = session.manifest
    running = {planned.name for planned in session.plan}
    pivots = {
        root
        for name, timing in manifest.results().items()
        if name in running
        for source in _of_pivot(manifest, name, timing.pivot)
        for root in _roots(manifest, source)
    }
    # Texts come rarely, and each counts until the next: one that were held back would never be read.
    # Nor does a window of sound or video stand for another.
    kinds = (AudioModality, VideoModality, TextModality)
    frames = [name for name in session.modalities if not isinstance(manifest.modalities[name], kinds)]
    return tuple(
        Lever(encoder, modality, encoder in pivots)
        for modality in frames
        for encoder in session.encoders
        if session.reads(encoder, modality)
    )


def _of_pivot(manifest: Manifest, name: str, pivot: str) -> Iterator[str]:
    """Of what gives results: what in it comes from the pivot alone."""
    component = manifest.components[name]
    if not isinstance(component, Head):
        yield name
        return
    for value in component.inputs.values():
        if manifest.modalities_of(value.source.partition(".")[0]) == (pivot,):
            yield value.source


def _roots(manifest: Manifest, source: str) -> Iterator[str]:
    """Encoders of modalities that something comes from."""
    name = source.partition(".")[0]
    for value in manifest.components[name].inputs.values():
        if value.source in manifest.modalities:
            yield name
        else:
            yield from _roots(manifest, value.source)


class Governor:
    """Decides from what a stream is doing which encoders to hold. It has no clock and touches nothing.

    Give it a status about once a second, and do what it says. While the stream is overloaded (too many of a pivot's
    frames are lost, or results are too old) or the machine too hot for ``window_s``, it halves the rate of the least
    important encoder, then quarters it, then goes on to the next one. When all has been well, with something to
    spare, for ``recovery_s``, it takes the last step back.

    Frames that are lost while the encoders have little to do are the consumer's doing: to hold encoders would not help.

    Args:
        levers: what can be held.
        options: see ``GovernorOptions``.

    Raises:
        InputError: ``importance`` names what cannot be held.
    """

    def __init__(self, levers: Sequence[Lever], options: GovernorOptions | None = None) -> None:
        self._options = options or GovernorOptions()
        importance = self._options.importance
        known = [lever.encoder for lever in levers]
        for name in importance:
            if name not in known:
                raise InputError(f"importance names '{name}', which is no encoder of frames here: those are {known}")
        self._levers = sorted(levers, key=lambda lever: (importance.get(lever.encoder, 0), lever.is_pivot))
        self._window_ns = int(self._options.window_s * _SECOND)
        self._looks: deque[_Look] = deque(maxlen=2 * _LOOKS)
        self._held: dict[str, _Held] = {}
        self._steps: list[tuple[str, _Held | None]] = []
        self._easy_since: int | None = None
        self._given_back: int | None = None
        self._patience = 1
        self._throttles: int | None = None
        self._results = 0
        self._age_verdict = _Verdict()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is held and why, in words; empty at full rate."""
        return tuple(
            f"{encoder} held to {held.rate_hz:.3g} Hz (1/{held.factor}): {held.why}"
            for encoder, held in self._held.items()
        )

    def update(self, status: LiveStatus, heat: Heat | None = None) -> Sequence[Action]:
        """Judge one moment.

        Args:
            status: of the stream now; one that is less than a hundredth of the window newer than the last is ignored.
            heat: of the machine now, where it is known.

        Returns:
            What to do; mostly nothing.
        """
        if self._looks and (status.t - self._looks[-1].t) * _LOOKS < self._window_ns:
            return ()
        self._looks.append(self._look(status, heat))
        if self._easy_since is None or not self._is_easy():
            self._easy_since = status.t
        if not self._is_window_full():
            return ()
        if (why := self._overload()) is not None:
            return self._slow_down(why, status.t)
        self._trim()
        return self._speed_up(status.t)

    # --- judging -----------------------------------------------------------------------------------------------------

    def _look(self, status: LiveStatus, heat: Heat | None) -> _Look:
        counts = _Counts(
            taken={encoder.name: encoder.runs + encoder.gated for encoder in status.encoders},
            superseded={lever.modality: status.losses.get(f"{lever.modality}.superseded", 0) for lever in self._levers},
            last_ns={encoder.name: encoder.last_ns or 0 for encoder in status.encoders},
        )
        results = sum(head.results for head in status.heads)
        if results != self._results:
            self._results, self._age_verdict = results, self._judge_age(status)
        return _Look(
            status.t, counts, self._age_verdict if heat is None else self._age_verdict | self._judge_heat(heat)
        )

    def _judge_age(self, status: LiveStatus) -> _Verdict:
        ages = [head.age_ns / _SECOND for head in status.heads if head.enabled and head.age_ns is not None]
        limit = self._options.age_s
        if limit is None or not ages:
            return _Verdict()
        why = f"results are {max(ages) * 1e3:.0f} ms old, and {limit * 1e3:.0f} ms is what they may be"
        return _Verdict(why if max(ages) > limit else None, max(ages) < 0.8 * limit)

    def _judge_heat(self, heat: Heat) -> _Verdict:
        return self._judge_temperature(heat) | self._judge_current(heat) | self._judge_power(heat)

    def _judge_temperature(self, heat: Heat) -> _Verdict:
        zone = heat.closest
        if zone is None or zone.headroom_c is None:
            return _Verdict()
        why = f"{zone.name} is at {zone.temperature_c:.0f} C, and the machine slows down at {zone.limit_c:.0f} C"
        margin = self._options.margin_c
        return _Verdict(why if zone.headroom_c < margin else None, zone.headroom_c > margin + _COOLER_C)

    def _judge_current(self, heat: Heat) -> _Verdict:
        throttled = self._throttles is not None and heat.throttles > self._throttles
        self._throttles = heat.throttles
        if throttled:
            return _Verdict("the board cuts its clocks for too high a current", is_easy=False)
        alarming = [rail.name for rail in heat.rails if rail.alarm]
        return _Verdict(f"{alarming[0]} draws more than its sensor allows", is_easy=False) if alarming else _Verdict()

    def _judge_power(self, heat: Heat) -> _Verdict:
        limit, watts = self._options.power_w, heat.watts
        if limit is None or watts is None:
            return _Verdict()
        return _Verdict(f"it draws {watts:.1f} W of {limit:.1f} W" if watts > limit else None, watts < 0.9 * limit)

    def _is_window_full(self) -> bool:
        return self._looks[-1].t - self._looks[0].t >= self._window_ns

    def _overload(self) -> str | None:
        """What has been wrong for the whole window, in words."""
        strained = [look.verdict.strained for look in self._looks][1:]
        if all(strained):
            return strained[-1]
        pivots = [lever for lever in self._levers if lever.is_pivot]
        worst = max(pivots, key=self._lost_share, default=None)
        if worst is None or self._lost_share(worst) <= self._options.lost_share or self._busy() < _IDLE:
            return None
        share = self._lost_share(worst)
        return f"{share:.0%} of the frames of '{worst.modality}' were lost over {self._span_s():.0f} s"

    def _is_easy(self) -> bool:
        """Whether there is something to spare."""
        is_lossy = any(
            self._lost_share(lever) > self._options.lost_share / 2 for lever in self._levers if lever.is_pivot
        )
        return self._looks[-1].verdict.is_easy and not (is_lossy and self._busy() >= _IDLE)

    def _lost_share(self, lever: Lever) -> float:
        """Of the frames in the window that an encoder should have run on at the rate it is held to."""
        wanted = self._arrived(lever.modality) / self._factor(lever.encoder)
        taken = self._grown(lever.encoder)
        # A frame at either end of the window proves nothing, nor does an encoder that rests.
        return max(0.0, 1 - (taken + 1) / wanted) if wanted > 1 and taken else 0.0

    def _arrived(self, modality: str) -> int:
        """Frames of a modality in the window: what the slowest of its encoders took, and what it never saw."""
        grown = [self._grown(lever.encoder) for lever in self._levers if lever.modality == modality]
        first, last = self._looks[0].counts.superseded, self._looks[-1].counts.superseded
        return last[modality] - first[modality] + min((taken for taken in grown if taken), default=0)

    def _grown(self, encoder: str) -> int:
        first, last = self._looks[0].counts.taken, self._looks[-1].counts.taken
        return last.get(encoder, 0) - first.get(encoder, 0)

    def _busy(self) -> float:
        """Encoders of frames that were at work, on average over the window."""
        last_ns = self._looks[-1].counts.last_ns
        spent = sum(self._grown(lever.encoder) * last_ns.get(lever.encoder, 0) for lever in self._levers)
        return spent / max(1, self._looks[-1].t - self._looks[0].t)

    def _span_s(self) -> float:
        return (self._looks[-1].t - self._looks[0].t) / _SECOND

    @property
    def _recovery_ns(self) -> int:
        return int(self._patience * self._options.recovery_s * _SECOND)

    def _factor(self, encoder: str) -> int:
        return self._held[encoder].factor if encoder in self._held else 1

    def _trim(self) -> None:
        """Keep a window."""
        while self._looks[-1].t - self._looks[1].t >= self._window_ns:
            self._looks.popleft()

    # --- acting ------------------------------------------------------------------------------------------------------

    def _slow_down(self, why: str, now: int) -> Sequence[Action]:
        self._easy_since = now
        if self._given_back is not None:
            lasted = now - self._given_back >= self._recovery_ns
            self._patience, self._given_back = 1 if lasted else min(_MOST_PATIENCE, 2 * self._patience), None
        for lever in self._levers:
            factor, arrived = self._factor(lever.encoder), self._arrived(lever.modality)
            if factor < _SLOWEST and arrived > 1 and self._grown(lever.encoder):
                held = _Held(2 * factor, arrived / self._span_s() / (2 * factor), why)
                self._steps.append((lever.encoder, self._held.get(lever.encoder)))
                return self._set(lever.encoder, held)
        self._forget()
        return ()

    def _speed_up(self, now: int) -> Sequence[Action]:
        assert self._easy_since is not None
        if now - self._easy_since < self._recovery_ns:
            return ()
        self._easy_since = now
        if not self._steps:
            self._patience, self._given_back = 1, None
            return ()
        encoder, before = self._steps.pop()
        self._given_back = now
        return self._set(encoder, before)

    def _set(self, encoder: str, held: _Held | None) -> Sequence[Action]:
        self._forget()
        if held is None:
            self._held.pop(encoder, None)
            return (Action(encoder, 0, f"{encoder} runs as frames come again: there is time for it"),)
        self._held[encoder] = held
        note = f"{encoder} held to {held.rate_hz:.3g} Hz (1/{held.factor}): {held.why}"
        # Half a frame's time less, since frames do not come at even intervals.
        return (Action(encoder, int((1 - 0.5 / held.factor) * _SECOND / held.rate_hz), note),)

    def _forget(self) -> None:
        """What was measured before a step says nothing about the time after it."""
        newest = self._looks[-1]
        self._looks.clear()
        self._looks.append(newest)
