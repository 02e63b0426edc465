"""Quantization ranges from recordings: no torch, fixed memory, mergeable.

::

    collector = Collector(graph, "image_encoder")
    for recording in recordings:
        collector.run(recording.inputs, where=f"recording {recording.id}")
    ranges = collector.ranges.ranges(Percentile(99.99))
"""

from edge_mbm.calibration.cache import (
    RangeCache,
    load_ranges,
    pack_ranges,
    range_key,
    save_ranges,
    unpack_ranges,
)
from edge_mbm.calibration.collect import Collector, observable
from edge_mbm.calibration.digest import DataDigest
from edge_mbm.calibration.histogram import Histogram
from edge_mbm.calibration.ranges import MSE, CalibrationMethod, Entropy, MinMax, Percentile, TensorRanges
from edge_mbm.calibration.shards import collect_in_shards

__all__ = [
    "MSE",
    "CalibrationMethod",
    "Collector",
    "DataDigest",
    "Entropy",
    "Histogram",
    "MinMax",
    "Percentile",
    "RangeCache",
    "TensorRanges",
    "collect_in_shards",
    "load_ranges",
    "observable",
    "pack_ranges",
    "range_key",
    "save_ranges",
    "unpack_ranges",
]
