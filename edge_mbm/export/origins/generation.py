"""Hugging Face models that write: an encoder and a decoder that looks at it become ``memory`` and ``writer``.

Nothing is known here of any one architecture. Its decoder is run as transformers runs it, but for one token, with a
cache whose slots are all there from the start: a mask hides those that are still empty, and the token's keys and values
are put where its position says. The layers for that are those of transformers' own cache, with another ``update``.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from edge_mbm.errors import RecipeError
from edge_mbm.export.origins.whisper import WhisperEncoder
from edge_mbm.export.recipe import ComponentRecipe, DecoderRecipe

__all__ = ["Memory", "Writer", "memory", "writer"]

_UNSEEN = -1e4  # added to a score: its softmax is 0 exactly, and it is no overflow in 16 bits


def memory(model: Any, where: str) -> Memory:
    """The part that is computed once for a text.

    Args:
        model: encoder and decoder, of transformers.
        where: the recipe's key, for messages.

    Raises:
        RecipeError: its decoder looks at no encoder, or its encoder takes neither an image nor Whisper's sound.
    """
    _check_kind(model, where)
    return Memory(WhisperEncoder(model) if model.config.model_type == "whisper" else _Sight(model), _Steps(model))


def writer(model: Any, where: str) -> Writer:
    """The part that is computed for every token.

    Args:
        model: encoder and decoder, of transformers.
        where: the recipe's key, for messages.

    Raises:
        RecipeError: as ``memory``; or its decoder, run step by step, does not give what it gives for a whole text.
    """
    _check_kind(model, where)
    made = Writer(_Steps(model))
    _check_steps(made, where)
    return made


class Memory(nn.Module):
    """What is written about, to what the decoder's layers look at: keys and values of each.

    Args:
        encoder: gives hidden states, float32[batch, places, width].
        steps: the model.

    Shape:
        What ``encoder`` takes -> float32[batch, 2 * layers, heads, places, width of a head].
    """

    def __init__(self, encoder: nn.Module, steps: _Steps) -> None:
        super().__init__()
        self.encoder, self.steps = encoder, steps

    def forward(self, given: Tensor) -> Tensor:
        """Keys and values, layer by layer."""
        return self.steps.memory(self.encoder(given))


class Writer(nn.Module):
    """One step of the decoder, as ``spec.Decoder`` says.

    Args:
        steps: the model.
    """

    def __init__(self, steps: _Steps) -> None:
        super().__init__()
        self.steps = steps
        with torch.no_grad():
            _, self.layers2, self.heads, _, self.width = steps.memory(steps.example(1)).shape
        """Of the cache: keys and values of all layers, heads, width of a head."""

    def state_shape(self, tokens: int) -> tuple[str | int, ...]:
        """Of the cache for texts of so many tokens."""
        return ("batch", self.layers2, self.heads, tokens, self.width)

    def check_recipe(self, name: str, recipe: ComponentRecipe) -> None:
        """Whether a component of a recipe suits.

        Raises:
            RecipeError: it is no decoder, its cache has another shape, or the model has fewer positions.
        """
        where = f"components.{name}"
        if not isinstance(recipe, DecoderRecipe):
            raise RecipeError(f"{where} has the part 'writer', which is one step of a decoder: kind = 'decoder'")
        if recipe.max_tokens > self.steps.positions:
            have = self.steps.positions
            raise RecipeError(f"{where}.max_tokens is {recipe.max_tokens}, the model has positions for {have}")
        wanted, found = self.state_shape(recipe.max_tokens), [state.shape for state in recipe.states]
        if found != [wanted]:
            shape = json.dumps(wanted)
            raise RecipeError(
                f"{where}.states have the shapes {list(map(list, found))}; this model's for {recipe.max_tokens} tokens "
                f'is states = [{{ input = "cache", output = "next_cache", shape = {shape} }}]'
            )

    def forward(self, token: Tensor, position: Tensor, memory: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """One token further.

        Args:
            token: int64[batch, 1], the last one.
            position: int64[batch, 1], its place from 0.
            memory: as ``Memory`` gives it.
            cache: float32[batch, 2 * layers, heads, tokens, width of a head], keys and values of the places before.

        Returns:
            float32[batch, vocabulary], scores of the next token; and the cache with this one in its place.
        """
        places = torch.arange(cache.shape[3])
        here = (places == position)[:, None, :, None]
        unseen = (places > position)[:, None, None, :] * _UNSEEN
        written = [_Slots(*pair, here) for pair in _pairs(cache)]
        scores = self.steps(token, position, unseen, memory, written)
        return scores, torch.stack([part for layer in written for part in (layer.keys, layer.values)], dim=1)


# --- transformers' side ----------------------------------------------------------------------------------------------


class _Slots(DynamicLayer):  # type: ignore[no-untyped-call] # transformers' own
    """A layer's keys and values, float32[batch, heads, slots, width], all of them from the start.

    Args:
        keys: None for a layer that takes what comes, once.
        values: likewise.
        here: bool[batch, 1, slots, 1], where the next token goes; None where none does.
    """

    def __init__(self, keys: Any = None, values: Any = None, here: Tensor | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # transformers' own
        self.keys: Any = keys
        self.values: Any = values
        self.here = here
        self.is_initialized = keys is not None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put a token's where it goes, and give all."""
        if self.here is None:
            self.keys, self.values = key_states, value_states
        else:
            self.keys = torch.where(self.here, key_states, self.keys)
            self.values = torch.where(self.here, value_states, self.values)
        return self.keys, self.values


