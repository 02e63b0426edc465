"""Say and show: a thing held to the camera and its name spoken, each to a point among sentences, and the two weighed.

The photograph goes through ConSE (``zoo.zero_shot``). The speech goes through Whisper to a text, and the text through
MiniLM: the conversion of one modality to another. So both are points in one space, in which the names of all things are
points too, and a fusion is a weighted mean of the two: with equal weights, by how sure each modality is of itself, or
by an attention that is trained. Where one is missing, the other has all the weight.

    PYTHONPATH=examples python -m zoo.minilm .cache/zoo/minilm && PYTHONPATH=examples python -m zoo.whisper .cache/zoo
    edge-mbm export export/say_and_show.toml -o say_and_show.mbm
    PYTHONPATH=examples python -m zoo.say_and_show [say_and_show.mbm]    # the table; and the bundle held against it

What is fitted (two confidences, an attention, temperatures) is fitted on the stamps that are not held out and one
synthetic voice; the table is of the others, and of other voices. All names are candidates in both.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from av_digits.cache import read_arrays, write_arrays
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

import edge_mbm
from edge_mbm.errors import InputError
from edge_mbm.models import MultimodalModel
from edge_mbm.models.similarity import unit
from edge_mbm.preprocess import ImagePreprocessor
from edge_mbm.runtime.result import ClassificationOutput
from edge_mbm.spec import ImageSteps
from edge_mbm.training import FitOptions, fit, modality_dropout
from zoo import speech, things, whisper, zero_shot
from zoo.packages import cache_folder
from zoo.photos import recordings as photographs
from zoo.stamps import Stamp, describe, stamps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Attention", "Confidence", "Equal", "Fused", "Pairs", "Recording", "Single", "load", "pairs", "recordings"]

MODALITIES = ("image", "audio")
SECONDS = 10
"""Of an utterance, a third of what Whisper was made for and a third of the time; at 5 it repeats itself."""
TOP = 8
"""Similarities by which a modality's certainty is judged, from the greatest."""
SEEDS = (0, 1, 2)
_HIDDEN, _STEPS, _BATCH, _DROPOUT = 16, 400, 128, 0.2
_NEVER = -1e4  # the score of what is missing, as in edge_mbm.models.fusion


# --- heads -----------------------------------------------------------------------------------------------------------


class Single(nn.Module):
    """One modality: the cosine of its point with each name's, times ``scale``.

    Args:
        names: the points of all names, float32[N, D].
        scale: inverse temperature of the softmax over names.
    """

    names: Tensor
    scale: Tensor

    def __init__(self, names: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("names", unit(names))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, embedding: Tensor) -> Tensor:
        """float32[B, D] to logits float32[B, N]."""
        logits: Tensor = unit(embedding) @ self.names.T * self.scale
        return logits


class Equal(nn.Module):
    """The same weight for every modality: their sum."""

    def forward(self, cosines: Tensor) -> Tensor:
        """float32[B, M, N] to the logarithms of weights, float32[B, M]."""
        return cosines.new_zeros(()) * cosines[:, :, 0]


class Confidence(nn.Module):
    """Each modality by how probable it is that it is right, judged by its own similarities to the names.

    A logistic regression (Platt 1999) on the greatest cosine and its distance from the second, one for each modality.
    That streams should be weighed by how reliable they are at the moment is Potamianos et al. 2003.

    Args:
        modalities: how many.
    """

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(modalities, 2))
        self.bias = nn.Parameter(torch.zeros(modalities))

    def forward(self, cosines: Tensor) -> Tensor:
        """float32[B, M, N] to the logarithms of weights, float32[B, M]."""
        return logsigmoid(self.odds(cosines))

    def odds(self, cosines: Tensor) -> Tensor:
        """The logarithm of the odds that each modality is right, float32[B, M]."""
        best, second = cosines.topk(2, dim=2).values.unbind(2)
        odds: Tensor = (torch.stack([best, best - second], 2) * self.weight).sum(2) + self.bias
        return odds


class Attention(nn.Module):
    """A learnt query attends over the modalities (Vaswani et al. 2017), whose keys are made of their similarities.

    Of the greatest ones in order, not of which names they are to: so it can weigh what it is shown under names that it
    never learnt from.

    Args:
        modalities: how many.
    """

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.key = nn.ModuleList(
            nn.Sequential(nn.Linear(TOP, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN)) for _ in range(modalities)
        )
        self.query = nn.Parameter(torch.randn(_HIDDEN) / math.sqrt(_HIDDEN))

    def forward(self, cosines: Tensor) -> Tensor:
        """float32[B, M, N] to scores float32[B, M]."""
        top = cosines.topk(TOP, dim=2).values
        keys = torch.stack([key(top[:, index]) for index, key in enumerate(self.key)], 1)
        scores: Tensor = keys @ self.query / math.sqrt(_HIDDEN)
        return scores


