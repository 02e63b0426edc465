"""Decoders through an export: the same tokens from torch, from the graph step by step, and on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

import edge_mbm
from edge_mbm import DecodeOptions, SessionOptions
from edge_mbm.errors import EdgeMbmError, RecipeError
from edge_mbm.export import export_bundle
from edge_mbm.export.figures import error_figures
from edge_mbm.export.recordings import importable
from edge_mbm.runtime import TextOutput
from edge_mbm.runtime.verify import verify_bundle

Write: TypeAlias = Callable[..., Path]

CODE = """
import numpy as np
import torch
from torch import nn

LONGEST, WORDS = 8, 12


class Record:
    def __init__(self, id, inputs, label):
        self.id, self.inputs, self.label = id, inputs, label


def recordings(split):
    rng = np.random.default_rng(sum(split.encode()))
    for index in range(12):
        yield Record(f"{split}-{index}", {"imu": rng.normal(0, 1, 4).astype(np.float32)}, index % 2)


class Writer(nn.Module):
    \"\"\"One layer of attention over what was written, in a cache of fixed size.\"\"\"

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS + 1, 6), nn.Embedding(LONGEST, 6)
        self.look, self.out = nn.Linear(6, 18), nn.Linear(6, WORDS)
        self.register_buffer("index", torch.arange(LONGEST))

    def forward(self, token, position, seen, cache):
        x = self.words(token) + self.places(position) + seen[:, None]
        query, key, value = self.look(x).chunk(3, -1)
        here = (self.index == position)[..., None]
        keys, values = torch.where(here, key, cache[:, 0]), torch.where(here, value, cache[:, 1])
        scores = query @ keys.transpose(1, 2) - 1e4 * (self.index > position)[:, None]
        x = x + scores.softmax(-1) @ values
        return self.out(x[:, 0]), torch.stack([keys, values], 1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.sense, self.writer = nn.Linear(4, 6), Writer()
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 1.2)


def load():
    return Model()


def right_words(outputs, labels):
    return float(np.mean([len(str(text).split()) > 0 for text in outputs["text"]]))
"""

RECIPE = """
name = "notes"
model = "{module}:load"
python_path = ["code"]
calibration_set = "data.toml"
tokenizers = {{ words = "words.txt" }}
targets = ["x86-cpu"]
search = {{ evaluations = 2 }}

[modalities]
imu = {{ kind = "sensor", shape = [4] }}

[components.sense]
kind = "encoder"
module = "sense"
inputs = {{ x = "imu" }}
outputs = {{ seen = {{ task = "embedding" }} }}

