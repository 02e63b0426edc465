"""A terminal's output as an SVG picture: `edge-mbm inspect x.mbm | python scripts/picture.py "title" > picture.svg`.

Keeps colours (FORCE_COLOR=1 makes commands send them). The picture refers to nothing outside itself.
"""

from __future__ import annotations

import os
import re
import sys

from rich.console import Console
from rich.text import Text


def main() -> None:
    """Read standard input, write the picture to standard output."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=100, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(sys.stdin.read()), soft_wrap=True)
        picture = console.export_svg(title=sys.argv[1] if len(sys.argv) > 1 else "edge-mbm", unique_id="edge-mbm")
    # Rich's template fetches a web font; the reader's own monospace font does.
    picture = re.sub(r"@font-face\s*{[^}]*}", "", picture)
    sys.stdout.write(picture.replace("Fira Code, ", ""))


if __name__ == "__main__":
    main()
