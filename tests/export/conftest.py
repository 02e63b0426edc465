"""Small projects to export: a model's code, its recordings and the two TOML files, each in a folder of its own."""

from __future__ import annotations

import hashlib
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from edge_mbm.bundle import BundleFiles
from edge_mbm.export import Silent, export_bundle, speed
from edge_mbm.export.draft import Draft
from edge_mbm.export.origin import Origin
from edge_mbm.export.recipe import LoadedRecipe, load_recipe
from edge_mbm.export.recordings import importable
from edge_mbm.export.refer import describe, read, refer
from edge_mbm.spec import Manifest

# What the audio-visual project is made of. Sound and colour tell the class, so accuracies mean something: the last
# layers are solved for, not trained, which takes no time and gives the same in every process.
AUDIO_VISUAL = """
import numpy as np
import torch
from torch import nn

from edge_mbm.models import ConcatFusion, ConvEncoder, GRUEncoder, MultimodalModel, SingleModality
from edge_mbm.preprocess import LogMel

MEL = LogMel(
    sample_rate=8000, window_length=200, hop_length=100, n_fft=256, n_mels=8, f_min=100.0, f_max=3900.0, floor=1e-6
)
WINDOW, HOP = 800, 400


class Record:
    def __init__(self, id, inputs, label):
        self.id, self.inputs, self.label = id, inputs, label


def sample(rng, label):
    image = rng.integers(0, 120, (8, 8, 3), np.uint8)
    image[..., label] += 100
    t = np.arange(2000) / 8000
    tone = np.sin(2 * np.pi * (400 + 900 * label) * t + rng.uniform(0, 6)) * rng.uniform(0.2, 0.6)
    return image, (tone + rng.normal(0, 0.02, t.size)).astype(np.float32)


def recordings(split):
    rng = np.random.default_rng(sum(split.encode()))
    for index in range(12):
        image, audio = sample(rng, index % 3)
        inputs = {"image": image, "audio": audio}
        if index in (4, 7):
            del inputs["audio"]
        yield Record(f"{split}-{index}", inputs, index % 3)


def solve(head, *inputs, labels):
    features, last = [], head.classify[-1]
    hook = last.register_forward_pre_hook(lambda module, given: features.append(given[0]))
    head(*inputs)
    hook.remove()
    x = torch.cat([features[0], torch.ones(len(labels), 1)], 1).double()
    target = 4 * nn.functional.one_hot(labels, 3).double() - 1
    weights = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ target).float()
    last.weight.copy_(weights[:-1].T)
    last.bias.copy_(weights[-1])


@torch.no_grad()
def load():
    torch.manual_seed(1)
    seen = ConvEncoder(widths=(8, 16), dim=8, mean=(0.4,) * 3, std=(0.2,) * 3)
    for norm in seen.features.modules():
        if isinstance(norm, nn.BatchNorm2d):  # as after training, so that it leaves the convolution a bias
            norm.bias.uniform_(-0.2, 0.4)
            norm.running_mean.normal_(0, 0.2)
    heard = GRUEncoder(features=8, hidden=16, dim=8, mean=-6.0, std=4.0)
    both = ConcatFusion(modalities=2, dim=8, classes=3, hidden=24)
    alone = SingleModality(dim=8, classes=3, hidden=24)
    model = MultimodalModel({"image": seen, "audio": heard}, {"both": both, "seen": alone}).eval()
    rng = np.random.default_rng(7)
    labels = torch.arange(60) % 3
    pairs = [sample(rng, int(label)) for label in labels]
    images = seen(torch.from_numpy(np.stack([image for image, _ in pairs])))
    sounds = listen(heard, np.stack([audio for _, audio in pairs]))
    present = torch.ones(60, 2)
    present[::4, 1] = 0
    solve(alone, images, labels=labels)
    solve(both, images, sounds, present, labels=labels)
    return model


def listen(encoder, sounds):
    state = encoder.initial_state(len(sounds))
    for start in range(0, sounds.shape[1] - WINDOW + 1, HOP):
        features = np.stack([MEL(sound[start : start + WINDOW]) for sound in sounds])
        embedding, state = encoder(torch.from_numpy(features), state)
    return embedding
"""

