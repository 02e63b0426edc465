"""Files that a path or a pattern of a calibration set names."""

from __future__ import annotations

import glob
from pathlib import Path

from edge_mbm.errors import CalibrationError

__all__ = ["matching", "relative"]


def matching(folder: Path, pattern: str) -> list[Path]:
    """Files, sorted by name.

    Raises:
        CalibrationError: there are none.
    """
    found = sorted(Path(name) for name in glob.glob(str(folder / pattern), recursive=True))  # noqa: PTH207 - absolute
    files = [path for path in found if path.is_file()]
    if not files:
        raise CalibrationError(f"there is no file {folder / pattern}: paths begin at the calibration set's folder")
    return files


def relative(path: Path, folder: Path) -> str:
    """A path as part of a recording's id: the same on every machine."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
