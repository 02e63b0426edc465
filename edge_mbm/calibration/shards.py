"""Calibration in several processes: each sees a share of the recordings, and the histograms are merged."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from edge_mbm.calibration.cache import pack_ranges, unpack_ranges
from edge_mbm.calibration.ranges import TensorRanges
from edge_mbm.errors import InputError

__all__ = ["collect_in_shards"]


def collect_in_shards(collect: Callable[[int, int], TensorRanges], workers: int) -> TensorRanges:
    """What one pass over all recordings collects, to the byte: a histogram does not depend on how its data came.

    Args:
        collect: ``collect(shard, shards)`` gives the ranges of every ``shards``-th recording from number ``shard`` on
            (``itertools.islice(recordings, shard, None, shards)``). A function of a module, because the new processes
            import it by name.
        workers: processes; each takes one shard, and with 1 none is started.

    Raises:
        InputError: fewer than one worker.
        Exception: what ``collect`` raised, of the first shard that failed.
    """
    if workers < 1:
        raise InputError(f"calibration takes at least one worker, got {workers}")
    if workers == 1:
        return collect(0, 1)
    # Spawned: a forked process may inherit locks of an engine's threads, held for ever.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        packed = list(pool.map(functools.partial(_packed, collect, workers), range(workers)))
    return functools.reduce(TensorRanges.merge, map(unpack_ranges, packed))


def _packed(collect: Callable[[int, int], TensorRanges], shards: int, shard: int) -> bytes:
    return pack_ranges(collect(shard, shards))
