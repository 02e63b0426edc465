"""A small CLIP learnt from pairs alone: photographs and what people call them, and no class in sight.

Two small projections are trained onto frozen features, EfficientNet-Lite1's of the picture and MiniLM's of the
caption, with ``edge_mbm.training.contrastive_loss``. Half of the stamps are learnt from. The other half, whose names
do not occur in the first, tell how well it works: which of the held-out names does a picture belong to?

    PYTHONPATH=examples python -m zoo.contrastive
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edge_mbm.models import Similarity
from edge_mbm.models.similarity import unit
from edge_mbm.preprocess import ImagePreprocessor
from edge_mbm.spec import ImageSteps
from edge_mbm.training import FitOptions, contrastive_loss, fit
from zoo import zero_shot
from zoo.photos import on_grey
from zoo.stamps import Stamp, describe, stamps
from zoo.zero_shot import SIDE, ranks, recall

__all__ = ["SmallClip", "captions", "learn"]

CAPTIONS: tuple[Callable[[str], str], ...] = (describe, str, lambda name: f"this is the {name}")
WIDTH, BATCH, STEPS = 256, 128, 150


class SmallClip(nn.Module):
    """Two projections into one space, and CLIP's temperature.

    Args:
        seen: width of the pictures' features.
        said: width of the captions'.
        width: of the shared space.
        dropout: of the features; there are far more of them than pairs.
    """

    def __init__(self, seen: int, said: int, *, width: int = WIDTH, dropout: float = 0.5) -> None:
        super().__init__()
        self.image, self.text = (
            nn.Sequential(nn.LayerNorm(inputs), nn.Dropout(dropout), nn.Linear(inputs, width))
            for inputs in (seen, said)
        )
        self.head = Similarity()

    def forward(self, seen: Tensor, said: Tensor) -> Tensor:
        """Features float32[B, seen] and float32[B, lines, said] to logits float32[B, lines]."""
        logits: Tensor = self.head(self.image(seen), self.text(said))
        return logits


class Pairs(NamedTuple):
    """Frozen features of some stamps."""

    seen: Tensor
    """float32[stamps, 2, 1280]: the picture and its mirror image."""
    said: Tensor
    """float32[stamps, captions, 384]."""
    names: Tensor
    """int64[stamps]: equal where the names are."""


def captions(name: str) -> list[str]:
    """What a stamp may be called."""
    return [caption(name) for caption in CAPTIONS]


def features(chosen: Sequence[Stamp]) -> Pairs:
    """What the frozen encoders make of stamps and captions."""
    model, prepare = zero_shot.load(), ImagePreprocessor(ImageSteps(height=SIDE, width=SIDE))
    see, read = (model.get_submodule(f"encoders.{name}") for name in ("image", "text.encoder"))
    names = list(dict.fromkeys(stamp.name for stamp in chosen))
    with torch.inference_mode():
        frames = [torch.from_numpy(prepare(on_grey(stamp.path))) for stamp in chosen]
        seen = [see(torch.cat([frame, frame.flip(2)])) for frame in frames]
        said = [read(*zero_shot.tokens(captions(stamp.name))) for stamp in chosen]
    numbers = torch.tensor([names.index(stamp.name) for stamp in chosen])
    # Clones, since what inference mode made can take no part in training.
    return Pairs(torch.stack(seen).clone(), torch.stack(said).clone(), numbers)


def learn(pairs: Pairs, seed: int = 0) -> SmallClip:
    """Train on pairs: pictures or their mirror images, with one of their captions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallClip(pairs.seen.shape[-1], pairs.said.shape[-1])

    def loss(batch: Pairs) -> Tensor:
        return contrastive_loss(model.image(batch.seen), model.text(batch.said), model.head.log_scale, batch.names)

    fit(model, _batches(pairs, seed), loss, FitOptions(steps=STEPS, learning_rate=1e-3, weight_decay=0.1, seed=seed))
    return model


def _batches(pairs: Pairs, seed: int) -> Iterator[Pairs]:
    rng = np.random.default_rng(seed)
    while True:
        chosen = torch.from_numpy(rng.choice(len(pairs.names), min(BATCH, len(pairs.names)), replace=False))
        view, caption = (torch.from_numpy(rng.integers(x.shape[1], size=len(chosen))) for x in pairs[:2])
        yield Pairs(pairs.seen[chosen, view], pairs.said[chosen, caption], pairs.names[chosen])


def recalls(seen: Tensor, said: Tensor, names: Tensor) -> list[float]:
    """R@1 and R@5 of unit vectors, each name counted once."""
    first = [names.tolist().index(name) for name in sorted(set(names.tolist()))]
    places = ranks(seen.numpy(), said[first].numpy(), names.tolist())
    return [recall(places, k) for k in (1, 5)]


def main() -> int:
    """Learn with several seeds, and print R@1 and R@5 on what was held out."""
    known, unknown = (features([s for s in stamps() if s.heldout == heldout]) for heldout in (False, True))
    count = len(set(unknown.names.tolist()))
    print(
        f"{len(known.names)} photos learnt from; {len(unknown.names)} held out, of {count} names, none of them learnt"
    )
    print(f"{'':36}{'R@1':>7}{'R@5':>7}")
    print(f"{'chance':36}{1 / count:7.3f}{5 / count:7.3f}")
    started, found = time.monotonic(), []
    for seed in range(5):
        model = learn(known, seed)
        with torch.inference_mode():
            seen, said = unit(model.image(unknown.seen[:, 0])), unit(model.text(unknown.said[:, 0]))
        found.append(recalls(seen, said, unknown.names))
    spent, mean, spread = time.monotonic() - started, np.mean(found, 0), np.std(found, 0)
    print(f"{'contrastive, mean of 5 seeds':36}{mean[0]:7.3f}{mean[1]:7.3f}   +- {spread[0]:.3f}, {spread[1]:.3f}")
    with torch.inference_mode():
        conse = zero_shot.load().get_submodule("encoders.conse")(unknown.seen[:, 0])
    first, fifth = recalls(conse, unknown.said[:, 0], unknown.names)
    print(f"{'ConSE (ImageNet has taught it names)':36}{first:7.3f}{fifth:7.3f}")
    print(f"trained in {spent / 5:.0f} s each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