class Fused(Single):
    """Points of several modalities, weighed, to one; then as ``Single``.

    Args:
        names: as for ``Single``.
        weigh: cosines float32[B, M, N] to scores float32[B, M], whose softmax over what is there is the weights.
        scale: as for ``Single``.
    """

    def __init__(self, names: Tensor, weigh: nn.Module, scale: float = 1.0) -> None:
        super().__init__(names, scale)
        self.weigh = weigh

    def forward(self, *inputs: Tensor) -> Tensor:
        """Points float32[B, D] of each modality and the mask float32[B, M], 1 where one is there, to float32[B, N]."""
        *points, mask = inputs
        present = mask.unsqueeze(2) > 0.5
        # Chosen, not multiplied: what stands in for a missing one may be NaN.
        known = unit(torch.stack(points, 1).masked_fill(~present, 0.0))
        scores = self.weigh(known @ self.names.T).masked_fill(~present[:, :, 0], _NEVER)
        return super().forward((scores.softmax(1).unsqueeze(2) * known).sum(1))


# --- what they learn from --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Photographs with utterances of their names, as points.

    Args:
        seen: float32[pairs, D].
        said: float32[pairs, D].
        right: int64[pairs], which of the names it is.
    """

    seen: Tensor
    said: Tensor
    right: Tensor


@functools.cache
def name_points() -> Tensor:
    """The point of every name, "a photo of a toucan": float32[N, D]."""
    return points([describe(name) for name in things.names()])


@torch.inference_mode()
def points(texts: Sequence[str]) -> Tensor:
    """MiniLM's point of each text, float32[texts, D]."""
    sentence = zero_shot.load().get_submodule("encoders.text.encoder")
    return torch.cat([sentence(*zero_shot.tokens([text])) for text in texts]).clone()


@functools.cache
def seen(*, heldout: bool, spoiled: bool) -> Tensor:
    """ConSE's point of the stamps of one half, float32[stamps, D], in their order; in the user's cache from then on."""
    which = f"{'heldout' if heldout else 'learnt'}-{things.spoiling() if spoiled else 'clean'}"
    kept = cache_folder() / f"conse-lite1-{which}.npz"
    if not kept.exists():
        write_arrays(kept, {"points": _look(heldout=heldout, spoiled=spoiled).numpy()})
    return torch.from_numpy(read_arrays(kept)["points"].astype(np.float32))


def _look(*, heldout: bool, spoiled: bool) -> Tensor:
    model, prepare = zero_shot.load(), ImagePreprocessor(ImageSteps(height=zero_shot.SIDE, width=zero_shot.SIDE))
    photos = track(half(heldout=heldout), "looking at photographs", transient=True)
    pictures = (prepare(things.shown(stamp, spoiled=spoiled)) for stamp in photos)
    with torch.inference_mode():
        found = [model.encoders["conse"](model.encoders["image"](torch.from_numpy(image))) for image in pictures]
    return torch.cat(found).clone()


@functools.cache
def texts(voice: str) -> Mapping[str, str]:
    """What Whisper makes of a voice's utterances, of the half that it speaks in: in the user's cache from then on."""
    kept = cache_folder() / f"heard-whisper-tiny.en-{SECONDS}s.json"
    speaks = things.utterances(half(heldout=voice not in things.TRAINING), voice)
    return things.heard(speaks, listen, kept, what=f"listening to {voice}")


@torch.inference_mode()
def listen(sound: NDArray[np.float32]) -> str:
    """Whisper's text of one utterance, the likeliest token at each step."""
    samples = torch.from_numpy(speech.fitted(sound, SECONDS * speech.RATE))[None]
    return whisper.transcribe(whisper.load()(samples).numpy())[0]


def half(*, heldout: bool) -> list[Stamp]:
    """The stamps that are held out, or the others."""
    return [stamp for stamp in stamps() if stamp.heldout == heldout]


@functools.cache
def pairs(voice: str, level: str, *, spoiled: bool = False) -> Pairs:
    """Each photograph with the utterance of its name by a voice, at a level of ``things.LEVELS``."""
    heldout = voice not in things.TRAINING
    heard = texts(voice)
    chosen = [
        (row, heard[key])
        for row, stamp in enumerate(half(heldout=heldout))
        if (key := things.utterance(stamp, voice, level)) in heard
    ]
    rows = [row for row, _ in chosen]
    names = [half(heldout=heldout)[row].name for row in rows]
    right = torch.tensor([things.names().index(name) for name in names])
    return Pairs(seen(heldout=heldout, spoiled=spoiled)[rows], points([text for _, text in chosen]), right)


