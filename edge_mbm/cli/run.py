"""``edge-mbm run``: stream a recording through a bundle."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from edge_mbm.cli.options import (
    AllowFallback,
    AudioAddress,
    Beams,
    BundlePath,
    DlaComponents,
    Heads,
    Json,
    Limit,
    MaxTokens,
    ProviderChoice,
    Quiet,
    ResultsPath,
    SourceAddress,
    Text,
    Threads,
    TruthPath,
    VariantChoice,
    VideoAddress,
    addresses,
)
from edge_mbm.cli.record import room
from edge_mbm.cli.result_line import ResultLine
from edge_mbm.cli.run_report import RunReport, print_report
from edge_mbm.cli.service import Service, log_report
from edge_mbm.cli.terminal import human, write_json, write_line
from edge_mbm.errors import DeviceError, EdgeMbmError, InputError, MissingDependencyError
from edge_mbm.runtime.bundle import Bundle, load
from edge_mbm.runtime.decode import DecodeOptions
from edge_mbm.runtime.governor import GovernorOptions
from edge_mbm.runtime.live import Live, open_live
from edge_mbm.runtime.log import warn
from edge_mbm.runtime.metrics import Metrics
from edge_mbm.runtime.recording import Recorder, RecordOptions
from edge_mbm.runtime.result import Result
from edge_mbm.runtime.scoring import Scorer, read_truth
from edge_mbm.runtime.session import SessionOptions
from edge_mbm.runtime.sinks import JsonLines
from edge_mbm.runtime.source import Sample
from edge_mbm.runtime.summary import RunSummary
from edge_mbm.runtime.tracing import Tracing

__all__ = ["Playing", "ResultOutput", "play", "run"]

_STDOUT, _STDIN = Path("-"), "-"


@dataclass(frozen=True)
class ResultOutput:
    """What is printed, and where.

    Args:
        lines: a file for JSON lines, "-" for stdout, or None.
        as_json: whether the summary is JSON on stdout.
        quiet: whether people see the summary only.
    """

    lines: Path | None
    as_json: bool
    quiet: bool

    def __post_init__(self) -> None:
        """Raise InputError where two things want stdout."""
        if self.as_json and self.lines == _STDOUT:
            raise InputError("--json and --output - both want stdout: write the results to a file")

    @property
    def to_stderr(self) -> bool:
        """Whether stdout belongs to a script."""
        return self.as_json or self.lines == _STDOUT


@dataclass(frozen=True)
class Playing:
    """How a recording is played.

    Args:
        name: its address.
        truth: the file with the right answers, if it is not the one beside the recording.
        limit: results after which it stops.
        out: see ``ResultOutput``.
        realtime: see ``open_live``.
        service: what tells the service manager how it goes, where there is one.
        metrics: port to serve Prometheus metrics on, or None.
        trace: whether results become OpenTelemetry spans.
        record: the .mcap file to write samples and results to, or None.
    """

    name: str
    truth: Path | None
    limit: int | None
    out: ResultOutput
    realtime: bool
    service: Service | None = None
    metrics: int | None = None
    trace: bool = False
    record: Path | None = None


@dataclass
class _Counts:
    """What is added up; memory is bounded by the bundle and the truth file."""

    scorer: Scorer | None
    summary: RunSummary = field(default_factory=RunSummary)
    finished: bool = False


def run(
    bundle: BundlePath,
    *,
    source: SourceAddress = None,
    video: VideoAddress = None,
    audio: AudioAddress = None,
    text: Text = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="As fast as possible instead of real time: drops nothing, repeats itself exactly."),
    ] = False,
    limit: Limit = None,
    head: Heads = None,
    variant: VariantChoice = "auto",
    threads: Threads = 1,
    provider: ProviderChoice = "cpu",
    allow_fallback: AllowFallback = False,
    dla: DlaComponents = None,
    beams: Beams = 1,
    max_tokens: MaxTokens = None,
    output: ResultsPath = None,
    truth: TruthPath = None,
    quiet: Quiet = False,
    as_json: Json = False,
    govern: Annotated[
        bool,
        typer.Option(
            "--govern", help="Under sustained overload or heat, lower the rates of picture encoders, and say so."
        ),
    ] = False,
    metrics: Annotated[
        int | None,
        typer.Option(
            "--metrics",
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve Prometheus metrics on loopback.",
            show_default=False,
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            metavar="FILE",
            help="Also write what comes and what is answered to a new .mcap file, frames as JPEG.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Give each result's stages to OpenTelemetry, as its environment says.")
    ] = False,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Open each device in a process of its own: a driver may hang or crash.")
    ] = False,
    service: Annotated[
        bool,
        typer.Option(
            "--service",
            help="Run under systemd (Type=notify): log lines only, SIGTERM ends it cleanly, and the watchdog is fed "
            "by results.",
        ),
    ] = False,
) -> None:
    """Stream cameras, microphones or a recording through a bundle, and print each result as it comes.

    At the end, and after Ctrl-C, a summary shows ages, where the time went, what was lost, and how often the answer
    was right where a truth file tells.

    Example: edge-mbm run model.mbm --source clip.mp4 --output results.jsonl

    Example: edge-mbm run model.mbm --video v4l2:///dev/video0 --audio mic://default

    Example: edge-mbm run model.mbm --video rtsp://camera/path --prompt "a red mug" --prompt "a cat"
    """
    decoding = DecodeOptions(beams=beams, max_tokens=max_tokens)
    options = SessionOptions(
        heads=tuple(head) if head else None,
        variant=variant,
        threads=threads,
        provider=provider,
        allow_fallback=allow_fallback,
        dla=tuple(dla or ()),
        decoding=decoding,
    )
    if service and fast:
        raise InputError("--service runs at real time, for as long as it is let: leave out --fast")
    typed = _STDIN in (text or ())
    if typed and text != [_STDIN]:
        raise InputError("--text - reads every prompt from stdin: leave out the others")
    if typed and fast:
        raise InputError("what is typed has no place in a recording that is played --fast: give the text itself")
    with ExitStack() as stack:
        under = stack.enter_context(Service()) if service else None
        out = ResultOutput(output, as_json, quiet or service)
        playing = Playing(
            addresses(source, video, audio),
            truth,
            limit,
            out,
            realtime=not fast,
            service=under,
            metrics=metrics,
            trace=trace,
            record=record,
        )
        opened = stack.enter_context(load(bundle))
        governor = GovernorOptions() if govern else None
        live = open_live(
            opened,
            source,
            video=video,
            audio=audio,
            text=_prompts(_first_line(), opened) if typed else text,
            options=options,
            realtime=not fast,
            governor=governor,
            isolation="process" if isolate else "thread",
        )
        if typed:
            threading.Thread(target=_say_lines, args=(live, opened), name="edge-mbm stdin", daemon=True).start()
        play(opened, live, playing)


def _first_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise InputError("--text - reads lines from stdin, and there was none: give one, or the text itself")
    return line.rstrip("\r\n")


def _prompts(line: str, bundle: Bundle) -> str | list[str]:
    """What is typed in one line: of a bundle that takes a list of prompts, the prompts between its semicolons."""
    manifest = bundle.manifest
    several = any(manifest.lines(name) > 1 for name in manifest.modalities)
    return line.split(";") if several else line


def _say_lines(live: Live, bundle: Bundle) -> None:
    """Until there are no more; the last one stays, and so does the one before a line that is refused."""
    for line in sys.stdin:
        try:
            live.say(_prompts(line.rstrip("\r\n"), bundle))
        except InputError as error:
            warn(__name__, "what was typed is left out: %s", error)


def play(bundle: Bundle, stream: Live, playing: Playing) -> None:
    """Consume a stream, print each result, and report at the end or when it breaks off.

    Args:
        bundle: opened.
        stream: not entered yet; it is closed.
        playing: what is printed, and how much is played.

    Raises:
        InputError: the truth file is not one.
        EdgeMbmError: what ``Live`` raises.
    """
    service = playing.service
    with ExitStack() as closing:
        closing.callback(stream.close)
        counts = _Counts(_scorer(playing.name, playing.truth))
        closing.pop_all()
    with (
        _recorded(stream, playing) as recording,
        stream as live,
        nullcontext() if service is None else service.watching(live),
    ):
        try:
            with ExitStack() as stack:
                takers = _takers(bundle, live, playing, counts, stack)
                takers += [] if recording is None else [recording.result]
                results = live if service is None else service.results(live)
                counts.finished = _stream(results, takers, playing.limit) and not (service and service.ended)
        except (EdgeMbmError, KeyboardInterrupt):
            # What was seen until then is worth knowing, above all after weeks.
            _report(live, playing, counts)
            raise
        _report(live, playing, counts)


def _scorer(source: str, truth: Path | None) -> Scorer | None:
    beside = Path(source).with_suffix(".truth.json")
    # Not Path.is_file, which raises where an address is longer than a file's name can be.
    if truth is None and not os.path.isfile(beside):  # noqa: PTH113
        return None
    return Scorer(read_truth(truth or beside))


def _takers(
    bundle: Bundle, live: Live, playing: Playing, counts: _Counts, stack: ExitStack
) -> list[Callable[[Result], None]]:
    """Whoever wants each result, in order: the file first, so that nothing that fails later keeps a line from it."""
    takers: list[Callable[[Result], None]] = []
    out = playing.out
    if out.lines is not None:
        to = sys.stdout.buffer if out.lines == _STDOUT else out.lines
        takers.append(stack.enter_context(JsonLines(to, live.origin)).write)
    takers.append(counts.summary.add)
    if playing.metrics is not None:
        metrics = Metrics(live.session.manifest, live.status)
        stack.callback(metrics.close)
        metrics.serve(playing.metrics)
        takers.append(metrics.add)
    if playing.trace:
        takers.append(_tracing().add)
    if (scorer := counts.scorer) is not None:
        takers.append(lambda result: scorer.add(result, result.t_capture - live.origin))
    if not out.quiet:
        stream = sys.stderr if out.to_stderr else sys.stdout
        heads = [planned.name for planned in live.session.plan]
        lines = ResultLine(bundle, heads, origin=live.origin, realtime=playing.realtime)
        write_line(lines.header(), stream)
        takers.append(lambda result: write_line(lines.line(result), stream))
    return takers


@contextmanager
def _recorded(stream: Live, playing: Playing) -> Iterator[_Recording | None]:
    """What taps the stream, inside, and closes its file afterwards."""
    if playing.record is None:
        yield None
        return
    timing: Literal["media", "monotonic"] = "monotonic" if playing.realtime else "media"
    options = RecordOptions(max_bytes=room(playing.record), frames="jpeg")
    only = [m for m in stream.session.manifest.modalities for source in stream.sources if m in source.modalities]
    with Recorder(playing.record, stream.session.manifest, options, only=only, timing=timing) as recorder:
        recording = _Recording(recorder, wait=not playing.realtime)
        stream.tap(recording.sample)
        yield recording


class _Recording:
    """A recorder that ends by itself when its disk is full: the stream goes on."""

    def __init__(self, recorder: Recorder, *, wait: bool) -> None:
        self._recorder = recorder
        self._wait = wait
        self._is_over = False

    def sample(self, sample: Sample) -> None:
        """Write a sample."""
        with self._ending():
            self._recorder.push(sample.modality, sample.data, sample.t, rate=sample.rate, wait=self._wait)

    def result(self, result: Result) -> None:
        """Write an answer."""
        with self._ending():
            self._recorder.write(result)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except DeviceError as error:
            if not self._is_over:
                warn(__name__, "the recording ends, the stream goes on: %s", error)
            self._is_over = True


def _tracing() -> Tracing:
    tracing = Tracing()
    if not tracing.enabled:
        remedy = "pip install 'edge-mbm[telemetry]' opentelemetry-sdk"
        raise MissingDependencyError("opentelemetry", "tracing results", remedy)
    return tracing


def _stream(results: Iterable[Result], takers: list[Callable[[Result], None]], limit: int | None) -> bool:
    """Hand out every result; returns whether the source came to its end."""
    for count, result in enumerate(results, start=1):
        for take in takers:
            take(result)
        if count == limit:
            return False
    return True


def _report(live: Live, playing: Playing, counts: _Counts) -> None:
    newest = counts.summary.newest
    until = None if counts.finished else -1 if newest is None else newest - live.origin
    report = RunReport(
        bundle=live.session.manifest.name,
        source=playing.name,
        realtime=playing.realtime,
        finished=counts.finished,
        summary=counts.summary.summary(),
        losses=live.session.stats(),
        scores=None if counts.scorer is None else counts.scorer.scores(until),
    )
    if playing.out.as_json:
        write_json(report)
    elif playing.service is not None:
        log_report(report)
    else:
        print_report(report, human(to_stderr=playing.out.to_stderr))
