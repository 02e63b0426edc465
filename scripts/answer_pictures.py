"""What a bundle answers, as a picture for the documentation: photographs, and below them scores or names.

    PYTHONPATH=examples python scripts/answer_pictures.py zero-shot docs/pictures/zero-shot.png
    PYTHONPATH=examples python scripts/answer_pictures.py classify docs/pictures/classification.png
    PYTHONPATH=examples python scripts/answer_pictures.py say-and-show docs/pictures/say-and-show.png

Needs matplotlib, and what `edge-mbm demo` leaves in build/ for that name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import classify
import matplotlib as mpl
import numpy as np
import say_and_show
import zero_shot
from PIL import Image
from zoo import say_and_show as task
from zoo import things

import edge_mbm
from edge_mbm.runtime.sources import open_source

mpl.use("agg")
from matplotlib import pyplot as plt

_RIGHT, _WRONG = "#1f7a3d", "#b03030"
_BEST, _OTHER = "#3b6ea5", "#c5cdd6"
_CLASSIFIED = (0, 4, 10, 18, 22, 33, 45, 50)
"""Which of the film's photographs are shown, chosen before any answer was seen: spread over it."""


def main(what: str, picture: str) -> None:
    """Draw one of them, in 128 colours, which is enough for bars and small photographs."""
    {"zero-shot": _zero_shot, "classify": _classified, "say-and-show": _say_and_show}[what](picture)
    Image.open(picture).convert("RGB").quantize(128).save(picture, optimize=True)


def _zero_shot(picture: str) -> None:
    """Both lists of prompts, a row for each."""
    frames = _frames(zero_shot.FILM, zero_shot.SECONDS)
    asked = (zero_shot.KINDS, [f"a photo of a {name}" for name in zero_shot.SHOWN.values()])
    figure, axes = plt.subplots(3, len(frames), figsize=(13, 4.6), height_ratios=[1.3, 1, 1.1], layout="constrained")
    with edge_mbm.load(zero_shot.BUNDLE) as opened, opened.session() as session:
        for column, frame in enumerate(frames):
            _show(axes[0, column], frame)
            for row, prompts in enumerate(asked, start=1):
                [result] = session.infer(image=frame, prompt="\n".join(prompts))
                shown = [prompt.removeprefix("a photo of ") for prompt in prompts] if column == 0 else []
                _bars(axes[row, column], result.output.scores, shown)
    figure.savefig(picture, dpi=70)


def _classified(picture: str) -> None:
    """The three best classes of each photograph."""
    frames = [_frames(classify.FILM, 1.0)[number] for number in _CLASSIFIED]
    figure, axes = plt.subplots(
        4, len(frames) // 2, figsize=(13, 6), height_ratios=[1.6, 0.7] * 2, layout="constrained"
    )
    with edge_mbm.load(classify.BUNDLE) as opened, opened.session() as session:
        for number, frame in enumerate(frames):
            row, column = divmod(number, len(frames) // 2)
            [result] = session.infer(image=frame)
            best = result.output.top(3)
            _show(axes[2 * row, column], frame)
            _bars(axes[2 * row + 1, column], np.array([score for _, score in best]), [label for label, _ in best])
    figure.savefig(picture, dpi=70)


def _say_and_show(picture: str) -> None:
    """The film's things with what each modality and both make of them; and how often each is right, on all of them."""
    figure = plt.figure(figsize=(13, 7.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 0.9])
    _named(above)
    axes = below.subplots(1, 2, sharey=True)
    for axis, spoiled in zip(axes, (False, True), strict=True):
        for place, level in enumerate(things.LEVELS):
            found = task.rights(things.TEST, level, spoiled=spoiled)
            for number, name in enumerate(task.METHODS):
                share = float(found[name].mean())
                low, high = task.wilson(round(share * found[name].shape[1]), found[name].shape[1])
                at, reach = place + (number - 2) * 0.16, [[share - low], [high - share]]
                label = name if place == 0 and not spoiled else None
                axis.bar(at, share, 0.15, yerr=reach, color=f"C{number}", label=label, error_kw={"elinewidth": 1})
        axis.set_xticks(range(len(things.LEVELS)), [f"speech {level}" for level in things.LEVELS])
        axis.set_title(f"photograph {'spoiled' if spoiled else 'clean'}", fontsize=10)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("named rightly, of 327 names")
    below.legend(ncols=5, loc="outside upper center", frameon=False)
    figure.savefig(picture, dpi=80)


def _named(figure: Any) -> None:
    options = edge_mbm.SessionOptions(heads=("writer", "speech", "photo", "weighted"))
    axes = figure.subplots(2, len(say_and_show.SHOWN), height_ratios=[1.4, 1])
    with edge_mbm.load(say_and_show.BUNDLE) as opened, opened.session(options) as session:
        for column, (name, image, sound) in enumerate(say_and_show.shown_and_said()):
            found = {result.head: result.output for result in session.infer(image=image, audio=sound)}
            _show(axes[0, column], image)
            axes[0, column].set_title(f"{name}; speech {say_and_show.SHOWN[column][0]}", fontsize=10)
            axes[1, column].set_axis_off()
            axes[1, column].text(0.5, 0.9, f'heard: "{found["writer"].text.strip()}"', ha="center", fontsize=9)
            for row, (head, what) in enumerate(
                (("photo", "photo"), ("speech", "speech"), ("weighted", "both, weighed"))
            ):
                label, score, colour = (
                    found[head].label,
                    found[head].score,
                    _RIGHT if found[head].label == name else _WRONG,
                )
                text = f"{what}: {label} {score:.2f}"
                axes[1, column].text(0.5, 0.62 - 0.26 * row, text, ha="center", fontsize=9, color=colour)


def _frames(film: Path, seconds: float) -> list[Any]:
    """What is on screen in the middle of each photograph's time."""
    source, found = open_source(str(film), image="image", audio=None), dict[int, Any]()
    for sample in source.samples():
        number, within = divmod(sample.t / 1e9, seconds)
        if within > seconds / 2:
            found.setdefault(int(number), sample.data)
    source.close()
    return [found[number] for number in sorted(found)]


def _show(axis: Any, frame: Any) -> None:
    axis.imshow(frame[::2, ::2])
    axis.set_axis_off()


def _bars(axis: Any, scores: Any, names: Sequence[str]) -> None:
    places, best = np.arange(len(scores)), int(scores.argmax())
    axis.barh(places, scores, color=[_BEST if k == best else _OTHER for k in places])
    axis.set(xlim=(0, 1), ylim=(len(scores) - 0.4, -0.6), xticks=[])
    axis.set_yticks(places if names else [], names)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(length=0, labelsize=9)
    fits = scores[best] < 0.75
    place, colour = (scores[best] + 0.03, "black") if fits else (scores[best] - 0.2, "white")
    axis.text(place, best, f"{scores[best]:.2f}", va="center", fontsize=9, color=colour)


if __name__ == "__main__":
    main(*sys.argv[1:])
