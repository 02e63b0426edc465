"""Run the digits from a network camera and a microphone, both on loopback: no hardware needed. ``make demo-live``.

The clip's pictures come from an RTSP server, its sound is played into a room of a private sound server, where the
default microphone hears it. Camera and microphone know nothing of each other: what aligns them is their capture times.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

import edge_mbm
from av_digits.alignment import Starts, Tap, picture_starts, read_clip, sound_starts
from av_digits.loopback import Camera, Room
from edge_mbm.errors import EdgeMbmError, SessionClosedError
from edge_mbm.runtime.result import ClassificationOutput, Result
from edge_mbm.runtime.scoring import Scorer, Tally, Truth, read_truth
from edge_mbm.runtime.status import LiveStatus

__all__ = ["main", "report", "watch"]

_SECOND, _MS = 1_000_000_000, 1e6
_LEAD_S = 3.0
"""Dark and silent before the clip: connecting to the camera and loading the model cost its first second otherwise."""
_PATIENCE_S = 20.0
"""More than clip and lead may take, until it is given up."""
_RATE = 48_000
"""What microphones have; the session resamples it to the model's 8 kHz, and keeps its times. 8000 works as well."""
_FRAMES, _BLOCKS = 30, 50
"""At most so many pictures, and so many blocks of sound, in a second."""
_STANDS = 3
"""Results in a row after which a new answer is printed."""

CONSOLE = Console(highlight=False, soft_wrap=True)


@dataclass
class Run:
    """What came of a run.

    Args:
        results: all of them.
        camera_said: when the clip's first frame was due, in the camera's word; monotonic ns.
        pictures: the clip's beginning as each frame tells it.
        sound: the clip's beginning as each second of sound tells it.
        tolerance_ns: how much older than the picture sound may be, by the bundle.
        status: of the stream, before it was closed.
    """

    camera_said: int
    results: list[Result] = field(default_factory=list)
    pictures: Starts = field(default_factory=lambda: np.empty(0, np.int64))
    sound: Starts = field(default_factory=lambda: np.empty(0, np.int64))
    tolerance_ns: int = 0
    status: LiveStatus | None = None

    @property
    def first_frame(self) -> int:
        """Capture time of the clip's first frame: as the frames tell it, else as the camera does."""
        return int(np.median(self.pictures)) if len(self.pictures) else self.camera_said


def watch(bundle: Path, path: Path, truth: Truth, *, rate: int = _RATE, late_ms: float = 0) -> Run:
    """Serve the clip, play its sound, run the bundle on both, and print each new answer.

    Args:
        bundle: with modalities "image" and "audio".
        path: the clip.
        truth: of the clip.
        rate: of the microphone, Hz.
        late_ms: by which the sound comes after the picture, on purpose.

    Raises:
        EdgeMbmError: something is missing, or cannot be opened.
    """
    clip = read_clip(path, rate)
    with Room(rate) as room, Camera(path, _LEAD_S) as camera:
        # PortAudio and ALSA look here, once, when they are imported.
        os.environ.update(room.environment)
        room.play((clip.sound * 32767).astype("<i2").tobytes(), camera.first_frame, late_ms)
        microphone = f"mic://default?rate={rate}"
        CONSOLE.print(f"[dim]As: edge-mbm run {bundle} --video {camera.url} --audio {microphone}[/dim]\n")
        seconds = int(_LEAD_S + clip.duration + _PATIENCE_S)
        # The addresses themselves would do; the taps remember what came, to measure how picture and sound are aligned.
        with (
            closing(Tap(camera.url, "image", seconds * _FRAMES)) as pictures,
            closing(Tap(microphone, "audio", seconds * _BLOCKS)) as sound,
            edge_mbm.open(bundle, video=pictures, audio=sound) as live,
        ):
            run = Run(camera.wait(_PATIENCE_S))
            end = run.camera_said + int(clip.duration * _SECOND)
            _follow(live, end, truth, run, seconds)
            run.status = live.status()
            run.tolerance_ns = _tolerance(live)
        run.pictures = picture_starts(pictures.kept(), clip)
        run.sound = sound_starts(sound.kept(), clip, run.camera_said)
    return run


def _tolerance(live: edge_mbm.Live) -> int:
    """How much older than the picture sound may be, ns: of the running head that is strictest."""
    running = {planned.name for planned in live.session.plan}
    heads = [head for name, head in live.session.manifest.heads().items() if name in running]
    return min((head.tolerance_ns["audio"] for head in heads if "audio" in head.tolerance_ns), default=0)


def _follow(live: edge_mbm.Live, end: int, truth: Truth, run: Run, patience: float) -> None:
    """Take results until the clip is over, or nothing has come for too long."""
    watchdog = threading.Timer(patience, live.close)
    watchdog.daemon = True
    watchdog.start()
    printer = _Printer(truth, run.camera_said)
    try:
        for result in live:
            if result.t_capture >= end:
                return
            run.results.append(result)
            printer.add(result)
    except SessionClosedError:
        pass  # by the watchdog, while a result was on its way
    finally:
        watchdog.cancel()
    CONSOLE.print(f"[red]given up after {patience:.0f} s: the clip's end has not come[/red]")


