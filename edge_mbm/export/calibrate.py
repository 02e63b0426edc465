"""Which values the folded graphs' tensors take on the calibration recordings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import msgspec

from edge_mbm.calibration import Collector, DataDigest, RangeCache, TensorRanges, range_key
from edge_mbm.errors import CalibrationError
from edge_mbm.export.cache import cache_folder
from edge_mbm.export.chain import Chain, Runner
from edge_mbm.export.draft import Calibrated, Draft, given
from edge_mbm.export.graph import fold
from edge_mbm.export.progress import Progress
from edge_mbm.export.recordings import same_recordings
from edge_mbm.spec import CalibrationRecord

__all__ = ["calibrate"]


def calibrate(draft: Draft, progress: Progress) -> Draft:
    """Fold each graph, and see which values its tensors take on the calibration recordings."""
    graphs = given(draft.fp32)
    folded = {name: fold(graph, name) for name, graph in graphs.items()}
    split, digest = draft.loaded.data.calibration, given(draft.data).calibration
    cache = RangeCache(cache_folder() / "ranges")
    progress.stage("calibrate on recordings", split.samples)
    keys = {name: _key(draft, folded, name, digest) for name in folded}
    known = {name: cache.load(key) for name, key in keys.items()}
    ranges = {name: found for name, found in known.items() if found is not None}
    if len(ranges) < len(folded):
        ranges = _observe(draft, folded, progress)
        with suppress(OSError):  # where nothing can be written nothing is kept
            for name, found in ranges.items():
                cache.store(keys[name], found)
    record = CalibrationRecord(
        samples=digest.samples,
        data_sha256=digest.hexdigest(),
        method=msgspec.json.encode(draft.loaded.recipe.method).decode(),
        description=draft.loaded.data.description,
    )
    return replace(draft, calibrated=Calibrated(folded, ranges, record))


def _key(draft: Draft, folded: Mapping[str, bytes], name: str, digest: DataDigest) -> str:
    """A component's values depend on its own graph, on all before it, and on every step between data and graphs."""
    components = given(draft.components)
    before = list(components)[: list(components).index(name) + 1]
    steps = msgspec.json.encode([msgspec.structs.replace(components[n], variants={}) for n in before])
    return range_key(b"".join(folded[n] for n in before), digest.hexdigest(), steps)


def _observe(draft: Draft, folded: Mapping[str, bytes], progress: Progress) -> dict[str, TensorRanges]:
    chain, entries = Chain(given(draft.components)), given(draft.data).calibration.entries
    collectors = {name: Collector(graph, name) for name, graph in folded.items()}
    for recording in same_recordings(draft.loaded, draft.loaded.data.calibration, entries):
        where = f"recording {recording.id}"
        runners: dict[str, Runner] = {n: partial(collector.run, where=where) for n, collector in collectors.items()}
        chain.run(recording, runners)
        progress.step(recording.id)
    unseen = [name for name, collector in collectors.items() if not collector.ranges.histograms]
    if unseen:
        raise CalibrationError(
            f"none of the recordings of the split '{draft.loaded.data.calibration.split}' has the modalities that "
            f"{unseen} need: nothing is known of their values"
        )
    return {name: collector.ranges for name, collector in collectors.items()}
