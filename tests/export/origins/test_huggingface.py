"""Hugging Face directories: each part against transformers itself, and what is not loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from edge_mbm.errors import RecipeError
from edge_mbm.export import trace_worker
from edge_mbm.export.origins.huggingface import load_huggingface
from edge_mbm.export.recipe import HuggingFaceModel

pytestmark = pytest.mark.needs("transformers", "safetensors")

Agrees: TypeAlias = Callable[..., None]
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
RECIPE = """
[labels]
classes = ["yes", "no"]
[modalities]
image = { kind = "image" }
audio = { kind = "audio", sample_rate = 16000 }
text = { kind = "text" }
[tokenizers]
vocabulary = "vocabulary.txt"

[components.seen]
kind = "encoder"
model = { from = "huggingface", path = "clip", part = "vision" }
module = ""
outputs = { image_embeds = { task = "embedding" } }
inputs = { image = { source = "image", preprocess = { steps = "image", height = 32, width = 32 } } }

[components.read]
kind = "encoder"
model = { from = "huggingface", path = "clip", part = "text" }
module = ""
outputs = { text_embeds = { task = "embedding" } }
inputs = { ids = { source = "text", preprocess = { steps = "tokens", asset = "vocabulary", max_length = 12 } } }

[components.heard]
kind = "encoder"
model = { from = "huggingface", path = "whisper", part = "encoder" }
module = ""
window = { length = 8000, hop = 8000 }
outputs = { hidden = { task = "sequence" } }
inputs = { sound = "audio" }

[components.meant]
kind = "encoder"
model = { from = "huggingface", path = "bert", pooling = "mean" }
module = ""
outputs = { sentence = { task = "embedding" } }
[components.meant.inputs]
ids = { source = "text", preprocess = { steps = "tokens", asset = "vocabulary", max_length = 10 } }
mask = { source = "text", preprocess = { steps = "tokens", asset = "vocabulary", max_length = 10, gives = "mask" } }

[components.judged]
kind = "encoder"
model = { from = "huggingface", path = "classifier" }
module = ""
outputs = { scores = { task = "classification", labels = "classes" } }
[components.judged.inputs]
ids = { source = "text", preprocess = { steps = "tokens", asset = "vocabulary", max_length = 10 } }
"""


def clip() -> Any:
    from transformers import CLIPConfig, CLIPModel

    text = {**LAYERS, "vocab_size": 100, "max_position_embeddings": 16}
    text |= {"bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 1}
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config={**LAYERS, "image_size": 32, "patch_size": 8}, projection_dim=24)
    )


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    widths = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    widths |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_model": 32, "num_mel_bins": 80, "vocab_size": 100}
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
    return WhisperForConditionalGeneration(
        WhisperConfig(max_source_positions=50, max_target_positions=20, **widths, **ids)
    )


def bert(kind: str = "BertModel", **more: Any) -> Any:
    import transformers

    config = transformers.BertConfig(vocab_size=100, max_position_embeddings=32, **LAYERS, **more)
    return getattr(transformers, kind)(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random models, saved as trained ones are."""
    folder = tmp_path_factory.mktemp("huggingface")
    torch.manual_seed(0)
    for name, model in {
        "clip": clip(),
        "whisper": whisper(),
        "bert": bert(),
        "classifier": bert("BertForSequenceClassification", num_labels=2),
    }.items():
        model.save_pretrained(folder / name)
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    (folder / "vocabulary.txt").write_text("[PAD]\n[UNK]\nyes\n")
    return folder


@pytest.fixture(scope="module")
def graphs(strangers: Callable[..., Any], folder: Path) -> dict[str, bytes]:
    return strangers(folder, RECIPE, source="seen.image_embeds").traced()


def reference(folder: Path, name: str) -> Any:
    from transformers import AutoModel, BertForSequenceClassification, WhisperForConditionalGeneration

    kinds = {"whisper": WhisperForConditionalGeneration, "classifier": BertForSequenceClassification}
    return kinds.get(name, AutoModel).from_pretrained(folder / name).eval()


