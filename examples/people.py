"""Who is there: people whom it knows by face and by voice, named while a film plays, and strangers left unnamed.

    edge-mbm demo people
    edge-mbm demo people v4l2:///dev/video0 mic://default

The first time it exports the bundle, some minutes on two cores, and makes a film of thirteen people, a face and a voice
each, of whom it enrols nine by number. With a camera, enrol people of your own first: ``edge-mbm gallery``.
Nothing leaves the machine: what is known is in two files beside the bundle, see `docs/face-recognition.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import edge_mbm
from edge_mbm.runtime import EmbeddingOutput, RegionsOutput, Result, SequenceOutput
from edge_mbm.runtime.gallery import Gallery, Match, identify_jointly

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "people"  # what is made here, and not kept with the code
BUNDLE, FILM = FOLDER / "people.mbm", FOLDER / "film.mp4"
FACES, VOICES = FOLDER / "faces.json", FOLDER / "voices.json"


def prepare() -> None:
    """The bundle, the film, and the galleries, made once."""
    from zoo import faces, people_film  # noqa: PLC0415 - they bring torch, which a device lacks

    FOLDER.mkdir(parents=True, exist_ok=True)
    if not BUNDLE.exists():
        from edge_mbm.cli.bars import ExportBars  # noqa: PLC0415 - for the workstation
        from edge_mbm.export import export_bundle  # noqa: PLC0415 - as above

        print("exporting, once: some minutes on two cores")
        faces.main([str(ROOT / ".cache" / "zoo")])
        with ExportBars() as bars:
            export_bundle(ROOT / "export" / "people.toml", BUNDLE, bars)
    if not FILM.exists():
        people_film.make(BUNDLE, FILM, FACES, VOICES)


def name(result: Result, faces: Gallery, voices: Gallery) -> list[Match | None]:
    """Who each face of a moment is; the voice counts where there is one face that it can be of, or none."""
    regions, seen, heard = (result.outputs[key] for key in ("regions", "faces", "voice"))
    assert isinstance(regions, RegionsOutput)
    assert isinstance(seen, SequenceOutput)
    assert isinstance(heard, EmbeddingOutput)
    vectors = seen.values[: len(regions.boxes)]
    spoken = [(voices, heard.vector)] if len(vectors) <= 1 and "audio" not in result.missing else []
    if spoken and not len(vectors):
        return [identify_jointly(spoken)]
    return [identify_jointly([(faces, vector), *spoken]) for vector in vectors]


def watch(video: str, audio: str) -> None:
    """Say who is there whenever that changes, until the film ends or Ctrl-C."""
    faces, voices = Gallery(FACES), Gallery(VOICES)
    last: list[str] = []
    with edge_mbm.open(BUNDLE, video=video, audio=audio, options=edge_mbm.SessionOptions(heads=("who",))) as live:
        for result in live:
            matches = name(result, faces, voices)
            names = ["somebody" if match is None else match.name for match in matches]
            if names != last:
                sure = ", ".join(f"{match.name} at {match.distance:.2f}" for match in matches if match is not None)
                when = (result.t_capture - live.origin) / 1e9
                print(f"{when:5.1f} s  {', '.join(names) or '-':28} {sure}", flush=True)
            last = names


def main(arguments: Sequence[str]) -> None:
    """Prepare, then watch: a film, or a camera and a microphone by their addresses."""
    prepare()
    video, audio = arguments if len(arguments) == 2 else (str(FILM), str(FILM))
    watch(video, audio)


if __name__ == "__main__":
    main(sys.argv[1:])
