"""Zero-shot: which of your prompts the picture is of, and other prompts while the stream runs.

    edge-mbm demo zero-shot
    edge-mbm demo zero-shot "a photo of a cat" "a photo of a musical instrument"

The first time it exports the bundle, which takes some minutes. The film is one of photographs; with a camera it is
``edge_mbm.open(bundle, video="v4l2:///dev/video0", text=[...])``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import edge_mbm
from edge_mbm.runtime.result import ClassificationOutput

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "zero_shot"  # what is made here, and not kept with the code
BUNDLE, FILM = FOLDER / "zero_shot.mbm", FOLDER / "film.mp4"
SHOWN = {  # stamp -> its name
    "animals/mammals/cats/lion": "lion",
    "hobbies/music/string/guitar_classical": "classical guitar",
    "food/fruit/strawberry": "strawberry",
    "animals/birds/pelican": "pelican",
    "vehicles/auto/sportscar2": "sports car",
    "household/dishes/teapot": "teapot",
}
SECONDS = 2.0
KINDS = ("an animal", "a musical instrument", "something to eat", "a car", "a thing for the kitchen")
"""What is asked first: kinds of things, none of which is a class of ImageNet."""


def prepare() -> None:
    """The bundle and the film, made once."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not BUNDLE.exists():
        from zoo import minilm  # noqa: PLC0415

        from edge_mbm.cli.bars import ExportBars  # noqa: PLC0415 - for the workstation
        from edge_mbm.export import export_bundle  # noqa: PLC0415 - brings torch, which a device lacks

        minilm.main([str(ROOT / ".cache" / "zoo" / "minilm")])
        print("exporting, once: some ten minutes on two cores")
        with ExportBars() as bars:
            export_bundle(ROOT / "export" / "zero_shot.toml", BUNDLE, bars)
    if not FILM.exists():
        from zoo.film import write_film  # noqa: PLC0415 - encoding is for the workstation
        from zoo.photos import on_grey  # noqa: PLC0415

        write_film(FILM, [(on_grey(stamp), f"a photo of a {name}") for stamp, name in SHOWN.items()], SECONDS)


def stream(prompts: Sequence[str]) -> None:
    """Ask for kinds of things in the first half of the film, and for their names in the second."""
    names = [f"a photo of a {name}" for name in SHOWN.values()]
    half, asked, last = SECONDS * len(SHOWN) / 2, list(prompts), ""
    with edge_mbm.open(BUNDLE, FILM, text=asked) as live:
        for result in live:
            now, found = (result.t_capture - live.origin) / 1e9, result.output
            assert isinstance(found, ClassificationOutput)
            if now > half and asked == list(prompts):
                live.say(asked := names)
                print(f"{now:5.1f} s  now asked: {'; '.join(names)}")
            if found.label != last:
                last = found.label
                print(f"{now:5.1f} s  {last:32} {found.score:.2f}  {result.age / 1e6:.0f} ms old")


def main(arguments: Sequence[str]) -> None:
    """Prepare, then stream."""
    prepare()
    stream(arguments or KINDS)


if __name__ == "__main__":
    main(sys.argv[1:])
