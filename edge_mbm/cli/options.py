"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from edge_mbm.errors import InputError
from edge_mbm.runtime.backend import Provider
from edge_mbm.runtime.sources.mask import mask

__all__ = [
    "AllowFallback",
    "AudioAddress",
    "Beams",
    "BundlePath",
    "DlaComponents",
    "Heads",
    "Json",
    "Limit",
    "MaxTokens",
    "ProviderChoice",
    "Quiet",
    "ResultsPath",
    "SourceAddress",
    "Text",
    "Threads",
    "TruthPath",
    "VariantChoice",
    "VideoAddress",
    "addresses",
]

SourceAddress: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="ADDRESS",
        help="What gives picture and sound together: a video file, an .mcap recording, rtsp://host/path.",
        show_default=False,
        rich_help_panel="Sources",
    ),
]
VideoAddress: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--video",
        metavar="ADDRESS",
        help="What gives the pictures: v4l2:///dev/video0, csi://0, rtsp://host/path, a file.",
        show_default=False,
        rich_help_panel="Sources",
    ),
]
AudioAddress: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--audio",
        metavar="ADDRESS",
        help="What gives the sound: mic://default, rtsp://host/path, a file.",
        show_default=False,
        rich_help_panel="Sources",
    ),
]
Text: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        "--prompt",
        metavar="TEXT|-",
        help="What the bundle's text is from the beginning; several times for a bundle that chooses between prompts. "
        "- reads it from stdin: each line counts from when it is typed until the next, with ; between its prompts.",
        show_default=False,
        rich_help_panel="Sources",
    ),
]
BundlePath: TypeAlias = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A .mbm file or a bundle directory.", show_default=False)
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout, for scripts.", rich_help_panel="Output")
]
Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="No line per result, only the summary.", rich_help_panel="Output")
]
Limit: TypeAlias = Annotated[
    int | None, typer.Option("--limit", min=1, help="Stop after so many results.", show_default=False)
]
ResultsPath: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|-",
        help="Write results as JSON lines, each before the next result; - is stdout, and people read stderr then.",
        show_default=False,
        rich_help_panel="Output",
    ),
]
TruthPath: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--truth",
        metavar="FILE",
        help="What the right answers are. Without it, the source's NAME.truth.json is used if it is there.",
        show_default=False,
        rich_help_panel="Output",
    ),
]
VariantChoice: TypeAlias = Annotated[
    str,
    typer.Option(
        "--variant",
        metavar="auto|NAME",
        help="Graphs to run: auto takes the fastest kept for this machine; a name (fp32) takes that one, "
        "and fp32 where a component does not have it.",
        rich_help_panel="Model",
    ),
]
Heads: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--head",
        metavar="NAME",
        help="Head to run; may be given several times. Without it the bundle's default heads run.",
        show_default=False,
        rich_help_panel="Model",
    ),
]
Threads: TypeAlias = Annotated[
    int, typer.Option("--threads", min=1, help="Threads of each engine.", rich_help_panel="Model")
]
ProviderChoice: TypeAlias = Annotated[
    Provider,
    typer.Option(
        "--provider",
        help="What runs it: ONNX Runtime on the CPU, or on CUDA; or TensorRT, or TensorRT-RTX, with the engines that "
        "edge-mbm compile built on this device.",
        rich_help_panel="Model",
    ),
]
AllowFallback: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-fallback",
        help="Let the CPU run what the provider cannot, such as a component whose engine is not built yet; every "
        "result says what computed it. Without it that is an error.",
        rich_help_panel="Model",
    ),
]
DlaComponents: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--dla",
        metavar="COMPONENT",
        help="Run this component on the Deep Learning Accelerator that some Jetsons have, by the engine that edge-mbm "
        "compile --dla built, which leaves the GPU to the others. May be given several times; cores are taken in turn.",
        show_default=False,
        rich_help_panel="Model",
    ),
]
Beams: TypeAlias = Annotated[
    int,
    typer.Option(
        "--beams", min=1, max=64, help="Hypotheses that a decoder follows; 1 is greedy.", rich_help_panel="Model"
    ),
]
MaxTokens: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        min=1,
        help="Tokens of one text at most, where a decoder writes; without it as many as it can.",
        show_default=False,
        rich_help_panel="Model",
    ),
]


def addresses(source: str | None, video: str | None, audio: str | None) -> str:
    """What is streamed, for people.

    Raises:
        InputError: nothing is given, or one of them twice.
    """
    given = [address for address in (source, video, audio) if address is not None]
    if not given:
        raise InputError("nothing to stream: give --source, or --video and --audio (see --help)")
    if source is not None and len(given) == 3:
        raise InputError("--source gives picture and sound: leave out --video or --audio")
    return ", ".join(mask(address) for address in dict.fromkeys(given))
