"""A video as one page: its shots, what is in them, and a summary, on a question or without one.

    edge-mbm demo digest
    edge-mbm demo digest film.mp4 --query "people on the street" --most 5 -o film.html
    edge-mbm demo digest film.mp4 --speech whisper.mbm --people people.mbm --gallery people.json

The first time it exports three bundles, which takes most of an hour. Without a video it joins three clips whose cuts
are known, and says how many of them were found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import edge_mbm
from digest.faces import Faces
from digest.page import Page, clock
from digest.watch import Describer, Digest, Watching, embed_text, watch
from digest.words import Listener, Transcript, listening, with_words
from edge_mbm.errors import EdgeMbmError
from edge_mbm.runtime.gallery import Gallery
from edge_mbm.runtime.portraits import Portraits

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "digest"  # what is made here, and not kept with the code
BUNDLES = ("shots", "keyframe", "sentence_embedding")


def main(arguments: Sequence[str]) -> int:
    """Prepare, watch, write the page."""
    options = _parsed(arguments)
    try:
        prepare(options.bundles)
        source = options.source or str(joined_film())
        digest = look(source, options)
        page = compose(source, digest, options.most, options.query, options.bundles)
        Path(options.output).write_text(page.html(), encoding="utf-8")
    except EdgeMbmError as error:
        print(f"digest: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {page.about[0]}")
    for scene in page.summary:
        print(f"  {clock(scene.shot.start):>8}  {', '.join(name for name, _ in scene.labels)}")
    if not options.source:
        print(found_of(digest))
    return 0


def prepare(folder: Path) -> None:
    """The bundles, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    lacking = [name for name in BUNDLES if not (folder / f"{name}.mbm").exists()]
    if not lacking:
        return
    from zoo import minilm  # noqa: PLC0415 - for the workstation

    from edge_mbm.cli.bars import ExportBars  # noqa: PLC0415 - for the workstation
    from edge_mbm.export import export_bundle  # noqa: PLC0415 - brings torch, which a device lacks

    minilm.main([str(ROOT / ".cache" / "zoo" / "minilm")])
    for name in lacking:
        print(f"exporting {name}, once")
        with ExportBars() as bars:
            export_bundle(ROOT / "export" / f"{name}.toml", folder / f"{name}.mbm", bars)


def joined_film() -> Path:
    """Three clips one after the other, whose cuts are known: see ``zoo.shots.FILMS``."""
    from zoo.shots import write_joined  # noqa: PLC0415 - its films come from packages

    path = FOLDER / "joined.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_joined(path)
    return path


def look(source: str, options: argparse.Namespace) -> Digest:
    """Watch it, with what is in its pictures; with who is seen and what is said, if there are bundles for that."""
    listener = None if options.speech is None else Listener(options.speech, source, realtime=options.realtime)
    with ExitStack() as held:
        heard = held.enter_context(listening(listener))
        session = held.enter_context(held.enter_context(edge_mbm.load(options.bundles / "keyframe.mbm")).session())
        annotators = [] if options.people is None else [_faces(options, held)]
        watching = Watching(
            str(options.bundles / "shots.mbm"),
            Describer(session),
            annotators,
            variant=options.variant,
            realtime=options.realtime,
        )
        digest = watch(source, watching)
        transcript: Transcript = heard.result()
    digest.storyboard.scenes = with_words(digest.storyboard.scenes, transcript.said)
    return replace(digest, warnings=(*digest.warnings, *transcript.warnings))


def _faces(options: argparse.Namespace, held: ExitStack) -> Faces:
    portraits = held.enter_context(Portraits(held.enter_context(edge_mbm.load(options.people))))
    return Faces(portraits, None if options.gallery is None else Gallery(options.gallery, portraits.model))


def compose(source: str, digest: Digest, most: int, query: str, bundles: Path) -> Page:
    """The page, with a summary on a question or without one."""
    board = digest.storyboard
    asked = embed_text(str(bundles / "sentence_embedding.mbm"), query) if query else None
    length = clock(max(scene.shot.end for scene in board.scenes))
    left_out = f", {board.left_out} more like others" if board.left_out else ""
    return Page(
        title=Path(source).name or source,
        scenes=board.scenes,
        summary=board.summary(most, asked),
        query=query,
        about=(f"{length}, {len(board.scenes)} shots{left_out}",),
        warnings=digest.warnings,
    )


def found_of(digest: Digest) -> str:
    """How many of the joined film's cuts were found, and how many were found that are none."""
    from zoo.shots import FILMS, RATE  # noqa: PLC0415

    known = {round(frame * 1e9 / RATE) for frame in FILMS["joined"].cuts}
    right = sum(any(abs(cut - t) <= 1e9 / RATE for cut in digest.cuts) for t in known)
    wrong = len(digest.cuts) - right
    return f"{right} of {len(known)} cuts found, to a frame; {wrong} found that are none"


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edge-mbm demo digest", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="?", help="a file or an address; three clips that come with it unless given")
    parser.add_argument("--query", default="", help="what the summary is to show")
    parser.add_argument("--most", type=int, default=4, help="shots in the summary")
    parser.add_argument("--realtime", action="store_true", help="a stream, or a file at its own pace")
    parser.add_argument("--variant", default="auto", help="of the shots bundle")
    parser.add_argument("--speech", type=Path, help="a bundle of export/whisper.toml, for what is said")
    parser.add_argument("--people", type=Path, help="a bundle of export/people.toml, for the faces in it")
    parser.add_argument("--gallery", type=Path, help="whose names they are: see edge-mbm gallery")
    parser.add_argument("--bundles", type=Path, default=FOLDER, help="where they are, or are written to")
    parser.add_argument("-o", "--output", default="digest.html")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
