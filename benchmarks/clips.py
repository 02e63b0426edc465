"""What a memory of frames is worth: motion told from clips, with frames dropped and with the gyroscope missing.

    edge-mbm export export/clip_motion.toml -o clip_motion.mbm
    PYTHONPATH=examples python benchmarks/clips.py clip_motion.mbm [--plot FILE.png] [--json FILE]

Every clip goes through the bundle as a device runs it, on fresh digits that training never saw. Two minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from moving_digits.data import clips
from moving_digits.world import MOTIONS, digits, draw
from rich.console import Console
from rich.table import Table

import edge_mbm

HEADS = ("attention", "gru", "single")
DROPPED = (0.0, 0.25, 0.5, 0.75)
GIVEN = {"both": ("image", "gyroscope"), "gyroscope missing": ("image",), "clip missing": ("gyroscope",)}


@dataclass(frozen=True)
class Score:
    """How often a head was right.

    Args:
        head: its name.
        given: which modalities there were.
        dropped: share of the camera's frames that were missing; a clip holds eight all the same.
        accuracy: one for each seed of the clips.
    """

    head: str
    given: str
    dropped: float
    accuracy: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracy)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({min(self.accuracy):.3f} - {max(self.accuracy):.3f})"


def scores(session: edge_mbm.Session, seeds: Sequence[int], count: int) -> Iterator[Score]:
    for dropped, (given, names) in itertools.product(DROPPED, GIVEN.items()):
        if dropped and given == "clip missing":
            continue
        right = [_right(session, seed, count, dropped, names) for seed in seeds]
        for head in HEADS:
            yield Score(head, given, dropped, tuple(found[head] / count for found in right))


def _right(session: edge_mbm.Session, seed: int, count: int, dropped: float, names: Sequence[str]) -> dict[str, int]:
    """Head -> how many clips it told."""
    right: dict[str, int] = defaultdict(int)
    for clip in itertools.islice(clips("test", seed, unseen=True, dropped=dropped), count):
        for result in session.infer(**{name: clip.inputs[name] for name in names}):
            right[result.head] += result.output.label == MOTIONS[clip.label]
    return right


def table(found: Sequence[Score], count: int) -> Table:
    drawn = Table(
        "frames dropped", "given", *HEADS, title=f"Accuracy: mean (least - greatest) of sets of {count} clips"
    )
    rows = itertools.groupby(found, key=lambda score: (score.dropped, score.given))
    for (dropped, given), row in rows:
        drawn.add_row(f"{dropped:.0%}", given, *map(str, row))
    return drawn


def plot(found: Sequence[Score], path: Path) -> None:
    """Three clips frame by frame, and accuracy over the share of frames dropped."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only for the picture

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    strips, curve = figure.subplots(1, 2, width_ratios=(1.15, 1))
    strips.imshow(_strips(), cmap="gray", vmin=0, vmax=255)
    strips.set_axis_off()
    for row, title in enumerate(("moves left, camera still", "still, camera turns right", "moves closer")):
        strips.text(2, 36 * row + 6, title, fontsize=7, va="top", color="white")
    for head, color in zip(HEADS, ("C0", "C1", "C7"), strict=True):
        for given, style in (("both", "-"), ("gyroscope missing", "--")):
            line = [score for score in found if (score.head, score.given) == (head, given)]
            low, high = (np.array([f(s.accuracy) for s in line]) for f in (min, max))
            means = np.array([s.mean for s in line])
            curve.errorbar(
                DROPPED, means, [means - low, high - means], fmt=style, color=color, label=f"{head}, {given}"
            )
    curve.axhline(1 / len(MOTIONS), color="black", linewidth=0.6, linestyle=":")
    curve.set_ylim(0, 1)
    curve.set_xlabel("share of the camera's frames dropped")
    curve.set_ylabel("accuracy")
    curve.legend(fontsize=7, loc="center left", bbox_to_anchor=(0, 0.36))
    figure.savefig(path, dpi=110)


def _strips() -> np.ndarray:
    from dataclasses import replace  # noqa: PLC0415

    rng = np.random.default_rng(2)
    still = replace(draw(MOTIONS.index("still"), digits(unseen=True), rng), turn=(0.0, 0.0, 0.0), height=18.0)
    drifts = [
        replace(still, velocity=(-1.0, 0.0), place=(12.0, 16.0)),
        replace(still, turn=(0.0, 0.94, 0.0), place=(12.0, 16.0)),
        replace(still, zoom=1.05, place=(16.0, 16.0)),
    ]
    rows = [np.concatenate([drift.frame(t, rng)[:, :, 0] for t in range(-7, 1)], 1) for drift in drifts]
    return np.concatenate([np.pad(row, ((4, 0), (0, 0)), constant_values=255) for row in rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--clips", type=int, default=700, help="of each set")
    parser.add_argument("--seeds", default="11,12,13", help="of the sets, separated by commas")
    parser.add_argument("--plot", type=Path, help="picture to write, .png")
    parser.add_argument("--json", type=Path, help="every figure, by seed")
    options = parser.parse_args(arguments)
    chosen = edge_mbm.SessionOptions(heads=HEADS)
    with edge_mbm.load(options.bundle) as bundle, bundle.session(chosen) as session:
        found = list(scores(session, [int(seed) for seed in options.seeds.split(",")], options.clips))
    Console(width=120).print(table(found, options.clips))
    if options.json:
        options.json.write_text(json.dumps([asdict(score) for score in found], indent=2) + "\n")
    if options.plot:
        plot(found, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