class _Sight(nn.Module):
    """An image encoder's hidden states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(pixel_values=pixel_values).last_hidden_state
        return hidden


class _Steps(nn.Module):
    """The model with its decoder's caches in our hands."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        decoder = getattr(model.config, "decoder", model.config)
        self.layers: int = getattr(decoder, "decoder_layers", None) or decoder.num_hidden_layers
        self.positions: int = getattr(decoder, "max_target_positions", None) or decoder.max_position_embeddings
        self.hidden: int = getattr(model.config, "encoder", model.config).hidden_size
        named = inspect.signature(model.forward).parameters
        self.cache = "cache" if "cache" in named else "past_key_values"  # its name in versions before 5.2x

    def forward(self, token: Tensor, position: Tensor, mask: Tensor, memory: Tensor, written: list[_Slots]) -> Tensor:
        """Scores of the next token, float32[batch, vocabulary]."""
        # The decoder's layers look at the memory; of hidden states only the number of places is asked for.
        hidden = memory[:, 0, 0, :, :1].expand(-1, -1, self.hidden)
        return self._run(token, position, mask, hidden, self._caches(written, [_Slots(*p) for p in _pairs(memory)]))

    def memory(self, hidden: Tensor) -> Tensor:
        """What the decoder's layers make of an encoder's hidden states, as ``Memory`` gives it."""
        # Any token will do: these keys and values do not depend on it, and a graph loses what nobody asks for.
        begin = torch.zeros_like(hidden[:, :1, 0], dtype=torch.int64)
        seen, written = ([_Slots() for _ in range(self.layers)] for _ in range(2))
        self._run(begin, begin, hidden[:, None, :1, :1] * 0.0, hidden, self._caches(written, seen))
        return torch.stack([part for layer in seen for part in (layer.keys, layer.values)], dim=1)

    def example(self, batch: int) -> Tensor:
        """Hidden states as an encoder might give them, float32[batch, 3, width]."""
        noise = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, self.hidden, generator=noise)

    def _caches(self, written: list[_Slots], seen: list[_Slots]) -> dict[str, Any]:
        """As transformers takes them, by the name that this version has for them."""
        own, across = (Cache(layers=list[Any](layers)) for layers in (written, seen))
        return {self.cache: EncoderDecoderCache(own, across)}

    def _run(self, token: Tensor, position: Tensor, mask: Tensor, hidden: Tensor, caches: dict[str, Any]) -> Tensor:
        given = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            decoder_input_ids=token,
            decoder_position_ids=position,
            decoder_attention_mask=mask,
            use_cache=True,
            **caches,
        )
        scores: Tensor = given.logits[:, -1]
        return scores


def _pairs(packed: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each layer's keys and values."""
    return [(packed[:, index], packed[:, index + 1]) for index in range(0, packed.shape[1], 2)]


# --- what cannot be --------------------------------------------------------------------------------------------------


def _check_kind(model: Any, where: str) -> None:
    name = type(model).__name__
    if not model.config.is_encoder_decoder:
        raise RecipeError(
            f"{where}: {name} has no decoder that looks at an encoder: 'memory' and 'writer' are parts of models of "
            "the VisionEncoderDecoder and Whisper kinds"
        )
    if model.main_input_name != "pixel_values" and model.config.model_type != "whisper":
        raise RecipeError(f"{where}: {name} takes {model.main_input_name}, not an image nor Whisper's sound")


def _check_steps(writer: Writer, where: str) -> None:
    """That three steps give what the whole text gives, for two texts of different lengths at once."""
    steps = writer.steps
    name = type(steps.model).__name__
    try:
        with torch.no_grad():
            stepped, whole = _stepped(writer), _whole(steps)
    except Exception as error:  # transformers' own, of any kind
        raise RecipeError(f"{where}: {name} cannot be run step by step, {type(error).__name__}: {error}") from error
    if not torch.allclose(stepped, whole, rtol=0, atol=1e-3 * max(1.0, float(whole.abs().max()))):
        raise RecipeError(
            f"{where}: {name}, run step by step with a cache, gives other scores than for a whole text: its decoder "
            "finds positions by itself, or its cache is of another kind, and this edge-mbm cannot export it"
        )


_TOKENS = ((1, 2, 3), (2, 0, 3))


def _stepped(writer: Writer) -> Tensor:
    memory = writer.steps.memory(writer.steps.example(2))
    cache = torch.zeros(2, *writer.state_shape(4)[1:])  # type: ignore[arg-type] # numbers, without the batch
    scores = cache  # there are tokens
    for place, column in enumerate(torch.tensor(_TOKENS).T):
        scores, cache = writer(column[:, None], torch.full((2, 1), place), memory, cache)
    return scores


def _whole(steps: _Steps) -> Tensor:
    hidden, tokens = BaseModelOutput(last_hidden_state=steps.example(2)), torch.tensor(_TOKENS)
    scores: Tensor = steps.model(
        encoder_outputs=hidden,
        decoder_input_ids=tokens,
        decoder_attention_mask=torch.ones_like(tokens),  # 0 may be padding elsewhere
        use_cache=False,
    ).logits[:, -1]
    return scores
