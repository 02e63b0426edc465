"""One thread per encoder: each works at its own rate, and a slow one holds up no other."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge_mbm.errors import EngineError
from edge_mbm.runtime.clock import Clock
from edge_mbm.runtime.failures import Failures
from edge_mbm.runtime.session import Session

__all__ = ["Worker"]

_JOIN_S = 10.0
# Waiting is cut into pieces, so that a governor's pause ends without a push.
_WAIT_S = 0.1
_LEAST_S = 0.0005


class Worker:
    """Runs an encoder on whatever waits for it.

    Args:
        session: whose encoder.
        encoder: its name.
        clock: tells when one that rests goes on.
        on_encoded: called after each item, however it went.
        failures: told how it went; what it raises ends the worker.
    """

    def __init__(
        self,
        session: Session,
        encoder: str,
        clock: Clock,
        *,
        on_encoded: Callable[[], None],
        failures: Failures,
    ) -> None:
        self.encoder = encoder
        self.failure: BaseException | None = None
        self._session = session
        self._clock = clock
        self._on_encoded = on_encoded
        self._failures = failures
        self._wake = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=f"edge-mbm-{encoder}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def close(self) -> None:
        """Finish the item at hand, and end the thread."""
        self._stop = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        try:
            while not self._stop:
                self._wake.wait(self._patience())
                self._wake.clear()
                while not self._stop and self._encode():
                    self._on_encoded()
        except BaseException as error:  # noqa: BLE001 - it must reach the consumer, not die here
            self.failure = error
            self._on_encoded()

    def _patience(self) -> float:
        resumes = self._session.resumes(self.encoder)
        return _WAIT_S if resumes is None else min(_WAIT_S, max(_LEAST_S, (resumes - self._clock.now()) / 1e9))

    def _encode(self) -> bool:
        try:
            found = self._session.encode_next(self.encoder, self._clock.now())
        except EngineError as error:
            self._failures.count(self.encoder, error)
            return True
        if found:
            self._failures.clear(self.encoder)
        return found
