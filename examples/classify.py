"""Image classification, live: EfficientNet-Lite0 in 8 bits on a film of photographs, and how often it is right.

    edge-mbm demo classify

The first time it exports the bundle, which takes a quarter of an hour and more: each of its layers is looked at. With a
camera it is ``edge-mbm run build/classify/efficientnet_lite0.mbm --video v4l2:///dev/video0``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import edge_mbm
from edge_mbm.runtime.result import ClassificationOutput
from edge_mbm.runtime.scoring import Scorer, read_truth
from edge_mbm.runtime.summary import RunSummary

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "classify"  # what is made here, and not kept with the code
BUNDLE, FILM = FOLDER / "efficientnet_lite0.mbm", FOLDER / "film.mp4"


def prepare() -> None:
    """The bundle and the film, made once."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not BUNDLE.exists():
        from edge_mbm.cli.bars import ExportBars  # noqa: PLC0415 - for the workstation
        from edge_mbm.export import export_bundle  # noqa: PLC0415 - brings torch, which a device lacks

        print("exporting, once: a quarter of an hour and more on two cores")
        with ExportBars() as bars:
            export_bundle(ROOT / "export" / "efficientnet_lite0.toml", BUNDLE, bars)
    if not FILM.exists():
        from zoo.film import write_film  # noqa: PLC0415 - encoding is for the workstation
        from zoo.photos import LABELS, on_grey  # noqa: PLC0415

        with edge_mbm.load(BUNDLE) as bundle:
            names = bundle.read_labels("imagenet")
        write_film(FILM, [(on_grey(stamp), names[label]) for stamp, label in LABELS.items()], seconds=1.0)


def stream(variant: str) -> None:
    """Play the film at its own pace, print each new answer, and sum up."""
    scorer, summary, last, times = Scorer(read_truth(FILM.with_suffix(".truth.json"))), RunSummary(), "", list[int]()
    with edge_mbm.open(BUNDLE, FILM, options=edge_mbm.SessionOptions(variant=variant)) as live:
        for result in live:
            found = result.output
            assert isinstance(found, ClassificationOutput)
            scorer.add(result, result.t_capture - live.origin)
            summary.add(result)
            times.append(result.t_capture)
            if found.label != last:
                last = found.label
                print(f"{(result.t_capture - live.origin) / 1e9:5.1f} s  {last:32} {found.score:.2f}")
    [(head, score)], ages = scorer.scores().items(), summary.summary().heads["label"]
    print(f"{head}: right about {score.all.segments_right} of {score.all.segments} photographs", end="; ")
    print(
        f"{ages.results / (times[-1] - times[0]) * 1e9:.1f} results a second, {ages.dropped} frames passed over",
        end="; ",
    )
    print(f"age {ages.age.p50_us / 1e3:.0f} ms, p95 {ages.age.p95_us / 1e3:.0f} ms")


def main(arguments: list[str]) -> None:
    """Prepare, then stream; "fp32" for the float graphs."""
    prepare()
    stream(arguments[0] if arguments else "auto")


if __name__ == "__main__":
    main(sys.argv[1:])
