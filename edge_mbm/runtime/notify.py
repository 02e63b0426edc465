"""Tells systemd how a stream is doing: ready, alive, stopping. The protocol is a line on a datagram socket."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edge_mbm.runtime.status import HeadStatus, LiveStatus
from edge_mbm.spec import Manifest

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Heartbeat", "Notifier", "Progress"]

_MICROSECOND = 1e-6
_PATIENCE_S = 1.0
"""How long systemd may take to read a line before it is left out."""
_LONGEST = 1000
_ACCOUNTED = (".failed", ".skipped")
"""Losses for which the stream ends by itself when they are too many, or which a restart would not mend."""
_BEFORE_READY_S = 0.2
_LOOK_S = 5.0
_JOIN_S = 5.0


class Notifier:
    """Sends lines to the service manager that started this process; does nothing where none did.

    What cannot be sent is logged once and left out: a stream does not end because nobody listens.

    Args:
        environment: ``os.environ``, with NOTIFY_SOCKET (a path, or "@" and a name for an abstract socket),
            WATCHDOG_USEC and WATCHDOG_PID as systemd sets them.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self._complained = False
        self.watchdog_s = _watchdog_s(environment) if self._address is not None else None
        """How often ``alive`` must be said, seconds, before the process is killed; None if nobody waits for it."""
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(_PATIENCE_S)

    @property
    def is_heard(self) -> bool:
        """Whether a service manager asked to be told."""
        return self._address is not None

    def ready(self) -> None:
        """The service has started: what waits for it may start too."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """What it is doing, in words, for ``systemctl status``."""
        self._send(f"STATUS={' '.join(text.split())[:_LONGEST]}")

    def alive(self) -> None:
        """It gets on: do not restart it yet."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """It is about to end."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Close the socket. May be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _send(self, line: str) -> None:
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto(line.encode("utf-8", errors="replace"), self._address)
        except OSError as error:
            if not self._complained:
                _log().warning("systemd cannot be told '%s': %s", line, error)
            self._complained = True


def _address(given: str) -> str | None:
    """The socket's address; None if there is none, or of a kind that is not a local socket."""
    if given.startswith("@"):
        return "\0" + given[1:]
    if given.startswith("/"):
        return given
    if given:
        _log().warning("NOTIFY_SOCKET is %r, which is no local socket: systemd is not told anything", given)
    return None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The watchdog's time; None if there is none, or it is another process's."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    owner = environment.get("WATCHDOG_PID", "") or str(os.getpid())
    if not microseconds.isdecimal() or int(microseconds) == 0 or owner != str(os.getpid()):
        return None
    return int(microseconds) * _MICROSECOND


class Progress:
    """Judges from one status to the next whether a stream gets on, or is stuck.

    It gets on when a result was handed out, or was lost in a way that is counted and has its own limit; and when there
    was nothing to answer: heads wait for something that its source does not give just now, because it is starting,
    reconnecting, silent or over. It is stuck when what a head needs has come and nothing has come of it.

    Args:
        manifest: says what each head needs.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._needs = {name: _needs(manifest, name) for name in manifest.results()}
        self._answered = 0
        self._samples: dict[tuple[str, ...], int] = {}

    def made(self, status: LiveStatus) -> bool:
        """Whether it has got on since this last said so."""
        answered = sum(head.results for head in status.heads) + sum(
            count for name, count in status.losses.items() if name.endswith(_ACCOUNTED)
        )
        samples = {source.modalities: source.samples for source in status.sources}
        flowing = {
            modality
            for source in status.sources
            if source.state == "live" and source.samples > self._samples.get(source.modalities, 0)
            for modality in source.modalities
        }
        if answered == self._answered and any(self._could_answer(head, flowing) for head in status.heads):
            return False
        self._answered, self._samples = answered, samples
        return True

    def _could_answer(self, head: HeadStatus, flowing: set[str]) -> bool:
        return head.enabled and self._needs.get(head.name, frozenset()) <= flowing


def _needs(manifest: Manifest, name: str) -> frozenset[str]:
    """Modalities that a head cannot do without."""
    head = manifest.results()[name]
    return frozenset({head.pivot, *head.needs(manifest.modalities_of(name))})


class Heartbeat:
    """Looks at a stream from a thread of its own, and tells systemd what it sees.

    READY after the first result, or as soon as every source gives samples. Then WATCHDOG, but only when there was
    progress: a stream that is stuck, in a driver, an engine or a consumer, is not kept alive by a thread that is not. A
    look that never comes back does not keep it alive either.

    Args:
        notifier: whom to tell; it is closed with this.
        status: ``Live.status``.
        manifest: of the bundle that runs.
    """

    def __init__(self, notifier: Notifier, status: Callable[[], LiveStatus], manifest: Manifest) -> None:
        self._notifier = notifier
        self._status = status
        self._progress = Progress(manifest)
        self._is_ready = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edge-mbm-heartbeat", daemon=True)

    def look(self) -> None:
        """Look once, and tell what there is to tell."""
        status = self._status()
        if not self._is_ready:
            self._is_ready = _has_started(status)
            if not self._is_ready:
                self._notifier.status(f"starting: {_sources(status)}")
                return
            self._notifier.ready()
        if self._progress.made(status):
            self._notifier.alive()
            self._notifier.status(_summary(status))
        else:
            self._notifier.status(f"no result, though samples come: {_summary(status)}")

    @property
    def period_s(self) -> float:
        """How long to wait until the next look, seconds: four looks in the watchdog's time."""
        if not self._is_ready:
            return _BEFORE_READY_S
        watchdog_s = self._notifier.watchdog_s
        return _LOOK_S if watchdog_s is None else min(_LOOK_S, watchdog_s / 4)

    def __enter__(self) -> Self:
        if self._notifier.is_heard:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, say that it stops, and close the socket. May be called twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)
        self._notifier.stopping()
        self._notifier.close()

    def _run(self) -> None:
        while not self._stop.wait(self.period_s):
            try:
                self.look()
            except Exception:  # noqa: BLE001 - without a look nothing is told, and systemd does what it is there for
                _log().exception("the stream could not be looked at")


def _has_started(status: LiveStatus) -> bool:
    return any(head.results for head in status.heads) or all(s.state in ("live", "ended") for s in status.sources)


def _summary(status: LiveStatus) -> str:
    heads = ", ".join(f"{head.name} {head.results}" for head in status.heads if head.enabled)
    return "; ".join(filter(None, (f"results: {heads or 'no head is on'}", _sources(status), *status.notes)))


def _sources(status: LiveStatus) -> str:
    return ", ".join(f"{'+'.join(source.modalities)} {source.state}" for source in status.sources)


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
