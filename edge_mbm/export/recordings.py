"""The recordings that a calibration set names, checked as they come."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from edge_mbm.calibration import DataDigest
from edge_mbm.errors import CalibrationError, EdgeMbmError, RecipeError
from edge_mbm.export.recipe import LoadedRecipe, Split

__all__ = ["Recording", "import_function", "importable", "recordings"]


class Recording(NamedTuple):
    """What sensors took in around one moment, and the truth about it if it is known."""

    id: str
    inputs: Mapping[str, Any]
    """Modality -> array, as a source would push it."""
    label: int | None


def recordings(loaded: LoadedRecipe, split: Split, digest: DataDigest | None = None) -> Iterator[Recording]:
    """The recordings of a split, one after the other; never more in memory than the factory holds.

    Args:
        loaded: the recipe.
        split: which, and how many at most.
        digest: taken of each on the way.

    Raises:
        RecipeError: there is no such function.
        CalibrationError: it raised, gave none, or gave what is no recording of these modalities.
    """
    count = 0
    for given in _items(loaded, split):
        if count == split.samples:
            return
        recording = _checked(given, loaded, f"recording {count} of '{split.split}'")
        if digest is not None:
            digest.add(recording.id, recording.inputs)
        count += 1
        yield recording
    if count == 0:
        raise CalibrationError(f"{loaded.data.recordings} gives no recordings for the split '{split.split}'")


def _items(loaded: LoadedRecipe, split: Split) -> Iterator[Any]:
    function = import_function(loaded.data.recordings, "recordings")
    try:
        given: Iterable[Any] = function(split.split)
        yield from given
    except EdgeMbmError:
        raise
    except Exception as error:  # whatever a user's code raises
        where = f"{loaded.data.recordings}('{split.split}')"
        raise CalibrationError(f"{where} raised {type(error).__name__}: {error}") from error


def _checked(given: Any, loaded: LoadedRecipe, where: str) -> Recording:
    try:
        recording = Recording(str(given.id), dict(given.inputs), given.label)
    except (AttributeError, TypeError, ValueError) as error:
        raise CalibrationError(f"{where} is {type(given).__name__}, not a record of id, inputs and label") from error
    known = loaded.recipe.modalities
    strangers = sorted(set(recording.inputs) - set(known))
    if strangers or not recording.inputs:
        raise CalibrationError(f"{where} ('{recording.id}') has {strangers or 'nothing'}; modalities are {list(known)}")
    for modality, data in recording.inputs.items():
        if isinstance(data, np.ndarray) and data.dtype.kind == "f" and not np.isfinite(data).all():
            raise CalibrationError(
                f"{where} ('{recording.id}') has NaN or infinite values in '{modality}': leave such recordings out"
            )
    return recording


@contextmanager
def importable(folders: tuple[str, ...]) -> Iterator[None]:
    """``folders`` first on the import path, inside."""
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            if folder in sys.path:
                sys.path.remove(folder)


def import_function(reference: str, what: str) -> Any:
    """``package.module:function``.

    Raises:
        RecipeError: it is not there, or its module cannot be imported.
    """
    module_name, _, path = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise RecipeError(
            f"{what} = '{reference}': the module '{module_name}' cannot be imported ({type(error).__name__}: {error}). "
            "Is it installed, or its folder in python_path?"
        ) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise RecipeError(f"{what} = '{reference}': '{module_name}' has no '{path}'") from None
    return found
