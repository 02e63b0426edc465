"""Models that write: every token against transformers' own ``generate``, through a bundle that a session runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

import edge_mbm
from edge_mbm import DecodeOptions, SessionOptions
from edge_mbm.bundle import write_bundle
from edge_mbm.errors import RecipeError
from edge_mbm.export.chain import GraphRunner
from edge_mbm.export.origins.huggingface import load_huggingface
from edge_mbm.export.recipe import HuggingFaceModel
from edge_mbm.runtime import TextOutput
from edge_mbm.spec import Asset, Decision, Manifest, Variant

pytestmark = pytest.mark.needs("transformers", "safetensors", "tokenizers")

WORDS = ["<pad>", "<start>", "<end>", "<unknown>", "größer", "猫", "кот", "a", *(f"word{k}" for k in range(24))]
PAD, START, END = 0, 1, 2
SPECIAL = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
LONGEST = 12
RECIPE = """
[modalities]
image = { kind = "image" }
audio = { kind = "audio", sample_rate = 16000 }
[tokenizers]
words = "tokenizer.json"

[components.seen]
kind = "encoder"
model = { from = "huggingface", path = "captioner", part = "memory" }
inputs = { image = { source = "image", preprocess = { steps = "image", height = 32, width = 32 } } }
outputs = { memory = { task = "sequence" } }

[components.caption]
kind = "decoder"
model = { from = "huggingface", path = "captioner", part = "writer" }
inputs = { memory = "seen.memory" }
outputs = { text = { task = "tokens", tokenizer = "words" } }
states = [{ input = "cache", output = "next_cache", shape = ["batch", 4, 4, 12, 8] }]
tokenizer = "words"
max_tokens = 12
start = [1]
end = 2

[components.heard]
kind = "encoder"
model = { from = "huggingface", path = "whisper", part = "memory" }
window = { length = 8000, hop = 8000 }
inputs = { sound = "audio" }
outputs = { memory = { task = "sequence" } }

[components.transcript]
kind = "decoder"
model = { from = "huggingface", path = "whisper", part = "writer" }
inputs = { memory = "heard.memory" }
outputs = { transcribed = { task = "tokens", tokenizer = "words" } }
states = [{ input = "cache", output = "next_cache", shape = ["batch", 4, 2, 12, 16] }]
tokenizer = "words"
max_tokens = 12
start = [1]
end = 2
"""


def captioner() -> Any:
    """A vision transformer wider than its GPT-2, so that there is a projection between them."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    sees = ViTConfig(
        image_size=32, patch_size=8, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    says = GPT2Config(
        vocab_size=len(WORDS), n_positions=16, n_embd=32, n_layer=2, n_head=4, add_cross_attention=True, **SPECIAL
    )
    return VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(sees, says))


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    widths = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_model": 32, "num_mel_bins": 80}
    config = WhisperConfig(max_source_positions=50, max_target_positions=16, vocab_size=len(WORDS), **widths, **SPECIAL)
    return WhisperForConditionalGeneration(config)


