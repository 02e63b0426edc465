"""``edge-mbm top``: watch what a live stream does."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live as LiveScreen

from edge_mbm.cli.options import (
    AllowFallback,
    AudioAddress,
    BundlePath,
    DlaComponents,
    Heads,
    Json,
    ProviderChoice,
    SourceAddress,
    Threads,
    VariantChoice,
    VideoAddress,
    addresses,
)
from edge_mbm.cli.terminal import human, write_line
from edge_mbm.cli.top_screen import Snapshot, Trend, screen
from edge_mbm.cli.usage import UsageMeter
from edge_mbm.runtime.bundle import load
from edge_mbm.runtime.heat import HeatReader
from edge_mbm.runtime.live import Live, open_live
from edge_mbm.runtime.session import SessionOptions

__all__ = ["top"]

_SCREEN_S, _LINES_S = 1 / 3, 1.0
_SECOND = 1_000_000_000


def top(
    bundle: BundlePath,
    *,
    source: SourceAddress = None,
    video: VideoAddress = None,
    audio: AudioAddress = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", min=0.0, help="Stop after so long; without it, with Ctrl-C.", show_default=False),
    ] = None,
    head: Heads = None,
    variant: VariantChoice = "auto",
    threads: Threads = 1,
    provider: ProviderChoice = "cpu",
    allow_fallback: AllowFallback = False,
    dla: DlaComponents = None,
    as_json: Json = False,
) -> None:
    """Run a bundle on its sources, and watch: rates, ages, drift, what is held or lost, and why a head has not fired.

    On a terminal it is a screen, redrawn three times a second. Otherwise a snapshot is printed each second; with
    --json, the stream's status as one line of JSON.

    Example: edge-mbm top model.mbm --source clip.mp4
    """
    options = SessionOptions(
        heads=tuple(head) if head else None,
        variant=variant,
        threads=threads,
        provider=provider,
        allow_fallback=allow_fallback,
        dla=tuple(dla or ()),
    )
    addresses(source, video, audio)
    with ExitStack() as stack:
        opened = stack.enter_context(load(bundle))
        live = stack.enter_context(open_live(opened, source, video=video, audio=audio, options=options))
        watch = _Watch(live)
        show, period = _json_lines(watch) if as_json else _shown(watch, human(), stack)
        try:
            _loop(live, show, period, seconds)
        except KeyboardInterrupt:
            return  # the usual way to leave


class _Watch:
    """Looks at a stream, and remembers what rates need."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._trend = Trend()
        self._usage = UsageMeter()
        self._heat = HeatReader()
        self._started = time.monotonic_ns()

    def snapshot(self) -> Snapshot:
        """All there is to see now."""
        status = self._live.status()
        self._trend.add(status)
        return Snapshot(
            bundle=self._live.session.manifest.name,
            status=status,
            reasons=self._live.explain(),
            trend=self._trend,
            usage=self._usage.look(),
            heat=self._heat.read(),
            running_s=(time.monotonic_ns() - self._started) / _SECOND,
        )


def _loop(live: Live, show: Callable[[], None], period: float, seconds: float | None) -> None:
    """Show until the time is over or the stream ends; raises what ended it."""
    stop, clock = threading.Event(), time.monotonic
    end = None if seconds is None else clock() + seconds
    while True:
        live.latest()  # starts its consumer, and raises its failure
        show()
        left = period if end is None else min(period, end - clock())
        if left <= 0 or _is_over(live):
            return
        stop.wait(left)


def _is_over(live: Live) -> bool:
    return all(source.state == "ended" for source in live.status().sources) and live.session.is_over()


def _json_lines(watch: _Watch) -> tuple[Callable[[], None], float]:
    def show() -> None:
        write_line(json.dumps(msgspec.to_builtins(watch.snapshot().status), allow_nan=False), sys.stdout)

    return show, _LINES_S


def _shown(watch: _Watch, console: Console, stack: ExitStack) -> tuple[Callable[[], None], float]:
    """How people see it: a screen of its own on a terminal, else one snapshot after the other."""
    if not console.is_terminal:
        return lambda: console.print(screen(watch.snapshot()), "", crop=True), _LINES_S
    drawn = stack.enter_context(LiveScreen(console=console, screen=True, auto_refresh=False))
    return lambda: drawn.update(screen(watch.snapshot()), refresh=True), _SCREEN_S
