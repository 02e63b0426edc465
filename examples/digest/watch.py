"""A video through its bundles to a storyboard, once, as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

import edge_mbm
from digest.keyframes import Candidate, Candidates, choose
from digest.shots import Shot, ShotFinder
from digest.storyboard import Scene, Storyboard
from edge_mbm.errors import SourceError
from edge_mbm.runtime import ClassificationOutput, EmbeddingOutput, SequenceOutput, Session
from edge_mbm.runtime.engine import EngineLoader
from edge_mbm.runtime.source import Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Annotator", "Describer", "Digest", "Watching", "embed_text", "watch"]

_LABELS = 3
_LEAST_SCORE = 0.05


class Annotator(Protocol):
    """What adds to a scene from a model of its own: words spoken in it, faces seen in it.

    A protocol so that speech and faces, which have bundles of their own, need not be here.
    """

    def see(self, sample: Sample) -> None:
        """Every sample that was pushed, sound and pictures, in order; it must be quick and keep little."""
        ...

    def note(self, shot: Shot, picture: NDArray[np.uint8]) -> Iterable[tuple[str, str]]:
        """Heading and text for a shot that has ended, and the picture that stands for it."""
        ...


class Describer:
    """A bundle that says of a picture what is in it, and where it is among sentences; see export/keyframe.toml.

    Args:
        session: of such a bundle: a classifying output gives the labels, an embedding the point.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def embed(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vector of a picture, uint8[H, W, 3]."""
        outputs = [output for result in self._session.infer(image=picture) for output in result.outputs.values()]
        vector = next(output.vector for output in outputs if isinstance(output, EmbeddingOutput))
        return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-6))

    def labels(self, picture: NDArray[np.uint8]) -> tuple[tuple[str, float], ...]:
        """What is in a picture, best first."""
        outputs = [output for result in self._session.infer(image=picture) for output in result.outputs.values()]
        found = (output for output in outputs if isinstance(output, ClassificationOutput))
        return tuple(pair for output in found for pair in output.top(_LABELS) if pair[1] >= _LEAST_SCORE)


@dataclass(frozen=True)
class Watching:
    """How to watch.

    Args:
        shots: a bundle that says how likely each frame is the last of its shot, see export/shots.toml.
        describe: says what is in pictures; None leaves that out, and compares pictures by their colours.
        annotators: what else is told of each shot.
        threshold: of a cut.
        most_scenes: see ``Storyboard``.
        variant: of the shots bundle.
        realtime: play at the source's own pace; False takes a file as fast as it goes.
    """

    shots: str
    describe: Describer | None = None
    annotators: Sequence[Annotator] = ()
    threshold: float = 0.5
    most_scenes: int = 200
    variant: str = "auto"
    realtime: bool = False


@dataclass(frozen=True)
class Digest:
    """What came of it.

    Args:
        storyboard: its scenes.
        cuts: the last frame's time of each shot that a cut ended, ns.
        warnings: what was not as it should be.
        held: most pictures that waited for their shot at a time.
    """

    storyboard: Storyboard
    cuts: tuple[int, ...]
    warnings: tuple[str, ...]
    held: int


class _Watcher:
    """What is known at a moment of watching."""

    def __init__(self, options: Watching, origin: int) -> None:
        self._options = options
        self._origin = origin
        self._finder = ShotFinder(options.threshold)
        self.candidates = Candidates()
        self.storyboard = Storyboard(options.most_scenes)
        self.cuts: list[int] = []
        self.unseen = 0

    def see(self, sample: Sample) -> None:
        sample = sample._replace(t=sample.t - self._origin)
        if sample.modality == "video":
            self.candidates.add(sample.data, sample.t)
        for annotator in self._options.annotators:
            annotator.see(sample)

    def answered(self, output: Any) -> None:
        assert isinstance(output, SequenceOutput)
        assert output.times is not None
        self._tell(self._finder.add(output.times - self._origin, output.values))

    def finish(self) -> None:
        self._tell(self._finder.finish())

    def _tell(self, shots: Iterable[Shot]) -> None:
        for shot in shots:
            if shot.ends_by:
                self.cuts.append(shot.end)
            found = self.candidates.of(shot)
            self.unseen += not found
            if found:
                self.storyboard.add(self._scene(shot, found))

    def _scene(self, shot: Shot, found: list[Candidate]) -> Scene:
        describe = self._options.describe
        best, vector = choose(found, None if describe is None else describe.embed)
        notes = [note for annotator in self._options.annotators for note in annotator.note(shot, best.picture)]
        return Scene(
            shot=shot,
            t=best.t,
            jpeg=_jpeg(best.picture),
            vector=vector,
            labels=() if describe is None else describe.labels(best.picture),
            notes=tuple(notes),
        )


def watch(
    source: Any,
    options: Watching,
    *,
    on_scene: Callable[[int], None] | None = None,
    load_engine: EngineLoader | None = None,
) -> Digest:
    """Watch a video once.

    A file that breaks off gives a digest of what there was, with a warning.

    Args:
        source: a file, an address or a ``Source``, as for ``edge_mbm.open``.
        options: how.
        on_scene: told how many scenes there are, whenever an answer has come.
        load_engine: of the shots bundle, see ``edge_mbm.open``.

    Raises:
        SourceError: it cannot be opened, or not one picture comes.
    """
    warnings = []
    with ExitStack() as held:
        session = edge_mbm.SessionOptions(variant=options.variant)
        live = edge_mbm.open(options.shots, source, options=session, realtime=options.realtime, load_engine=load_engine)
        held.enter_context(live)
        watcher = _Watcher(options, live.origin)
        live.tap(watcher.see)
        try:
            for result in live:
                watcher.answered(result.output)
                if on_scene is not None:
                    on_scene(len(watcher.storyboard.scenes))
        except SourceError as error:
            warnings.append(f"This is a digest of what there was: {error}")
            for result in live.session.finish():
                watcher.answered(result.output)
        watcher.finish()
        lost = live.session.stats()
    if lost["video.lost_windows"]:
        warnings.append(f"{lost['video.lost_windows']} windows of video were lost: the machine is too slow for it")
    if lost["video.gaps"]:
        warnings.append(f"The video paused {lost['video.gaps']} times for longer than a second; a shot ends there")
    if watcher.unseen:
        warnings.append(f"{watcher.unseen} shots were too short for a picture")
    if not watcher.storyboard.scenes:
        raise SourceError(" ".join([f"{source}: not one picture came, so there is nothing to digest.", *warnings]))
    return Digest(watcher.storyboard, tuple(watcher.cuts), tuple(warnings), watcher.candidates.highest)


def embed_text(bundle: str, text: str) -> NDArray[np.float32]:
    """Unit vector of a text, by a bundle such as export/sentence_embedding.toml makes."""
    with edge_mbm.load(bundle) as opened, opened.session() as session:
        [name] = session.modalities
        output = session.infer(**{name: text})[0].output
    assert isinstance(output, EmbeddingOutput)
    return output.vector / np.float32(max(float(np.linalg.norm(output.vector)), 1e-6))


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not done:
        raise SourceError(f"a picture of {picture.shape[1]}x{picture.shape[0]} cannot be written as JPEG")
    return bytes(data)
