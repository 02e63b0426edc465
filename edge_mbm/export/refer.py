"""The first stages: what the components are, and what the framework makes of the held-out recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from edge_mbm.errors import ExportError
from edge_mbm.export.chain import Arrays, Chain, Runner
from edge_mbm.export.draft import Draft, Reference, given
from edge_mbm.export.progress import Progress
from edge_mbm.export.prove import PARITY_BATCHES
from edge_mbm.export.recordings import Recording, recordings
from edge_mbm.export.skeleton import make_skeleton, running_order

__all__ = ["describe", "origin_runners", "refer"]


def describe(draft: Draft, progress: Progress) -> Draft:
    """Run the model on zeros once: shapes and dtypes of everything."""
    recipe = draft.loaded.recipe
    progress.stage("describe the components", 1)
    described = make_skeleton(recipe, draft.origin)
    progress.step()
    return replace(draft, components={name: described[name] for name in running_order(recipe)})


def refer(draft: Draft, progress: Progress) -> Draft:
    """Run the model on the held-out recordings."""
    components = given(draft.components)
    chain, split = Chain(components), draft.loaded.data.heldout
    runners = origin_runners(draft)
    progress.stage("run the model on the held-out recordings", split.samples)
    outputs: list[Arrays] = []
    truth: list[int | None] = []
    kept: dict[str, list[Arrays]] = {name: [] for name in components}
    for recording in recordings(draft.loaded, split):
        last: dict[str, Arrays] = {}
        outputs.append(chain.run(recording, runners, on_call=last.__setitem__))
        _check_finite(outputs[-1], recording)
        truth.append(recording.label)
        for name, inputs in last.items():
            if len(kept[name]) < max(PARITY_BATCHES):
                kept[name].append(inputs)
        progress.step(recording.id)
    _check_seen(kept, draft)
    labels = [label for label in truth if label is not None]
    return replace(draft, reference=Reference(outputs, labels if len(labels) == len(truth) else (), inputs=kept))


def origin_runners(draft: Draft) -> dict[str, Runner]:
    """The model's own components, for a ``Chain``."""
    return {name: partial(draft.origin.run, name) for name in given(draft.components)}


def _check_finite(outputs: Mapping[str, Any], recording: Recording) -> None:
    for key, value in outputs.items():
        if not np.isfinite(value).all():
            raise ExportError(
                f"the model itself gives NaN or infinite values in '{key}' for recording '{recording.id}': mend it"
            )


def _check_seen(kept: Mapping[str, Sequence[Arrays]], draft: Draft) -> None:
    unseen = [name for name, calls in kept.items() if len(calls) < max(PARITY_BATCHES)]
    if unseen:
        raise ExportError(
            f"too few of the held-out recordings reach {unseen}: at least {max(PARITY_BATCHES)} are needed that have "
            f"their modalities (split '{draft.loaded.data.heldout.split}')"
        )