class _Printer:
    """Prints an answer that is new, once it stands.

    Args:
        truth: of the clip.
        begin: of the clip, monotonic ns.
    """

    def __init__(self, truth: Truth, begin: int) -> None:
        self._truth = truth
        self._begin = begin
        self._printed: str | None = None
        self._newest: str | None = None
        self._stood = 0

    def add(self, result: Result) -> None:
        """One result."""
        output, media = result.output, (result.t_capture - self._begin) / _SECOND
        if media < 0 or not isinstance(output, ClassificationOutput):
            return
        self._stood = self._stood + 1 if output.label == self._newest else 1
        self._newest = output.label
        if self._stood == _STANDS and output.label != self._printed:
            self._printed = output.label
            CONSOLE.print(self._line(media, output, result))

    def _line(self, media: float, output: ClassificationOutput, result: Result) -> str:
        shown = next((segment for segment in self._truth.segments if segment.start <= media < segment.end), None)
        about = "" if shown is None else f"truth {shown.label}" + "".join(f", {m} spoiled" for m in shown.spoiled)
        without = f", without {', '.join(result.missing)}" if result.missing else ""
        return f"{media:7.2f} s   {output.label} {output.score:.2f}   {result.age / _MS:3.0f} ms old   {about}{without}"


def report(run: Run, truth: Truth) -> float:
    """Print how it went; returns the share of segments that are right, of the head that did best."""
    scorer = Scorer(truth)
    for result in run.results:
        scorer.add(result, result.t_capture - run.first_frame)
    CONSOLE.print()
    _print_alignment(run)
    _print_results(run)
    _print_sources(run)
    best = 0.0
    for head, score in scorer.scores().items():
        spoiled = "; ".join(f"{name} {_right(tally)}" for name, tally in score.by_spoiled.items())
        CONSOLE.print(f"[bold]{head}: {_right(score.all)} segments right[/bold] ({spoiled})")
        best = max(best, score.all.segments_right / max(1, score.all.segments))
    return best


def _right(tally: Tally) -> str:
    return f"{tally.segments_right} of {tally.segments}"


def _print_alignment(run: Run) -> None:
    CONSOLE.print("The clip's media times are shifted by the capture time of its first frame.")
    if not len(run.pictures) or not len(run.sound):
        CONSOLE.print(
            f"too little was recognized to measure it: {len(run.pictures)} frames, {len(run.sound)} s of sound"
        )
        return
    late = _figures((run.pictures - run.camera_said) / _MS)
    CONSOLE.print(f"picture: {late} ms after the camera's word, {len(run.pictures)} frames recognized")
    heard = _figures((run.sound - run.camera_said) / _MS)
    CONSOLE.print(f"sound:   {heard} ms after the camera's word, {len(run.sound)} s recognized")
    skew = _figures((run.sound - run.first_frame) / _MS)
    CONSOLE.print(f"skew:    sound {skew} ms after the picture")


def _figures(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{middle:+.1f} (5..95 %: {low:+.1f}..{high:+.1f})"


def _print_results(run: Run) -> None:
    if not run.results:
        CONSOLE.print("[red]no result came[/red]")
        return
    ages = np.percentile([result.age / _MS for result in run.results], [50, 95, 99, 100])
    spreads = np.percentile([result.spread / _MS for result in run.results], [50, 100])
    whole = sum(not result.missing for result in run.results)
    CONSOLE.print(
        f"results: {len(run.results)}, {whole} with picture and sound, which were at most {spreads[1]:.0f} ms apart "
        f"(median {spreads[0]:.0f}); the model allows {run.tolerance_ns / _MS:.0f}"
    )
    CONSOLE.print(
        "ages:    " + ", ".join(f"{n} {a:.0f} ms" for n, a in zip(("p50", "p95", "p99", "max"), ages, strict=True))
    )


def _print_sources(run: Run) -> None:
    if run.status is None:
        return
    for source in run.status.sources:
        drift = "" if source.drift_ppm is None else f", drift {source.drift_ppm:+.0f} ppm"
        CONSOLE.print(
            f"source:  {source.name} {source.state}, {source.samples} samples, {source.reconnects} reconnects, "
            f"{source.stalls} stalls{drift}"
        )
    lost = {name: count for name, count in run.status.losses.items() if count}
    CONSOLE.print(f"lost:    {', '.join(f'{name} {count}' for name, count in lost.items()) or 'nothing'}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m av_digits.live", description="Run the digits from a camera and a microphone on loopback."
    )
    parser.add_argument("bundle", type=Path, help="as 'make demo' leaves it: av_digits.mbm")
    parser.add_argument("clip", type=Path, help="an .mp4 with its .truth.json beside it: clip.mp4")
    parser.add_argument("--rate", type=int, default=_RATE, help=f"of the microphone, Hz (default: {_RATE})")
    parser.add_argument("--late", type=float, default=0, metavar="MS", help="let the sound lag, to see what it costs")
    parser.add_argument("--at-least", type=float, default=70, metavar="PERCENT", help="of segments right (default: 70)")
    options = parser.parse_args(arguments)
    # Ended politely, it ends its processes as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        truth = read_truth(options.clip.with_suffix(".truth.json"))
        run = watch(options.bundle, options.clip, truth, rate=options.rate, late_ms=options.late)
        right = report(run, truth)
    except EdgeMbmError as error:
        CONSOLE.print(f"[red]error:[/red] {error}")
        return error.exit_code
    if not run.results or 100 * right < options.at_least:
        CONSOLE.print(f"[red]fewer than {options.at_least:.0f} % are right[/red]")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
