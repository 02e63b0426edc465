"""How far apart faces and voices are, of one person and of two, as a picture: what a threshold can do, and what not.

    PYTHONPATH=examples python scripts/people_picture.py people.mbm docs/pictures/face-recognition.png

Needs matplotlib, and what `examples/zoo/people.py` does. It shows no photo: nobody on them was asked.
"""

from __future__ import annotations

import sys
from typing import Any

import matplotlib as mpl
import numpy as np
from zoo import faces, people

import edge_mbm
from edge_mbm import SessionOptions
from edge_mbm.runtime.gallery import calibrate

mpl.use("agg")
from matplotlib import pyplot as plt


def main(bundle: str, picture: str) -> None:
    """One panel for faces, one for voices: those held out, and the threshold that the others gave."""
    with edge_mbm.load(bundle) as opened, opened.session(SessionOptions(heads=("who",))) as session:
        photos = faces.photo_paths()
        albums = [[people.album(session, path, people.FORMS) for path in part] for part in (photos[:3], photos[3:])]
        spoken = [
            [[people.hear(session, piece) for piece in pieces] for pieces in people.pieces_of(split)]
            for split in ("calibration", "heldout")
        ]
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
    for axis, name, (before, after) in (
        (axes[0], "faces", [people.face_pairs(part) for part in albums]),
        (axes[1], "voices", [people.voice_pairs(part) for part in spoken]),
    ):
        _panel(axis, name, after, calibrate(before.genuine, before.impostor).threshold)
    figure.savefig(picture, dpi=70)


def _panel(axis: Any, name: str, pairs: people.Pairs, threshold: float) -> None:
    bins = np.linspace(0, max(pairs.genuine.max(), pairs.impostor.max()), 50)
    for distances, color, label in (
        (pairs.genuine, "#3b6ea5", f"one person, {len(pairs.genuine)} pairs"),
        (pairs.impostor, "#c65a2e", f"two people, {len(pairs.impostor)} pairs"),
    ):
        axis.hist(distances, bins, density=True, alpha=0.6, color=color, label=label)
    axis.axvline(threshold, color="black", linewidth=1, linestyle="--", label="threshold, from others")
    axis.set_title(f"{name}: area under curve {pairs.area:.3f}")
    axis.set_xlabel("distance of two vectors")
    axis.set_yticks([])
    axis.legend(frameon=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
