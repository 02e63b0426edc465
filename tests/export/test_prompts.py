"""Prompts as classes, through an export: a CLIP directory becomes a bundle whose labels are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

import edge_mbm
from edge_mbm.errors import RecipeError
from edge_mbm.export import export_bundle
from edge_mbm.export.figures import accuracy, agreement, error_figures, labels_of
from edge_mbm.export.metric import Metric
from edge_mbm.runtime.result import ClassificationOutput
from edge_mbm.runtime.verify import verify_bundle

Write: TypeAlias = Callable[..., Path]
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]

CODE = """
import numpy as np

PROMPTS = ["a red mug", "a cat\\nan old cup of tea", "mug\\n\\nein roter Becher\\ncat", "a\\nb\\nc\\nd"]


class Record:
    def __init__(self, id, inputs, label):
        self.id, self.inputs, self.label = id, inputs, label


def recordings(split):
    rng = np.random.default_rng(sum(split.encode()))
    for index in range(8):
        image = rng.integers(0, 256, (40, 50, 3), np.uint8)
        yield Record(f"{split}-{index}", {"image": image, "prompt": PROMPTS[index % 4]}, 0)
"""

RECIPE = """
name = "clip"
model = {{ from = "huggingface", path = "clip" }}
python_path = ["code"]
calibration_set = "data.toml"
tokenizers = {{ words = "clip/tokenizer.json" }}
targets = ["x86-cpu"]
search = {{ evaluations = 1 }}
{top}
[modalities]
image = {{ kind = "image" }}
prompt = {{ kind = "text" }}

[components.see]
kind = "encoder"
model = {{ from = "huggingface", path = "clip", part = "vision" }}
outputs = {{ image_embeds = {{ task = "embedding" }} }}
inputs = {{ image = {{ source = "image", preprocess = {{ steps = "image", height = 32, width = 32 }} }} }}

[components.read]
kind = "encoder"
model = {{ from = "huggingface", path = "clip", part = "text" }}
outputs = {{ text_embeds = {{ task = "embedding" }} }}

[components.read.inputs]
ids = {{ source = "prompt", preprocess = {{ steps = "tokens", asset = "words", max_length = 12, lines = 4 }} }}
{mask}

[components.which]
kind = "head"
model = {{ from = "huggingface", path = "clip", part = "similarity" }}
inputs = {{ image = "see.image_embeds", prompts = "read.text_embeds" }}
outputs = {{ logits_per_image = {{ task = "classification", labels = "prompt" }} }}
pivot = "image"
deadline_ns = 0
{more}
"""
MASK = (
    'mask = {{ source = "prompt", preprocess = '
    '{{ steps = "tokens", asset = "words", max_length = 12, lines = 4, gives = "mask" }} }}'
)
FLOAT = edge_mbm.SessionOptions(variant="fp32")
needs = pytest.mark.needs("transformers", "tokenizers", "safetensors")


def save_clip(folder: Path) -> Any:
    """A small CLIP with random weights and a temperature of its own, and a byte-level BPE tokenizer beside it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import CLIPConfig, CLIPModel

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), end_of_word_suffix="</w>"
    )
    tokenizer.train_from_iterator(["a photo of a red mug", "a cat", "an old cup of tea"], trainer)
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    start, end = (tokenizer.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    tokenizer.post_processor = processors.BertProcessing(("<|endoftext|>", end), ("<|startoftext|>", start))
    tokenizer.enable_padding(pad_id=end, pad_token="<|endoftext|>")
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = layers | {"vocab_size": end + 1, "max_position_embeddings": 12, "eos_token_id": end, "bos_token_id": start}
    vision = layers | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    model.logit_scale.data.fill_(3.21)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return model


@needs
@pytest.mark.parametrize("mask", ["", MASK])
def test_a_clip_directory_becomes_a_zero_shot_classifier(project: Write, tmp_path: Path, mask: str) -> None:
    """Both towers and ``logits_per_image`` are those of transformers, with the tokenizer out of the bundle."""
    import transformers

    recipe = project(CODE, RECIPE.replace("{mask}", mask))
    model = save_clip(recipe.parent / "clip")
    manifest = export_bundle(recipe, tmp_path / "clip.mbm")
    assert manifest.components["read"].inputs["ids"].tensor.shape == ("batch", 4, 12)
    error = manifest.components["which"].variants["fp32"].error
    assert error is not None
    assert error.agreement == 1.0
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(recipe.parent / "clip" / "tokenizer.json"))
    tokenizer.pad_token = "<|endoftext|>"
    rng = np.random.default_rng(3)
    with edge_mbm.load(tmp_path / "clip.mbm") as bundle, bundle.session(FLOAT) as session:
        verify_bundle(bundle).check()
        for prompts in (["a red mug"], ["a cat", "Чашка чаю", "an old CUP of tea, " * 9], ["b", "c", "d", "e"]):
            image = rng.integers(0, 256, (32, 32, 3), np.uint8)
            pixels = torch.tensor(((image / 255.0 - MEAN) / STD).transpose(2, 0, 1)[None], dtype=torch.float32)
            tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
            with torch.inference_mode():
                expected = model(
                    input_ids=tokens["input_ids"],
                    attention_mask=tokens["attention_mask"] if mask else None,
                    pixel_values=pixels,
                )
                seen = model.get_image_features(pixels).pooler_output
            [result] = session.infer(image=image, prompt="\n".join(prompts))
            got = session.run_components(image=image, prompt="\n".join(prompts))
            assert_near(got["see.image_embeds"], seen)
            unit = got["read.text_embeds"][0, : len(prompts)]
            assert_near(unit / np.linalg.norm(unit, axis=1, keepdims=True), expected.text_embeds)
            assert_near(got["which.logits_per_image"], expected.logits_per_image)
            assert isinstance(result.output, ClassificationOutput)
            assert result.output.labels == tuple(p.strip() for p in prompts)
            assert_near(result.output.scores[None], expected.logits_per_image.softmax(1))


