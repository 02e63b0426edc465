"""The digest: shots as they end, a picture of each, few that stand for all, and memory that does not grow."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from threading import Event
from typing import Any

import av
import cv2
import numpy as np
import pytest
from digest.faces import Faces
from digest.keyframes import Candidate, Candidates, choose
from digest.page import Page, clock
from digest.select import marginal_relevance, medoids, most_redundant
from digest.shots import Shot, ShotFinder
from digest.storyboard import Scene, Storyboard
from digest.watch import Digest, Watching, watch
from digest.words import Listener, Said, Transcript, listening, with_words
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm.bundle import write_bundle
from edge_mbm.errors import SourceError
from edge_mbm.runtime.gallery import Gallery, calibrate
from edge_mbm.runtime.portraits import Face
from edge_mbm.runtime.source import Sample
from edge_mbm.spec import (
    Decision,
    Encoder,
    Head,
    ImageSteps,
    Input,
    Manifest,
    Output,
    Saliency,
    TensorSpec,
    Variant,
    VideoModality,
    Window,
)
from edge_mbm.testing import NullEngine, ScriptedSource, tiny_bundle

PERIOD = 40_000_000
pytestmark = pytest.mark.needs("cv2", "av")


def reference_scenes(probabilities: list[float], threshold: float) -> list[tuple[int, int]]:
    """TransNetV2's rule, over a whole video: runs of frames below the threshold, each with the frame that ends it."""
    above = [p > threshold for p in probabilities]
    scenes, start = [], None
    for index, is_above in enumerate(above):
        if not is_above and start is None:
            start = index
        if is_above and start is not None:
            scenes.append((start, index))
            start = None
    return scenes if start is None else [*scenes, (start, len(above) - 1)]


@given(st.lists(st.floats(0, 1, width=32), max_size=60), st.lists(st.integers(1, 9), max_size=20))
def test_shots_do_not_depend_on_how_answers_are_cut(probabilities: list[float], cuts: list[int]) -> None:
    """Window by window they are what the whole video's probabilities say."""
    finder, found, start = ShotFinder(0.5), [], 0
    values, times = np.array(probabilities, np.float32), np.arange(len(probabilities)) * PERIOD
    for length in [*cuts, len(values)]:
        part = slice(start, start + length)
        found += list(finder.add(times[part], values[part]))
        start += length
    found += list(finder.finish())
    assert [(s.start // PERIOD, s.end // PERIOD) for s in found] == reference_scenes(probabilities, 0.5)
    assert [s.frames for s in found] == [(s.end - s.start) // PERIOD + 1 for s in found]


def test_a_pause_ends_a_shot() -> None:
    """After a broken stream the picture is another, whatever the probabilities say."""
    finder = ShotFinder()
    times = np.array([0, PERIOD, 100 * PERIOD])
    shots = [*finder.add(times, np.zeros(3, np.float32)), *finder.finish()]
    assert shots == [Shot(0, PERIOD, 2, 0.0), Shot(100 * PERIOD, 100 * PERIOD, 1, 0.0)]


def unit_vectors(seed: int, count: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 3))
def test_medoids_are_no_worse_than_any_one_swap(seed: int, total: int, count: int) -> None:
    """Against all sets of that size: within the gap that single swaps may leave, and best for one."""
    vectors = unit_vectors(seed, total)
    similarity = vectors @ vectors.T
    chosen = medoids(similarity, count)
    worth = similarity[:, chosen].max(1).sum()
    assert len(set(chosen)) == len(chosen) == min(count, total)
    others = [set(c) for c in combinations(range(total), len(chosen))]
    near = [list(c) for c in others if len(c & set(chosen)) >= len(chosen) - 1]
    assert worth >= max(similarity[:, c].max(1).sum() for c in near) - 1e-4


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8))
def test_marginal_relevance_chooses_what_is_best_at_each_step(seed: int, total: int, count: int) -> None:
    """The definition of Carbonell and Goldstein, term by term, over what is left."""
    vectors = unit_vectors(seed, total + 1)
    relevance, similarity = vectors[1:] @ vectors[0], vectors[1:] @ vectors[1:].T
    chosen = marginal_relevance(relevance, similarity, count)
    assert len(set(chosen)) == len(chosen) == min(count, total)
    for step, picked in enumerate(chosen):
        before = chosen[:step]

        def score(index: int, before: list[int] = before) -> float:
            return 0.7 * relevance[index] - 0.3 * max((similarity[index, b] for b in before), default=0.0)

        assert score(picked) >= max(score(i) for i in range(total) if i not in before) - 1e-5


