"""Which fusion to choose: all on the same embeddings, clean, spoiled and with a modality missing; and what each costs.

    PYTHONPATH=examples python benchmarks/fusion.py [--task NAME] [--seeds 0,1,2] [--plot FILE.png] [--json FILE]

A task gives embeddings and labels (``Task``); another one is a function in ``TASKS``. Every fusion learns on top of the
same frozen encoders, from the same samples in the same order with the same modality dropout, the same number of steps.
About 8 minutes on two shared cores, most of which is the training of av_digits' encoders, once per seed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from av_digits.data import LABELS, SAMPLES, Recording, batches, degraded, material
from av_digits.degrade import lay_out, mix
from av_digits.model import STACK, audio_encoder
from av_digits.train import embed, train
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edge_mbm.export.speed import host, probe
from edge_mbm.models import (
    AttentionFusion,
    BottleneckFusion,
    ConcatFusion,
    GatedFusion,
    MultimodalModel,
    SingleModality,
    SumFusion,
)
from edge_mbm.training import FitOptions, fit, modality_dropout

FUSIONS: Mapping[str, type[nn.Module]] = {
    "concat": ConcatFusion,
    "sum": SumFusion,
    "attention": AttentionFusion,
    "gated": GatedFusion,
    "bottleneck": BottleneckFusion,
}
STEPS, BATCH, DROPOUT = 800, 128, 0.3
SPOILED = "degraded"
"""The test that is also made without each modality."""


@dataclass(frozen=True)
class Samples:
    """What encoders made of some recordings.

    Args:
        embeddings: modality -> float32[N, D].
        labels: int64[N].
    """

    embeddings: dict[str, Tensor]
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """Something to learn from several modalities at once.

    Args:
        training: to fit on.
        tests: by name; the one called "degraded" is also made without each modality.
        classes: how many.
    """

    training: Samples
    tests: dict[str, Samples]
    classes: int


@dataclass(frozen=True)
class Score:
    """How often one head was right under one condition.

    Args:
        head: a fusion, or "image only".
        condition: a test, or "image missing".
        accuracy: one for each seed.
    """

    head: str
    condition: str
    accuracy: tuple[float, ...]

    def __str__(self) -> str:
        low, high = min(self.accuracy), max(self.accuracy)
        return f"{statistics.mean(self.accuracy):.3f} ({low:.3f} - {high:.3f})"


@dataclass(frozen=True)
class Cost:
    """What a head takes.

    Args:
        head: its name.
        parameters: how many.
        us: a call at batch 1 on ONNX Runtime, one thread: median and quartiles, us.
        ratio: of the medians, to concatenation's.
    """

    head: str
    parameters: int
    us: tuple[float, float, float]
    ratio: float


# --- tasks -----------------------------------------------------------------------------------------------------------


def av_digits(seed: int) -> Task:
    """Handwritten and spoken digits: unseen images and an unseen human voice, clean and badly spoiled."""
    model = train(seed, 400)
    return Task(
        training=_streams(model, count=80, seed=1000 + seed),
        tests={
            "clean": _pairs(model, clean_digits(2000, seed=3)),
            SPOILED: _pairs(model, degraded(material("heldout"), 2000, 2, harsh=True)),
        },
        classes=len(LABELS),
    )


LEAST = 10
"""Photographs that a kind of things must have to be a class."""


def say_and_show(seed: int) -> Task:
    """Things shown and named, by their kinds: animals, food, ... of names and a voice that training never met.

    The encoders are trained already (ConSE; Whisper, then MiniLM), so that the seed changes heads only.
    """
    from zoo import say_and_show as task  # noqa: PLC0415 - loads Whisper, which digits need not
    from zoo import things  # noqa: PLC0415 - as above

    del seed
    kinds = things.kinds(LEAST)
    classes = sorted(set(kinds.values()))

    def of_kinds(given: task.Pairs) -> Samples:
        known = [kinds.get(things.names()[right]) for right in given.right.tolist()]
        rows = [row for row, kind in enumerate(known) if kind is not None]
        labels = torch.tensor([classes.index(kind) for kind in known if kind is not None])
        return Samples({"image": given.seen[rows], "audio": given.said[rows]}, labels)

    def said(level: str, *, spoiled: bool = False) -> Samples:
        return of_kinds(task.together(task.pairs(voice, level, spoiled=spoiled) for voice in things.TEST))

    return Task(
        training=of_kinds(task.training()),
        tests={
            "clean": said("clean"),
            SPOILED: said("10 dB", spoiled=True),
        },
        classes=len(classes),
    )


TASKS: Mapping[str, Callable[[int], Task]] = {"av_digits": av_digits, "say_and_show": say_and_show}


def clean_digits(count: int, seed: int) -> Iterator[Recording]:
    """Recordings as the test's, but not spoiled: noise 40 dB below the words, nothing hidden."""
    source, rng = material("heldout"), np.random.default_rng(seed)

    def draw(clips: Sequence[np.ndarray]) -> np.ndarray:
        return clips[rng.integers(len(clips))]

    for number in range(count):
        digits = itertools.chain([number % 10], iter(lambda: int(rng.integers(10)), None))
        words = lay_out(((digit, draw(source.words[digit]), -40.0) for digit in digits), SAMPLES, rng)
        image = np.repeat(draw(source.images[number % 10])[:, :, None], 3, axis=2)
        yield Recording(f"clean-{number:04d}", {"image": image, "audio": mix(words, SAMPLES, rng)}, number % 10)


