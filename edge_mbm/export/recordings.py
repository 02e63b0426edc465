"""The recordings that a calibration set names, checked as they come."""

from __future__ import annotations

import importlib
import itertools
import operator
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge_mbm.calibration import DataDigest
from edge_mbm.errors import CalibrationError, EdgeMbmError, RecipeError
from edge_mbm.export.place import place
from edge_mbm.export.recipe import LoadedRecipe, Split

__all__ = ["Recording", "import_function", "import_path", "importable", "recordings", "same_recordings"]


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
    for given in itertools.islice(_items(loaded, split), split.samples):
        recording = _checked(given, loaded, f"recording {count} of '{split.split}'")
        if digest is not None:
            digest.add(recording.id, recording.inputs)
        count += 1
        yield recording
    if count == 0:
        raise CalibrationError(f"{loaded.data.recordings} gives no recordings for the split '{split.split}'")


def same_recordings(loaded: LoadedRecipe, split: Split, entries: Sequence[tuple[str, str]]) -> Iterator[Recording]:
    """The recordings of a split once more.

    Args:
        loaded: the recipe.
        split: as before.
        entries: ``DataDigest.entries`` of the first time.

    Raises:
        CalibrationError: they are others now, so that nothing measured on them could be compared or made again.
    """
    digest = DataDigest()
    for recording in recordings(loaded, split, digest):
        if digest.entries != list(entries[: digest.samples]):
            raise _changed(loaded, split, f"'{recording.id}'")
        yield recording
    if digest.samples != len(entries):
        raise _changed(loaded, split, f"their number ({digest.samples}, not {len(entries)})")


def _changed(loaded: LoadedRecipe, split: Split, what: str) -> CalibrationError:
    return CalibrationError(
        f"{loaded.data.recordings}('{split.split}') gave other recordings when it was called again; the first that "
        f"changed is {what}: seed its random numbers, and let it begin anew at each call"
    )


def _items(loaded: LoadedRecipe, split: Split) -> Iterator[Any]:
    function = import_function(loaded.data.recordings, "recordings")
    try:
        given: Iterable[Any] = function(split.split)
        yield from given
    except EdgeMbmError:
        raise
    except Exception as error:  # whatever a user's code raises
        where = f"{loaded.data.recordings}('{split.split}')"
        raise CalibrationError(f"{where} raised {type(error).__name__}: {error}{place(error)}") from error


def _checked(given: Any, loaded: LoadedRecipe, where: str) -> Recording:
    try:
        label = None if given.label is None else operator.index(given.label)
        recording = Recording(str(given.id), dict(given.inputs), label)
    except (AttributeError, TypeError, ValueError) as error:
        raise CalibrationError(
            f"{where} is no record of an id, inputs (modality -> array) and a label (a whole number, or None): {error}"
        ) from error
    known = loaded.recipe.modalities
    strangers = sorted(set(recording.inputs) - set(known))
    if strangers or not recording.inputs:
        raise CalibrationError(f"{where} ('{recording.id}') has {strangers or 'nothing'}; modalities are {list(known)}")
    for modality, data in recording.inputs.items():
        if not isinstance(data, np.ndarray | str):
            raise CalibrationError(
                f"{where} ('{recording.id}') has {type(data).__name__} for '{modality}': give numpy arrays, or text"
            )
        if isinstance(data, np.ndarray) and data.dtype.kind == "f" and not np.isfinite(data).all():
            raise CalibrationError(
                f"{where} ('{recording.id}') has NaN or infinite values in '{modality}': leave such recordings out"
            )
    return recording


@contextmanager
def importable(folders: tuple[str, ...]) -> Iterator[None]:
    """``folders`` first on the import path, inside."""
    sys.path[:0] = folders
    importlib.invalidate_caches()  # what was written a moment ago is found too
    try:
        yield
    finally:
        for folder in folders:
            if folder in sys.path:
                sys.path.remove(folder)


def import_path() -> str:
    """``PYTHONPATH`` of a process that is to find what this one does.

    The standard library comes first: a user's ``types.py`` must not be in the way of a starting interpreter.
    """
    standard = (sysconfig.get_paths()["stdlib"], sysconfig.get_config_var("DESTSHARED") or "")
    package = str(Path(__file__).parents[2])
    entries = [*filter(None, standard), *(str(Path(entry).absolute()) for entry in sys.path), package]
    return os.pathsep.join(dict.fromkeys(entries))


def import_function(reference: str, what: str) -> Any:
    """``package.module:function``.

    Raises:
        RecipeError: it is not there, its module cannot be imported, or is another of the same name.
    """
    module_name, _, path = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise RecipeError(
            f"{what} = '{reference}': the module '{module_name}' cannot be imported ({type(error).__name__}: {error}"
            f"{place(error)}). Is it installed, or its folder in python_path?"
        ) from error
    _refuse_namesake(module_name.partition(".")[0], f"{what} = '{reference}'")
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise RecipeError(f"{what} = '{reference}': '{module_name}' has no '{path}'") from None
    return found


def _refuse_namesake(name: str, where: str) -> None:
    """Python keeps modules by name: another project's ``model.py``, imported before, would be taken for this one's."""
    kept, here = sys.modules[name].__spec__, PathFinder.find_spec(name)
    if kept and here and kept.origin and here.origin and Path(kept.origin).resolve() != Path(here.origin).resolve():
        raise RecipeError(
            f"{where}: this process has imported another '{name}' before, {kept.origin}, not {here.origin}: "
            "rename one of them, or export each in a process of its own"
        )