def test_a_question_is_answered_without_repeating_itself() -> None:
    """Of two scenes that are the same only one is in a summary of two, though the third is less relevant."""
    vectors = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    query = np.array([0.8, 0.6, 0], np.float32)
    assert marginal_relevance(vectors @ query, vectors @ vectors.T, 2, balance=0.6) == [0, 2]
    assert marginal_relevance(vectors @ query, vectors @ vectors.T, 2, balance=1.0) == [0, 1]
    assert most_redundant(vectors) == 1


def scene(number: int, vector: np.ndarray | None = None, **fields: Any) -> Scene:
    shot = Shot(number * 1_000_000_000, number * 1_000_000_000 + 900_000_000, 22, 1.0)
    return Scene(shot, shot.start, b"\xff\xd8", unit_vectors(number, 1)[0] if vector is None else vector, **fields)


def test_a_storyboard_keeps_no_more_than_it_may() -> None:
    """Of a thousand scenes, eight are kept, and the rest counted; those that repeat others go."""
    board = Storyboard(most=8)
    for number in range(1000):
        board.add(scene(number, unit_vectors(number % 5, 1)[0]))
        assert len(board.scenes) <= 8
    assert board.left_out == 992
    assert len({scene.vector.tobytes() for scene in board.scenes}) == 5


