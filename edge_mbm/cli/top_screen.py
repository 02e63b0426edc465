"""A live stream as a screen: where samples come from, what becomes of them, and what was lost on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edge_mbm.cli.terminal import clean, figure, size
from edge_mbm.cli.usage import Usage
from edge_mbm.runtime.heat import Heat
from edge_mbm.runtime.status import EncoderStatus, LiveStatus, SourceStatus

__all__ = ["Snapshot", "Trend", "screen"]

_SECOND = 1_000_000_000
_WINDOW_NS = 3 * _SECOND
_LOOKS = 64
_COLOURS = {"starting": "yellow", "live": "green", "stalled": "red", "reconnecting": "red", "ended": "dim"}


class Trend:
    """Rates of what is counted, over the last three seconds."""

    def __init__(self) -> None:
        self._looks: deque[LiveStatus] = deque(maxlen=_LOOKS)

    def add(self, status: LiveStatus) -> None:
        """Remember one moment."""
        self._looks.append(status)
        while len(self._looks) > 2 and status.t - self._looks[1].t >= _WINDOW_NS:
            self._looks.popleft()

    def rate(self, count: Callable[[LiveStatus], int]) -> float | None:
        """How fast a count grows, 1/s; None until there are two moments."""
        if len(self._looks) < 2:
            return None
        first, last = self._looks[0], self._looks[-1]
        return (count(last) - count(first)) * _SECOND / max(1, last.t - first.t)


@dataclass(frozen=True)
class Snapshot:
    """All that one screen shows.

    Args:
        bundle: its name.
        status: of the stream.
        reasons: see ``Live.explain``.
        trend: that the status was added to.
        usage: of this process.
        heat: of the machine.
        running_s: since the start, seconds.
    """

    bundle: str
    status: LiveStatus
    reasons: Mapping[str, str]
    trend: Trend
    usage: Usage
    heat: Heat = field(default_factory=Heat)
    running_s: float = 0.0


def screen(snapshot: Snapshot) -> RenderableType:
    """The snapshot as tables, one row a line, however narrow the terminal is."""
    return Group(
        _headline(snapshot),
        Text(),
        _sources(snapshot),
        Text(),
        _encoders(snapshot),
        Text(),
        _heads(snapshot),
        Text(),
        *_reasons(snapshot),
        _losses(snapshot.status),
        *(_line(note, "yellow") for note in snapshot.status.notes),
    )


def _headline(snapshot: Snapshot) -> Text:
    usage, zone = snapshot.usage, snapshot.heat.closest
    parts = [
        clean(snapshot.bundle),
        _duration(snapshot.running_s),
        "cpu -" if usage.cpu is None else f"cpu {usage.cpu:.0%}",
        "memory -" if usage.memory is None else f"memory {size(usage.memory)}",
    ]
    if zone is not None:
        left = "" if zone.headroom_c is None else f" ({zone.headroom_c:.0f} C left)"
        parts.append(f"{clean(zone.name)} {zone.temperature_c:.0f} C{left}")
    if snapshot.heat.watts is not None:
        parts.append(f"{snapshot.heat.watts:.1f} W")
    return _line("   ".join(parts), "bold")


def _sources(snapshot: Snapshot) -> Table:
    table = _table("source", "gives", "state", "rate/s", "age ms", "drift ppm", "stalls", "reconn.", text=3)
    for index, source in enumerate(snapshot.status.sources):
        age = None if source.last is None else (snapshot.status.t - source.last) / 1e6
        rate = snapshot.trend.rate(lambda status, index=index: status.sources[index].samples)  # type: ignore[misc]
        table.add_row(
            _line(clean(source.name)),
            _line(_what(source)),
            _line(source.state, _COLOURS[source.state]),
            figure(rate),
            figure(age, 0),
            figure(source.drift_ppm),
            _count(source.stalls),
            _count(source.reconnects),
        )
    return table


def _encoders(snapshot: Snapshot) -> Table:
    table = _table("encoder", "rate/s", "ms", "failed", "gated", "held to/s")
    for index, encoder in enumerate(snapshot.status.encoders):
        rate = snapshot.trend.rate(lambda status, index=index: status.encoders[index].runs)  # type: ignore[misc]
        table.add_row(
            _line(clean(encoder.name)),
            figure(rate),
            figure(None if encoder.last_ns is None else encoder.last_ns / 1e6, 2),
            _count(encoder.failed),
            _count(encoder.gated),
            _held(encoder),
        )
    return table


def _heads(snapshot: Snapshot) -> Table:
    table = _table("head", "rate/s", "results", "age ms", "without")
    for index, head in enumerate(snapshot.status.heads):
        rate = snapshot.trend.rate(lambda status, index=index: status.heads[index].results)  # type: ignore[misc]
        age = None if head.age_ns is None else head.age_ns / 1e6
        missing = _line(clean(", ".join(head.missing)) or "-", "yellow" if head.missing else "")
        table.add_row(_line(clean(head.name)), figure(rate), str(head.results), figure(age), missing)
    return table


def _reasons(snapshot: Snapshot) -> Iterator[Text]:
    """Why each head has not fired."""
    for name, reason in snapshot.reasons.items():
        yield _line(f"{clean(name)}: {clean(reason)}")


def _losses(status: LiveStatus) -> Text:
    lost = ", ".join(f"{clean(cause)} {count}" for cause, count in status.losses.items() if count)
    problems = "".join(f"; {_what(source)}: {clean(source.error)}" for source in status.sources if source.error)
    return _line(f"lost: {lost or 'nothing'}{problems}")


def _held(encoder: EncoderStatus) -> Text:
    interval = encoder.min_interval_ns
    return Text(f"{_SECOND / interval:.1f}", "yellow") if interval else Text("-")


def _count(count: int) -> Text:
    return Text(str(count), "" if count else "dim")


def _what(source: SourceStatus) -> str:
    return clean("+".join(source.modalities))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, overflow="ellipsis", no_wrap=True)


def _table(*columns: str, text: int = 1) -> Table:
    """Columns of numbers, but for the first ``text`` and "without", which are cut where there is no room for them."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        is_text = index < text or column == "without"
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text, min_width=len(column))
    return table
