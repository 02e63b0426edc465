"""Consumes results as they come and keeps the newest, for those who ask at a rate of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from edge_mbm.runtime.result import Result

__all__ = ["Follower"]

_JOIN_S = 5.0


class Follower:
    """A thread that iterates, and a slot per head.

    Args:
        results: iterated over by this alone.
    """

    def __init__(self, results: Iterator[Result]) -> None:
        self._results = results
        self._newest: dict[str, Result] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="edge-mbm-follower", daemon=True)
        self._thread.start()

    def newest(self, head: str | None) -> Result | None:
        """The newest result of a head, or of any; raises what ended the stream."""
        if self._failure is not None:
            raise self._failure
        if head is not None:
            return self._newest.get(head)
        return max(list(self._newest.values()), key=lambda result: result.t_capture, default=None)

    def close(self) -> None:
        """Wait for the thread, which ends with the stream."""
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        try:
            for result in self._results:
                self._newest[result.head] = result
        except BaseException as error:  # noqa: BLE001 - it must reach whoever asks, not die here
            self._failure = error
