"""Logging through the standard library, which is loaded when there is something to say."""

from __future__ import annotations

from typing import Any

__all__ = ["warn"]


def warn(name: str, message: str, *values: Any) -> None:
    """A warning from the module ``name``: what went wrong and was survived."""
    import logging  # noqa: PLC0415 - takes longer to import than the modules that rarely need it

    logging.getLogger(name).warning(message, *values)
