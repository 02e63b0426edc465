"""The first stages: what the components are, and what the framework makes of the held-out recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from edge_mbm.calibration import DataDigest
from edge_mbm.errors import CalibrationError, ExportError
from edge_mbm.export.chain import Arrays, Chain, Runner, downstream
from edge_mbm.export.draft import Data, Draft, Reference, given
from edge_mbm.export.lock import check_lock
from edge_mbm.export.progress import Progress
from edge_mbm.export.prove import PARITY_BATCHES
from edge_mbm.export.recordings import Recording, recordings, same_recordings
from edge_mbm.export.skeleton import make_skeleton
from edge_mbm.export.tokenizers import tokenizer_files

__all__ = ["describe", "origin_runners", "read", "refer"]

_GOLDEN_BYTES = 1 << 20
"""Of one reference output of a sample that travels in the bundle."""


def describe(draft: Draft, progress: Progress) -> Draft:
    """Run the model on zeros once: shapes and dtypes of everything."""
    recipe = draft.loaded.recipe
    progress.stage("describe the components", 1)
    tokenizers = tokenizer_files(draft.loaded)
    components = make_skeleton(recipe, draft.origin)
    Chain(components, tokenizers)  # raises where a tokenizer is not one: better now than after an hour of recordings
    progress.step()
    return replace(draft, components=components)


def read(draft: Draft, progress: Progress) -> Draft:
    """Look at the recordings once, before anything takes time on them."""
    data = draft.loaded.data
    progress.stage("look at the recordings", data.calibration.samples + data.heldout.samples)
    digests = {split: DataDigest() for split in (data.calibration, data.heldout)}
    for split, digest in digests.items():
        for recording in recordings(draft.loaded, split, digest):
            progress.step(recording.id)
    both = sorted(set(digests[data.calibration].entries) & set(digests[data.heldout].entries))
    if both:
        raise CalibrationError(
            f"recording '{both[0][0]}'{f' and {len(both) - 1} more' if both[1:] else ''} of the split "
            f"'{data.heldout.split}' is in '{data.calibration.split}' too: errors must be measured on what calibration "
            "never saw"
        )
    check_lock(draft.loaded, {"calibration": digests[data.calibration], "heldout": digests[data.heldout]})
    return replace(draft, data=Data(digests[data.calibration], digests[data.heldout]))


def refer(draft: Draft, progress: Progress) -> Draft:
    """Run the model on the recordings to be held out, and on those that travel in the bundle."""
    components = given(draft.components)
    chain, data = Chain(components, tokenizer_files(draft.loaded)), draft.loaded.data
    runners = origin_runners(draft)
    progress.stage("run the model on the held-out recordings", data.heldout.samples + data.golden.samples)
    outputs: list[Arrays] = []
    truth: list[int | str | None] = []
    kept: dict[str, list[Arrays]] = {name: [] for name in components}
    for recording in same_recordings(draft.loaded, data.heldout, given(draft.data).heldout.entries):
        last: dict[str, Arrays] = {}
        outputs.append(chain.run(recording, runners, on_call=last.__setitem__))
        _check_finite(outputs[-1], recording)
        truth.append(recording.label)
        for name, inputs in last.items():
            if len(kept[name]) < max(PARITY_BATCHES):
                kept[name].append(inputs)
        progress.step(recording.id)
    _check_seen(kept, draft)
    golden = []
    digest = DataDigest()
    for recording in recordings(draft.loaded, data.golden, digest):
        golden.append((recording, _replayable(draft, recording, chain.run(recording, runners))))
        progress.step(recording.id)
    check_lock(draft.loaded, {"golden": digest})
    return replace(draft, reference=Reference(outputs, truth, inputs=kept, golden=golden))


def origin_runners(draft: Draft) -> dict[str, Runner]:
    """The model's own components, for a ``Chain``."""
    return {name: partial(draft.origin.run, name) for name in given(draft.components)}


def _check_finite(outputs: Mapping[str, Any], recording: Recording) -> None:
    for key, value in outputs.items():
        if value.dtype.kind != "U" and not np.isfinite(value).all():
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


def _replayable(draft: Draft, recording: Recording, outputs: Arrays) -> Arrays:
    """What a device computes of it too: numbers and texts of what can answer, and of what feeds that.

    But for large ones, which would make a bundle of samples: what they feed tells of them.
    """
    _check_finite(outputs, recording)
    components, answering = given(draft.components), draft.loaded.recipe.answering()
    heads = {n for n in answering if all(f"{n}.{key}" in outputs for key in components[n].outputs)}
    if not heads:
        raise CalibrationError(
            f"recording '{recording.id}' of the split '{draft.loaded.data.golden.split}' has "
            f"{sorted(recording.inputs)}, on which no head can run: it cannot be replayed on a device"
        )
    return {
        key: value
        for key, value in outputs.items()
        if (value.dtype == np.float32 or value.dtype.kind == "U")
        and value.nbytes <= _GOLDEN_BYTES
        and heads & {*downstream(components, [key.partition(".")[0]])}
    }
