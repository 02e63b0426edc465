"""The recordings that a calibration set names, checked as they come."""

from __future__ import annotations

import importlib
import itertools
import operator
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np

from edge_mbm.calibration import DataDigest
from edge_mbm.errors import CalibrationError, EdgeMbmError, RecipeError
from edge_mbm.export.place import place
from edge_mbm.export.recipe import LoadedRecipe, Split
from edge_mbm.export.recording_sources.read import read_recordings
from edge_mbm.export.recording_sources.record import Recording
from edge_mbm.export.recording_sources.split import Wanted

__all__ = ["Recording", "import_function", "import_path", "importable", "recordings", "same_recordings"]


def recordings(loaded: LoadedRecipe, split: Split, digest: DataDigest | None = None) -> Iterator[Recording]:
    """The recordings of a split, one after the other; never more in memory than the factory holds.

    Args:
        loaded: the recipe; its calibration set names the factory, or says where files are.
        split: which, and how many at most.
        digest: taken of each on the way.

    Raises:
        RecipeError: there is no such function, or no such split.
        CalibrationError: it raised, gave none, or gave what is no recording of these modalities; a file is absent or
            damaged.
    """
    count = 0
    for given in itertools.islice(_items(loaded, split), split.samples):
        recording = _checked(given, loaded, f"recording {count} of '{split.split}'")
        if digest is not None:
            digest.add(recording.id, recording.inputs)
        count += 1
        yield recording
    if count == 0:
        raise CalibrationError(_none_given(loaded, split))


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
    source = loaded.data.recordings
    if isinstance(source, str):
        return CalibrationError(
            f"{source}('{split.split}') gave other recordings when it was called again; the first that changed is "
            f"{what}: seed its random numbers, and let it begin anew at each call"
        )
    return CalibrationError(
        f"{source} changed while the export was reading them; the first of '{split.split}' that changed is {what}: "
        "export again when nothing writes there any more"
    )


def _none_given(loaded: LoadedRecipe, split: Split) -> str:
    source = loaded.data.recordings
    if isinstance(source, str):
        return f"{source} gives no recordings for the split '{split.split}'"
    return f"{source}: there are none for the split '{split.split}'; give it a larger share, or more files"


def _items(loaded: LoadedRecipe, split: Split) -> Iterator[Any]:
    source = loaded.data.recordings
    if isinstance(source, str):
        return _made(source, split)
    folder = (loaded.path.parent / loaded.recipe.calibration_set).parent
    recipe, wanted = loaded.recipe, Wanted(split.split, split.samples)
    return read_recordings(source, folder, recipe.modalities, recipe.labels, wanted)


def _made(factory: str, split: Split) -> Iterator[Any]:
    function = import_function(factory, "recordings")
    try:
        given: Iterable[Any] = function(split.split)
        yield from given
    except EdgeMbmError:
        raise
    except Exception as error:  # whatever a user's code raises
        where = f"{factory}('{split.split}')"
        raise CalibrationError(f"{where} raised {type(error).__name__}: {error}{place(error)}") from error


def _label(label: Any, loaded: LoadedRecipe) -> int | str | None:
    """A class by its number; any word, where a head has a metric of its own that knows what to make of it."""
    has_metric = any(getattr(head, "metric", None) is not None for head in loaded.recipe.components.values())
    return label if label is None or (has_metric and isinstance(label, str)) else operator.index(label)


def _checked(given: Any, loaded: LoadedRecipe, where: str) -> Recording:
    try:
        recording = Recording(str(given.id), dict(given.inputs), _label(given.label, loaded))
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
