"""What edge-mbm logs, on stderr."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from edge_mbm.cli.logs import log_at_least, log_to_stderr

LOG = logging.getLogger("edge_mbm.runtime.capture")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    logger = logging.getLogger("edge_mbm")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_a_line_says_when_how_bad_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings and worse, unless told otherwise; once, however often it is set up."""
    for _ in range(3):
        log_to_stderr(None, {})
    LOG.info("unheard")
    LOG.warning("the %s is gone", "camera")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} warning runtime.capture: the camera is gone\n", shown.err)


def test_every_line_of_a_traceback_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    """So that a search for errors finds all of it."""
    log_to_stderr(None, {"JOURNAL_STREAM": "8:1"})
    LOG.error("it failed", exc_info=ValueError("two\nlines"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "<3>runtime.capture: it failed"
    assert len(lines) > 2
    assert all(line.startswith("<3>runtime.capture: ") for line in lines)


@pytest.mark.parametrize(("level", "priority"), [("error", 3), ("warning", 4), ("info", 6), ("debug", 7)])
def test_the_journal_is_told_how_bad(capsys: pytest.CaptureFixture[str], level: str, priority: int) -> None:
    """In syslog's numbers."""
    log_to_stderr("debug", {"JOURNAL_STREAM": "8:1"})
    getattr(LOG, level)("x")
    assert capsys.readouterr().err == f"<{priority}>runtime.capture: x\n"


def test_what_is_logged_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A device may call itself anything."""
    log_to_stderr(None, {})
    LOG.warning("%s", "\x1b[2J\u202e")
    assert r"\x1b[2J\u202e" in capsys.readouterr().err


def test_a_level_that_was_asked_for_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """A service shows news, unless somebody wanted less."""
    log_to_stderr(None, {})
    log_at_least("info")
    LOG.info("news")
    log_to_stderr("error", {})
    log_at_least("info")
    LOG.info("more news")
    shown = capsys.readouterr().err
    assert "news" in shown
    assert "more news" not in shown