[components.writer]
kind = "decoder"
module = "writer"
inputs = {{ seen = "sense.seen" }}
outputs = {{ text = {{ task = "tokens", tokenizer = "words" }} }}
states = [{{ input = "cache", output = "next_cache", shape = ["batch", 2, 8, 6] }}]
tokenizer = "words"
max_tokens = 8
start = [12]
end = 0
suppress = [1]
metric = "{module}:right_words"
"""
WORDS = "\n".join(["", "[UNK]", *(f"word{letter}" for letter in "abcdefghij")]).encode() + b"\n"


@pytest.fixture
def recipe(project: Write) -> Path:
    path = project(CODE, RECIPE)
    (path.parent / "words.txt").write_bytes(WORDS)
    return path


def oracle(model: Any, imu: np.ndarray) -> list[int]:
    """The likeliest token at each step, the whole text computed anew each time: attention as it is usually written."""
    writer, tokens = model.writer, [12]
    with torch.inference_mode():
        seen = model.sense(torch.from_numpy(imu)[None])
        while len(tokens) < 8:
            n = len(tokens)
            x = writer.words(torch.tensor([tokens])) + writer.places.weight[:n] + seen[:, None]
            query, key, value = writer.look(x).chunk(3, -1)
            mask = torch.full((n, n), -1e4).triu(1)
            x = x + (query @ key.transpose(1, 2) + mask).softmax(-1) @ value
            scores = writer.out(x[0, -1])
            scores[1] = -np.inf
            tokens.append(int(scores.argmax()))
            if tokens[-1] == 0:
                break
    return [token for token in tokens[1:] if token != 0]


def test_a_decoder_writes_on_the_device_what_the_model_writes(recipe: Path, tmp_path: Path) -> None:
    """Token for token, against the model without a cache, on sensor readings that no split has."""
    from edge_mbm.export import load_recipe
    from edge_mbm.export.origin import Origin

    manifest = export_bundle(recipe, tmp_path / "notes.mbm")
    assert manifest.default_results() == ("writer",)
    loaded = load_recipe(recipe)
    with importable(loaded.python_path()):
        model = Origin(loaded).model
    texts = set()
    with edge_mbm.load(tmp_path / "notes.mbm") as bundle, bundle.session(SessionOptions(variant="fp32")) as session:
        for imu in np.random.default_rng(5).normal(0, 1, (20, 4)).astype(np.float32):
            [result] = session.infer(imu=imu)
            assert isinstance(result.output, TextOutput)
            assert list(result.output.tokens) == oracle(model, imu)
            texts.add(result.output.text)
    assert len(texts) > 5  # so that the comparison is one


def test_the_evidence_is_in_texts(recipe: Path, tmp_path: Path) -> None:
    """The metric over texts stands in place of accuracy, agreement is of whole texts, golden texts are replayed."""
    manifest = export_bundle(recipe, tmp_path / "notes.mbm")
    figures = manifest.components["writer"].variants["fp32"].error
    assert figures is not None
    assert (figures.agreement, figures.accuracy) == (1.0, 1.0)
    assert manifest.golden[0].outputs["writer.text"].endswith(".txt")
    with edge_mbm.load(tmp_path / "notes.mbm") as bundle:
        verify_bundle(bundle, ["fp32"]).check()


def test_a_better_text_may_need_a_search(recipe: Path, tmp_path: Path) -> None:
    """Beams find texts that are at least as likely as the greedy ones, and some that are likelier."""
    export_bundle(recipe, tmp_path / "notes.mbm")
    scores = {}
    with edge_mbm.load(tmp_path / "notes.mbm") as bundle:
        for beams in (1, 32):
            options = SessionOptions(variant="fp32", decoding=DecodeOptions(beams=beams))
            with bundle.session(options) as session:
                readings = np.random.default_rng(6).normal(0, 1, (12, 4)).astype(np.float32)
                outputs = [session.infer(imu=imu)[0].output for imu in readings]
                scores[beams] = [o.score if o.is_complete else -np.inf for o in outputs if isinstance(o, TextOutput)]
    assert all(wide >= greedy - 1e-6 for greedy, wide in zip(scores[1], scores[32], strict=True))
    assert any(wide > greedy + 1e-3 for greedy, wide in zip(scores[1], scores[32], strict=True))


def test_texts_are_compared_as_texts() -> None:
    """Agreement is the share of equal ones; as numbers only whether they are equal counts."""
    reference = [{"w.text": np.array(["one two"])}, {"w.text": np.array(["three"])}]
    got = [{"w.text": np.array(["one two"])}, {"w.text": np.array(["tree"])}]
    figures = error_figures(reference, got, ["w.text"], ["w.text"], [])
    assert (figures.samples, figures.agreement, figures.accuracy, figures.cosine) == (2, 0.5, None, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('tokenizer = "words"\nmax', 'tokenizer = "letters"\nmax'),
            r"writer\.tokenizer is 'letters', which is not in",
        ),
        (("start = [12]", "start = []"), r"writer\.start is empty"),
        (("end = 0", "end = 99"), "names token 99"),
        (("max_tokens = 8", "max_tokens = 1"), "no room for a text"),
        (('shape = ["batch", 2, 8, 6]', 'shape = ["batch", 2, 9, 6]'), "writer"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(
    project: Write, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    """By the key that is wrong, without a bundle."""
    path = project(CODE, RECIPE.replace(*change))
    (path.parent / "words.txt").write_bytes(WORDS)
    with pytest.raises(EdgeMbmError, match=message) as raised:
        export_bundle(path, tmp_path / "notes.mbm")
    assert isinstance(raised.value, RecipeError)
    assert not (tmp_path / "notes.mbm").exists()
