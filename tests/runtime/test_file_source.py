"""Video files: pictures and sound on one clock."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_mbm
from edge_mbm.errors import MissingDependencyError, SourceError
from edge_mbm.runtime import Sample
from edge_mbm.runtime.sources import FileSource
from edge_mbm.testing import NullEngine, tiny_bundle

MS, SECOND = 1_000_000, 1_000_000_000
FPS = 25
needs_av = pytest.mark.needs("av")


def write_clip(
    path: Path,
    *,
    seconds: float = 2.0,
    event: float = 1.0,
    video: str | None = "mpeg4",
    audio: str | None = "pcm_s16le",
    rate: int = 48000,
    size: tuple[int, int] = (64, 48),
) -> Path:
    """Black and silent but for a white flash and a click, both at ``event`` seconds."""
    import av

    with av.open(str(path), "w") as out:
        pictures: Any = out.add_stream(video, rate=FPS) if video else None
        sounds: Any = out.add_stream(audio, rate=rate) if audio else None
        if pictures:
            pictures.width, pictures.height, pictures.pix_fmt = *size, "yuv420p"
            pictures.gop_size = 5
        if sounds:
            sounds.layout = "stereo"
        packed = np.zeros((int(seconds * rate), 2), np.int16)
        packed[int(event * rate)] = 30000
        for k in range(int(seconds * FPS)):
            if pictures:
                value = 255 if k == int(event * FPS) else 0
                pixels = np.full((size[1], size[0], 3), value, np.uint8)
                picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                picture.pts = k
                out.mux(pictures.encode(picture))
            if sounds:
                first, last = k * rate // FPS, (k + 1) * rate // FPS
                sound = av.AudioFrame.from_ndarray(packed[first:last].reshape(1, -1), format="s16", layout="stereo")
                sound.sample_rate, sound.pts = rate, first
                out.mux(sounds.encode(sound))
        for stream in (pictures, sounds):
            if stream:
                out.mux(stream.encode(None))
    return path


def play(path: Path, **names: Any) -> list[Sample]:
    source = FileSource(path, **names)
    try:
        return list(source.samples())
    finally:
        source.close()


def flash_time(samples: list[Sample]) -> int:
    return max((s for s in samples if s.modality == "image"), key=lambda s: float(np.mean(s.data))).t


def click_time(samples: list[Sample]) -> float:
    def peak(sample: Sample) -> float:
        return float(np.abs(sample.data).max())

    loudest = max((s for s in samples if s.modality == "audio" and len(s.data)), key=peak)
    assert loudest.rate is not None
    return loudest.t + int(np.abs(loudest.data).max(axis=1).argmax()) * SECOND / loudest.rate


@needs_av
@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_flash_and_a_click_land_in_the_same_instant(tmp_path: Path, rate: int) -> None:
    """In a lossless recording both are at 1 s, within one audio sample."""
    samples = play(write_clip(tmp_path / "clip.mov", rate=rate))
    assert flash_time(samples) == SECOND
    assert abs(click_time(samples) - SECOND) <= SECOND / rate


@needs_av
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_they_do_in_compressed_files_too(tmp_path: Path, name: str) -> None:
    """AAC's priming and a container that starts at 1.4 s are taken off: within 3 ms, and nothing before 0."""
    samples = play(write_clip(tmp_path / name, audio="aac", video="mpeg4" if name != "clip.ts" else "mpeg2video"))
    assert abs(flash_time(samples) - click_time(samples)) <= 3 * MS
    assert abs(flash_time(samples) - SECOND) <= 50 * MS
    assert min(s.t for s in samples) >= 0