def outspoken(model: Any) -> Any:
    """With larger random weights: what it says depends on what it is shown, and on what it has said."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models as trained ones are saved, and a tokenizer of words in several scripts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("generation")
    torch.manual_seed(3)
    for name, model in {"captioner": captioner(), "whisper": whisper()}.items():
        outspoken(model).save_pretrained(folder / name)
    figures = json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    (folder / "captioner" / "preprocessor_config.json").write_text(figures)
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def made(strangers: Callable[..., Any], folder: Path) -> Any:
    return strangers(folder, RECIPE)


@pytest.fixture(scope="module")
def graphs(made: Any) -> dict[str, bytes]:
    return made.traced()


@pytest.fixture(scope="module")
def bundle(made: Any, graphs: dict[str, bytes], folder: Path) -> Iterator[edge_mbm.Bundle]:
    """The traced graphs, whole, as a bundle."""
    yes = Decision(kept=True, reason="-")
    components = {
        name: replace(c, variants={"fp32": Variant(target="any", precision="fp32", opset=20, graph=name, decision=yes)})
        for name, c in made.components.items()
    }
    manifest = Manifest(
        name="writers",
        modalities=made.recipe.recipe.modalities,
        components=components,
        assets={"words": Asset(kind="tokenizer", path="tokenizer.json")},
        files={},
    )
    contents = {**graphs, "tokenizer.json": (folder / "tokenizer.json").read_bytes()}
    write_bundle(folder / "writers.mbm", manifest, contents)
    with edge_mbm.load(folder / "writers.mbm") as opened:
        yield opened


def reference(folder: Path, name: str) -> Any:
    import transformers

    kind = {"captioner": "VisionEncoderDecoderModel", "whisper": "WhisperForConditionalGeneration"}[name]
    return getattr(transformers, kind).from_pretrained(folder / name, attn_implementation="eager").eval()


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(count)]


def sounds(count: int) -> list[np.ndarray]:
    rng, t = np.random.default_rng(1), np.arange(8000) / 16000
    tones = [np.sin(2 * np.pi * rng.uniform(100, 3000) * t) * rng.uniform(0.1, 0.9) for _ in range(count)]
    return [(tone + rng.normal(0, 1e-3, tone.shape)).astype(np.float32) for tone in tones]


def generated(folder: Path, name: str, given: np.ndarray, **more: Any) -> tuple[int, ...]:
    """What transformers' own search writes, without the first token and from the end on."""
    from transformers import GenerationMixin, WhisperFeatureExtractor

    if name == "captioner":
        main = {"pixel_values": torch.from_numpy((given / 255 - 0.5) / 0.25).float().permute(2, 0, 1)[None]}
    else:
        extract = WhisperFeatureExtractor(chunk_length=1)
        main = {"input_features": extract(given, sampling_rate=16000, return_tensors="pt").input_features}
    # Not Whisper's own generate, which is about languages and times around this one.
    written = GenerationMixin.generate(
        reference(folder, name),
        **main,
        **{"do_sample": False, "max_length": LONGEST, "decoder_start_token_id": START, **SPECIAL, **more},
    )
    tokens = written[0].tolist()[1:]
    return tuple(tokens[: tokens.index(END)] if END in tokens else tokens)


def written(bundle: edge_mbm.Bundle, head: str, given: dict[str, Any], **options: Any) -> TextOutput:
    with bundle.session(SessionOptions(heads=(head,), decoding=DecodeOptions(**options))) as session:
        [result] = session.infer(**given)
    assert isinstance(result.output, TextOutput)
    return result.output


def test_captions_are_transformers_own(bundle: edge_mbm.Bundle, folder: Path) -> None:
    """Token for token, for pictures that make it say different things."""
    shown = images(8)
    got = [written(bundle, "caption", {"image": image}).tokens for image in shown]
    assert got == [generated(folder, "captioner", image) for image in shown]
    assert len(set(got)) >= 6
    assert sum(len(set(tokens)) > 3 for tokens in got) >= 4


def test_transcripts_are_transformers_own(bundle: edge_mbm.Bundle, folder: Path) -> None:
    """From sound, its features made in the graph."""
    played = sounds(6)
    got = [written(bundle, "transcript", {"audio": sound}).tokens for sound in played]
    assert got == [generated(folder, "whisper", sound) for sound in played]
    assert len(set(got)) >= 3
    assert max(len(set(tokens)) for tokens in got) > 3


@pytest.mark.parametrize("budget", [1, 5])
def test_the_budget_cuts_what_would_be_longer(bundle: edge_mbm.Bundle, folder: Path, budget: int) -> None:
    """The same beginning, and it says that it is not complete."""
    [image] = images(1)
    whole, cut = generated(folder, "captioner", image), written(bundle, "caption", {"image": image}, max_tokens=budget)
    assert len(whole) > budget
    assert (cut.tokens, cut.is_complete) == (whole[:budget], False)


def test_three_beams_find_what_transformers_finds(bundle: edge_mbm.Bundle, folder: Path) -> None:
    """With texts that only the budget ends, since both sides end others by rules of their own."""
    components = dict(bundle.manifest.components)
    components["caption"] = replace(components["caption"], suppress=(END,))
    contents = {name: bundle.read(name) for name in bundle.manifest.files}
    write_bundle(folder / "endless.mbm", replace(bundle.manifest, components=components, files={}), contents)
    same = {"num_beams": 3, "length_penalty": 1.0, "suppress_tokens": [END], "renormalize_logits": True}
    with edge_mbm.load(folder / "endless.mbm") as opened:
        for image in images(4):
            got = written(opened, "caption", {"image": image}, beams=3)
            assert got.tokens == generated(folder, "captioner", image, **same)
            assert not got.is_complete


