"""The command line as a function, and things to give it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from edge_mbm.bundle import BundleFiles, write_bundle
from edge_mbm.cli import main
from edge_mbm.spec import Manifest
from edge_mbm.testing import tiny_bundle

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide, and without the colours that some CI services force."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "EDGE_MBM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: object) -> Done:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """The tiny bundle with another manifest and other files, hashed anew."""

    def change(contents: dict[str, bytes] | None = None, **fields: Any) -> Path:
        with BundleFiles(tiny_bundle()) as files:
            manifest: Manifest = msgspec.structs.replace(files.manifest, **fields)
            whole = {path: files.read(path) for path in files.manifest.files} | (contents or {})
        path = tmp_path / "changed.mbm"
        write_bundle(path, manifest, whole)
        return path

    return change


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of it."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mov", seconds=1)


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More of it than any test plays."""
    return write_clip(tmp_path_factory.mktemp("clip") / "long.mov", seconds=60)


def write_clip(path: Path, *, seconds: int) -> Path:
    """Green, 25 frames a second, with quiet stereo noise at 48 kHz."""
    import av

    green = np.zeros((48, 64, 3), np.uint8)
    green[:, :, 1] = 255
    noise = np.random.default_rng(0).integers(-300, 300, (1, 2 * 1920), np.int16)
    with av.open(str(path), "w") as out:
        pictures: Any = out.add_stream("mpeg4", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sounds: Any = out.add_stream("pcm_s16le", rate=48000)
        sounds.layout = "stereo"
        for k in range(25 * seconds):
            picture = av.VideoFrame.from_ndarray(green, format="rgb24")
            picture.pts = k
            out.mux(pictures.encode(picture))
            sound = av.AudioFrame.from_ndarray(noise, format="s16", layout="stereo")
            sound.sample_rate, sound.pts = 48000, k * 1920
            out.mux(sounds.encode(sound))
        for stream in (pictures, sounds):
            out.mux(stream.encode(None))
    return path
