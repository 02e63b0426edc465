"""The command line: ``edge-mbm``. Each command is a module here; what it computes is elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

import edge_mbm
from edge_mbm.cli.bench import bench as bench_command
from edge_mbm.cli.cache import cache_app
from edge_mbm.cli.compare import compare as compare_command
from edge_mbm.cli.compile import compile as compile_command
from edge_mbm.cli.demo import demo as demo_command
from edge_mbm.cli.doctor import doctor as doctor_command
from edge_mbm.cli.export import export as export_command
from edge_mbm.cli.gallery import gallery_app
from edge_mbm.cli.group import CommandGroup
from edge_mbm.cli.inspect import inspect as inspect_command
from edge_mbm.cli.logs import LogLevel, log_to_stderr
from edge_mbm.cli.record import record as record_command
from edge_mbm.cli.replay import replay as replay_command
from edge_mbm.cli.run import run as run_command
from edge_mbm.cli.terminal import write_line
from edge_mbm.cli.top import top as top_command
from edge_mbm.cli.verify import verify as verify_command

__all__ = ["app", "main"]

# "\b" keeps the lines that follow as they are; 76 columns fit the narrowest terminal.
_HELP = """A trained multimodal model as one proven bundle, streamed on the device.

The usual order, on the workstation and then on the device:

\b
  edge-mbm export recipe.toml -o model.mbm    make the bundle and its proof
  edge-mbm inspect model.mbm                  what is in it, what it costs
  edge-mbm compare old.mbm model.mbm          what changed between the two
  edge-mbm doctor                             what this machine lacks
  edge-mbm compile model.mbm                  TensorRT engines for its GPU
  edge-mbm cache ls                           the engines that are there
  edge-mbm verify model.mbm                   the right answers on it?
  edge-mbm bench model.mbm                    how fast on it?
  edge-mbm run model.mbm --source clip.mp4    stream a recording
  edge-mbm top model.mbm --source clip.mp4    and watch it at work
  edge-mbm record --video ADDRESS -o s.mcap   keep what sensors gave
  edge-mbm replay s.mcap -b model.mbm         and stream it again
  edge-mbm gallery list people.json           who is known by face
  edge-mbm demo zero-shot                     one of the examples

Every command has --help. With --json the answer is JSON on stdout, and what is for people goes to stderr.

Exit codes:

\b
    0  all is well                   5  accuracy or speed not as asked for
    1  any other; compare: differs   6  an engine or a source failed
    2  wrong usage, recipe, input    7  an optional package is missing
    3  the bundle cannot be used     8  verify: other answers than meant
    4  export failed               130  stopped with Ctrl-C
"""

app = typer.Typer(
    cls=CommandGroup,
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("export")(export_command)
app.command("inspect")(inspect_command)
app.command("compare")(compare_command)
app.command("doctor")(doctor_command)
app.command("compile")(compile_command)
app.add_typer(cache_app, name="cache")
app.command("verify")(verify_command)
app.command("bench")(bench_command)
app.command("run")(run_command)
app.command("top")(top_command)
app.command("record")(record_command)
app.command("replay")(replay_command)
app.add_typer(gallery_app, name="gallery")
# What comes after the example's name is the example's, options too.
app.command("demo", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(demo_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; ``sys.argv``'s if None.

    Returns:
        The exit code; ``edge-mbm --help`` lists them.
    """
    _stand_in_for_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A label that the terminal's encoding lacks is no reason to stop.
        with suppress(ValueError):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
    try:
        typer.main.get_command(app).main(
            args=None if arguments is None else list(arguments), prog_name="edge-mbm", standalone_mode=True
        )
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _stand_in_for_closed_streams() -> None:
    """What the caller has closed, as with ``>&-``: Python has None there, and the next file opened gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the process ends


def _show_version(wanted: bool) -> None:
    if wanted:
        write_line(f"edge-mbm {edge_mbm.__version__}", sys.stdout)
        raise typer.Exit


def _log_from(level: LogLevel | None) -> None:
    log_to_stderr(level)


@app.callback()
def _options(
    *,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="EDGE_MBM_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            "--log-level",
            envvar="EDGE_MBM_LOG_LEVEL",
            help="The least that is logged on stderr; warnings if not given.",
            show_default=False,
            callback=_log_from,
        ),
    ] = None,
) -> None:
    pass