@settings(deadline=None)
@given(st.integers(100, 3000))
def test_pictures_in_memory_do_not_grow_with_a_shot(frames: int) -> None:
    """A shot that never ends holds no more pictures than a short one may, spread over its whole length."""
    candidates, picture = Candidates(every=PERIOD, lag=10 * PERIOD, most=32), np.zeros((2, 2, 3), np.uint8)
    for number in range(frames):
        candidates.add(picture, number * PERIOD)
    assert candidates.highest <= 32
    kept = [c.number for c in candidates.of(Shot(0, frames * PERIOD, frames, 1.0))]
    assert kept[0] == 0
    assert np.diff(kept).max() <= max(2, frames // 5)  # 21 at even steps, each of them a power of two
    assert kept[-10:] == list(range(frames - 10, frames))
    assert candidates.of(Shot(0, frames * PERIOD, frames, 1.0)) == []


def test_the_keyframe_is_sharp_and_near_the_middle_of_its_shot() -> None:
    """A blurred picture is passed over though it is nearest; of the sharp ones the nearest to the mean is taken."""
    pictures = [Candidate(i, i, np.full((4, 4, 3), i, np.uint8), sharp) for i, sharp in enumerate((9, 10, 1, 8))]
    points = np.array([[1, 0], [0.9, 0.436], [0.95, 0.312], [0.6, 0.8]], np.float32)
    best, vector = choose(pictures, lambda picture: points[picture[0, 0, 0]])
    assert best.number == 1
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert choose(pictures, None)[0].number == 1  # the sharpest


def test_a_page_needs_nothing_else_and_escapes_what_comes_from_outside() -> None:
    """No link, no script; a label with a tag in it is text."""
    scenes = [scene(n, labels=(("<script>x</script>", 0.5),), notes=(("said", "a < b"),)) for n in range(3)]
    html = Page("a&b.mp4", scenes, scenes[:1], query="<b>", warnings=("breaks off",)).html()
    assert "<script" not in html
    assert "a &lt; b" in html
    assert "a&amp;b.mp4" in html
    assert not re.search(r'(src|href)="(?!data:image/jpeg;base64,)', html)
    assert html.count("<li>") == 4
    assert html.count('class="chosen"') == 1


@pytest.mark.parametrize(("t", "text"), [(0, "0:00.0"), (59_990_000_000, "1:00.0"), (3_723_400_000_000, "1:02:03.4")])
def test_a_clock_rolls_over(t: int, text: str) -> None:
    """Tenths are rounded before minutes are taken off."""
    assert clock(t) == text


# --- watching --------------------------------------------------------------------------------------------------------

WINDOW = Window(length=10, hop=6, margin=2, padding="repeat")


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that sees 4 x 4 pixels of ten frames; what it computes is ``brightness_jumps``."""
    steps = ImageSteps(height=4, width=4, color="gray")
    frames = TensorSpec(dtype="uint8", shape=("batch", 10, 4, 4, 1))
    means = Output(tensor=TensorSpec(dtype="float32", shape=("batch", 10)), task=Saliency())
    kept = {
        "fp32": Variant(
            target="any", precision="fp32", opset=20, graph="g.onnx", decision=Decision(kept=True, reason="-")
        )
    }
    manifest = Manifest(
        name="jumps",
        modalities={"video": VideoModality(rate=25.0)},
        components={
            "seen": Encoder(
                inputs={"frames": Input(source="video", tensor=frames, preprocess=steps)},
                outputs={"means": means},
                variants=kept,
                window=WINDOW,
            ),
            "cuts": Head(
                inputs={"means": Input(source="seen.means", tensor=means.tensor)},
                outputs={"last": means},
                variants=kept,
                pivot="video",
                deadline_ns=0,
            ),
        },
        files={},
    )
    path = tmp_path_factory.mktemp("shots") / "jumps.mbm"
    write_bundle(path, manifest, {"g.onnx": b"-"})
    return path


def jumps(name: str, component: Any, graph: bytes) -> NullEngine:
    """A frame is the last of its shot if the next is more than 40 darker or brighter."""

    def compute(inputs: Any, outputs: Any) -> None:
        if name == "seen":
            outputs["means"][0] = inputs["frames"][0].mean((1, 2, 3))
        else:
            steps = np.abs(np.diff(inputs["means"][0], append=inputs["means"][0, -1:]))
            outputs["last"][0] = steps > 40

    return NullEngine(name, component, graph, compute=compute)


def film(path: Path, frames: int, times: list[int] | None = None) -> Path:
    """A dot that moves over dark, and from the middle on over bright; 25 frames a second, or ``times`` in 1/100 s."""
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream("mpeg4", rate=100)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.full((48, 64, 3), 200 if number >= frames / 2 else 30, np.uint8)
            pixels[number % 48, :, 0] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number * 4 if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def watched(source: object, shots: Path, **options: Any) -> Digest:
    return watch(source, Watching(str(shots), **options), load_engine=jumps)


def test_a_file_without_sound_gives_its_shots_with_pictures(shots: Path, tmp_path: Path) -> None:
    """The cut is where the picture changes, and each shot's picture is of that shot."""
    digest = watched(film(tmp_path / "f.mkv", 50), shots)
    assert digest.cuts == (24 * PERIOD,)
    assert digest.warnings == ()
    dark, bright = (cv2.imdecode(np.frombuffer(s.jpeg, np.uint8), 1).mean() for s in digest.storyboard.scenes)
    assert dark < 60
    assert bright > 150


def test_a_variable_frame_rate_moves_no_cut(shots: Path, tmp_path: Path) -> None:
    """Frames at 10 to 50 a second: the cut is at the last dark frame's time, to a step of the grid."""
    times = np.cumsum(np.random.default_rng(3).integers(2, 10, 60)).tolist()
    [cut] = watched(film(tmp_path / "f.mkv", 60, times), shots).cuts
    assert abs(cut - (times[29] + times[30]) / 2 * 10_000_000 + times[0] * 10_000_000) <= 2 * PERIOD


def test_one_frame_is_one_shot_and_none_is_an_error(shots: Path, tmp_path: Path) -> None:
    """The smallest video there is; of less there is nothing to digest, and that is said."""
    digest = watched(film(tmp_path / "one.mkv", 1), shots)
    assert [scene.shot.frames for scene in digest.storyboard.scenes] == [1]
    with pytest.raises(SourceError, match="not one picture came"):
        watched(ScriptedSource([], modalities=("video",)), shots)


def test_what_breaks_in_the_middle_is_digested_up_to_there(shots: Path) -> None:
    """The failure becomes a sentence on the page, and the shots before it are all there."""
    frames = [Sample("video", np.full((48, 64, 3), 30 + 170 * (n > 20), np.uint8), n * PERIOD) for n in range(30)]
    digest = watched(ScriptedSource(frames, error=SourceError("the disk is gone")), shots)
    assert digest.cuts == (20 * PERIOD,)
    assert digest.storyboard.scenes[-1].shot.end == 29 * PERIOD
    assert "the disk is gone" in digest.warnings[0]


def endless(frames: int, live: set[int]) -> Iterator[Sample]:
    """Frames that say when they are no longer held."""
    for number in range(frames):
        pixels = np.full((48, 64, 3), 30 + 170 * (number // 40 % 2), np.uint8)
        live.add(number)
        weakref.finalize(pixels, live.discard, number)
        yield Sample("video", pixels, number * PERIOD)
        assert len(live) <= 8


def test_memory_does_not_grow_with_the_video(shots: Path) -> None:
    """However long it is: a few whole frames, as many small ones, and as many scenes as were asked for."""
    held = []
    for frames in (800, 3200):
        digest = watched(ScriptedSource(endless(frames, set()), modalities=("video",)), shots, most_scenes=6)
        assert len(digest.cuts) == frames // 40 - 1
        assert len(digest.storyboard.scenes) == 6
        assert digest.storyboard.left_out == frames // 40 - 6
        held.append(digest.held)
    assert held[0] == held[1] <= 20


class Talker:
    """An annotator: how many samples of each modality it saw, and what it was asked about."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def see(self, sample: Sample) -> None:
        self.seen.append(sample.modality)

    def note(self, shot: Shot, picture: np.ndarray) -> list[tuple[str, str]]:
        return [("seen", f"{picture.shape[1]} x {picture.shape[0]}, {shot.frames} frames")]


def test_speech_and_faces_have_a_place(shots: Path, tmp_path: Path) -> None:
    """What an annotator says of a shot is on its card."""
    talker = Talker()
    digest = watched(film(tmp_path / "f.mkv", 50), shots, annotators=(talker,))
    assert talker.seen == ["video"] * 50
    assert [scene.notes for scene in digest.storyboard.scenes] == [(("seen", "64 x 48, 25 frames"),)] * 2


# --- what is said, and who is seen ------------------------------------------------------------------------------------


def shot_scene(start: int, end: int) -> Scene:
    vector = np.array([1.0], np.float32)
    return Scene(Shot(start * PERIOD, end * PERIOD, end - start + 1, 0.9), start * PERIOD, b"", vector)


def test_words_go_to_the_shot_that_they_share_most_time_with() -> None:
    """One that crosses a cut is on one card; one outside of every shot, left out by the storyboard, on none."""
    said = [
        Said(0, 5 * PERIOD, "first"),
        Said(8 * PERIOD, 13 * PERIOD, "across"),
        Said(14 * PERIOD, 15 * PERIOD, "second"),
        Said(40 * PERIOD, 50 * PERIOD, "gone"),
    ]
    scenes = with_words([shot_scene(0, 10), shot_scene(10, 20), shot_scene(60, 70)], said)
    assert [scene.notes for scene in scenes] == [(("said", "first"),), (("said", "across second"),), ()]


def test_a_video_without_sound_has_no_words_and_a_warning(tmp_path: Path) -> None:
    """The digest goes on."""
    silent = film(tmp_path / "silent.mkv", 25)
    with listening(Listener(tiny_bundle(), str(silent))) as heard:
        pass
    said, [warning] = heard.result()
    assert said == ()
    assert re.search(r"What is said .*silent\.mkv has no audio", warning)


def test_a_listener_stops_when_the_pictures_fail() -> None:
    """An endless stream's sound does not keep the program from ending."""

    class Patient(Listener):
        def __init__(self) -> None:
            self.stop = Event()

        def listen(self) -> Transcript:
            assert self.stop.wait(60)
            return Transcript(())

    with pytest.raises(SourceError, match="no picture"), listening(Patient()):
        raise SourceError("no picture")


def test_faces_are_named_as_far_as_they_are_known(tmp_path: Path) -> None:
    """Names first, then how many others; nothing on a card without faces."""
    gallery = Gallery(tmp_path / "people.json", "m")
    gallery.enrol("Ada", [0.0])
    gallery.set_calibration(calibrate([0.1], [0.9]))

    class Looks:
        """Stands in for ``Portraits``: each column of the picture is a face, its vector what stands in it."""

        def faces_in(self, picture: np.ndarray) -> list[Face]:
            return [Face(np.zeros(4, np.float32), np.array([x], np.float32)) for x in picture[0, :, 0]]

    def noted(*vectors: int, known: Gallery | None = gallery) -> list[tuple[str, str]]:
        picture = np.array(vectors, np.uint8).reshape(1, -1, 1)
        return list(Faces(Looks(), known).note(Shot(0, PERIOD, 2, 0.9), picture))  # type: ignore[arg-type]

    assert noted() == []
    assert noted(5, 0, 9) == [("seen", "Ada, 2 faces")]
    assert noted(0) == [("seen", "Ada")]
    assert noted(5, known=None) == [("seen", "1 face")]
