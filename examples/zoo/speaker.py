"""Resemblyzer's speaker encoder: three LSTM layers whose last state says who is speaking.

Wan et al. 2017 (arXiv:1710.10467); weights of the package Resemblyzer (Apache-2.0). Two parts are for export:
`listener` (1.6 s of sound to 160 frames, then the layers) and `unit`. Only the package's weights are read: it need not
be importable.

    edge-mbm export export/speaker.toml -o speaker.mbm
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_mbm.errors import InputError
from zoo import sentences, speech
from zoo.packages import package_folder
from zoo.whisper import slaney_filters, waves

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE = "resemblyzer"
FRAMES, SAMPLES = 160, 25_600  # 1.6 s at 16 kHz
_WIDTH, _MELS, _WINDOW, _HOP = 256, 40, 400, 160
_LOUDNESS = 10 ** (-30 / 20)  # root mean square that quieter sound is brought to


class Mel(nn.Module):
    """Loudness brought up to -30 dB, then the power in Slaney's mel bands (no logarithm)."""

    waves: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.from_numpy(waves(_WINDOW)))
        self.register_buffer("filters", torch.from_numpy(slaney_filters(_MELS, _WINDOW)))

    def forward(self, audio: Tensor) -> Tensor:
        """f32[batch, 25600] at full scale +-1 -> f32[batch, 160, 40]."""
        loudness = (audio * audio).mean(1, keepdim=True).sqrt().clamp(min=1e-6)
        audio = audio * (_LOUDNESS / loudness).clamp(min=1.0)
        padded = nn.functional.pad(audio, (_WINDOW // 2, _WINDOW // 2))
        spectrum = nn.functional.conv1d(padded[:, None], self.waves, stride=_HOP)[:, :, :-1]
        real, imaginary = spectrum.chunk(2, dim=1)
        return (self.filters @ (real * real + imaginary * imaginary)).transpose(1, 2)


class Encoder(nn.Module):
    """Frames to a vector that points where the voice is."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_MELS, _WIDTH, 3, batch_first=True)
        self.linear = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, mel: Tensor) -> Tensor:
        """f32[batch, 160, 40] -> f32[batch, 256]."""
        every, _ = self.lstm(mel)
        raw: Tensor = self.linear(every[:, -1]).relu()
        return raw


class Unit(nn.Module):
    """A vector's direction: the nearer two of them, the likelier the same voice."""

    def forward(self, voice: Tensor) -> Tensor:
        """f32[batch, 256] -> the same, of length 1."""
        unit: Tensor = voice / voice.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return unit


class Speaker(nn.Module):
    """The parts as a recipe names them."""

    def __init__(self) -> None:
        super().__init__()
        self.mel, self.encoder, self.unit = Mel(), Encoder(), Unit()
        self.listener = nn.Sequential(self.mel, self.encoder)

    def forward(self, audio: Tensor) -> Tensor:
        """f32[batch, 25600] -> f32[batch, 256]."""
        unit: Tensor = self.unit(self.listener(audio))
        return unit


def load() -> Speaker:
    """The trained model.

    Raises:
        MissingDependencyError: the package with the weights is not installed.
    """
    folder = package_folder(PACKAGE, "the speaker encoder's weights", "Resemblyzer")
    stored = torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)
    model = Speaker()
    weights = {name: value for name, value in stored["model_state"].items() if name.startswith(("lstm.", "linear."))}
    model.encoder.load_state_dict(weights)
    return model.eval()


# --- who is who ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """1.6 s of sound, mono at 16 kHz; the label is the speaker's number."""

    id: str
    inputs: dict[str, NDArray[np.float32]]
    label: int


_VARIANTS = ("", "+m1", "+m3", "+m5", "+m7", "+f1", "+f2", "+f4")
_VOICES = {
    "calibration": (
        *(speech.Voice("flite", ("-voice", name)) for name in ("kal", "kal16")),
        *(speech.Voice("espeak-ng", ("-v", f"en-us{variant}")) for variant in _VARIANTS),
    ),
    "heldout": (
        *(speech.Voice("flite", ("-voice", name)) for name in ("slt", "rms", "awb")),
        *(speech.Voice("espeak-ng", ("-v", f"en-gb-scotland{variant}")) for variant in _VARIANTS),
    ),
    "golden": (speech.Voice("flite", ("-voice", "kal")),),
}
_TEXTS = 8  # of each voice
_PIECES = 2  # of each text


def recordings(split: str) -> Iterator[Recording]:
    """Pieces of speech: "calibration", "heldout" (with two human speakers) or "golden".

    Raises:
        InputError: another split.
        MissingDependencyError: a package is not installed.
    """
    if split not in _VOICES:
        raise InputError(f"no split is called {split!r}: there are {', '.join(_VOICES)}")
    speakers = [_spoken(voice, split) for voice in _VOICES[split]]
    if split == "heldout":
        speakers += [_files(speech.read_aloud("librivox")), _files(speech.prompts()[: 2 * _TEXTS])]
    # One piece of each in turn, so that the first few recordings are of many speakers.
    for turn, pieces in enumerate(itertools.zip_longest(*map(_pieces, speakers))):
        for label, piece in enumerate(pieces):
            if piece is not None:
                yield Recording(f"{split}-{label:02d}-{turn:02d}", {"audio": piece}, label)


def verification(outputs: Mapping[str, NDArray[Any]], labels: Sequence[int]) -> float:
    """1 - the equal error rate over all pairs of recordings: are they of one speaker?

    Args:
        outputs: "embedding": unit vectors f32[recordings, 256].
        labels: each recording's speaker.
    """
    vectors, who = outputs["embedding"], np.asarray(labels)
    first, second = np.triu_indices(len(who), 1)
    return 1 - equal_error_rate((vectors @ vectors.T)[first, second], who[first] == who[second])


def equal_error_rate(scores: NDArray[Any], same: NDArray[np.bool_]) -> float:
    """Where as many pairs of one speaker are taken for two as the other way round: the mean of both shares there.

    Args:
        scores: likeness of each pair, f32[pairs].
        same: whether it is of one speaker.
    """
    order = np.argsort(scores, kind="stable")
    rejected = np.cumsum(same[order]) / same.sum()  # of one speaker, at or below each score
    accepted = 1 - np.cumsum(~same[order]) / (~same).sum()
    nearest = int(np.abs(rejected - accepted).argmin())
    return float(rejected[nearest] + accepted[nearest]) / 2


def _spoken(voice: speech.Voice, split: str) -> Iterator[NDArray[np.float32]]:
    for _, item in zip(range(_TEXTS), sentences.recordings(split), strict=False):
        yield speech.say(item.inputs["text"], voice)


def _files(paths: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    for path in paths:
        yield speech.read_wave(path.read_bytes())


def _pieces(speaker: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Of each utterance the first whole pieces of 1.6 s, without what is silent at its beginning."""
    for audio in speaker:
        begin = int((np.abs(audio) > 0.02).argmax())
        for number in range(min(_PIECES, (len(audio) - begin) // SAMPLES)):
            yield audio[begin + number * SAMPLES :][:SAMPLES]
