"""Make a short video of unseen digits, shown and said by a human voice, some spoiled, and the truth about it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from rich.console import Console

from av_digits.cache import write_whole
from av_digits.data import LABELS, Material, material
from av_digits.degrade import HOLD, Word, mix, spoil_images
from av_digits.sources import RATE
from edge_mbm.errors import EdgeMbmError

__all__ = ["Segment", "plan", "truth", "write_clip"]

_FPS = 25
_WIDTH, _HEIGHT = 320, 240
_FRAME_SAMPLES = RATE // _FPS
_LEAD = RATE // 4  # samples a digit is shown before it is said
_HOP = RATE // 10  # the audio encoder's: a word is known to it up to this late
_UNSAID = 3600  # samples that a word which nobody says would have taken

# What happens to the twenty digits, in shuffled order: never both at once.
_SPOILS = ("none",) * 6 + ("image noise",) * 5 + ("audio noise",) * 5 + ("no image",) * 2 + ("no word",) * 2


@dataclass(frozen=True)
class Segment:
    """One digit of the clip; it is on screen from ``start`` to ``end``.

    Args:
        start: first sample at 8 kHz.
        end: one past its last sample.
        word: when it is said, and in what noise.
        image: uint8[28, 28]; zeros when the screen stays black.
        spoil: one of "none", "image noise", "audio noise", "no image", "no word".
    """

    start: int
    end: int
    word: Word
    image: NDArray[np.uint8]
    spoil: str


def plan(source: Material, rng: np.random.Generator) -> list[Segment]:
    """Twenty segments, each digit twice.

    Args:
        source: the digits to take.
        rng: of everything.
    """
    segments: list[Segment] = []
    for label, spoil in zip(rng.permutation(np.arange(len(_SPOILS)) % 10), rng.permutation(_SPOILS), strict=True):
        start = segments[-1].end if segments else 0
        segments.append(_segment(source, int(label), str(spoil), start, rng))
    return segments


def truth(segments: list[Segment]) -> dict[str, list[dict[str, object]]]:
    """What the clip should give, in media seconds; results in [``answer_from``, ``answer_to``) are asked for."""
    return {"segments": [_segment_truth(segment) for segment in segments]}


def write_clip(path: Path, seed: int) -> None:
    """Write the clip and, beside it, its truth as ``NAME.truth.json``.

    Args:
        path: an .mp4 to write; it appears whole.
        seed: of the choice of digits and spoils, and of the noise.

    Raises:
        EdgeMbmError: the data must be made first, and a program for it is missing.
    """
    rng = np.random.default_rng(seed)
    segments = plan(material("heldout"), rng)
    audio = mix([segment.word for segment in segments], segments[-1].end, rng)
    write_whole(path, lambda part: _encode(part, _frames(segments, rng), audio))
    text = json.dumps(truth(segments), indent=2) + "\n"
    write_whole(path.with_suffix(".truth.json"), lambda part: part.write_text(text))


def _segment(source: Material, label: int, spoil: str, start: int, rng: np.random.Generator) -> Segment:
    images, clips = source.images[label], source.words[label]
    image = images[rng.integers(len(images))]
    clip = None if spoil == "no word" else clips[rng.integers(len(clips))]
    noise = rng.uniform(-3.0, 3.0) if spoil == "audio noise" else rng.uniform(-25.0, -15.0)
    said = start + _LEAD
    word = Word(label, said, said + (_UNSAID if clip is None else len(clip)), clip, noise)
    # Whole frames, so that the screen changes where the truth says.
    end = -(-(word.end + HOLD) // _FRAME_SAMPLES) * _FRAME_SAMPLES
    return Segment(start, end, word, np.zeros_like(image) if spoil == "no image" else image, spoil)


def _segment_truth(segment: Segment) -> dict[str, object]:
    spoiled = [modality for modality in ("image", "audio") if modality in segment.spoil.replace("word", "audio")]
    return {
        "start": segment.start / RATE,
        "end": segment.end / RATE,
        "label": LABELS[segment.word.label],
        "answer_from": (segment.word.end + _HOP) / RATE,
        "answer_to": min(segment.end, segment.word.end + HOLD) / RATE,
        "spoiled": spoiled,
    }


def _frames(segments: list[Segment], rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    """The screen, frame by frame: uint8[240, 320, 3] in RGB, stretched so that a camera shrinks it back to 28x28."""
    for segment in segments:
        noisy = segment.spoil == "image noise"
        count = (segment.end - segment.start) // _FRAME_SAMPLES
        clean = np.repeat(segment.image[None], count, axis=0)
        spoiled = spoil_images(clean, np.full(count, 0.9 if noisy else 0.2), np.full(count, 8 if noisy else 0), rng)
        for image in spoiled:
            large = cv2.resize(image, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_NEAREST)
            yield np.repeat(np.asarray(large, np.uint8)[:, :, None], 3, axis=2)


def _encode(path: Path, frames: Iterator[NDArray[np.uint8]], audio: NDArray[np.float32]) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        video, sound = _streams(container)
        for number, pixels in enumerate(frames):
            frame = VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
            container.mux(sound.encode(_audio_frame(audio, number)))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))


def _streams(container: OutputContainer) -> tuple[VideoStream, AudioStream]:
    video = container.add_stream("libx264", rate=_FPS, options={"crf": "23", "preset": "veryfast"})
    video.width, video.height, video.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
    sound = container.add_stream("aac", rate=RATE, layout="mono")
    sound.bit_rate = 64_000
    return video, sound


def _audio_frame(audio: NDArray[np.float32], number: int) -> AudioFrame:
    samples = audio[number * _FRAME_SAMPLES : (number + 1) * _FRAME_SAMPLES]
    frame = AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE, number * _FRAME_SAMPLES, Fraction(1, RATE)
    return frame


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m av_digits.clip", description="Make a clip of spoken digits.")
    parser.add_argument("-o", "--output", type=Path, default=Path("clip.mp4"), help="file to write (default: clip.mp4)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    try:
        write_clip(options.output, options.seed)
    except EdgeMbmError as error:
        console.print(f"error: {error}")
        return error.exit_code
    console.print(f"{options.output}: {len(_SPOILS)} digits, and {options.output.with_suffix('.truth.json')}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
