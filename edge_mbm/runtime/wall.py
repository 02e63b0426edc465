"""Steps of the wall clock: told, and otherwise without effect, for all times in a stream are monotonic."""

from __future__ import annotations

import time
from collections.abc import Callable

from edge_mbm.runtime.log import warn

__all__ = ["WallClock"]

_SECOND = 1_000_000_000


class WallClock:
    """Notices when wall time steps against monotonic time: set by hand or NTP, or the machine slept.

    Args:
        wall: ns since 1970.
        monotonic: ns.
        threshold_ns: what counts as a step. NTP's slewing stays below it if ``check`` is called every few minutes.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
        threshold_ns: int = _SECOND // 2,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._threshold_ns = threshold_ns
        self._offset = self._now()
        self.steps = 0
        """Seen since the start."""

    def check(self) -> int | None:
        """Compare with the last call, and log a warning if wall time has stepped.

        Returns:
            By how much, ns, above 0 if it went ahead; None if it did not step.
        """
        offset = self._now()
        step, self._offset = offset - self._offset, offset
        if abs(step) <= self._threshold_ns:
            return None
        self.steps += 1
        warn(__name__, "wall time stepped by %+.3f s; streams go by monotonic time, which did not", step / _SECOND)
        return step

    def _now(self) -> int:
        """Wall time less monotonic time."""
        return self._wall() - self._monotonic()
