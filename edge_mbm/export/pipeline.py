"""From a recipe to a bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edge_mbm.bundle import check_target
from edge_mbm.export.cache import prune
from edge_mbm.export.draft import Draft
from edge_mbm.export.origin import Origin
from edge_mbm.export.progress import Progress, Silent
from edge_mbm.export.recipe import load_recipe
from edge_mbm.export.recordings import importable
from edge_mbm.export.stages import STAGES
from edge_mbm.export.write import write
from edge_mbm.spec import Manifest

__all__ = ["export_bundle"]


def export_bundle(
    recipe: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    targets: Sequence[str] = (),
) -> Manifest:
    """Trace, prove, calibrate, quantize, measure, decide, and write one bundle.

    The model and recordings that the recipe names are the user's own code, and are run.

    Args:
        recipe: a TOML file, see ``Recipe``.
        target: ends in ``.mbm`` for a single file, else a directory. It holds the whole new bundle or what it held.
        progress: told of stages and steps.
        targets: machines to make variants for, besides the recipe's own.

    Returns:
        The manifest as written.

    Raises:
        RecipeError, CalibrationError: what the user gave is not right.
        TraceError, ParityError, ExportError: a component cannot be exported.
        BudgetError: the recipe's [require] does not hold.
        BundleError: it cannot be written there.
    """
    progress = progress or Silent()
    loaded = load_recipe(Path(recipe), targets)
    # Before minutes of work, not after.
    check_target(target)
    with importable(loaded.python_path()):
        draft = Draft(loaded, Origin(loaded))
        for stage in STAGES:
            draft = stage(draft, progress)
        progress.stage("write the bundle", 1)
        manifest = write(draft, Path(target))
        progress.step()
    prune()
    return manifest
