"""How many failures in a row are bad luck."""

from __future__ import annotations

from edge_mbm.errors import DeviceLostError, EngineError, InputError
from edge_mbm.runtime.log import warn

__all__ = ["Failures"]


class Failures:
    """Counts each component's failures since its last success: one costs one result, many in a row are the end.

    Args:
        most: failures in a row of one component that are taken.

    Raises:
        InputError: ``most`` is negative.
    """

    def __init__(self, most: int) -> None:
        if most < 0:
            raise InputError(f"max_failures is 0 or more, got {most}")
        self._most = most
        self._in_a_row: dict[str, int] = {}

    def count(self, component: str, error: EngineError) -> None:
        """One more; raises the error if it is one too many, or nothing will work after it."""
        count = self._in_a_row[component] = self._in_a_row.get(component, 0) + 1
        if count > self._most or isinstance(error, DeviceLostError):
            raise error
        warn(__name__, "'%s' failed, %d in a row: %s", component, count, error)

    def clear(self, component: str) -> None:
        """It worked."""
        if self._in_a_row.get(component):
            self._in_a_row[component] = 0
