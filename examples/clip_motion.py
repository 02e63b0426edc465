"""A clip and a sensor: which way does the thing move, when the camera may be turning too?

A handwritten digit drifts before a dark wall. No single frame tells which way; the last few do. But the camera turns as
well, and then a digit that stands still looks like one that drifts. A gyroscope says how the camera turns; the two
together say how the *digit* moves. The bundle has three heads: "attention" over the last eight frames, "gru", which
remembers all, and "single", which sees one frame, as the control.

    edge-mbm demo motion
    edge-mbm demo motion gru --blind      # or "attention", "single"; with or without the gyroscope

The first time it trains, and exports the bundle: some minutes on two cores.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from moving_digits.world import MOTIONS, RATE, Drift, digits, draw
from numpy.typing import NDArray

import edge_mbm
from edge_mbm.runtime.sources import CallableSource, SensorSource

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "build" / "clip_motion" / "clip_motion.mbm"  # what is made here, and not kept with the code
SECONDS = 1.2  # that each motion lasts: much longer, and the digit would be out of the picture
SETTLING = 0.6  # seconds after a change in which no answer is counted: the last eight frames are of both motions


class Moment(NamedTuple):
    """A motion, for how many seconds it has been going on, and how many frames it is from where it was drawn."""

    drift: Drift
    since: float
    frames: float


class World:
    """A motion after another; a camera sees it and a gyroscope feels it, at rates of their own."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        order = self._rng.permutation(np.tile(np.arange(len(MOTIONS)), 3))
        self._drifts = [draw(int(motion), digits(unseen=True), self._rng) for motion in order]
        # At a time of its own each digit is where it was drawn: were it always the same, its place would betray it.
        self._drawn = self._rng.uniform(SETTLING, SECONDS, len(order))
        self._begun = time.monotonic_ns()

    def at(self, t: int) -> Moment | None:
        """What goes on at a time, ns; None when all is over."""
        number, since = divmod((t - self._begun) / 1e9, SECONDS)
        if number >= len(self._drifts):
            return None
        return Moment(self._drifts[int(number)], since, (since - self._drawn[int(number)]) * RATE)

    def camera(self) -> NDArray[np.uint8] | None:
        """A frame, now."""
        now = self.at(time.monotonic_ns())
        return now and now.drift.frame(now.frames, self._rng)

    def gyroscope(self) -> NDArray[np.float32] | None:
        """A reading, now."""
        now = self.at(time.monotonic_ns())
        return now and now.drift.gyroscope(self._rng)


def prepare() -> None:
    """The bundle, made once."""
    if not BUNDLE.exists():
        from edge_mbm.cli.bars import ExportBars  # noqa: PLC0415 - for the workstation
        from edge_mbm.export import export_bundle  # noqa: PLC0415 - brings torch, which a device lacks

        print("training and exporting, once: some minutes on two cores")
        BUNDLE.parent.mkdir(parents=True, exist_ok=True)
        with ExportBars() as bars:
            export_bundle(ROOT / "export" / "clip_motion.toml", BUNDLE, bars)


def main(head: str = "attention", *flags: str) -> None:
    """Half a minute of motions, live; with ``--blind`` without the gyroscope."""
    prepare()
    world = World(seed=5)
    sources = [CallableSource("image", world.camera, RATE), SensorSource("gyroscope", world.gyroscope, 2 * RATE)]
    right, asked, last = 0, 0, None
    options = edge_mbm.SessionOptions(heads=(head,))
    with edge_mbm.open(BUNDLE, sources[: 1 if "--blind" in flags else 2], options=options) as live:
        for result in live:
            found = world.at(result.t_capture)
            if found is None or world.at(result.t_capture + 500_000_000) is None:
                break
            answer, truth = result.output.as_json()["label"], MOTIONS[found.drift.motion]
            if found.since > SETTLING:
                right, asked = right + (answer == truth), asked + 1
            if (answer, truth) != last:
                last = (answer, truth)
                print(f"{truth:7} {answer:7} {'' if answer == truth else 'x'} {result.age / 1e6:4.1f} ms old")
    print(f"{head}: {right} of {asked} frames right")


if __name__ == "__main__":
    main(*sys.argv[1:])
