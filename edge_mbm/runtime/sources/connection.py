"""One opening of a device, in a thread of its own that nobody has to wait for."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

from edge_mbm.errors import SourceError
from edge_mbm.runtime.clock import Clock
from edge_mbm.runtime.source import Source
from edge_mbm.runtime.sources.handoff import Handoff
from edge_mbm.runtime.sources.mask import mask

__all__ = ["Connection", "warn"]

_numbers = itertools.count(1)


class Connection:
    """Opens a device, reads it once ``read`` was called, and closes it, all in a daemon thread.

    Args:
        name: of the source, for the log.
        open_device: opens the device and gives its source.
        capacity: see ``Handoff``.
        clock: for the times of arrival.
    """

    def __init__(self, name: str, open_device: Callable[[], Source], capacity: int, clock: Clock) -> None:
        self.name = name
        self.handoff = Handoff(capacity)
        self.source: Source | None = None
        self.failure: BaseException | None = None
        self.opened = threading.Event()
        """The device is open, or never will be."""
        self.begun = clock.now()
        self._open_device = open_device
        self._clock = clock
        self._reading = threading.Event()
        self._done = threading.Event()
        self._retired = False
        self._closer: threading.Thread | None = None
        self._starting = threading.Lock()
        """Held while the closer starts: one that is seen can be joined."""
        self._thread = threading.Thread(target=self._run, name=f"edge-mbm-source-{next(_numbers)}", daemon=True)
        self._thread.start()

    @property
    def thread_name(self) -> str:
        """Of the thread, to find it in a dump."""
        return self._thread.name

    @property
    def done(self) -> bool:
        """Whether the device is closed and the thread at its end."""
        return self._done.is_set()

    def losses(self) -> dict[str, int]:
        """Counts by "modality.cause": on the way, and in the source itself if it counts."""
        counted = getattr(self.source, "losses", None)
        return self.handoff.losses() | (counted() if counted is not None else {})

    def read(self) -> None:
        """Start to read, as soon as the device is open."""
        if self.opened.is_set():  # and has waited for whoever reads
            self.begun = self._clock.now()
        self._reading.set()

    def retire(self, timeout_s: float) -> bool:
        """Close the device, waiting for that at most ``timeout_s``, in real time. May be called twice.

        Returns:
            Whether the thread has ended; one that has not ends by itself when its driver lets it.
        """
        first, self._retired = not self._retired, True
        self.handoff.close()
        self._reading.set()
        if first and self.source is not None and not self.done:
            # From another thread, because this is what wakes a source that waits, and because it may get stuck itself.
            with self._starting:
                self._closer = threading.Thread(target=self._close, name=f"{self.thread_name}-close", daemon=True)
                self._closer.start()
        return self._done.wait(timeout_s)

    def _run(self) -> None:
        try:
            self.source = self._open_device()
            self.opened.set()
            self._reading.wait()
            if not self._retired:
                self._read(self.source)
        except BaseException as error:  # noqa: BLE001 - whatever a driver raises is the supervisor's to judge
            self.failure = error
        finally:
            self.opened.set()
            self.handoff.end()
            self._close()
            self._await_closer()
            self._done.set()

    def _read(self, source: Source) -> None:
        if source.timing.clock != "monotonic":
            raise SourceError(
                f"{self.name} is no live source: its times are a recording's. Give it without supervision"
            )
        for sample in source.samples():
            if not self.handoff.put(sample, self._clock.now()):
                return

    def _await_closer(self) -> None:
        """Closing twice is quick the second time, though the first is still at it."""
        with self._starting:
            closer = self._closer
        if closer is not None:
            closer.join()

    def _close(self) -> None:
        if self.source is None:
            return
        try:
            self.source.close()
        except Exception as error:  # noqa: BLE001 - there is nobody to raise it to, and the device is given up anyway
            warn("%s did not close well: %s", self.name, mask(repr(error)))


def warn(message: str, *values: object) -> None:
    """A line in this package's log."""
    import logging  # noqa: PLC0415 - takes longer to import than this module; rarely needed

    logging.getLogger("edge_mbm.runtime.sources").warning(message, *values)
