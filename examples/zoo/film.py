"""A film of photographs, one after the other, with the truth beside it, for classifiers that look at a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from av_digits.cache import write_whole
from numpy.typing import NDArray

__all__ = ["FPS", "write_film"]

FPS = 25
_RATE = 16_000
_WIDTH, _HEIGHT = 640, 480
_GREY = 128
_SETTLED = 0.2  # seconds after a change of picture from which an answer is asked for


def write_film(
    path: Path,
    shown: Sequence[tuple[NDArray[np.uint8], str]],
    seconds: float = 2.0,
    sound: NDArray[np.float32] | None = None,
) -> None:
    """Write the film and, beside it, its truth as ``NAME.truth.json``, which ``edge-mbm run`` finds there.

    Args:
        path: an .mp4 to write; it appears whole.
        shown: pictures uint8[H, W, 3], RGB, of any size, each with its label.
        seconds: that each is on screen.
        sound: float32[samples] at 16 kHz, from the beginning; None for a silent film.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    segments = [_segment(number * seconds, seconds, label) for number, (_, label) in enumerate(shown)]
    text = json.dumps({"segments": segments}, indent=2) + "\n"
    frames = (frame for image, _ in shown for frame in [_framed(image)] * round(seconds * FPS))
    write_whole(path, partial(_encode, frames, sound))
    write_whole(path.with_suffix(".truth.json"), partial(_write, text))


def _segment(start: float, seconds: float, label: str) -> dict[str, object]:
    end = start + seconds
    return {
        "start": start,
        "end": end,
        "label": label,
        "answer_from": start + _SETTLED,
        "answer_to": end,
        "spoiled": [],
    }


def _framed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole picture in the middle of a frame, grey around it: uint8[480, 640, 3]."""
    scale = min(_WIDTH / image.shape[1], _HEIGHT / image.shape[0])
    width, height = round(image.shape[1] * scale), round(image.shape[0] * scale)
    frame = np.full((_HEIGHT, _WIDTH, 3), _GREY, np.uint8)
    top, left = (_HEIGHT - height) // 2, (_WIDTH - width) // 2
    frame[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return frame


def _encode(frames: Iterator[NDArray[np.uint8]], sound: NDArray[np.float32] | None, path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        heard = None if sound is None else container.add_stream("aac", rate=_RATE, layout="mono")
        for number, pixels in enumerate(frames):
            frame = VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
            if heard is not None and sound is not None:
                container.mux(heard.encode(_audio(sound, number)))
        container.mux(stream.encode())
        if heard is not None:
            container.mux(heard.encode(None))


def _audio(sound: NDArray[np.float32], number: int) -> AudioFrame:
    """What is heard during one frame; silence after the end."""
    size = _RATE // FPS
    samples = np.zeros((1, size), np.float32)
    piece = sound[number * size : (number + 1) * size]
    samples[0, : len(piece)] = piece
    frame = AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = _RATE, number * size, Fraction(1, _RATE)
    return frame


def _write(text: str, path: Path) -> None:
    path.write_text(text)
