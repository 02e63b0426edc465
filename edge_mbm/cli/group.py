"""How every command ends: one message and an exit code, whatever went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import Any

from typer.core import TyperGroup

from edge_mbm.cli.terminal import clean, human
from edge_mbm.errors import EdgeMbmError

__all__ = ["CommandGroup"]

_INTERRUPTED = 130
_NOBODY_READS = 1
_REFUSED = 1


class CommandGroup(TyperGroup):
    """Turns what a command raises into a message on stderr and ``SystemExit``; bugs pass through with their trace."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
        except EdgeMbmError as error:
            _report(error, debug=bool(ctx.params.get("debug")))
            raise SystemExit(error.exit_code) from error
        except KeyboardInterrupt:
            raise SystemExit(_INTERRUPTED) from None
        except BrokenPipeError:
            _let_go_of_stdout()
            raise SystemExit(_NOBODY_READS) from None
        except OSError as error:
            _report_refusal(error, debug=bool(ctx.params.get("debug")))
            raise SystemExit(_REFUSED) from error
        return value


def _report_refusal(error: OSError, *, debug: bool) -> None:
    """What the system does not let us do, such as print to a disk that is full, is no bug."""
    place = "" if error.filename is None else f"{error.filename}: "
    words = EdgeMbmError(f"{place}{error.strerror or error} (--debug shows in which step)")
    _report(words.with_traceback(error.__traceback__), debug=debug)
    _let_go_of_stdout()


def _report(error: EdgeMbmError, *, debug: bool) -> None:
    console = human(to_stderr=True)
    if debug:
        for line in "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines():
            console.print(clean(line), soft_wrap=True)
    console.print(f"error: {clean(error)}", style="red", soft_wrap=True)


def _let_go_of_stdout() -> None:
    """It cannot be written to: what is still buffered must not fail again when Python exits."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
