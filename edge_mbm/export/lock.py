"""The list of recordings beside a calibration set: their ids and digests, so that a change is noticed."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from edge_mbm.calibration import DataDigest
from edge_mbm.errors import CalibrationError
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.recordings import importable, recordings

__all__ = ["Purpose", "check_lock", "lock_path", "write_lock"]

Purpose: TypeAlias = Literal["calibration", "heldout", "golden"]
_DIGITS = 16
"""Of each recording's sha256: enough to say which one changed; that of all is whole."""


class _Locked(Struct, frozen=True, kw_only=True):
    split: str
    sha256: str
    """``DataDigest.hexdigest()`` of all, in their order."""
    samples: dict[str, str]
    """Id -> the first digits of its sha256, in their order."""


class _Lock(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    calibration: _Locked
    heldout: _Locked
    golden: _Locked
    format: Literal["samples-1"] = "samples-1"


def lock_path(loaded: LoadedRecipe) -> Path:
    """``NAME.samples.json`` beside the calibration set ``NAME.toml``."""
    return (loaded.path.parent / loaded.recipe.calibration_set).with_suffix(".samples.json")


def write_lock(loaded: LoadedRecipe) -> Path:
    """Read every recording of every split, and write the list in place of what was there.

    Returns:
        Where it is.

    Raises:
        RecipeError: there is no such function, or no such split.
        CalibrationError: the recordings are not there, or are none.
        OSError: it cannot be written.
    """
    with importable(loaded.python_path()):
        calibration, heldout, golden = (_locked(loaded, purpose) for purpose in get_args(Purpose))
        lock = _Lock(calibration=calibration, heldout=heldout, golden=golden)
    path = lock_path(loaded)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(msgspec.to_builtins(lock), indent=1) + "\n")  # a line for each recording
    os.replace(fresh, path)
    return path


def check_lock(loaded: LoadedRecipe, digests: Mapping[Purpose, DataDigest]) -> None:
    """Hold recordings against the list, if there is one.

    Args:
        loaded: the recipe.
        digests: taken of all recordings of a split, by what it is for; others are not looked at.

    Raises:
        CalibrationError: they differ; says which is the first, and how the list is renewed.
    """
    path = lock_path(loaded)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    renewal = f"If that is meant, renew the list: edge-mbm export {loaded.path} --lock"
    try:
        lock = msgspec.json.decode(content, type=_Lock)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise CalibrationError(f"{path} is no list of recordings: {error}. {renewal}") from error
    for purpose, digest in digests.items():
        locked: _Locked = getattr(lock, purpose)
        if difference := _difference(locked, digest):
            split = getattr(loaded.data, purpose).split
            raise CalibrationError(
                f"recordings of the split '{split}' are not those of {path}: {difference}. {renewal}"
            )


def _locked(loaded: LoadedRecipe, purpose: Purpose) -> _Locked:
    split, digest = getattr(loaded.data, purpose), DataDigest()
    for _ in recordings(loaded, split, digest):
        pass
    return _Locked(split=split.split, sha256=digest.hexdigest(), samples=_short(digest))


def _short(digest: DataDigest) -> dict[str, str]:
    return {id_: sha256[:_DIGITS] for id_, sha256 in digest.entries}


def _difference(locked: _Locked, digest: DataDigest) -> str | None:
    """In words, the first there is."""
    found = _short(digest)
    pairs = itertools.zip_longest(locked.samples.items(), found.items(), fillvalue=("", ""))
    for number, ((was, old), (is_, new)) in enumerate(pairs):
        if was != is_:
            return f"number {number} is {_named(is_)}, and was {_named(was)}"
        if old != new:
            return f"'{is_}' has other data ({new}, and was {old})"
    return None if locked.sha256 == digest.hexdigest() else "their common sha256 differs: the list was altered"


def _named(id_: str) -> str:
    return f"'{id_}'" if id_ else "not there"
