"""What a zero-shot bundle answers on a film, as a picture: frames, the prompts of the moment, and their scores.

    PYTHONPATH=examples python scripts/prompt_picture.py zero_shot.mbm docs/pictures/zero-shot.png

Needs matplotlib, and the film that `edge-mbm demo zero-shot` makes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from zero_shot import FILM, KINDS, SECONDS, SHOWN

import edge_mbm
from edge_mbm.runtime.sources import open_source

mpl.use("agg")
from matplotlib import pyplot as plt

_COLOUR = "#3b6ea5"


def main(bundle: str, picture: str) -> None:
    """Ask both lists of prompts about the middle of what is shown, one row for each list."""
    frames = _frames()
    names = [f"a photo of a {name}" for name in SHOWN.values()]
    figure, axes = plt.subplots(3, len(frames), figsize=(13, 4.6), height_ratios=[1.3, 1, 1.1], layout="constrained")
    with edge_mbm.load(bundle) as opened, opened.session() as session:
        for column, frame in enumerate(frames):
            axes[0, column].imshow(frame[::2, ::2])
            axes[0, column].set_axis_off()
            for row, prompts in enumerate((KINDS, names), start=1):
                [result] = session.infer(image=frame, prompt="\n".join(prompts))
                _bars(axes[row, column], result.output, prompts, named=column == 0)
    figure.savefig(picture, dpi=70)
    _shrink(Path(picture))


def _frames() -> list[Any]:
    source, found = open_source(str(FILM), image="image", audio=None), dict[int, Any]()
    for sample in source.samples():
        number, within = divmod(sample.t / 1e9, SECONDS)
        if within > SECONDS / 2:
            found.setdefault(int(number), sample.data)
    source.close()
    return [found[number] for number in sorted(found)]


def _bars(axis: Any, output: Any, prompts: Any, *, named: bool) -> None:
    places = np.arange(len(prompts))
    colours = [_COLOUR if k == output.index else "#c5cdd6" for k in places]
    axis.barh(places, output.scores, color=colours)
    axis.set(xlim=(0, 1), ylim=(len(prompts) - 0.4, -0.6), xticks=[])
    axis.set_yticks(places, [prompt.removeprefix("a photo of ") for prompt in prompts] if named else [])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(length=0, labelsize=9)
    axis.text(min(output.score + 0.03, 0.72), output.index, f"{output.score:.2f}", va="center", fontsize=9)


def _shrink(path: Path) -> None:
    """To 128 colours, which is enough for bars and small photographs."""
    from PIL import Image  # noqa: PLC0415 - matplotlib brings it

    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
