"""What this process takes of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Usage", "UsageMeter"]

_ROOT = Path("/")


class Usage(NamedTuple):
    """One moment."""

    cpu: float | None
    """Cores at work since the look before, on average; None at the first."""
    memory: int | None
    """Resident bytes; None where the system does not say."""


class UsageMeter:
    """Looks at this process.

    Args:
        root: where ``proc`` is, for tests.
        cpu: time that this process has used so far, ns.
        clock: monotonic time, ns.
    """

    def __init__(
        self,
        root: Path = _ROOT,
        *,
        cpu: Callable[[], int] = time.process_time_ns,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._status = root / "proc/self/status"
        self._cpu = cpu
        self._clock = clock
        self._before: tuple[int, int] | None = None

    def look(self) -> Usage:
        """What it takes now."""
        now, used = self._clock(), self._cpu()
        before, self._before = self._before, (now, used)
        cores = (used - before[1]) / (now - before[0]) if before is not None and now > before[0] else None
        return Usage(cores, self._memory())

    def _memory(self) -> int | None:
        """From the line "VmRSS:     1234 kB"."""
        try:
            lines = self._status.read_text("ascii", errors="replace").splitlines()
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))
        except (OSError, StopIteration, IndexError, ValueError):
            return None