def _pairs(model: MultimodalModel, pairs: Iterator[Recording]) -> Samples:
    listed = list(pairs)
    with torch.no_grad():
        return Samples(embed(model, listed), torch.tensor([pair.label for pair in listed]))


def _streams(model: MultimodalModel, count: int, seed: int) -> Samples:
    """Embeddings of fresh training batches: a frame and the moment of a word each."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    encoder = audio_encoder(model)
    with torch.no_grad():
        for batch in itertools.islice(batches(material("training"), 32, seed), count):
            every, _ = encoder.every_step(torch.from_numpy(batch.features), encoder.initial_state(len(batch.features)))
            heard = every[torch.from_numpy(batch.stream), torch.from_numpy(batch.frame) // STACK]
            seen = model.encoders["image"](torch.from_numpy(batch.images))
            parts.append((seen, heard, torch.from_numpy(batch.word)))
    image, audio, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Samples({"image": image, "audio": audio}, labels)


# --- learning --------------------------------------------------------------------------------------------------------


def scores_of(task: Task, seed: int) -> dict[tuple[str, str], float]:
    """(head, condition) -> accuracy, of every fusion and of each modality alone."""
    found = {}
    for name, kind in FUSIONS.items():
        head = _fused(kind, task, seed)
        for condition, samples, present in _conditions(task):
            found[name, condition] = _accuracy(head(*samples.embeddings.values(), present), samples.labels)
    for modality in task.training.embeddings:
        head = _alone(modality, task, seed)
        for test, samples in task.tests.items():
            found[f"{modality} only", test] = _accuracy(head(samples.embeddings[modality]), samples.labels)
    return found


def make(kind: type[nn.Module], task: Task, seed: int = 0) -> nn.Module:
    """An untrained fusion for a task, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(modalities=len(task.training.embeddings), dim=_dim(task), classes=task.classes)


def _fused(kind: type[nn.Module], task: Task, seed: int) -> nn.Module:
    head, dropout = make(kind, task, seed), torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        present = modality_dropout(len(rows), len(task.training.embeddings), DROPOUT, dropout)
        embeddings = [tensor[rows] for tensor in task.training.embeddings.values()]
        return cross_entropy(head(*embeddings, present), task.training.labels[rows])

    fit(head, _rows(task, seed), loss, FitOptions(steps=STEPS, seed=seed))
    return head


