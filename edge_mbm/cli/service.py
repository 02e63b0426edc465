"""Running under a service manager: systemd is told how it goes, and SIGTERM is a clean end."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from edge_mbm.cli.logs import log_at_least
from edge_mbm.cli.run_report import RunReport
from edge_mbm.runtime.latency import LatencyFigures
from edge_mbm.runtime.live import Live
from edge_mbm.runtime.notify import Heartbeat, Notifier
from edge_mbm.runtime.result import Result

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Service", "log_report"]


class _Terminated(BaseException):
    """SIGTERM came while a result was waited for."""


class Service:
    """Use it in a ``with``, in the main thread, around everything that takes time.

    Args:
        notifier: whom to tell; the service manager that started this process, if None.
    """

    def __init__(self, notifier: Notifier | None = None) -> None:
        self.ended = False
        """Whether SIGTERM has come."""
        self._notifier = notifier or Notifier()
        self._waits = False
        self._before: Any = None

    def __enter__(self) -> Self:
        log_at_least("info")
        self._before = signal.signal(signal.SIGTERM, self._end)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        self._notifier.close()

    @contextmanager
    def watching(self, live: Live) -> Iterator[None]:
        """While inside, the service manager is told whether the stream gets on."""
        _log().info("'%s' starts", live.session.manifest.name)
        with Heartbeat(self._notifier, live.status, live.session.manifest):
            yield
        _log().info("'%s' stops%s", live.session.manifest.name, " as it was told to" if self.ended else "")

    def results(self, live: Live) -> Iterator[Result]:
        """Results until there are no more or SIGTERM comes: at once while waiting, else after the one at hand."""
        while not self.ended:
            try:
                self._waits = True
                result = next(live)
            except (StopIteration, _Terminated):
                return
            finally:
                self._waits = False
            yield result

    def _end(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what a handler is called with
        self.ended = True
        if self._waits:
            self._waits = False
            raise _Terminated


def log_report(report: RunReport) -> None:
    """What the run came to, as log lines."""
    for name, head in report.summary.heads.items():
        figures = _figures(head.age if report.realtime else head.compute)
        _log().info("head '%s': %d results, %d dropped, %s", name, head.results, head.dropped, figures)
    lost = ", ".join(f"{cause} {count}" for cause, count in report.losses.items() if count)
    _log().info("lost: %s", lost or "nothing")


def _figures(figures: LatencyFigures) -> str:
    p50, p99, most = (value / 1e3 for value in (figures.p50_us, figures.p99_us, figures.max_us))
    return f"age p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {most:.1f} ms"


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
