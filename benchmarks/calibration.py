"""Whether calibration's memory grows with the number of recordings, and what its methods cost.

    python benchmarks/calibration.py [--samples 64,4096] [--repetitions N]

Each run is a process of its own: one pass over recordings that are made as they are read, through a convolutional
encoder with every activation counted. ``benchmarks/README.md`` has the goals.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from edge_mbm.calibration import (
    MSE,
    CalibrationMethod,
    Collector,
    DataDigest,
    Entropy,
    MinMax,
    Percentile,
    TensorRanges,
    collect_in_shards,
    pack_ranges,
)

_LAYERS, _CHANNELS, _SIZE = 12, 16, 32
_GOAL = 1.10
_METHODS: dict[str, CalibrationMethod] = {
    "minmax": MinMax(),
    "percentile": Percentile(),
    "mse": MSE(),
    "entropy": Entropy(),
}


@dataclass(frozen=True)
class Found:
    """What one process measured."""

    samples: int
    loaded_mib: float
    """Resident before the first recording."""
    peak_mib: float
    seconds: float
    """Of the pass."""


def encoder() -> bytes:
    """Convolutions with residual connections: 35 activations of 16 x 32 x 32, the image and an embedding."""
    rng = np.random.default_rng(0)
    weights, nodes, last = [], [], "image"
    for layer in range(_LAYERS):
        inputs = 3 if layer == 0 else _CHANNELS
        kernel = rng.normal(0, (2 / (9 * inputs)) ** 0.5, (_CHANNELS, inputs, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        if layer:
            nodes.append(helper.make_node("Add", [f"r{layer}", last], [f"a{layer}"]))
        last = f"a{layer}" if layer else "r0"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["embedding"]))
    shape = [1, 3, _SIZE, _SIZE]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, _CHANNELS, 1, 1])],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def recordings(samples: int) -> Iterator[NDArray[np.float32]]:
    """Made one by one; every hundredth is a loud one, so that bins are widened on the way."""
    for index in range(samples):
        rng = np.random.default_rng(index)
        yield rng.normal(0, 30 if index % 100 == 99 else 1, (1, 3, _SIZE, _SIZE)).astype(np.float32)


def collect(shard: int, shards: int, *, samples: int) -> TensorRanges:
    collector, digest = Collector(encoder(), "encoder"), DataDigest()
    for index, image in enumerate(islice(recordings(samples), shard, None, shards)):
        digest.add(str(index), {"image": image})
        collector.run({"image": image}, where=f"recording {index}")
    return collector.ranges


def worker(samples: int) -> None:
    loaded = peak_mib()
    begun = time.perf_counter()
    collect(0, 1, samples=samples)
    print(json.dumps(asdict(Found(samples, loaded, peak_mib(), time.perf_counter() - begun))))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(samples: int) -> Found:
    command = [sys.executable, __file__, "--worker", str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Found(**json.loads(done.stdout))


def spread(values: list[float], digits: int) -> str:
    """Median (least - greatest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def memory(console: Console, counts: list[int], repetitions: int) -> bool:
    """Whether the goal is met."""
    # In turn, so that a machine that gets busier does so for all.
    found = [measured(samples) for _ in range(repetitions) for samples in counts]
    table = Table("recordings", "before the first, MiB", "peak, MiB", "pass, s", "ms per recording")
    for samples in counts:
        rows = [run for run in found if run.samples == samples]
        seconds = [run.seconds for run in rows]
        table.add_row(
            str(samples),
            spread([run.loaded_mib for run in rows], 1),
            spread([run.peak_mib for run in rows], 1),
            spread(seconds, 1),
            f"{statistics.median(seconds) / samples * 1e3:.1f}",
        )
    console.print(table)
    peaks = [statistics.median(run.peak_mib for run in found if run.samples == samples) for samples in counts]
    ratio = max(peaks) / min(peaks)
    verdict = "met" if ratio <= _GOAL else "MISSED"
    console.print(f"peak memory, most over least: {ratio:.3f}x, goal <= {_GOAL:.2f}x: {verdict}")
    return ratio <= _GOAL


def methods(console: Console, ranges: TensorRanges) -> None:
    table = Table("method", "U8, ms per tensor", "S8, ms per tensor")
    for name, method in _METHODS.items():
        cells = []
        for symmetric in (False, True):
            begun = time.perf_counter()
            ranges.ranges(method, symmetric=symmetric)
            cells.append(f"{(time.perf_counter() - begun) / len(ranges.histograms) * 1e3:.2f}")
        table.add_row(name, *cells)
    console.print(table)


def shards(console: Console, samples: int) -> TensorRanges:
    begun = time.perf_counter()
    whole = collect(0, 1, samples=samples)
    alone = time.perf_counter() - begun
    begun = time.perf_counter()
    merged = collect_in_shards(partial(collect, samples=samples), 2)
    both = time.perf_counter() - begun
    same = pack_ranges(whole) == pack_ranges(merged)
    console.print(f"{samples} recordings: {alone:.1f} s in one process, {both:.1f} s in two; same bytes: {same}")
    if not same:
        raise SystemExit("the merged ranges differ from those of one pass")
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description="memory and time of calibration")
    parser.add_argument("--samples", default="64,4096", help="numbers of recordings, comma between")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    console = Console()
    met = memory(console, [int(text) for text in options.samples.split(",")], options.repetitions)
    methods(console, shards(console, 512))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
