"""What a caption bundle says of held-out scenes, as a picture: the frames, and each word with its probability.

    PYTHONPATH=examples python scripts/caption_picture.py captions.mbm docs/pictures/captions.png

Needs matplotlib, and the digits that `examples/zoo/captioner.py` trains on.
"""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import matplotlib as mpl
from zoo import captioner

import edge_mbm

mpl.use("agg")
from matplotlib import pyplot as plt

_SCENES = 5


def main(bundle: str, picture: str) -> None:
    """One column for each scene: the frame, and below it its pieces in the order in which they came."""
    figure, axes = plt.subplots(2, _SCENES, figsize=(11, 4.4), height_ratios=[1.4, 1], layout="constrained")
    with edge_mbm.load(bundle) as opened, opened.session() as session:
        for column, scene in enumerate(itertools.islice(captioner.scenes("heldout"), _SCENES)):
            axes[0, column].imshow(scene.image)
            axes[0, column].set_axis_off()
            pieces = [piece for piece in session.generate("caption", image=scene.image) if piece.text]
            _bars(axes[1, column], pieces)
    figure.savefig(picture, dpi=70)


def _bars(axis: Any, pieces: list[Any]) -> None:
    places = range(len(pieces))
    axis.barh(places, [math.exp(piece.log_probability) for piece in pieces], color="#3b6ea5")
    axis.set(xlim=(0, 1), ylim=(len(pieces) - 0.4, -0.6), xticks=[0, 1])
    axis.set_yticks(places, [piece.text.strip() for piece in pieces])
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=0, labelsize=9)


if __name__ == "__main__":
    main(*sys.argv[1:])