def together(parts: Iterable[Pairs]) -> Pairs:
    """All of them, one after the other."""
    columns = zip(*((part.seen, part.said, part.right) for part in parts), strict=True)
    seen, said, right = (torch.cat(column) for column in columns)
    return Pairs(seen, said, right)


@functools.cache
def training() -> Pairs:
    """All that may be learnt from: at each level, with the photograph clean and spoiled."""
    conditions = itertools.product(things.TRAINING, things.LEVELS, (False, True))
    return together(pairs(voice, level, spoiled=spoiled) for voice, level, spoiled in conditions)


# --- fitting ---------------------------------------------------------------------------------------------------------


@functools.cache
def load() -> MultimodalModel:
    """The heads ``photo``, ``speech``, ``sum``, ``weighted`` and ``attention``.

    The first time some minutes are spent on listening to what is learnt from.

    Raises:
        MissingDependencyError: a package that ships code or weights, or a synthesizer, is not installed.
    """
    return MultimodalModel({}, heads(SEEDS[0])).eval()


def heads(seed: int) -> dict[str, nn.Module]:
    """All of them; the seed is of the attention's beginning and of the order in which it sees its pairs."""
    learnt, names = training(), name_points()
    made: dict[str, nn.Module] = {
        "photo": Single(names),
        "speech": Single(names),
        "sum": Fused(names, Equal()),
        "weighted": Fused(names, confidence(learnt, names)),
        "attention": attention(learnt, names, seed),
    }
    for name, head in made.items():
        set_scale(head, logits(head, name, learnt), learnt.right)
    return made


def confidence(learnt: Pairs, names: Tensor) -> Confidence:
    """Fitted to when each modality alone is right, by Newton-like steps until it is certain (L-BFGS)."""
    model = Confidence(len(MODALITIES))
    cosines = torch.stack([learnt.seen, learnt.said], 1) @ names.T
    right = (cosines.argmax(2) == learnt.right[:, None]).float()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(model.odds(cosines), right)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return model


def attention(learnt: Pairs, names: Tensor, seed: int) -> Fused:
    """Trained on the names themselves, with modality dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Fused(names, Attention(len(MODALITIES)), zero_shot.SCALE)
    dropout, order = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        present = modality_dropout(len(rows), len(MODALITIES), _DROPOUT, dropout)
        return cross_entropy(head(learnt.seen[rows], learnt.said[rows], present), learnt.right[rows])

    batches = (torch.randint(len(learnt.right), (_BATCH,), generator=order) for _ in itertools.count())
    fit(head, batches, loss, FitOptions(steps=_STEPS, seed=seed))
    return head


@torch.inference_mode()
def logits(head: nn.Module, name: str, given: Pairs, present: Sequence[float] = (1.0, 1.0)) -> Tensor:
    """What a head, known by its name, makes of pairs, float32[pairs, N]."""
    if name in ("photo", "speech"):
        found: Tensor = head(given.seen if name == "photo" else given.said)
    else:
        found = head(given.seen, given.said, torch.tensor([list(present)] * len(given.right)))
    return found


def set_scale(head: nn.Module, given: Tensor, right: Tensor) -> None:
    """The scale at which the right names are likeliest, so that scores are probabilities; no name changes place."""
    assert isinstance(head, Single)
    cosines, scales = given / head.scale, torch.arange(1.0, 60.0)
    losses = [float(cross_entropy(cosines * scale, right)) for scale in scales]
    head.scale.fill_(float(scales[int(np.argmin(losses))]))


# --- recordings for the export ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A photograph and what was said, and which name it is; None where it has none of them."""

    id: str
    inputs: dict[str, Any]
    label: int | None


_GOLDEN = {"astronaut": "astronaut", "chelsea": "cat", "coffee": "cup of coffee", "rocket": "rocket"}


def recordings(split: str) -> Iterator[Recording]:
    """Photographs with utterances, always the same ones in the same order.

    Args:
        split: "heldout" and "calibration": stamps of that half with a voice of that half, at each level in turn, every
            other one spoiled; "golden": photographs that are free of anyone's rights.

    Raises:
        InputError: another split.
        EdgeMbmError: a package that has pictures, or a synthesizer, is missing.
    """
    if split == "golden":
        for photo in photographs("golden"):
            [name] = (name for key, name in _GOLDEN.items() if photo.id.endswith(key))
            voice = speech.Voice("flite", ("-voice", things.TRAINING[0]))
            inputs = {"image": photo.inputs["image"], "audio": speech.say(things.sentence(name), voice)}
            yield Recording(photo.id, inputs, None)
    elif split in ("heldout", "calibration"):
        yield from _stamped(heldout=split == "heldout")
    else:
        raise InputError(f"no split is called {split!r}: there are calibration, heldout, golden")


