"""Hugging Face directories: towers of CLIP, Whisper's encoder and decoder, BERT and its relatives, what captions."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_mbm.errors import MissingDependencyError, RecipeError
from edge_mbm.export.origins.images import WithImages, normalized
from edge_mbm.export.origins.module import ModuleOrigin, TorchModel
from edge_mbm.export.origins.whisper import WhisperEncoder
from edge_mbm.export.recipe import ComponentRecipe, HuggingFaceModel, Normalize
from edge_mbm.models.similarity import Similarity, each_line

__all__ = ["load_huggingface"]

_IMAGES = "preprocessor_config.json"


def load_huggingface(source: HuggingFaceModel, folder: Path, where: str) -> TorchModel:
    """Load a directory, without the network, without pickles and without code from it.

    Args:
        source: as the recipe says.
        folder: of the recipe.
        where: the recipe's key, for messages.

    Raises:
        RecipeError: no such directory, no safetensors, weights that do not fit, or no such part.
        MissingDependencyError: transformers is not installed.
    """
    path = folder / source.path
    _check(path, where)
    model = _load(path, source.part, where)
    part = _part(model, source, where)
    images = WithImages(part, source.normalize or _normalize(path, where)) if _sees(model, source) else part
    kind = _WriterModel if source.part == "writer" else TorchModel
    return kind(images.cpu().eval().requires_grad_(requires_grad=False))


def _check(path: Path, where: str) -> None:
    if not path.is_dir() or not (path / "config.json").is_file():
        raise RecipeError(f"{where}.path: {path} is no directory as save_pretrained writes it (config.json is missing)")
    if not any(path.glob("*.safetensors")):
        found = sorted(file.name for file in path.iterdir())
        raise RecipeError(
            f"{where}.path: {path} has no *.safetensors, only {found}: other weights are pickles, which run code when "
            "they are loaded. Save the model again with model.save_pretrained(..., safe_serialization=True)"
        )


def _load(path: Path, part: str, where: str) -> Any:
    try:
        with _quiet():
            find = _generator_class if part in ("memory", "writer") else _auto_class
            model, report = find(path).from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="eager",  # standard operators; the fused ones are exported as many or not at all
                dtype=torch.float32,
                output_loading_info=True,
            )
    except ImportError as error:
        raise MissingDependencyError(
            "transformers", "a model with from = 'huggingface'", "pip install 'edge-mbm[huggingface]'"
        ) from error
    except Exception as error:  # a broken file, an unknown architecture: no common base
        text = str(error).strip().splitlines() or [""]
        raise RecipeError(f"{where}.path: {path} cannot be loaded, {type(error).__name__}: {text[0][:400]}") from error
    # A pooler that the checkpoint lacks is nothing that is ever returned.
    if absent := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise RecipeError(
            f"{where}.path: {path} lacks the weights {absent[:3]}{' and more' if absent[3:] else ''}, which would be "
            "random: is it the directory of a trained model?"
        )
    return model


def _generator_class(path: Path) -> Any:
    """The class that the configuration names, with the head that writes."""
    name = _architecture(path)
    kind = getattr(importlib.import_module("transformers"), name, None)
    if not inspect.isclass(kind) or not hasattr(kind, "can_generate") or not kind.can_generate():
        raise LookupError(f"'{name}' is no class of transformers that generates text")
    return kind


def _architecture(path: Path) -> str:
    [architecture, *_] = json.loads((path / "config.json").read_text()).get("architectures") or [""]
    return str(architecture)


def _auto_class(path: Path) -> Any:
    """The class for the head that the configuration names, or the bare model."""
    transformers, architecture = importlib.import_module("transformers"), _architecture(path)
    for suffix in ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification"):
        if architecture.endswith(suffix):
            return getattr(transformers, f"AutoModel{suffix}")
    return transformers.AutoModel


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its bars and reports: what matters of them is checked."""
    logging = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# --- parts -----------------------------------------------------------------------------------------------------------


