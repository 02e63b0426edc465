"""Quantization ranges from recordings: no torch, fixed memory, mergeable.

::

    collector = Collector(graph, "image_encoder")
    for recording in recordings:
        collector.run(recording.inputs, where=f"recording {recording.id}")
    ranges = collector.ranges.ranges(Percentile(99.99))
"""

from edge_mbm.calibration.cache import RangeCache, range_key
from edge_mbm.calibration.collect import Collector, observable
from edge_mbm.calibration.digest import DataDigest
from edge_mbm.calibration.histogram import Histogram
from edge_mbm.calibration.ranges import CalibrationMethod, MinMax, Percentile, TensorRanges

__all__ = [
    "CalibrationMethod",
    "Collector",
    "DataDigest",
    "Histogram",
    "MinMax",
    "Percentile",
    "RangeCache",
    "TensorRanges",
    "observable",
    "range_key",
]
