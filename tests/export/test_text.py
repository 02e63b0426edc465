"""Text through an export: the recipe's tokenizer, its ids and mask, and what of it travels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

import edge_mbm
from edge_mbm.errors import ManifestError, RecipeError
from edge_mbm.export import export_bundle
from edge_mbm.export.calibrate import key
from edge_mbm.export.chain import Chain
from edge_mbm.export.origin import Origin
from edge_mbm.export.refer import origin_runners
from edge_mbm.export.tokenizers import tokenizer_files
from edge_mbm.runtime.verify import verify_bundle

Write: TypeAlias = Callable[..., Path]

CODE = """
import torch
from torch import nn

TEXTS = ["a red mug", "A MUG!", "", "a blue cup of tea, please", "red red red", "mug", "a", "tea"]


class Record:
    def __init__(self, id, inputs, label):
        self.id, self.inputs, self.label = id, inputs, label


def recordings(split):
    for index, text in enumerate(TEXTS):
        yield Record(f"{split}-{index}", {"prompt": f"{text} {split}"}, index % 2)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(8, 6)
        self.layer = nn.Linear(6, 6)

    def forward(self, ids, mask):
        there = mask[..., None].float()
        return torch.relu(self.layer((self.words(ids) * there).sum(1) / (there.sum(1) + 1)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.reader = Reader()
        self.head = nn.Linear(6, 2)


def load():
    return Model()
"""

RECIPE = """
name = "text"
model = "{module}:load"
python_path = ["code"]
calibration_set = "data.toml"
tokenizers = {{ words = "words.txt" }}
targets = ["x86-cpu"]
{top}
[labels]
classes = ["low", "high"]

[modalities]
prompt = {{ kind = "text" }}

[components.reader]
kind = "encoder"
module = "reader"
outputs = {{ embedding = {{ task = "embedding" }} }}

[components.reader.inputs]
ids = {{ source = "prompt", preprocess = {{ steps = "tokens", asset = "words", max_length = 5 }} }}
mask = {{ source = "prompt", preprocess = {{ steps = "tokens", asset = "words", max_length = 5, gives = "mask" }} }}

[components.head]
kind = "head"
module = "head"
inputs = {{ embedding = "reader.embedding" }}
outputs = {{ logits = {{ task = "classification", labels = "classes" }} }}
pivot = "prompt"
deadline_ns = 0
{more}
"""
WORDS = b"\n[UNK]\na\nred\nmug\ncup\n"


@pytest.fixture
def recipe(project: Write) -> Path:
    path = project(CODE, RECIPE)
    (path.parent / "words.txt").write_bytes(WORDS)
    return path


def test_a_text_model_is_exported_and_right_on_the_device(recipe: Path, tmp_path: Path) -> None:
    """Ids and mask by the same vocabulary on both sides: golden texts give what torch gave, and so do new ones."""
    manifest = export_bundle(recipe, tmp_path / "text.mbm")
    inputs = manifest.components["reader"].inputs
    assert [(v.tensor.dtype, v.tensor.shape, v.tensor.layout) for v in inputs.values()] == [
        ("int64", ("batch", 5), "NT")
    ] * 2
    with edge_mbm.load(tmp_path / "text.mbm") as bundle:
        verify_bundle(bundle).check()
        assert bundle.read(manifest.assets["words"].path) == WORDS
        assert bundle.manifest.golden[1].inputs == {"prompt": "golden/1.prompt.txt"}
        texts = [bundle.read(sample.inputs["prompt"]).decode() for sample in bundle.manifest.golden]
        assert texts[:3] == ["a red mug golden", "A MUG! golden", " golden"]
        with bundle.session() as session:
            got = session.run_components(prompt="the RED mug")["reader.embedding"]
            [result] = session.infer(prompt="a red cup")
            assert result.missing == ()
    assert manifest.assets["words"].kind == "tokenizer"
    # Computed here by hand: unknown, red, mug, and padding that the mask takes away.
    with np.errstate(all="raise"):
        weights = _weights(recipe)
        pooled = weights["reader.words.weight"][[1, 3, 4]].sum(0) / 4
        expected = np.maximum(0, weights["reader.layer.weight"] @ pooled + weights["reader.layer.bias"])
    np.testing.assert_allclose(got[0], expected, atol=1e-5)


def _weights(recipe: Path) -> dict[str, Any]:
    from edge_mbm.export import load_recipe
    from edge_mbm.export.recordings import importable

    loaded = load_recipe(recipe)
    with importable(loaded.python_path()):
        return {name: value.numpy() for name, value in Origin(loaded).model.state_dict().items()}


def test_other_words_are_other_data(loaded: Any, prepare: Any) -> None:
    """Ranges kept for one vocabulary are not found for another, though recipe, model and texts are the same."""
    found = loaded(CODE, RECIPE)
    keys = []
    for words in (WORDS, WORDS + b"tea\n"):
        (found.path.parent / "words.txt").write_bytes(words)
        draft = prepare(found)
        keys.append(key(draft, {"reader": b"", "head": b""}, "reader"))
    assert keys[0] != keys[1]


def test_the_chain_takes_a_text_apart_once_per_input(loaded: Any, prepare: Any) -> None:
    """What the components are given is what the device's preprocessing gives."""
    found = loaded(CODE, RECIPE)
    (found.path.parent / "words.txt").write_bytes(WORDS)
    draft = prepare(found)
    calls: dict[str, Any] = {}
    recording, _ = draft.reference.golden[0]
    Chain(draft.components, tokenizer_files(found)).run(recording, origin_runners(draft), on_call=calls.__setitem__)
    assert recording.inputs["prompt"] == "a red mug golden"
    assert calls["reader"]["ids"].tolist() == [[2, 3, 4, 1, 0]]
    assert calls["reader"]["mask"].tolist() == [[1, 1, 1, 1, 0]]


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (('"words.txt"', '"gone.txt"'), WORDS, r"tokenizers\.words: there is no tokenizer at .*gone\.txt"),
        (("{{ words =", "{{ report ="), WORDS, r"tokenizers\.report: the bundle has another file by that name"),
        (("{{ words =", "{{ classes ="), WORDS, r"tokenizers\.classes: the bundle has another file"),
        (('asset = "words", max_length = 5 }}', 'asset = "runes", max_length = 5 }}'), WORDS, "the asset 'runes'"),
        (("", ""), b"red\nred\n", "the tokenizer 'words' has 'red' twice"),
        (('preprocess = {{ steps = "tokens", asset = "words", max_length = 5 }}', "preprocess = {{ steps = 'raw' }}"),
         WORDS, r"reader\.inputs\.ids takes TextModality with RawSteps.*text through 'tokens'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_tokenizer_is_said(
    project: Write, tmp_path: Path, change: tuple[str, str], words: bytes, message: str
) -> None:
    """By the recipe's key or the asset's name, before anything is traced, and without a bundle."""
    path = project(CODE, RECIPE.replace(*change))
    (path.parent / "words.txt").write_bytes(words)
    with pytest.raises((RecipeError, ManifestError), match=message):
        export_bundle(path, tmp_path / "text.mbm")
    assert not (tmp_path / "text.mbm").exists()


def test_an_encoder_of_two_modalities_is_refused_on_export(project: Write, tmp_path: Path) -> None:
    """As the device would refuse it, with what to make of it instead."""
    two = RECIPE.replace(
        'prompt = {{ kind = "text" }}', 'prompt = {{ kind = "text" }}\nimu = {{ kind = "sensor", shape = [5] }}'
    )
    [mask] = [line for line in two.splitlines() if line.startswith("mask =")]
    path = project(CODE, two.replace(mask, 'mask = "imu"'))
    (path.parent / "words.txt").write_bytes(WORDS)
    with pytest.raises(RecipeError, match=r"components\.reader reads \['imu', 'prompt'\].*Make it a head"):
        export_bundle(path, tmp_path / "text.mbm")


TOWER_CODE = """
TEXTS = ["a red mug", "mugs", "", "A blue cup of tea, please"]


class Record:
    def __init__(self, id, text):
        self.id, self.inputs, self.label = id, {"prompt": text}, None


def recordings(split):
    for index, text in enumerate(TEXTS * 2):
        yield Record(f"{split}-{index}", f"{text} {split}" * (1 + index // 4))
"""

TOWER = """
name = "tower"
model = {{ from = "huggingface", path = "bert", pooling = "mean" }}
python_path = ["code"]
calibration_set = "data.toml"
tokenizers = {{ words = "bert/tokenizer.json" }}
targets = ["x86-cpu"]
{top}
[modalities]
prompt = {{ kind = "text" }}

[components.tower]
kind = "encoder"
module = ""
outputs = {{ embedding = {{ task = "embedding" }} }}

[components.tower.inputs]
input_ids = {{ source = "prompt", preprocess = {{ steps = "tokens", asset = "words", max_length = 7 }} }}

[components.tower.inputs.attention_mask]
source = "prompt"
preprocess = {{ steps = "tokens", asset = "words", max_length = 7, gives = "mask" }}

[components.head]
kind = "head"
module = "load"
model = "{module}:Nothing"
inputs = {{ embedding = "tower.embedding" }}
outputs = {{ vector = {{ task = "embedding" }} }}
pivot = "prompt"
deadline_ns = 0
{more}
"""
NOTHING = """

from torch import nn


class Nothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.load = nn.Identity()
"""


@pytest.mark.needs("transformers", "tokenizers")
def test_a_text_tower_of_transformers_is_exported(project: Write, tmp_path: Path) -> None:
    """A directory and its tokenizer.json: on the device, what transformers' own tokenizer and model make of a text."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "mug", "##s", "tea"]
    tokenizer = Tokenizer(models.WordPiece({word: k for k, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    recipe = project(TOWER_CODE + NOTHING, TOWER)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    bert = transformers.BertModel(config).eval()
    bert.save_pretrained(recipe.parent / "bert")
    tokenizer.save(str(recipe.parent / "bert" / "tokenizer.json"))
    export_bundle(recipe, tmp_path / "tower.mbm")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    with edge_mbm.load(tmp_path / "tower.mbm") as bundle, bundle.session() as session:
        verify_bundle(bundle).check()
        for text in ("A RED mugs, tea!", "", "red " * 20):
            given = fast(text, padding="max_length", truncation=True, max_length=7, return_tensors="pt")
            with torch.inference_mode():
                hidden = bert(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
            mask = given["attention_mask"][..., None]
            expected = (hidden * mask).sum(1) / mask.sum(1)
            got = session.run_components(prompt=text)["tower.embedding"]
            np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)