def _part(model: Any, source: HuggingFaceModel, where: str) -> nn.Module:
    kinds = {
        "vision": _VisionTower,
        "text": _TextTower,
        "similarity": _similarity,
        "encoder": WhisperEncoder,
        "decoder": _Decoder,
    }
    needs = {
        "vision": "get_image_features",
        "text": "get_text_features",
        "similarity": "logit_scale",
        "encoder": "get_encoder",
        "decoder": "get_decoder",
    }
    if source.part == "auto":
        return _Whole(model, source.pooling)
    if source.part in ("memory", "writer"):
        return _writing(model, source.part, where)
    tower = source.part in ("vision", "text", "similarity")
    if not hasattr(model, needs[source.part]) or (not tower and not model.config.is_encoder_decoder):
        raise RecipeError(f"{where}.part is '{source.part}', which {type(model).__name__} does not have")
    part: nn.Module = kinds[source.part](model)
    return part


def _writing(model: Any, part: str, where: str) -> nn.Module:
    from edge_mbm.export.origins import generation  # noqa: PLC0415 - imports transformers

    made: nn.Module = getattr(generation, part)(model, where)
    return made


class _WriterModel(TorchModel):
    """One whose component must have the cache that it needs."""

    def component(self, name: str, recipe: ComponentRecipe) -> ModuleOrigin:
        self.module.check_recipe(name, recipe)  # type: ignore[operator] # a Writer
        return super().component(name, recipe)


def _similarity(model: Any) -> Similarity:
    """The temperature that the towers were trained with, and SigLIP's bias."""
    bias = getattr(model, "logit_bias", None)
    head = Similarity(bias=0.0 if bias is None else float(bias.detach()))
    head.log_scale.data.copy_(model.logit_scale.detach().reshape(()))
    return head


def _sees(model: Any, source: HuggingFaceModel) -> bool:
    sees = source.part in ("auto", "memory") and model.main_input_name == "pixel_values"
    return source.part == "vision" or sees


def _normalize(path: Path, where: str) -> Normalize:
    try:
        config = json.loads((path / _IMAGES).read_text())
        return normalized(tuple(map(float, config["image_mean"])), tuple(map(float, config["image_std"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{where}: {path} has no {_IMAGES} with image_mean and image_std: save the processor there too, or give "
            "the model's table normalize = { mean = [...], std = [...] } (on the scale 0..255)"
        ) from error


def _features(given: Any) -> Tensor:
    """What ``get_image_features`` gives: a tensor, or a record around it in newer versions."""
    features: Tensor = given if isinstance(given, Tensor) else given.pooler_output
    return features


class _VisionTower(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return _features(self.model.get_image_features(pixel_values=pixel_values))


class _TextTower(nn.Module):
    """Without a mask every position is attended to: causal as CLIP's is, it never looks beyond the end of the text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        given = [input_ids] if attention_mask is None else [input_ids, attention_mask]
        # A list of prompts has a row for each of its lines.
        return each_line(self._tower, *given) if input_ids.dim() == 3 else self._tower(*given)

    def _tower(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return _features(self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask))


class _Decoder(nn.Module):
    """Whisper's decoder on all ids at once; its logits are by the embedding's own table, as Whisper ties them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.get_decoder()

    def forward(self, input_ids: Tensor, hidden: Tensor) -> Tensor:
        given = self.decoder(input_ids=input_ids, encoder_hidden_states=hidden, use_cache=False)
        return nn.functional.linear(given.last_hidden_state, self.decoder.embed_tokens.weight)


class _Whole(nn.Module):
    """A model by its main input, and what its classifier or its hidden states say."""

    def __init__(self, model: Any, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, main: Tensor, attention_mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        name = self.model.main_input_name
        mask = self._mask(main, attention_mask) if name == "input_ids" else attention_mask
        named = {name: main, "attention_mask": mask, "token_type_ids": segments}
        given = self.model(**{key: value for key, value in named.items() if value is not None})
        hidden: Tensor = given.logits if hasattr(given, "logits") else given.last_hidden_state
        return hidden if hasattr(given, "logits") else self._pooled(hidden, mask)

    def _mask(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        """Given, or where there is no padding."""
        padding = self.model.config.pad_token_id
        return (ids != padding).to(torch.int64) if mask is None and padding is not None else mask

    def _pooled(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if self.pooling == "first":
            return hidden[:, 0]
        if self.pooling == "none":
            return hidden
        weights = torch.ones_like(hidden[..., :1]) if mask is None else mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
