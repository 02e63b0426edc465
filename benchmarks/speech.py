"""Speech to text: a bundle's words beside the reference decoder's, on the same recordings, and what they cost.

    python benchmarks/speech.py whisper.mbm [--beams 5] [--recordings people|all] [--plot FILE]

The reference is Whisper in torch, without a cache, the likeliest token at each step (``zoo.whisper.transcribe``).
"streamed" goes through the voice detector, recording by recording, cut into utterances, and the reference then takes
the same ones; the others take each recording whole. The real-time factor is computing time by length of the speech
(without the silence that fills a window), one thread, over all recordings.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from zoo import speech, whisper

import edge_mbm
from edge_mbm import DecodeOptions, Result, Session, SessionOptions
from edge_mbm.runtime import TextOutput

_HALF_SECOND = speech.RATE // 2


@dataclass(frozen=True)
class Clip:
    """One recording: its sound without the silence at the end, float32[samples] at 16 kHz, and what is said."""

    sound: np.ndarray
    said: str


@dataclass(frozen=True)
class Row:
    """One way to write the recordings down."""

    way: str
    texts: Sequence[str]
    seconds: float


def main() -> int:
    """Measure, and print a table."""
    options = _options()
    clips = _clips(options.recordings)
    length = sum(len(clip.sound) for clip in clips) / speech.RATE
    table = Table(title=f"{len(clips)} recordings, {length:.0f} s of speech", title_justify="left")
    for column in ("way", "word error rate", "same words as torch", "real-time factor"):
        table.add_column(column, justify="left" if column == "way" else "right")
    rows = list(_rows(options.bundle, clips, options.beams))
    for row in rows:
        pairs = [whisper.word_errors(clip.said, text) for clip, text in zip(clips, row.texts, strict=True)]
        wrong, total = (sum(column) for column in zip(*pairs, strict=True))
        same = [whisper.words(a) == whisper.words(b) for a, b in zip(rows[0].texts, row.texts, strict=True)]
        table.add_row(row.way, f"{wrong / total:.4f}", f"{sum(same)} of {len(same)}", f"{row.seconds / length:.2f}")
    Console(width=120).print(table)
    if options.plot:
        plot(options.bundle, options.plot)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="made by export/whisper.toml")
    parser.add_argument("--beams", type=int, default=5, help="of the row with a search (5)")
    parser.add_argument("--recordings", choices=("people", "all"), default="people", help="people alone, or voices too")
    parser.add_argument("--plot", type=Path, help="where to draw a conversation and what was written of it, when")
    return parser.parse_args()


def _clips(which: str) -> list[Clip]:
    said = speech.transcripts()
    people = len(speech.read_aloud("librivox")) + len(speech.read_aloud("cards"))
    found = [
        Clip(_trimmed(r.inputs["audio"]), said[r.label]) for r in speech.recordings("heldout") if r.label is not None
    ]
    return found[:people] if which == "people" else found


def _trimmed(sound: np.ndarray) -> np.ndarray:
    return sound[: int(np.flatnonzero(sound).max(initial=0)) + 1]


def _rows(bundle: str, clips: Sequence[Clip], beams: int) -> Iterable[Row]:
    yield _timed("torch, greedy, no cache", clips, _reference)
    with edge_mbm.load(bundle) as opened:
        for way, options in (
            ("bundle, fp32, greedy", SessionOptions(variant="fp32")),
            ("bundle, greedy", SessionOptions()),
            (f"bundle, {beams} beams", SessionOptions(decoding=DecodeOptions(beams=beams))),
        ):
            with opened.session(options) as session:
                yield _timed(way, clips, lambda sound, s=session: _once(s, sound))  # type: ignore[misc]
        cut: list[list[np.ndarray]] = []
        with opened.session() as session:
            yield _timed("bundle, streamed", clips, lambda sound: _streamed(session, sound, cut))
        utterances = iter(cut)
        yield _timed("torch, the same utterances", clips, lambda _: " ".join(map(_reference, next(utterances))))


def _timed(way: str, clips: Sequence[Clip], write: Callable[[np.ndarray], str]) -> Row:
    started = time.process_time()
    texts = [write(clip.sound) for clip in clips]
    return Row(way, texts, time.process_time() - started)


def _reference(sound: np.ndarray) -> str:
    import torch  # noqa: PLC0415 - the bundle does without

    torch.set_num_threads(1)
    with torch.inference_mode():
        hidden = whisper.load()(torch.from_numpy(speech.fitted(sound, whisper.SAMPLES))[None])
    return whisper.transcribe(hidden.numpy())[0]


def _once(session: Session, sound: np.ndarray) -> str:
    [result] = session.infer(audio=sound)
    output: Any = result.output
    return str(output.text)


def _streamed(session: Session, sound: np.ndarray, cut: list[list[np.ndarray]]) -> str:
    """In blocks of 20 ms, with half a second of silence around; what is finished counts. Adds how it was cut."""
    session.reset()
    padded = np.pad(sound, _HALF_SECOND)
    final = [(r.output, r.segment) for r in _results(session, padded) if r.segment is not None and r.segment.is_final]
    outputs: list[Any] = [output for output, _ in final]
    cut.append([padded[_sample(segment.start) : _sample(segment.end)] for _, segment in final])
    return " ".join(output.text.strip() for output in outputs)


def _sample(t: int) -> int:
    return round(t * speech.RATE / 1_000_000_000)


def _results(session: Session, sound: np.ndarray) -> list[Result]:
    results, block = [], speech.RATE // 50
    for begin in range(0, len(sound), block):
        session.push("audio", sound[begin : begin + block], begin * 1_000_000_000 // speech.RATE)
        results += session.poll()
    return results + session.finish()


# --- a picture of a conversation -------------------------------------------------------------------------------------


def plot(bundle: str, path: Path) -> None:
    """Three sentences as sound, with the utterances that they were cut into, and each text where it was known."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - for this alone

    read = [speech.read_wave(clip.read_bytes()) for clip in speech.read_aloud("librivox")[1:4]]
    pause = np.zeros(speech.RATE, np.float32)
    sound = np.concatenate([pause, *(part for clip in read for part in (clip, pause))])
    with edge_mbm.load(bundle) as opened, opened.session() as session:
        results = _results(session, sound)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    wave, texts = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    wave.plot(np.arange(len(sound)) / speech.RATE, sound, color="0.4", linewidth=0.3)
    wave.set(yticks=[], ylabel="sound", ylim=(-0.6, 0.6))
    for row, result in enumerate(results):
        assert result.segment is not None
        known, output = result.t_capture / 1e9, result.output
        assert isinstance(output, TextOutput)
        colour = "tab:blue" if result.segment.is_final else "0.55"
        if result.segment.is_final:
            wave.axvspan(result.segment.start / 1e9, result.segment.end / 1e9, color="tab:blue", alpha=0.15)
        texts.plot([result.segment.start / 1e9, known], [-row, -row], color=colour, linewidth=1.5)
        texts.text(known, -row, f" {output.text.strip()}", color=colour, fontsize=7, va="center")
    texts.set(yticks=[], ylabel="text, where it was known", xlabel="s", xlim=(0, len(sound) / speech.RATE * 1.95))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
