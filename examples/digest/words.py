"""What is said in a video, and in which of its shots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import edge_mbm
from digest.storyboard import Scene
from edge_mbm.errors import SourceError
from edge_mbm.runtime import EngineLoader, TextOutput

__all__ = ["Listener", "Said", "Transcript", "listening", "with_words"]


class Said(NamedTuple):
    """One utterance; times in ns from the video's beginning."""

    start: int
    end: int
    text: str


class Transcript(NamedTuple):
    """What was heard, in order, and what was not as it should be."""

    said: tuple[Said, ...]
    warnings: tuple[str, ...] = ()


class Listener:
    """Writes a video's sound down, by a bundle that hears utterances, such as export/whisper.toml makes.

    Args:
        bundle: its path.
        source: a file, an address or a ``Source``, as for ``edge_mbm.open``; of its own, beside what looks at pictures.
        realtime: as for ``edge_mbm.open``.
        load_engine: as for ``edge_mbm.open``.
    """

    def __init__(
        self, bundle: Path, source: Any, *, realtime: bool = False, load_engine: EngineLoader | None = None
    ) -> None:
        self._bundle, self._source, self._realtime, self._load = bundle, source, realtime, load_engine
        self.stop = Event()

    def listen(self) -> Transcript:
        """All that is said, until the sound ends or ``stop`` is set; without a sound, a warning."""
        said: list[Said] = []
        try:
            live = edge_mbm.open(self._bundle, audio=self._source, realtime=self._realtime, load_engine=self._load)
            with live:
                for result in live:
                    text, segment = result.output, result.segment
                    assert isinstance(text, TextOutput)
                    if segment is not None and segment.is_final and text.text.strip():
                        said.append(Said(segment.start - live.origin, segment.end - live.origin, text.text.strip()))
                    if self.stop.is_set():
                        break
        except SourceError as error:
            return Transcript(tuple(said), (f"What is said is written down as far as it could be heard: {error}",))
        return Transcript(tuple(said))


@contextmanager
def listening(listener: Listener | None) -> Iterator[Any]:
    """A future of the transcript while the pictures are looked at; of an empty one without a listener."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: Transcript(()) if listener is None else listener.listen())
        try:
            yield future
        except BaseException:
            if listener is not None:
                listener.stop.set()
            raise


def with_words(scenes: Iterable[Scene], said: Sequence[Said]) -> list[Scene]:
    """The scenes, each with what is said in it; an utterance belongs to the shot that it shares most time with."""
    found = list(scenes)
    words: dict[int, list[str]] = {}
    for utterance in said:
        shared = [_shared(utterance, scene) for scene in found]
        if shared and max(shared) > 0:
            words.setdefault(shared.index(max(shared)), []).append(utterance.text)
    return [
        replace(scene, notes=(*scene.notes, ("said", " ".join(words[index])))) if index in words else scene
        for index, scene in enumerate(found)
    ]


def _shared(utterance: Said, scene: Scene) -> int:
    return min(utterance.end, scene.shot.end) - max(utterance.start, scene.shot.start)