AUDIO_VISUAL_RECIPE = """
name = "tones"
description = "Colours and tones"
model = "{module}:load"
python_path = ["code"]
calibration_set = "data.toml"
default_heads = ["both"]

[budget]
min_cosine = 0.9
min_agreement = 0.8
max_accuracy_drop = 0.2
min_speedup = 0.01

[require]
accuracy = {{ both = 0.7 }}

[labels]
classes = ["red", "green", "blue"]

[modalities]
image = {{ kind = "image" }}
audio = {{ kind = "audio", sample_rate = 8000 }}

[components.image_encoder]
kind = "encoder"
module = "encoders.image"
outputs = {{ embedding = {{ task = "embedding" }} }}

[components.image_encoder.inputs.image]
source = "image"
preprocess = {{ steps = "image", height = 8, width = 8 }}

[components.audio_encoder]
kind = "encoder"
module = "encoders.audio"
window = {{ length = 800, hop = 400 }}
outputs = {{ embedding = {{ task = "embedding" }} }}
states = [{{ input = "state", output = "next_state", shape = [1, "batch", 16] }}]

[components.audio_encoder.inputs.features]
source = "audio"

[components.audio_encoder.inputs.features.preprocess]
steps = "log_mel"
sample_rate = 8000
window_length = 200
hop_length = 100
n_fft = 256
n_mels = 8
f_min = 100.0
f_max = 3900.0

[components.both]
kind = "head"
module = "heads.both"
inputs = {{ seen = "image_encoder.embedding", heard = "audio_encoder.embedding" }}
outputs = {{ logits = {{ task = "classification", labels = "classes" }} }}
pivot = "image"
tolerance_ns = {{ audio = 100_000_000 }}
deadline_ns = 50_000_000
present = ["image", "audio"]

[components.seen]
kind = "head"
module = "heads.seen"
inputs = {{ embedding = "image_encoder.embedding" }}
outputs = {{ logits = {{ task = "classification", labels = "classes" }} }}
pivot = "image"
deadline_ns = 0
"""

DATA = """
description = "Made by the test"
recordings = "{module}:recordings"
python_path = ["code"]
calibration = {{ split = "calibration", samples = 9 }}
heldout = {{ split = "heldout", samples = 12 }}
golden = {{ split = "golden", samples = 5 }}
"""

# The least that can be exported: four numbers from a sensor, an encoder, a head.
SENSOR = """
import os
import time

import numpy as np
import torch
from torch import nn


class Record:
    def __init__(self, id, inputs, label):
        self.id, self.inputs, self.label = id, inputs, label


def recordings(split):
    rng = np.random.default_rng(sum(split.encode()))
    for index in range(8):
        yield Record(f"{split}-{index}", {"imu": rng.normal(0, 1, 4).astype(np.float32)}, index % 2)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x):
        return torch.relu(self.layer(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder()
        self.head = nn.Linear(6, 2)


def load():
    return Model()
"""

SENSOR_RECIPE = """
name = "sensor"
model = "{module}:load"
python_path = ["code"]
calibration_set = "data.toml"
targets = ["x86-cpu"]
{top}
[labels]
classes = ["low", "high"]

[modalities]
imu = {{ kind = "sensor", shape = [4] }}

[components.encoder]
kind = "encoder"
module = "encoder"
inputs = {{ x = "imu" }}
outputs = {{ embedding = {{ task = "embedding" }} }}

[components.head]
kind = "head"
module = "head"
inputs = {{ embedding = "encoder.embedding" }}
outputs = {{ logits = {{ task = "classification", labels = "classes" }} }}
pivot = "imu"
deadline_ns = 0
{more}
"""


