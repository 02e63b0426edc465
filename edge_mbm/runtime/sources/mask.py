"""Keeps the passwords in addresses out of messages, statuses and logs."""

from __future__ import annotations

import re

__all__ = ["mask"]

# Up to the last @: a password may hold any character, and hiding too much harms nobody.
_ACCOUNT = re.compile(r"(?<=://)[^\s'\"]*@")
_QUERY = re.compile(r"((?:rtsps?|https?|udp)://[^\s'\"?#]*\?)[^\s'\"#]+")


def mask(text: str) -> str:
    """``text`` with the accounts and the query values of every network address in it hidden.

    >>> mask("cannot open 'rtsp://admin:secret@10.0.0.5/live?token=1'")
    "cannot open 'rtsp://***@10.0.0.5/live?***'"
    """
    return _QUERY.sub(r"\1***", _ACCOUNT.sub("***@", text))