@needs_av
def test_frames_and_blocks_have_the_documented_form(tmp_path: Path) -> None:
    """RGB bytes of the file's size; float32 [samples, channels] at the file's rate, each with its duration."""
    samples = play(write_clip(tmp_path / "clip.mov"))
    images = [s for s in samples if s.modality == "image"]
    blocks = [s for s in samples if s.modality == "audio"]
    assert {(s.data.dtype.name, s.data.shape) for s in images} == {("uint8", (48, 64, 3))}
    assert [s.t for s in images] == [k * SECOND // FPS for k in range(2 * FPS)]
    assert {(s.data.dtype.name, s.data.shape[1], s.rate) for s in blocks} == {("float32", 2, 48000)}
    assert sum(len(s.data) for s in blocks) == 96000
    assert all(b.t + b.duration == pytest.approx(a.t, abs=1) for b, a in pairwise(blocks))
    assert max(float(np.abs(s.data).max()) for s in blocks) == pytest.approx(30000 / 32768)


@needs_av
def test_long_blocks_of_a_codec_are_handed_out_in_short_ones(tmp_path: Path) -> None:
    """AAC packs 128 ms at 8 kHz; nothing is handed out later than 20 ms after it was heard, and no sample is lost."""
    blocks = [s for s in play(write_clip(tmp_path / "a.mp4", audio="aac", rate=8000)) if s.modality == "audio"]
    assert max(block.duration for block in blocks) == 20 * MS
    assert all(0 <= later.t - earlier.t - earlier.duration <= 1 for earlier, later in pairwise(blocks))
    assert sum(len(block.data) for block in blocks) >= 2 * 8000


@needs_av
def test_samples_come_in_the_order_a_live_source_would_give_them(tmp_path: Path) -> None:
    """By the moment of availability: a frame's capture, a block's last sample."""
    for name in ("clip.mov", "clip.mkv"):
        available = [s.t + s.duration for s in play(write_clip(tmp_path / name))]
        assert available == sorted(available)


@needs_av
def test_without_sound_or_without_picture(tmp_path: Path) -> None:
    """Either alone is played; asking for what is not there is a SourceError that says so."""
    silent = write_clip(tmp_path / "silent.mp4", audio=None)
    blind = write_clip(tmp_path / "blind.wav", video=None)
    assert FileSource(silent).modalities == ("image",)
    assert {s.modality for s in play(blind)} == {"audio"}
    assert {s.modality for s in play(write_clip(tmp_path / "both.mov"), audio=None)} == {"image"}
    for path, names, message in ((silent, {"image": None}, "no audio"), (blind, {"audio": None}, "no image")):
        with pytest.raises(SourceError, match=message):
            FileSource(path, **names)


@needs_av
def test_modalities_are_named_as_the_bundle_names_them(tmp_path: Path) -> None:
    """A bundle may call its picture "eye" and its sound "ear"."""
    samples = play(write_clip(tmp_path / "clip.mov"), image="eye", audio="ear")
    assert {s.modality for s in samples} == {"eye", "ear"}


@needs_av
def test_what_cannot_be_played_is_said(tmp_path: Path) -> None:
    """No file, a folder, text, nothing, and a cut-off MP4 are each a SourceError with the path."""
    text, empty, cut = tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "cut.mp4"
    text.write_text("not a video")
    empty.write_bytes(b"")
    whole = write_clip(tmp_path / "whole.mp4", audio="aac").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    for path in (tmp_path / "nowhere.mp4", tmp_path, text, empty, cut):
        with pytest.raises(SourceError, match=str(path)):
            play(path)


@needs_av
def test_damage_in_the_middle_ends_in_our_error_or_the_rest(tmp_path: Path) -> None:
    """Half a recording, or one with rubbish inside, gives samples in order and then ends or raises a SourceError."""
    whole = write_clip(tmp_path / "whole.mkv", audio="aac").read_bytes()
    third = len(whole) // 3
    for k, data in enumerate((whole[: 2 * third], whole[:third] + b"\xff" * 2000 + whole[third + 2000 :])):
        path = tmp_path / f"{k}.mkv"
        path.write_bytes(data)
        seen: list[Sample] = []
        with suppress(SourceError):
            seen.extend(FileSource(path).samples())
        assert seen
        for name in ("image", "audio"):
            times = [s.t for s in seen if s.modality == name]
            assert times == sorted(set(times))


@needs_av
def test_closing_in_the_middle_ends_the_samples(tmp_path: Path) -> None:
    """From whichever thread: what plays stops, the container is closed once it has, and closing twice is fine."""
    source = FileSource(write_clip(tmp_path / "clip.mov"))
    samples = source.samples()
    next(samples)
    source.close()
    assert list(samples) == []
    source.close()
    assert list(source.samples()) == []


def test_without_pyav_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module and the line to type."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"'av'.*pip install 'edge-mbm\[video\]'"):
        FileSource(tmp_path / "clip.mp4")


# --- through a bundle ------------------------------------------------------------------------------------------------


@pytest.mark.needs("av", "cv2", "soxr")
def test_the_click_is_in_the_right_sample_of_the_right_window(tmp_path: Path) -> None:
    """48 kHz stereo resampled to the bundle's 1000 Hz puts it at sample 1000, with the flash's frame at 1 s."""
    heard, seen = [], []

    def note(inputs: Any, _: Any) -> None:
        if "samples" in inputs:
            heard.append(inputs["samples"][0].copy())
        if "image" in inputs:
            seen.append(inputs["image"].mean())

    def load(name: str, component: Any, graph: bytes) -> NullEngine:
        return NullEngine(name, component, graph, compute=note)

    clip = write_clip(tmp_path / "clip.mov", size=(100, 60))
    with edge_mbm.open(tiny_bundle(), clip, realtime=False, load_engine=load) as live:
        results = list(live)
    assert abs(int(np.abs(np.concatenate(heard)).argmax()) - 1000) <= 1
    assert results[int(np.argmax(seen))].t_capture == SECOND
    assert len(results) == 2 * FPS


@pytest.mark.needs("av", "cv2", "soxr", "onnxruntime")
def test_two_fast_runs_are_identical(tmp_path: Path) -> None:
    """All but the timings, to the last digit of every score."""
    clip = write_clip(tmp_path / "clip.mp4", audio="aac")

    def run() -> list[Any]:
        with edge_mbm.open(tiny_bundle(), clip, realtime=False) as live:
            return [{k: v for k, v in r.as_json().items() if k not in ("age", "stage_ns")} for r in live]

    first = run()
    assert len(first) == 2 * FPS
    assert first == run()


@pytest.mark.needs("av", "cv2")
def test_a_clip_without_sound_gives_results_without_audio(tmp_path: Path) -> None:
    """The head that may miss it says so in every result; nothing waits."""
    clip = write_clip(tmp_path / "silent.mp4", audio=None)
    with edge_mbm.open(tiny_bundle(), clip, realtime=False, load_engine=NullEngine) as live:
        assert {r.missing for r in live} == {("audio",)}


@pytest.mark.needs("av", "cv2", "soxr")
def test_leaving_a_file_that_plays_ends_its_thread(tmp_path: Path) -> None:
    """In real time too: after the first frame the decoder's thread is gone and the file closed."""
    clip = write_clip(tmp_path / "clip.mov", seconds=20)
    with edge_mbm.open(
        tiny_bundle(), clip, load_engine=NullEngine, options=edge_mbm.SessionOptions(heads=("color",))
    ) as live:
        assert next(live).t_capture == live.origin
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edge-mbm")]


@needs_av
def test_a_clip_without_picture_is_refused_for_a_head_that_needs_one(tmp_path: Path) -> None:
    """On opening, with what the file gives and what the head needs."""
    clip = write_clip(tmp_path / "blind.wav", video=None)
    with pytest.raises(SourceError, match=r"\['audio'\].*'event' needs \['image'\]"):
        edge_mbm.open(tiny_bundle(), clip, load_engine=NullEngine)
