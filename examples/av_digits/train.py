"""Train the encoders and the heads, and print how each does on what it has never seen or heard.

The encoders learn from their own modality alone, so the single-modality baselines are as good as they can be made; the
fusion heads learn on top, with modality dropout.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from av_digits.cache import write_arrays, write_whole
from av_digits.data import LOG_MEL, Batch, Recording, batches, degraded, gray, material
from av_digits.model import FUSIONS, MODALITIES, STACK, audio_encoder, build, weights_path
from edge_mbm.errors import EdgeMbmError
from edge_mbm.models import MultimodalModel
from edge_mbm.training import FitOptions, fit, modality_dropout

__all__ = ["embed", "evaluate", "train"]

_CONSOLE = Console(highlight=False)
_STEPS = 400
_STREAMS = 32
_TEST_PAIRS = 2000
_TEST_SEED = 2

Accuracies = dict[str, dict[str, float]]


def train(seed: int, steps: int) -> MultimodalModel:
    """Train on synthetic voices and the training images.

    Args:
        seed: of weights, data and dropout.
        steps: of the optimizer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    dropout = torch.Generator().manual_seed(seed)
    with _progress() as progress:
        bar = progress.add_task("training", total=steps, loss="")
        fit(
            model,
            batches(material("training"), _STREAMS, seed=100 + seed),
            lambda batch: _loss(model, batch, dropout),
            FitOptions(steps=steps, seed=seed),
            lambda step, loss: progress.update(bar, completed=step, loss=f"loss {loss:.2f}"),
        )
    return model


def evaluate(model: MultimodalModel, pairs: list[Recording]) -> Accuracies:
    """Accuracy of every head with both modalities, without the image and without the sound.

    Args:
        model: trained.
        pairs: recordings with their truth.

    Returns:
        Head -> "both", "image missing", "audio missing" -> share of right answers. A single-modality head has only
        "both".
    """
    labels = torch.tensor([pair.label for pair in pairs])
    with torch.inference_mode():
        embeddings = embed(model, pairs)
        scores = {name: {"both": _accuracy(model.heads[name](embeddings[name]), labels)} for name in MODALITIES}
        for name in FUSIONS:
            scores[name] = {
                title: _accuracy(
                    model.heads[name](*embeddings.values(), torch.tensor([mask]).expand(len(pairs), 2)), labels
                )
                for title, mask in (("both", [1.0, 1.0]), ("image missing", [0.0, 1.0]), ("audio missing", [1.0, 0.0]))
            }
    return scores


def embed(model: MultimodalModel, pairs: list[Recording]) -> dict[str, Tensor]:
    """What the encoders make of recordings: modality -> float32[recordings, D].

    Args:
        model: trained.
        pairs: recordings.
    """
    images = torch.from_numpy(np.stack([gray(pair.inputs["image"]) for pair in pairs]))
    features = torch.from_numpy(np.stack([LOG_MEL(pair.inputs["audio"].astype(np.float32)) for pair in pairs]))
    encoder = audio_encoder(model)
    embedding, _ = encoder(features, encoder.initial_state(len(pairs)))
    return {"image": model.encoders["image"](images), "audio": embedding}


def _loss(model: MultimodalModel, batch: Batch, dropout: torch.Generator) -> Tensor:
    encoder = audio_encoder(model)
    every, _ = encoder.every_step(torch.from_numpy(batch.features), encoder.initial_state(len(batch.features)))
    # A step of the GRU sees up to the last of its frames.
    labels, digits = torch.from_numpy(batch.labels)[:, STACK - 1 :: STACK], torch.from_numpy(batch.word)
    image = model.encoders["image"](torch.from_numpy(batch.images))
    audio = every[torch.from_numpy(batch.stream), torch.from_numpy(batch.frame) // STACK]
    asked = labels >= 0
    loss = cross_entropy(model.heads["audio"](every[asked]), labels[asked])
    loss = loss + cross_entropy(model.heads["image"](image), digits)
    present = modality_dropout(len(digits), 2, 0.3, dropout)
    for name in FUSIONS:
        loss = loss + cross_entropy(model.heads[name](image.detach(), audio.detach(), present), digits)
    return loss


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


def _table(scores: Accuracies) -> Table:
    table = Table(title="Unseen digits, unseen voice, both spoiled")
    columns = ("both", "image missing", "audio missing")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, row in scores.items():
        title = f"{name} only" if name in MODALITIES else name
        table.add_row(title, *(f"{row[column]:.3f}" if column in row else "n/a" for column in columns))
    return table


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        console=_CONSOLE,
    )


def _save(model: MultimodalModel, scores: Accuracies, path: Path) -> None:
    write_arrays(path, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    write_whole(path.with_suffix(".json"), lambda file: file.write_text(json.dumps(scores, indent=2) + "\n"))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m av_digits.train", description="Train the audio-visual digits.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="weights file to write, .npz (default: in the cache)")
    options = parser.parse_args(arguments)
    try:
        model = train(options.seed, _STEPS)
        pairs = degraded(material("heldout"), _TEST_PAIRS, _TEST_SEED, harsh=True)
        scores = evaluate(model, list(track(pairs, "test pairs", total=_TEST_PAIRS, console=_CONSOLE)))
        _save(model, scores, options.out or weights_path())
    except EdgeMbmError as error:
        _CONSOLE.print(f"error: {error}")
        return error.exit_code
    _CONSOLE.print(_table(scores))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
