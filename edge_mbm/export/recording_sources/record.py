"""One recording."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Recording"]


class Recording(NamedTuple):
    """What sensors took in around one moment, and the truth about it if it is known."""

    id: str
    inputs: Mapping[str, Any]
    """Modality -> array, as a source would push it."""
    label: int | str | None
