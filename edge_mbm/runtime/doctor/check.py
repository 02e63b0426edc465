"""One thing that was looked at."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = ["Check", "ok", "warning"]


class Check(Struct, frozen=True, kw_only=True):
    """One package, one engine, or one fact of the machine."""

    name: str
    purpose: str
    status: Literal["ok", "warning", "missing", "broken"]
    """A warning costs speed or a feature, and bundles run all the same."""
    detail: str
    """Version and what matters about it, or what went wrong."""
    remedy: str | None = None
    """What to do, unless all is well."""


def ok(name: str, purpose: str, detail: str) -> Check:
    """All is well."""
    return Check(name=name, purpose=purpose, status="ok", detail=detail)


def warning(name: str, purpose: str, detail: str, remedy: str) -> Check:
    """It works, and could work better."""
    return Check(name=name, purpose=purpose, status="warning", detail=detail, remedy=remedy)
