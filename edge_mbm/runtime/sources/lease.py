"""A device or file that one thread reads and any thread may close."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Lease"]


class Lease:
    """Releases what a source holds, but never under the hands of a thread that reads it: that one does it then.

    Drivers and decoders crash when their handle goes away during a call.

    Args:
        release: called once.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self.closed = False
        self._release: Callable[[], None] | None = release
        self._lock = threading.Lock()
        self._readers = 0

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Around all reading; gives whether there is something to read, that is, whether it is not closed."""
        with self._lock:
            self._readers += 1
        try:
            yield not self.closed
        finally:
            with self._lock:
                self._readers -= 1
            self._release_if_free()

    def close(self) -> None:
        """Release it now, or as soon as nobody reads it. May be called twice, and from any thread."""
        self.closed = True
        self._release_if_free()

    def _release_if_free(self) -> None:
        with self._lock:
            if not self.closed or self._readers:
                return
            release, self._release = self._release, None
        if release is not None:
            release()