def tensors(inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    return [torch.from_numpy(value) for value in inputs.values()]


def ids(batch: int, length: int) -> np.ndarray:
    """Each with an end of text, CLIP's 99, somewhere, and padding of 0 after it."""
    rng = np.random.default_rng(batch)
    given = rng.integers(4, 98, (batch, length))
    ends = rng.integers(length // 2, length - 1, batch)
    given[np.arange(batch), ends] = 99
    given[np.arange(length) > ends[:, None]] = 0
    return given


def plain(given: Any) -> np.ndarray:
    tensor = given if isinstance(given, torch.Tensor) else given.pooler_output
    return tensor.detach().numpy()


def test_clips_vision_tower_takes_the_camera_image(graphs: dict[str, bytes], folder: Path, agrees: Agrees) -> None:
    """uint8 in, the projected embedding out, as transformers gives it for pixels normalized beforehand."""
    model = reference(folder, "clip")

    def wanted(inputs: Mapping[str, Any]) -> np.ndarray:
        pixels = ((inputs["image"] / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
        return plain(model.get_image_features(pixel_values=torch.from_numpy(pixels)))

    rng = np.random.default_rng(0)
    agrees(graphs["seen"], wanted, lambda n: {"image": rng.integers(0, 256, (n, 32, 32, 3), np.uint8)})


def test_clips_text_tower_needs_no_mask(graphs: dict[str, bytes], folder: Path, agrees: Agrees) -> None:
    """What comes after the end of a text does not reach the embedding: the same as with transformers' mask."""
    model = reference(folder, "clip")

    def wanted(inputs: Mapping[str, Any]) -> np.ndarray:
        [given] = tensors(inputs)
        return plain(model.get_text_features(input_ids=given, attention_mask=(given != 0).long()))

    agrees(graphs["read"], wanted, lambda n: {"ids": ids(n, 12)})


def test_whispers_encoder_takes_sound(graphs: dict[str, bytes], folder: Path, agrees: Agrees) -> None:
    """Half a second, its features those of transformers' own extractor, silence behind it."""
    from transformers import WhisperFeatureExtractor

    model, extract = reference(folder, "whisper"), WhisperFeatureExtractor(chunk_length=1)

    def wanted(inputs: Mapping[str, Any]) -> np.ndarray:
        features = extract(list(inputs["sound"]), sampling_rate=16000, return_tensors="pt").input_features
        assert features.shape[1:] == (80, 100)
        return model.model.encoder(features).last_hidden_state.detach().numpy()

    rng, t = np.random.default_rng(0), np.arange(8000) / 16000

    def sounds(batch: int) -> dict[str, np.ndarray]:
        tones = np.sin(2 * np.pi * rng.uniform(100, 3000, (batch, 1)) * t) * rng.uniform(0.01, 0.9, (batch, 1))
        return {"sound": (tones + rng.normal(0, 1e-3, tones.shape)).astype(np.float32)}

    agrees(graphs["heard"], wanted, sounds)


def test_whispers_decoder_gives_logits(folder: Path, agrees: Agrees, tmp_path: Path) -> None:
    """For all positions at once, without a cache, from the encoder's hidden states."""
    model = reference(folder, "whisper")
    decoder = load_huggingface(HuggingFaceModel(path="whisper", part="decoder"), folder, "model").module
    edges = [["input_ids", "int64", ["batch", 6]], ["hidden", "float32", ["batch", 50, 32]]]
    trace_worker._with_torch_export(decoder, {"inputs": edges}, 20, tmp_path / "decoder.onnx")

    def wanted(inputs: Mapping[str, Any]) -> np.ndarray:
        tokens, hidden = tensors(inputs)
        return model(decoder_input_ids=tokens, encoder_outputs=(hidden,)).logits.detach().numpy()

    rng = np.random.default_rng(0)
    agrees(
        (tmp_path / "decoder.onnx").read_bytes(),
        wanted,
        lambda n: {"input_ids": ids(n, 6), "hidden": rng.normal(0, 1, (n, 50, 32)).astype(np.float32)},
    )


def test_a_bert_is_pooled_where_its_mask_says(graphs: dict[str, bytes], folder: Path, agrees: Agrees) -> None:
    """The mean over tokens, not over padding."""
    model = reference(folder, "bert")

    def wanted(inputs: Mapping[str, Any]) -> np.ndarray:
        tokens, mask = tensors(inputs)
        hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state.detach().numpy()
        return np.stack([row[: int(n)].mean(axis=0) for row, n in zip(hidden, inputs["mask"].sum(1), strict=True)])

    agrees(graphs["meant"], wanted, lambda n: {"ids": ids(n, 10), "mask": (ids(n, 10) != 0).astype(np.int64)})


def test_a_classifier_masks_its_own_padding(graphs: dict[str, bytes], folder: Path, agrees: Agrees) -> None:
    """With ids alone; its logits are the head's."""
    model = reference(folder, "classifier")

    def wanted(inputs: Mapping[str, Any]) -> np.ndarray:
        [tokens] = tensors(inputs)
        return model(input_ids=tokens, attention_mask=(tokens != 0).long()).logits.detach().numpy()

    agrees(graphs["judged"], wanted, lambda n: {"ids": ids(n, 10)})


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(folder: Path, said: str, **source: Any) -> None:
    with pytest.raises(RecipeError, match=said):
        load_huggingface(HuggingFaceModel(**source), folder, "components.seen.model")


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """They run code when they are loaded: the message says how to save them anew."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text((folder / "bert" / "config.json").read_text())
    torch.save({}, tmp_path / "old" / "pytorch_model.bin")
    refused(tmp_path, r"has no \*\.safetensors, only .*pytorch_model\.bin.*safe_serialization", path="old")


def test_what_is_no_directory_is_refused(folder: Path, tmp_path: Path) -> None:
    """Nothing is asked for on the network by that name."""
    refused(tmp_path, "no directory as save_pretrained writes it", path="openai/clip-vit-base-patch32")


def test_a_part_that_a_model_lacks_is_refused(folder: Path) -> None:
    """By the model's kind."""
    refused(folder, "part is 'vision', which BertModel does not have", path="bert", part="vision")
    refused(folder, "part is 'decoder', which BertModel does not have", path="bert", part="decoder")


def test_weights_that_would_be_random_are_refused(folder: Path, tmp_path: Path) -> None:
    """transformers fills in what a file lacks and only warns."""
    from safetensors.torch import load_file, save_file

    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text((folder / "bert" / "config.json").read_text())
    state = load_file(folder / "bert" / "model.safetensors")
    kept = {key: value for key, value in state.items() if "layer.0.output" not in key}
    save_file(kept, tmp_path / "half" / "model.safetensors", {"format": "pt"})
    refused(tmp_path, r"lacks the weights \['encoder\.layer\.0\.output.*which would be random", path="half")


def test_an_image_model_says_how_images_are_normalized(folder: Path, tmp_path: Path) -> None:
    """By its processor's file, or the recipe; nothing is guessed."""
    clip().save_pretrained(tmp_path / "bare")
    refused(tmp_path, re.escape("has no preprocessor_config.json"), path="bare", part="vision")


def test_code_in_a_directory_is_not_run(folder: Path, tmp_path: Path) -> None:
    """A model whose class is in its own folder: nothing of it is imported."""
    (tmp_path / "own").mkdir()
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    (tmp_path / "own" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "own" / "model.safetensors").write_bytes(b"")
    refused(tmp_path, "cannot be loaded", path="own")
    assert not (tmp_path / "ran").exists()
