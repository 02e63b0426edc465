"""Captions of a bundle beside transformers' own ``generate``: the same tokens, and how fast they come.

    PYTHONPATH=examples python benchmarks/generation.py captions.mbm .cache/zoo/captioner

Both on one thread of the same CPU, one picture at a time, in turn; on held-out scenes of ``examples/zoo/captioner.py``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from transformers import VisionEncoderDecoderModel
from zoo import captioner

import edge_mbm
from edge_mbm import SessionOptions

if TYPE_CHECKING:
    from edge_mbm import Session

_ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare on held-out scenes and print a table."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    model = VisionEncoderDecoderModel.from_pretrained(options.model).eval()
    shown = list(itertools.islice(captioner.scenes("heldout"), options.scenes))
    with edge_mbm.load(options.bundle) as bundle:
        sessions = {
            f"bundle, {name}": bundle.session(SessionOptions(variant=variant))
            for name, variant in (("fp32", "fp32"), ("fastest kept", "auto"))
        }
        ways: dict[str, Callable[[Any], list[int]]] = {"transformers": lambda image: _reference(model, image)}
        ways |= {name: _ours(session) for name, session in sessions.items()}
        _compare(ways, shown)
        for session in sessions.values():
            session.close()


def _compare(ways: dict[str, Callable[[Any], list[int]]], shown: list[captioner.Scene]) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[list[int]]] = {}
    for _ in range(_ROUNDS):
        for name, write in ways.items():
            started = perf_counter()
            texts[name] = [write(scene.image) for scene in shown]
            speeds[name].append(sum(map(len, texts[name])) / (perf_counter() - started))
    print(f"{len(shown)} scenes, {_ROUNDS} rounds{'':24}tokens/s (min..max)   same tokens   right captions")
    for name, found in speeds.items():
        same = sum(a == b for a, b in zip(texts[name], texts["transformers"], strict=True))
        right = sum(_text(a) == scene.caption for a, scene in zip(texts[name], shown, strict=True))
        middle, low, high = statistics.median(found), min(found), max(found)
        print(f"{name:40}{middle:9.0f} ({low:.0f}..{high:.0f}) {same:9} of {len(shown)} {right:9} of {len(shown)}")


def _reference(model: Any, image: Any) -> list[int]:
    with torch.inference_mode():
        written = model.generate(captioner.pixels_of([image]), do_sample=False, num_beams=1)
    tokens: list[int] = written[0].tolist()[1:]
    return tokens


def _ours(session: Session) -> Callable[[Any], list[int]]:
    return lambda image: [piece.token for piece in session.generate("caption", image=image)]


def _text(tokens: Sequence[int]) -> str:
    return " ".join(captioner.VOCABULARY[token] for token in tokens if token != captioner.END)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="made from export/captions.toml")
    parser.add_argument("model", type=Path, help="the directory that it was made from")
    parser.add_argument("--scenes", type=int, default=200)
    return parser


if __name__ == "__main__":
    main()
