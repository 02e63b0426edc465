"""Say and show: a thing is held to the camera and its name is spoken; each may be too spoiled to tell what it is.

    edge-mbm demo say-and-show

The first time it listens to what its heads learn from and exports the bundle: some twenty minutes on two cores.
Then four things are shown and named by a person, in noise or not, and the same is run again for tasks that need less.
With devices it is ``edge_mbm.open(bundle, video="v4l2:///dev/video0", audio="mic://default")``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

import edge_mbm
from edge_mbm import SessionOptions
from edge_mbm.runtime.result import ClassificationOutput

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "say_and_show"  # what is made here, and not kept with the code
BUNDLE, FILM, SOUND = FOLDER / "say_and_show.mbm", FOLDER / "film.mp4", FOLDER / "film.wav"
SHOWN = (("clean", False), ("10 dB", False), ("clean", True), ("0 dB", False))
"""Of each thing, how loud the noise is around its name, and whether its photograph is spoiled."""
SECONDS, BEFORE = 5, 1  # that a thing is shown, and until it is named
TASKS = {"weighted": "photo and name", "photo": "photo alone", "speech": "name alone"}


def prepare() -> None:
    """The bundle, and the film with its sound, made once."""
    from zoo import minilm, speech, whisper  # noqa: PLC0415 - they bring torch, which a device lacks
    from zoo.film import write_film  # noqa: PLC0415 - as above

    FOLDER.mkdir(parents=True, exist_ok=True)
    if not BUNDLE.exists():
        from edge_mbm.cli.bars import ExportBars  # noqa: PLC0415 - for the workstation
        from edge_mbm.export import export_bundle  # noqa: PLC0415 - as above

        minilm.main([str(ROOT / ".cache" / "zoo" / "minilm")])
        whisper.main([str(ROOT / ".cache" / "zoo")])
        print("exporting, once: some twenty minutes on two cores")
        with ExportBars() as bars:
            export_bundle(ROOT / "export" / "say_and_show.toml", BUNDLE, bars)
    if not (FILM.exists() and SOUND.exists()):
        takes = shown_and_said()
        write_film(FILM, [(image, name) for name, image, _ in takes], SECONDS)
        parts = [np.pad(sound, (BEFORE * speech.RATE, 0)) for _, _, sound in takes]
        speech.write_wave(SOUND, np.concatenate([speech.fitted(part, SECONDS * speech.RATE) for part in parts]))


def shown_and_said() -> list[tuple[str, Any, Any]]:
    """Name, photograph and sound of as many things as are shown, spread over those that a person names."""
    from zoo import things  # noqa: PLC0415 - as above
    from zoo.stamps import stamps  # noqa: PLC0415 - as above

    named = [stamp for stamp in stamps() if stamp.heldout and things.person_named(stamp)]
    return [
        (stamp.name, things.shown(stamp, spoiled=bad), things.said(stamp, things.HUMAN, things.LEVELS[level]))
        for stamp, (level, bad) in zip(named[:: len(named) // len(SHOWN)], SHOWN, strict=False)
    ]


def stream() -> None:
    """Say what is shown, whenever the answer is another, or rests on something else."""
    told = None
    with edge_mbm.open(BUNDLE, video=FILM, audio=SOUND) as live:
        for result in live:
            found, basis = result.output, "photo alone" if result.missing else "photo and name"
            assert isinstance(found, ClassificationOutput)
            if (found.label, basis) != told:
                told = found.label, basis
                print(f"{(result.t_capture - live.origin) / 1e9:5.1f} s  {basis:15} {found.label:24} {found.score:.2f}")


def choose(task: str) -> tuple[float, int]:
    """The same for one task: seconds of computing, and how many answers there were."""
    options = SessionOptions(heads=tuple(TASKS))
    with edge_mbm.open(BUNDLE, video=FILM, audio=SOUND, realtime=False, options=options) as live:
        for other in TASKS.keys() - {task}:
            live.session.disable(other)  # what it alone needs rests with it; enable() wakes it
        started = time.process_time()
        answers = sum(1 for _ in live)
        return time.process_time() - started, answers


def main() -> None:
    """Prepare, stream, and compare what tasks cost."""
    prepare()
    stream()
    for task, what in TASKS.items():
        seconds, answers = choose(task)
        print(f"{what:15} {answers:4} answers, {seconds / len(SHOWN) / SECONDS:.2f} s of computing for each of film")


if __name__ == "__main__":
    main()