def _stamped(*, heldout: bool) -> Iterator[Recording]:
    chosen, voice = half(heldout=heldout), (things.TEST if heldout else things.TRAINING)[0]
    levels, known = itertools.cycle(things.LEVELS.items()), things.names()
    for number, index in enumerate(np.random.default_rng(0).permutation(len(chosen))):
        stamp, (level, snr_db) = chosen[index], next(levels)
        image = things.shown(stamp, spoiled=number % 2 == 1)
        inputs = {"image": image, "audio": things.said(stamp, voice, snr_db)}
        yield Recording(f"{number:03d}-{level.replace(' ', '')}-{stamp.path}", inputs, known.index(stamp.name))


# --- how good it is --------------------------------------------------------------------------------------------------

METHODS = ("photo", "speech", "sum", "weighted", "attention")


def rights(voices: Sequence[str], level: str, *, spoiled: bool) -> dict[str, NDArray[np.bool_]]:
    """Per method whether each held-out pair is named rightly; of the attention a row for each seed."""
    given = together(pairs(voice, level, spoiled=spoiled) for voice in voices)
    found = {}
    for name in METHODS:
        made = [fitted(seed)[name] for seed in (SEEDS if name == "attention" else SEEDS[:1])]
        found[name] = np.stack([(logits(head, name, given).argmax(1) == given.right).numpy() for head in made])
    return found


@functools.cache
def fitted(seed: int) -> dict[str, nn.Module]:
    """``heads``, once for each seed."""
    return heads(seed)


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share at 95 % (Wilson 1927)."""
    share, spread = right / total, z * z / total
    middle = share + spread / 2
    reach = z * math.sqrt(share * (1 - share) / total + spread / total / 4)
    return (middle - reach) / (1 + spread), (middle + reach) / (1 + spread)


def table() -> Iterator[str]:
    """R@1 of every method, by who speaks, photograph and level."""
    for voices in (things.TEST, (things.HUMAN,)):
        count = len(together(pairs(voice, "clean") for voice in voices).right)
        yield f"\n{' and '.join(voices)}: {count} pairs of held-out names, {len(things.names())} names to choose from"
        yield f"{'photo':9}{'speech':7}" + "".join(f"{name:>20}" for name in METHODS)
        for spoiled, level in itertools.product((False, True), things.LEVELS):
            found = rights(voices, level, spoiled=spoiled)
            cells = "".join(f"{_cell(found[name]):>20}" for name in METHODS)
            yield f"{'spoiled' if spoiled else 'clean':9}{level:7}{cells}"


def _cell(right: NDArray[np.bool_]) -> str:
    shares = right.mean(1)
    if len(shares) > 1:
        return f"{shares.mean():.3f} ({shares.min():.3f}-{shares.max():.3f})"
    low, high = wilson(int(right.sum()), right.size)
    return f"{shares[0]:.3f} ({low:.3f}-{high:.3f})"


def agreement(bundle: str, every: int = 12) -> Iterator[str]:
    """How often a bundle gives the name that the framework gives, from photograph and sound, on every so many pairs."""
    voice = things.TEST[0]
    with edge_mbm.load(bundle) as opened, opened.session(edge_mbm.SessionOptions(heads=METHODS)) as session:
        same = dict.fromkeys(METHODS, 0)
        asked = list(itertools.product(range(0, len(half(heldout=True)), every), things.LEVELS))
        for row, level in track(asked, "the bundle", transient=True):
            stamp = half(heldout=True)[row]
            sound = things.said(stamp, voice, things.LEVELS[level])
            given = pairs(voice, level)
            for result in session.infer(image=things.shown(stamp), audio=sound):
                assert isinstance(result.output, ClassificationOutput)
                check_names(result.output.labels)
                one = logits(fitted(SEEDS[0])[result.head], result.head, given)[row]
                same[result.head] += result.output.label == things.names()[int(one.argmax())]
    yield f"\n{bundle} gives the framework's name, of {len(asked)} pairs: {same}"


def check_names(labels: Sequence[str]) -> None:
    """That a bundle's labels are the names of the stamps that are installed.

    Raises:
        InputError: they are not.
    """
    if tuple(labels) != things.names():
        raise InputError(
            f"the bundle has {len(labels)} names, the stamps here have {len(things.names())}, or others: put what "
            "zoo.things.names() gives in the recipe's labels, and export it again"
        )


def main(arguments: list[str]) -> int:
    """Print the table, and hold a bundle against it."""
    if len(arguments) > 1 or not all(Path(path).exists() for path in arguments):
        print("usage: python -m zoo.say_and_show [say_and_show.mbm]", file=sys.stderr)
        return 2
    for line in itertools.chain(table(), *map(agreement, arguments)):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
