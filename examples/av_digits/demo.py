"""The whole way in one go: train, export, verify, stream. ``make demo`` runs this from the repository's root.

Every step is a command that you can type yourself; it is shown before it runs.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time

from rich.console import Console

CONSOLE = Console(highlight=False)

STEPS = (
    (
        "Train an image encoder, an audio encoder and three fusion heads on degraded digits, shown and spoken",
        f"{shlex.quote(sys.executable)} -m av_digits.train",
    ),
    (
        "Export: trace, check parity, calibrate, quantize, measure, decide, and write one bundle",
        "edge-mbm export export/av_digits.toml -o av_digits.mbm",
    ),
    ("Prove it on this machine: replay the golden samples", "edge-mbm verify av_digits.mbm"),
    (
        "Make a clip of digits shown and spoken, some of them spoiled",
        f"{shlex.quote(sys.executable)} -m av_digits.clip -o clip.mp4",
    ),
    (
        "Stream the clip through the bundle at real time",
        "edge-mbm run av_digits.mbm --source clip.mp4 --output results.jsonl",
    ),
)


def main() -> int:
    """Run the steps; stop at the first that fails, with its exit code."""
    for number, (title, command) in enumerate(STEPS, start=1):
        CONSOLE.rule(f"[bold]{number}. {title}", align="left")
        CONSOLE.print(f"[dim]$ {command.replace(sys.executable, 'python')}[/dim]\n")
        started = time.monotonic()
        code = subprocess.run(shlex.split(command), check=False).returncode
        if code != 0:
            CONSOLE.print(f"[red]step {number} failed with exit code {code}[/red]")
            return code
        CONSOLE.print(f"[dim]({time.monotonic() - started:.0f} s)[/dim]\n")
    CONSOLE.print("Next: [bold]edge-mbm inspect av_digits.mbm[/bold], [bold]edge-mbm bench av_digits.mbm[/bold]")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
