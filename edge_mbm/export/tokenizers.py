"""The tokenizers that a recipe names: they travel in the bundle, and export prepares text with the same bytes."""

from __future__ import annotations

from edge_mbm.errors import RecipeError
from edge_mbm.export.recipe import RESERVED_ASSETS, LoadedRecipe
from edge_mbm.preprocess.text import MAX_TOKENIZER_BYTES, is_tokenizer_json

__all__ = ["tokenizer_files", "tokenizer_path"]


def tokenizer_files(loaded: LoadedRecipe) -> dict[str, bytes]:
    """Asset -> contents of each tokenizer's file.

    Raises:
        RecipeError: there is no such file, it is too large, or its asset's name is taken.
    """
    recipe = loaded.recipe
    for name in recipe.tokenizers:
        if name in RESERVED_ASSETS or name in recipe.labels:
            raise RecipeError(f"tokenizers.{name}: the bundle has another file by that name: take another name")
    return {name: _read(loaded, name, path) for name, path in recipe.tokenizers.items()}


def tokenizer_path(name: str, contents: bytes) -> str:
    """Where a tokenizer is in the bundle."""
    return f"tokenizers/{name}.{'json' if is_tokenizer_json(contents) else 'txt'}"


def _read(loaded: LoadedRecipe, name: str, path: str) -> bytes:
    place = loaded.path.parent / path
    try:
        size = place.stat().st_size
        if size > MAX_TOKENIZER_BYTES:
            raise RecipeError(f"tokenizers.{name}: {place} has {size} bytes; at most {MAX_TOKENIZER_BYTES} are read")
        return place.read_bytes()
    except OSError as error:
        raise RecipeError(f"tokenizers.{name}: there is no tokenizer at {place}: {error.strerror}") from error