def test_a_caption_streams_in_pieces_and_can_be_left(bundle: edge_mbm.Bundle, folder: Path) -> None:
    """The pieces are the text, in whatever script; who stops asking ends it, and the next text is whole."""
    [first, second] = images(2)
    with bundle.session(SessionOptions(heads=("caption",))) as session:
        pieces = session.generate("caption", image=first)
        assert next(pieces).token == generated(folder, "captioner", first)[0]
        pieces.close()
        whole = list(session.generate("caption", image=second))
    tokens = generated(folder, "captioner", second)
    assert "".join(piece.text for piece in whole) == " ".join(WORDS[k] for k in tokens if k >= 3)
    assert [piece.token for piece in whole][: len(tokens)] == list(tokens)


@pytest.mark.parametrize("name", ["caption", "transcript"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_rows_of_a_batch_may_be_at_different_places(made: Any, graphs: dict[str, bytes], name: str, batch: int) -> None:
    """Each row's token goes to its own place, and the step is torch's."""
    rng = np.random.default_rng(batch)
    given = {}
    for key, tensor in made.components[name].graph_inputs().items():
        given[key] = rng.normal(0, 1, tensor.resolve(batch)).astype(np.float32)
    given["token"] = rng.integers(3, len(WORDS), (batch, 1))
    given["position"] = rng.permutation(LONGEST)[:batch, None]
    got, want = GraphRunner(graphs[name], name)(given), made.origin.run(name, given)
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-4 * max(1.0, float(np.abs(value).max())))
    changed = np.abs(got["next_cache"] - given["cache"]).max(axis=(1, 2, 4)) > 0
    assert (changed == (np.arange(LONGEST) == given["position"])).all()


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(folder: Path, said: str, path: str, part: str = "writer") -> None:
    with pytest.raises(RecipeError, match=said):
        load_huggingface(HuggingFaceModel(path=path, part=part), folder, "components.caption.model")  # type: ignore[arg-type]


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """As for every part."""
    (tmp_path / "old").mkdir()
    captioner().config.save_pretrained(tmp_path / "old")
    torch.save({}, tmp_path / "old" / "pytorch_model.bin")
    refused(tmp_path, r"has no \*\.safetensors", "old")


def test_what_does_not_write_is_refused(tmp_path: Path) -> None:
    """A classifier, and a language model that looks at nothing: both by name."""
    from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **small)).save_pretrained(tmp_path / "sees")
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path / "talks")
    refused(tmp_path, "'ViTModel' is no class of transformers that generates text", "sees")
    refused(tmp_path, "GPT2LMHeadModel has no decoder that looks at an encoder", "talks", "memory")


def test_a_decoder_of_texts_alone_is_refused(tmp_path: Path) -> None:
    """BART reads a text, which is neither an image nor a sound."""
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16}
    BartForConditionalGeneration(BartConfig(vocab_size=20, **sizes, **heads)).save_pretrained(tmp_path / "bart")
    refused(tmp_path, "BartForConditionalGeneration takes input_ids, not an image", "bart")


def test_a_decoder_that_counts_positions_itself_is_refused(tmp_path: Path) -> None:
    """TrOCR's takes no position from us: run step by step it would write something else, which is found out."""
    from transformers import TrOCRConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sees = ViTConfig(image_size=8, patch_size=4, **small)
    says = TrOCRConfig(
        vocab_size=20, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
        max_position_embeddings=16, cross_attention_hidden_size=16,
    )  # fmt: skip
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(sees, says))
    outspoken(model).save_pretrained(tmp_path / "trocr")
    refused(tmp_path, "step by step", "trocr")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_tokens = 12", "max_tokens = 17", "caption.max_tokens is 17, the model has positions for 16"),
        ('"batch", 4, 4, 12, 8]', '"batch", 4, 4, 10, 8]', r'12 tokens is states = .*\["batch", 4, 4, 12, 8\]'),
        (
            'kind = "encoder"\nmodel = { from = "huggingface", path = "captioner", part = "memory" }',
            'kind = "encoder"\nmodel = { from = "huggingface", path = "captioner", part = "writer" }',
            "seen has the part 'writer', which is one step of a decoder",
        ),
    ],
)
def test_a_recipe_that_does_not_suit_says_what_would(
    strangers: Callable[..., Any], folder: Path, old: str, new: str, said: str
) -> None:
    """The cache's shape is told, to be copied."""
    text = RECIPE.replace(old, new, 1)
    assert text != RECIPE
    (folder / "wrong").mkdir(exist_ok=True)
    text = text.replace('"captioner"', '"../captioner"').replace('"whisper"', '"../whisper"')
    with pytest.raises(RecipeError, match=said):
        strangers(folder / "wrong", text.replace("tokenizer.json", "../tokenizer.json"))
