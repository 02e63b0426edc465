"""Where what took long to find out is kept for the next export."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/edge-mbm``, or the same under ``~/.cache``. Removing it is safe at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-mbm"