def _alone(modality: str, task: Task, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SingleModality(dim=_dim(task), classes=task.classes)
    embedding, labels = task.training.embeddings[modality], task.training.labels
    options = FitOptions(steps=STEPS, seed=seed)
    fit(head, _rows(task, seed), lambda rows: cross_entropy(head(embedding[rows]), labels[rows]), options)
    return head


def _conditions(task: Task) -> Iterator[tuple[str, Samples, Tensor]]:
    """Each test with everything, then the spoiled one without each modality."""
    count = len(task.training.embeddings)
    for name, samples in task.tests.items():
        yield name, samples, torch.ones(len(samples.labels), count)
    samples = task.tests[SPOILED]
    for index, modality in enumerate(samples.embeddings):
        present = torch.ones(len(samples.labels), count)
        present[:, index] = 0
        yield f"{modality} missing", samples, present


def _rows(task: Task, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(len(task.training.labels), (BATCH,), generator=generator)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


def _dim(task: Task) -> int:
    return next(iter(task.training.embeddings.values())).shape[1]


# --- cost ------------------------------------------------------------------------------------------------------------


def costs_of(task: Task) -> list[Cost]:
    """Every fusion on ONNX Runtime, in turn in one process, with buffers bound once."""
    heads = {name: make(kind, task).eval() for name, kind in FUSIONS.items()}
    names = [*task.training.embeddings, "present"]
    rows = {key: np.ones((1, _dim(task)), np.float32) for key in names} | {"present": np.ones((1, len(names) - 1), "f")}
    graphs = {name: exported(head, names, _dim(task)) for name, head in heads.items()}
    times = probe(graphs, rows, seconds=10.0).times_us
    quartiles = {name: statistics.quantiles(times[name], n=4) for name in heads}
    return [
        Cost(
            head=name,
            parameters=sum(weight.numel() for weight in head.parameters()),
            us=(quartiles[name][1], quartiles[name][0], quartiles[name][2]),
            ratio=quartiles[name][1] / quartiles["concat"][1],
        )
        for name, head in heads.items()
    ]


def exported(head: nn.Module, names: Sequence[str], dim: int) -> bytes:
    """The graph of a fusion at opset 20, its batch free."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1, max=64)
    example = (*(torch.zeros(2, dim) for _ in names[1:]), torch.ones(2, len(names) - 1))
    shapes = (tuple({0: batch} for _ in names),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            head,
            example,
            dynamo=True,
            opset_version=20,
            external_data=False,
            dynamic_shapes=shapes,
            input_names=list(names),
            verbose=False,
        )
    assert program is not None
    stream = io.BytesIO()
    program.save(stream)
    return stream.getvalue()


# --- showing ---------------------------------------------------------------------------------------------------------


def tables(scores: Sequence[Score], costs: Sequence[Cost]) -> Iterator[Table]:
    """Accuracy, then cost."""
    conditions = list(dict.fromkeys(score.condition for score in scores))
    shown = {(score.head, score.condition): str(score) for score in scores}
    seeds = len(scores[0].accuracy)
    accuracy = Table("", *conditions, title=f"Accuracy: mean (least - greatest) of {seeds} seeds")
    for head in dict.fromkeys(score.head for score in scores):
        accuracy.add_row(head, *(shown.get((head, condition), "") for condition in conditions))
    yield accuracy
    cost = Table("", "parameters", "us per call: median (quartiles)", "to concat", title=host())
    for row in costs:
        median, low, high = row.us
        cost.add_row(row.head, f"{row.parameters:,}", f"{median:.1f} ({low:.1f} - {high:.1f})", f"{row.ratio:.2f}x")
    yield cost


def plot(scores: Sequence[Score], path: Path) -> None:
    """Bars of the means, lines from the least to the greatest seed."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only for the picture

    heads = list(dict.fromkeys(score.head for score in scores))
    conditions = list(dict.fromkeys(score.condition for score in scores))
    axes = (figure := Figure(figsize=(9, 3.6), layout="constrained")).subplots()
    width = 0.8 / len(conditions)
    for index, condition in enumerate(conditions):
        own = [score for score in scores if score.condition == condition]
        means = [statistics.mean(score.accuracy) for score in own]
        below = [mean - min(score.accuracy) for mean, score in zip(means, own, strict=True)]
        above = [max(score.accuracy) - mean for mean, score in zip(means, own, strict=True)]
        places = [heads.index(score.head) + (index - (len(conditions) - 1) / 2) * width for score in own]
        axes.bar(places, means, width, yerr=[below, above], label=condition, error_kw={"elinewidth": 1})
    axes.set_xticks(range(len(heads)), heads)
    axes.set_ylim(math.floor(10 * min(min(score.accuracy) for score in scores)) / 10, 1.0)
    axes.set_ylabel("accuracy")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=len(conditions), loc="upper center", bbox_to_anchor=(0.5, 1.14), frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", choices=sorted(TASKS), default="av_digits")
    parser.add_argument("--seeds", default="0,1,2", help="of weights, data and dropout, separated by commas")
    parser.add_argument("--plot", type=Path, help="picture to write, .png")
    parser.add_argument("--json", type=Path, help="every figure, by seed")
    options = parser.parse_args(arguments)
    found: dict[tuple[str, str], list[float]] = {}
    for seed in map(int, options.seeds.split(",")):
        task = TASKS[options.task](seed)
        for key, accuracy in scores_of(task, seed).items():
            found.setdefault(key, []).append(accuracy)
    scores = [Score(head, condition, tuple(values)) for (head, condition), values in found.items()]
    costs = costs_of(task)
    for table in tables(scores, costs):
        Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in (*scores, *costs)], indent=2) + "\n")
    if options.plot:
        plot(scores, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
