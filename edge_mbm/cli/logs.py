"""Where edge-mbm's log goes when it is a program of its own: to stderr, a line at a time, for people or the journal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Literal, TypeAlias

from edge_mbm.cli.terminal import clean, write_line

__all__ = ["LogLevel", "log_at_least", "log_to_stderr"]

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))
"""Syslog's numbers, with which the journal tells errors from news."""


def log_to_stderr(level: LogLevel | None, environment: Mapping[str, str] = os.environ) -> None:
    """Send what ``edge_mbm`` logs to stderr, in the place of an earlier call's.

    Args:
        level: the least that is shown; warnings if None.
        environment: ``os.environ``: under systemd, which sets JOURNAL_STREAM, lines carry a priority instead of the
            time, which the journal adds itself.
    """
    logger = logging.getLogger("edge_mbm")
    for handler in logger.handlers[:]:
        if isinstance(handler, _Stderr):
            logger.removeHandler(handler)
    handler = _Stderr()
    handler.setFormatter(_Journal() if "JOURNAL_STREAM" in environment else _Plain())
    logger.addHandler(handler)
    logger.setLevel(logging.NOTSET if level is None else level.upper())


def log_at_least(level: LogLevel) -> None:
    """Show this much, unless somebody has said how much to show."""
    logger = logging.getLogger("edge_mbm")
    if logger.level == logging.NOTSET:
        logger.setLevel(level.upper())


class _Stderr(logging.Handler):
    """Writes to what stderr is at the time: a screen that draws itself may stand in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_line(self.format(record), sys.stderr)
        except Exception:  # noqa: BLE001 - the standard library's way: a log that cannot be written ends nothing
            self.handleError(record)


class _Plain(logging.Formatter):
    """``12:34:56.789 warning capture: what happened``; nothing in it steers the terminal."""

    def __init__(self) -> None:
        super().__init__("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        time = f"{self.formatTime(record, '%H:%M:%S')}.{record.msecs:03.0f}"
        head = f"{time} {record.levelname.lower()} {record.name.removeprefix('edge_mbm.')}: "
        return "\n".join(head + clean(line) for line in super().format(record).splitlines())


class _Journal(logging.Formatter):
    """``<4>capture: what happened``: every line by itself, since the journal takes them apart."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        head = f"<{priority}>{record.name.removeprefix('edge_mbm.')}: "
        return "\n".join(head + clean(line) for line in super().format(record).splitlines())
