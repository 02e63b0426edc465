"""Media files made here, so that what is in them is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FPS = 25


def write_clip(
    path: Path,
    *,
    seconds: float = 4.0,
    video: str | None = "ffv1",
    audio: str | None = "pcm_s16le",
    rate: int = 8000,
) -> Path:
    """Frames whose gray is their number, and sound whose samples count up, both from 0; lossless."""
    import av

    with av.open(str(path), "w") as out:
        pictures: Any = out.add_stream(video, rate=FPS) if video else None
        sounds: Any = out.add_stream(audio, rate=rate) if audio else None
        if pictures:
            pictures.width, pictures.height, pictures.pix_fmt = 16, 12, "bgr0" if video == "ffv1" else "yuv420p"
        if sounds:
            sounds.layout = "mono"
        for k in range(int(seconds * FPS)):
            if pictures:
                picture = av.VideoFrame.from_ndarray(np.full((12, 16, 3), k, np.uint8), format="rgb24")
                picture.pts = k
                out.mux(pictures.encode(picture))
            if sounds:
                first, last = k * rate // FPS, (k + 1) * rate // FPS
                samples = (np.arange(first, last) % 32768).astype(np.int16)
                sound = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
                sound.sample_rate, sound.pts = rate, first
                out.mux(sounds.encode(sound))
        for stream in (pictures, sounds):
            if stream:
                out.mux(stream.encode(None))
    return path


@pytest.fixture
def clip() -> Callable[..., Path]:
    return write_clip


@pytest.fixture
def image() -> Callable[[Path, int], Path]:
    """A PNG or JPEG of one colour: (value, 0, 255)."""

    def write(path: Path, value: int) -> Path:
        import cv2

        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((6, 8, 3), np.uint8)
        pixels[:] = (value, 0, 255)
        assert cv2.imwrite(str(path), pixels[:, :, ::-1])
        return path

    return write
