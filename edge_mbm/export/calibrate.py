"""Which values the folded graphs' tensors take on the calibration recordings."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np

from edge_mbm.calibration import Collector, RangeCache, TensorRanges, range_key
from edge_mbm.errors import CalibrationError
from edge_mbm.export.cache import Store, cache_folder, key_of
from edge_mbm.export.chain import Arrays, Chain, GraphRunner, Runner
from edge_mbm.export.draft import Calibrated, Draft, given
from edge_mbm.export.graph import fold
from edge_mbm.export.progress import Progress
from edge_mbm.export.recordings import Recording, same_recordings
from edge_mbm.export.tokenizers import tokenizer_files
from edge_mbm.spec import CalibrationRecord

__all__ = ["CALLS", "calibrate", "collect", "key"]

CALLS = 128
"""Calls kept of each component at most, for fits, smoothing and the search: memory does not grow with the data."""
_CALL_BYTES = 64 * 2**20
"""Of each component's kept calls together: those with large inputs are fewer, but one at least."""


def calibrate(draft: Draft, progress: Progress) -> Draft:
    """Fold each graph, and see which values its tensors take on the calibration recordings."""
    graphs = given(draft.fp32)
    folded = {name: fold(graph, name) for name, graph in graphs.items()}
    split, digest = draft.loaded.data.calibration, given(draft.data).calibration
    progress.stage("calibrate on recordings", split.samples)
    keys = {name: key(draft, folded, name) for name in folded}
    ranges, calls = collect(draft, folded, keys, progress)
    record = CalibrationRecord(
        samples=digest.samples,
        data_sha256=digest.hexdigest(),
        method=msgspec.json.encode(draft.loaded.recipe.method).decode(),
        description=draft.loaded.data.description,
    )
    return replace(draft, calibrated=Calibrated(folded, ranges, record, calls, keys))


def key(draft: Draft, folded: Mapping[str, bytes], name: str) -> str:
    """A component's values depend on its own graph, on all before it, and on every step between data and graphs."""
    components, digest = given(draft.components), given(draft.data).calibration
    before = list(components)[: list(components).index(name) + 1]
    steps = msgspec.json.encode([msgspec.structs.replace(components[n], variants={}) for n in before])
    words = b"".join(tokenizer_files(draft.loaded).values())
    return range_key(b"".join(folded[n] for n in before), digest.hexdigest(), steps + words)


def collect(
    draft: Draft, folded: Mapping[str, bytes], keys: Mapping[str, str], progress: Progress
) -> tuple[dict[str, TensorRanges], dict[str, list[Arrays]]]:
    """Ranges and calls of every component that has a key, in one pass over the recordings.

    Args:
        draft: components and data.
        folded: all components' graphs.
        keys: of those whose ranges are wanted; what is in the cache is not observed again.
        progress: told of each recording.

    Raises:
        CalibrationError: nothing is known of a component's values, or an activation is not finite.
    """
    ranges_cache, calls_cache = RangeCache(cache_folder() / "ranges"), Store("calls")
    stored = {name: (ranges_cache.load(k), calls_cache.load_bytes(_calls_key(k))) for name, k in keys.items()}
    ranges = {name: found for name, (found, packed) in stored.items() if found is not None and packed is not None}
    calls = {name: _unpack(packed) for name, (_, packed) in stored.items() if name in ranges and packed is not None}
    collectors = {name: Collector(folded[name], name) for name in keys if name not in ranges}
    if collectors:
        calls |= _observe(draft, folded, collectors, progress)
    for name, collector in collectors.items():
        ranges[name] = collector.ranges
        with suppress(OSError):  # where nothing can be written nothing is kept
            ranges_cache.store(keys[name], collector.ranges)
            calls_cache.store_bytes(_calls_key(keys[name]), _pack(calls[name]))
    return {name: ranges[name] for name in keys}, {name: calls[name] for name in keys}


def _calls_key(values_key: str) -> str:
    return key_of(["calls", values_key, CALLS, _CALL_BYTES])


def _observe(
    draft: Draft, folded: Mapping[str, bytes], collectors: Mapping[str, Collector], progress: Progress
) -> dict[str, list[Arrays]]:
    """All recordings through the collectors; returns the calls that were kept of each."""
    chain = Chain(given(draft.components), tokenizer_files(draft.loaded))
    entries = given(draft.data).calibration.entries
    runners: dict[str, Runner] = {n: GraphRunner(graph, n) for n, graph in folded.items() if n not in collectors}
    sampler = _Sampler(collectors)
    for recording in same_recordings(draft.loaded, draft.loaded.data.calibration, entries):
        where = f"recording {recording.id}"
        watched: dict[str, Runner] = {n: partial(c.run, where=where) for n, c in collectors.items()}
        sampler.add(_run(chain, recording, {**runners, **watched}))
        progress.step(recording.id)
    _check_seen(draft, collectors)
    return sampler.calls


def _run(chain: Chain, recording: Recording, runners: Mapping[str, Runner]) -> dict[str, list[Arrays]]:
    """One recording; returns each component's calls."""
    made: dict[str, list[Arrays]] = {name: [] for name in runners}
    chain.run(recording, runners, on_call=lambda name, inputs: made[name].append(inputs))
    return made


def _check_seen(draft: Draft, collectors: Mapping[str, Collector]) -> None:
    unseen = [name for name, collector in collectors.items() if not collector.ranges.histograms]
    if unseen:
        raise CalibrationError(
            f"none of the recordings of the split '{draft.loaded.data.calibration.split}' has the modalities that "
            f"{unseen} need: nothing is known of their values"
        )


class _Sampler:
    """A bounded number of calls of each component, spread evenly over the recordings that have its modalities."""

    def __init__(self, names: Iterable[str]) -> None:
        self.calls: dict[str, list[Arrays]] = {name: [] for name in names}
        self._seen = dict.fromkeys(self.calls, 0)
        self._stride = dict.fromkeys(self.calls, 1)

    def add(self, made: Mapping[str, Sequence[Arrays]]) -> None:
        """One recording's calls by component: one of them is kept, whichever window it is of."""
        for name, kept in self.calls.items():
            if not made[name]:
                continue
            if self._seen[name] % self._stride[name] == 0:
                # Windows have more state the later they come, so which one it is must have no rhythm.
                kept.append(made[name][zlib.crc32(f"{name} {self._seen[name]}".encode()) % len(made[name])])
            self._seen[name] += 1
            while len(kept) > CALLS or (len(kept) > 1 and _bytes(kept) > _CALL_BYTES):
                del kept[1::2]
                self._stride[name] *= 2


def _bytes(calls: Iterable[Arrays]) -> int:
    return sum(array.nbytes for call in calls for array in call.values())


def _pack(calls: Sequence[Arrays]) -> bytes:
    stream = io.BytesIO()
    arrays = {f"{index} {name}": array for index, call in enumerate(calls) for name, array in call.items()}
    np.savez(stream, **arrays)  # type: ignore[arg-type] # names, not numpy's own keyword
    return stream.getvalue()


def _unpack(packed: bytes) -> list[Arrays]:
    calls: dict[int, Arrays] = {}
    with np.load(io.BytesIO(packed), allow_pickle=False) as stored:
        for entry in stored.files:
            index, _, name = entry.partition(" ")
            calls.setdefault(int(index), {})[name] = stored[entry]
    return [calls[index] for index in sorted(calls)]