def assert_near(got: np.ndarray, expected: torch.Tensor) -> None:
    """Within a thousandth of the greatest value."""
    wanted = expected.numpy()
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-3 * np.abs(wanted).max()


@needs
def test_siglips_bias_is_in_the_logits(tmp_path: Path) -> None:
    """The part ``similarity`` of a model that has one adds it."""
    from transformers import SiglipConfig, SiglipModel

    from edge_mbm.export.origins.huggingface import load_huggingface
    from edge_mbm.export.recipe import HuggingFaceModel

    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = layers | {"vocab_size": 40, "max_position_embeddings": 8, "projection_size": 32}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=layers | {"image_size": 32, "patch_size": 8}))
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-7.0)
    model.eval().save_pretrained(tmp_path / "siglip")
    source = HuggingFaceModel(path="siglip", part="similarity")
    head = load_huggingface(source, tmp_path, "model").module
    ids, pixels = torch.arange(16).reshape(2, 8), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = model(input_ids=ids, pixel_values=pixels)
        got = head(expected.image_embeds, expected.text_embeds[None])
    torch.testing.assert_close(got, expected.logits_per_image)


WRONG = [
    ('labels = "prompt"', 'labels = "prompts"', "'prompts', which is neither in .labels. nor a text.*mean 'prompt'"),
    ('labels = "prompt"', 'labels = "image"', "'image', which is neither"),
    ('part = "similarity"', 'part = "similarty"', "similarty.*mean 'similarity'"),
    ("lines = 4", "lines = 0", "lines"),
]


@needs
@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_a_recipe_whose_prompts_do_not_fit_is_refused(
    project: Write, tmp_path: Path, old: str, new: str, message: str
) -> None:
    """Before anything is traced, with what was probably meant."""
    recipe = project(CODE, RECIPE.replace("{mask}", "").replace(old, new))
    save_clip(recipe.parent / "clip")
    with pytest.raises(RecipeError, match=message):
        export_bundle(recipe, tmp_path / "clip.mbm")


@needs
def test_a_model_without_two_towers_has_no_similarity(tmp_path: Path) -> None:
    """A BERT is refused by the part's name."""
    from transformers import BertConfig, BertModel

    from edge_mbm.export.origins.huggingface import load_huggingface
    from edge_mbm.export.recipe import HuggingFaceModel

    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(RecipeError, match=r"part is 'similarity', which BertModel does not have"):
        load_huggingface(HuggingFaceModel(path="bert", part="similarity"), tmp_path, "model")


# --- figures over recordings with different numbers of prompts -------------------------------------------------------


def scores(*rows: list[float]) -> list[dict[str, Any]]:
    return [{"which.y": np.array([row], np.float32)} for row in rows]


def test_figures_are_of_the_prompts_that_there_are() -> None:
    """Fewer prompts than elsewhere add nothing: the best of negative scores is still the best."""
    reference, got = scores([-3.0, -1.0], [-2.0]), scores([-3.0, -1.5], [-2.0])
    assert labels_of(reference, "which.y").tolist() == [1, 0]
    assert agreement(reference, got, "which.y") == 1.0
    assert accuracy(got, "which.y", [1, 0]) == 1.0
    figures = error_figures(reference, got, ["which.y"], ["which.y"], [1, 0])
    assert (figures.samples, figures.max_abs, figures.accuracy) == (2, 0.5, 1.0)
    assert figures.sqnr_db == pytest.approx(10 * np.log10(14 / 0.25))


def test_a_metric_sees_no_prompt_as_never_the_best() -> None:
    """What is not there is minus infinity in the one array that a user's function gets."""

    def right(outputs: Any, labels: list[int | str]) -> float:
        assert outputs["y"].shape == (2, 3)
        return float(np.mean(outputs["y"].argmax(1) == np.array(labels)))

    metric = Metric("which", ("y",), "code:right", right)
    assert metric(scores([-3.0], [-9.0, -8.0, -7.0]), [0, 2]) == 1.0
