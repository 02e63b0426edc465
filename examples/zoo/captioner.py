"""A small image captioner of the VisionEncoderDecoder kind, trained here on scenes of MNIST's digits.

A vision transformer sees two coloured digits, a GPT-2 with cross-attention says which and how they stand: "a red three
left of a blue seven". Both are transformers' own classes with small configurations, and what is written is a directory
as ``save_pretrained`` writes it, with its ``tokenizer.json``: a trained captioner of yours goes the same way.

    python examples/zoo/captioner.py .cache/zoo/captioner     # trains, a few minutes of one core
    edge-mbm export export/captions.toml -o captions.mbm

Training scenes are of the 8,000 digits that the audio-visual example trains on too, the others of the other 2,000.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from av_digits.cache import cached
from av_digits.sources import WORDS, mnist

from edge_mbm.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Recording", "Scene", "caption_accuracy", "recordings", "scenes", "train"]

SIDE, CELL, JITTER = 64, 28, 2
COLOURS = {"red": (255, 70, 70), "green": (70, 220, 70), "blue": (90, 120, 255), "white": (255, 255, 255)}
RELATIONS = {"left of": (0, 1), "above": (1, 0)}  # rows and columns from the first digit to the second
VOCABULARY = ("<pad>", "<start>", "<end>", "<unknown>", "a", "left", "of", "above", *COLOURS, *WORDS)
PAD, START, END = 0, 1, 2
LONGEST = 16  # tokens of a text, which the decoder has positions for
STEPS, BATCH, RATE = 1200, 64, 1e-3
_TRAIN_IMAGES = 8000
_SPLITS = {"training": 0, "calibration": 1, "heldout": 2, "golden": 3}  # a seed each


class Scene(NamedTuple):
    """Two digits on black, and what is to be said of them."""

    image: NDArray[np.uint8]
    """uint8[64, 64, 3], RGB."""
    caption: str


@dataclass(frozen=True)
class Recording:
    """A scene as a device takes it in; ``label`` is its number in its split, see ``caption_of``."""

    id: str
    inputs: dict[str, Any]
    label: int


def scenes(split: str) -> Iterator[Scene]:
    """Scenes without end, the same ones in the same order.

    Raises:
        InputError: there is no such split.
    """
    if split not in _SPLITS:
        raise InputError(f"no split is called {split!r}: there are {', '.join(_SPLITS)}")
    images, labels = _digits(unseen=split in ("heldout", "golden"))
    rng = np.random.default_rng(_SPLITS[split])
    while True:
        yield _scene(images, labels, rng)


def recordings(split: str) -> Iterator[Recording]:
    """The first 500 scenes of a split; see ``scenes``."""
    for number, scene in zip(range(500), scenes(split), strict=False):
        yield Recording(f"{split}-{number:03d}", {"image": scene.image}, number)


def caption_accuracy(outputs: Mapping[str, NDArray[Any]], labels: Sequence[int]) -> float:
    """Share of held-out scenes whose caption is right, every word of it.

    Args:
        outputs: "text": str[recordings].
        labels: each recording's number among the held-out scenes.
    """
    known = [scene.caption for _, scene in zip(range(max(labels) + 1), scenes("heldout"), strict=False)]
    return float(np.mean([str(text) == known[label] for text, label in zip(outputs["text"], labels, strict=True)]))


def _scene(images: NDArray[np.uint8], labels: NDArray[np.int64], rng: np.random.Generator) -> Scene:
    relation = str(rng.choice(list(RELATIONS)))
    step = np.array(RELATIONS[relation])
    first = np.where(step == 1, 0, rng.integers(2, size=2))
    canvas, said = np.zeros((SIDE, SIDE, 3), np.uint8), []
    for cell in (first, first + step):
        number, colour = rng.integers(len(labels)), str(rng.choice(list(COLOURS)))
        row, column = cell * (SIDE // 2) + JITTER + rng.integers(-JITTER, JITTER + 1, 2)
        canvas[row : row + CELL, column : column + CELL] = images[number][..., None] * (np.array(COLOURS[colour]) / 255)
        said.append(f"a {colour} {WORDS[labels[number]]}")
    return Scene(canvas, f" {relation} ".join(said))


@functools.cache
def _digits(*, unseen: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    arrays = cached("mnist", mnist)
    order = np.random.default_rng(0).permutation(len(arrays["labels"]))  # as in av_digits: the same ones are held out
    chosen = order[_TRAIN_IMAGES:] if unseen else order[:_TRAIN_IMAGES]
    return arrays["images"][chosen].astype(np.uint8), arrays["labels"][chosen].astype(np.int64)


# --- training --------------------------------------------------------------------------------------------------------


def build() -> Any:
    """The captioner with random weights: a ``transformers.VisionEncoderDecoderModel``."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig  # noqa: PLC0415

    tokens: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    # Random weights of the size that suits such narrow layers: with the libraries' 0.02 nothing is learnt for long.
    sees = ViTConfig(
        image_size=SIDE, patch_size=SIDE // 2, hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.08,
    )  # fmt: skip
    says = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=LONGEST, n_embd=64, n_layer=2, n_head=4, add_cross_attention=True,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.08, **tokens,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(sees, says)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = START, PAD, END
    model = VisionEncoderDecoderModel(config)
    settings: Any = model.generation_config
    settings.update(decoder_start_token_id=START, max_length=LONGEST, **tokens)
    return model


def train(folder: Path, steps: int = STEPS) -> Any:
    """Train and write the directory.

    Args:
        folder: made if need be; gets the model, its processor's figures and its tokenizer.
        steps: of ``BATCH`` scenes each.

    Returns:
        The model, in evaluation mode.
    """
    torch.manual_seed(0)
    model, started = build(), time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    source = scenes("training")
    for step in range(1, steps + 1):
        pixels, labels = _batch([next(source) for _ in range(BATCH)])
        loss = model(pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.0] * 3, "image_std": [0.5] * 3}))
    tokenizer().save(str(folder / "tokenizer.json"))
    return model


def tokenizer() -> Any:
    """One word, one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(VOCABULARY)}, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(list(VOCABULARY[:3]))
    return made


def pixels_of(images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """As ``preprocessor_config.json`` says: float32[batch, 3, 64, 64] of 0..2."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5


def _batch(chosen: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, and the captions' tokens with -100 where there are none."""
    labels = np.full((len(chosen), LONGEST - 1), -100)
    for row, scene in zip(labels, chosen, strict=True):
        tokens = [*(VOCABULARY.index(word) for word in scene.caption.split()), END]
        row[: len(tokens)] = tokens
    return pixels_of([scene.image for scene in chosen]), torch.from_numpy(labels[:, :10])


def main(arguments: Sequence[str]) -> int:
    """Train into the folder that is named, unless it is there already."""
    if len(arguments) != 1:
        print("python examples/zoo/captioner.py FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    if not (folder / "model.safetensors").exists():
        train(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