def write_project(
    folder: Path,
    code: str = SENSOR,
    recipe: str = SENSOR_RECIPE,
    *,
    data: str = DATA,
    add: str = "",
    top: str = "",
    more: str = "",
) -> Path:
    """Write a project and return its recipe's path.

    Args:
        folder: made if it is not there.
        code: of the module that holds model and recordings; its name is the folder's own, as Python keeps them by name.
        recipe: with ``{module}`` where that name goes, and ``{top}``, ``{more}`` where more may be said.
        data: the calibration set, likewise.
        add: code after the rest, to put something in place of what is there.
        top: more of the recipe's own keys.
        more: more tables of the recipe.
    """
    module = f"project_{hashlib.sha256(bytes(folder)).hexdigest()[:12]}"
    (folder / "code").mkdir(parents=True, exist_ok=True)
    (folder / "code" / f"{module}.py").write_text(code + textwrap.dedent(add))
    (folder / "recipe.toml").write_text(
        recipe.format(module=module, top=textwrap.dedent(top), more=textwrap.dedent(more))
    )
    (folder / "data.toml").write_text(data.format(module=module))
    return folder / "recipe.toml"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is found in, or left in, the caches of whoever runs the tests; nor does it matter how fast this is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(speed, "_SECONDS", 0.05)
        # Small tensors: threads would only wait for each other, here and in the processes that are started.
        patch.setenv("OMP_NUM_THREADS", "1")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``write_project`` in a folder of its own."""

    def write(*arguments: Any, **named: Any) -> Path:
        return write_project(tmp_path_factory.mktemp("project"), *arguments, **named)

    return write


@pytest.fixture(scope="module")
def loaded(project: Callable[..., Path]) -> Iterator[Callable[..., LoadedRecipe]]:
    """A project's recipe, its code importable while the module's tests run."""
    with ExitStack() as entered:

        def load(*arguments: Any, **named: Any) -> LoadedRecipe:
            recipe = load_recipe(project(*arguments, **named))
            entered.enter_context(importable(recipe.python_path()))
            return recipe

        yield load


@pytest.fixture(scope="session")
def tones() -> dict[str, str]:
    """What ``project`` takes for the audio-visual one."""
    return {"code": AUDIO_VISUAL, "recipe": AUDIO_VISUAL_RECIPE}


@pytest.fixture(scope="session")
def sensor() -> dict[str, str]:
    """What ``project`` takes unless told otherwise."""
    return {"code": SENSOR, "recipe": SENSOR_RECIPE}


@pytest.fixture(scope="session")
def prepare() -> Callable[[LoadedRecipe], Draft]:
    """A draft of a recipe, as far as it goes without tracing."""

    def run(recipe: LoadedRecipe) -> Draft:
        draft = Draft(recipe, Origin(recipe))
        for stage in (describe, read, refer):
            draft = stage(draft, Silent())
        return draft

    return run


class Exported(NamedTuple):
    """The audio-visual project, exported once for all tests, which must leave it as it is."""

    recipe: Path
    bundle: Path
    cache: Path
    files: BundleFiles
    told: list[str]
    left: list[Path]
    """In the folder for temporary files, afterwards."""

    @property
    def manifest(self) -> Manifest:
        return self.files.manifest


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, title: str, total: int) -> None:
        self.lines.append(f"{title} ({total})")

    def step(self, what: str = "") -> None:
        self.lines.append(f"  {what}")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    folder = tmp_path_factory.mktemp("tones")
    recipe = write_project(folder, AUDIO_VISUAL, AUDIO_VISUAL_RECIPE)
    told = Told()
    (folder / "temporary").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(tempfile, "tempdir", str(folder / "temporary"))
        export_bundle(recipe, folder / "tones.mbm", told)
    with BundleFiles(folder / "tones.mbm") as files:
        yield Exported(
            recipe, folder / "tones.mbm", folder / "cache", files, told.lines, [*(folder / "temporary").iterdir()]
        )
