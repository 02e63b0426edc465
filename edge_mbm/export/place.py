"""Where in a user's own code something went wrong."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

__all__ = ["place"]

_LIBRARIES = tuple({sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")})
_EXPORT = str(Path(__file__).parent)


def place(error: BaseException, told: str = "") -> str:
    """The innermost line that is no library's, as " (FILE:LINE)"; empty if there is none.

    Args:
        error: with what caused it; torch.export names the user's line in its message only.
        told: more text that may name it.
    """
    chain: list[BaseException] = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None and earlier not in chain:
        chain.append(earlier)
    frames = [(f.filename, f.lineno) for e in chain for f in traceback.extract_tb(e.__traceback__)]
    text = "\n".join([*map(str, chain), told])
    named = [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    for found in (frames, named):
        if own := [(file, line) for file, line in found if not _is_library(file)]:
            return f" ({own[-1][0]}:{own[-1][1]})"
    return ""


def _is_library(file: str) -> bool:
    return file.startswith((*_LIBRARIES, _EXPORT, "<")) or "-packages" in file
