"""How far off the pairs of camera and microphone are: the truth is known, for the hour is simulated.

    python benchmarks/alignment.py [--seconds 3600] [--seeds 5] [--json]

A camera and a microphone whose clocks drift, with jitter and lost blocks, go through ``AudioClock`` and a ``Session``
of the tiny bundle with engines that only carry along which samples they were given. Beside it, on the same arrivals:
what is done elsewhere. ``docs/benchmarks.md`` has the figures and what they mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from time import process_time
from typing import Any, NamedTuple

import numpy as np
from msgspec import structs
from rich.console import Console
from rich.table import Table

import edge_mbm
from edge_mbm.runtime.drift import AudioClock
from edge_mbm.runtime.session import Session, SessionOptions
from edge_mbm.spec import Encoder
from edge_mbm.testing import NullEngine, tiny_bundle

MS, SECOND = 1_000_000, 1_000_000_000
START = 1_000 * SECOND
RATE, BLOCK = 1000, 20  # the tiny bundle's rate; 20 ms
BLOCK_NS = BLOCK * SECOND // RATE
FRAME_NS = SECOND / 30
DRIFT_PPM = 100
SETTLED_NS = 30 * SECOND


# --- the world -------------------------------------------------------------------------------------------------------


class World(NamedTuple):
    """What happened, and what a program gets to see of it. Times are ns."""

    frame_truth: np.ndarray
    frame_stamps: np.ndarray
    """The driver's: the truth, an interrupt later."""
    frame_arrivals: np.ndarray
    sample_ns: float
    """Of the microphone's own clock."""
    blocks: np.ndarray
    """Which blocks of 20 ms were not lost."""
    block_arrivals: np.ndarray
    told: np.ndarray
    """Per block: whether the driver said that something was lost before it."""

    @property
    def block_truth(self) -> np.ndarray:
        """When the first sample of each block was captured."""
        return START + self.blocks * BLOCK * self.sample_ns


def make_world(seed: int, seconds: int, audio_late_ns: int) -> World:
    """Camera: 30 fps, exposures 1 ms off at random. Microphone: blocks late by 20 ms at the mean, some lost."""
    rng = np.random.default_rng(seed)
    camera_ppm, microphone_ppm = rng.uniform(0.5, 1, 2) * DRIFT_PPM * rng.choice([-1, 1], 2)
    frames = np.arange(1, int(seconds * SECOND / FRAME_NS))
    truth = START + frames * FRAME_NS / (1 + camera_ppm * 1e-6) + rng.normal(0, MS, len(frames))
    stamps = truth + rng.exponential(0.2 * MS, len(frames))
    arrivals = np.maximum.accumulate(stamps + 10 * MS + rng.exponential(5 * MS, len(frames)))
    count = seconds * RATE // BLOCK
    sample_ns = SECOND / RATE / (1 + microphone_ppm * 1e-6)
    ends = START + (np.arange(count) + 1) * BLOCK * sample_ns
    block_arrivals = np.maximum.accumulate(ends + audio_late_ns + rng.exponential(20 * MS, count))
    is_lost, is_told = losses(rng, count)
    return World(
        truth, stamps, arrivals, sample_ns, np.flatnonzero(~is_lost), block_arrivals[~is_lost], is_told[~is_lost]
    )


def losses(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Every five minutes at the mean 1 to 10 blocks; the driver says so of every other time, but not how many."""
    is_lost, is_told = np.zeros((2, count), bool)
    for k, at in enumerate(np.flatnonzero(rng.random(count) < BLOCK_NS / (300 * SECOND))):
        end = at + rng.integers(1, 11)
        is_lost[at:end] = True
        is_told[min(end, count - 1)] = k % 2
    return is_lost, is_told


# --- times of blocks, per method -------------------------------------------------------------------------------------


def times_by_clock(world: World, latency_ns: int) -> np.ndarray:
    """Ours."""
    clock = AudioClock(RATE, latency_ns=latency_ns)
    times = []
    for arrival, told in zip(world.block_arrivals.astype(np.int64).tolist(), world.told.tolist(), strict=True):
        if told:
            clock.gap(None)
        times.append(clock.block(arrival, BLOCK))
    return np.array(times)


def times_by_count(world: World, latency_ns: int) -> np.ndarray:
    """From the first arrival on by sample count at the nominal rate; anew where the driver says that it lost some."""
    anew = np.flatnonzero(world.told | (np.arange(len(world.told)) == 0))
    since = anew[np.searchsorted(anew, np.arange(len(world.told)), side="right") - 1]
    anchor = world.block_arrivals[since] - BLOCK_NS - latency_ns
    return anchor + (np.arange(len(world.told)) - since) * BLOCK_NS


# --- pairs -----------------------------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """What went into a head together, as believed and in truth, ns: the frame, and the end of the sound."""

    frame_believed: np.ndarray
    frame_truth: np.ndarray
    audio_believed: np.ndarray
    audio_truth: np.ndarray
    frames: int
    """How many there were."""

    def figures(self) -> dict[str, float]:
        """In ms, from 30 s on."""
        settled = self.frame_truth > START + SETTLED_NS
        believed = (self.frame_believed - self.audio_believed)[settled]
        truth = (self.frame_truth - self.audio_truth)[settled]
        error = np.abs(believed - truth) / MS
        p50, p95, p99 = np.percentile(error, [50, 95, 99])
        s50, s95 = np.percentile(np.abs(truth) / MS, [50, 95])
        used = len(self.frame_truth) / self.frames
        return {"p50": p50, "p95": p95, "p99": p99, "max": error.max(), "spread50": s50, "spread95": s95, "used": used}


def pairs_of(world: World, frames: np.ndarray, stamps: np.ndarray, blocks: np.ndarray, times: np.ndarray) -> Pairs:
    ends = world.block_truth[blocks] + BLOCK * world.sample_ns
    return Pairs(stamps[frames], world.frame_truth[frames], times[blocks] + BLOCK_NS, ends, len(stamps))


def newest_before(world: World, stamps: np.ndarray, times: np.ndarray) -> Pairs:
    """Each frame with the newest block that had ended by then, if times are believed."""
    blocks = np.searchsorted(np.maximum.accumulate(times) + BLOCK_NS, stamps, side="right") - 1
    frames = np.flatnonzero(blocks >= 0)
    return pairs_of(world, frames, stamps, blocks[frames], times)


def arrivals(world: World) -> Iterator[tuple[int, int, int]]:
    """(time, 0 for a frame or 1 for a block, which), in the order of arrival."""
    kinds = np.repeat([0, 1], [len(world.frame_arrivals), len(world.block_arrivals)])
    which = np.r_[np.arange(len(world.frame_arrivals)), np.arange(len(world.block_arrivals))]
    when = np.r_[world.frame_arrivals, world.block_arrivals].astype(np.int64)
    order = np.argsort(when, kind="stable")
    return zip(when[order].tolist(), kinds[order].tolist(), which[order].tolist(), strict=True)


# --- ours, through a session -----------------------------------------------------------------------------------------


def through_session(world: World, times: np.ndarray) -> Pairs:
    """What the head of a session really got, told by the samples themselves."""
    given: list[tuple[float, float, float, float]] = []
    results: list[edge_mbm.Result] = []
    with tracing_session(given) as session:
        for now, kind, k in arrivals(world):
            if kind == 0:
                frame = np.empty((8, 8, 3), np.uint8)
                frame[:] = (k >> 16, k >> 8 & 255, k & 255)
                session.push("image", frame, int(world.frame_stamps[k]))
            else:
                first = int(world.blocks[k]) * BLOCK
                session.push("audio", np.arange(first, first + BLOCK, dtype=np.float32), int(times[k]))
            results += session.poll(now)
    both = [(g, r) for g, r in zip(given, results, strict=True) if not r.missing]
    frames = np.array([(int(r) << 16) + (int(g) << 8) + int(b) for (r, g, b, _), _ in both])
    samples = np.array([last + 1 for (*_, last), _ in both])
    believed = np.array([result.t_capture for _, result in both])
    spread = np.array([result.spread for _, result in both])
    truth = START + samples * world.sample_ns
    return Pairs(believed, world.frame_truth[frames], believed - spread, truth, len(world.frame_truth))


def tracing_session(given: list[tuple[float, float, float, float]]) -> Session:
    """The tiny bundle with a hop of 20 ms; ``given`` receives (r, g, b, last sample) of each run of the head."""

    def image(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        outputs["color"][0] = inputs["image"][0, 0, 0]

    def audio(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        outputs["level"][0] = inputs["samples"][0, -1]

    def event(inputs: Mapping[str, Any], _: Mapping[str, Any]) -> None:
        given.append((*inputs["color"][0].tolist(), float(inputs["level"][0, 0])))

    computes = {"image_encoder": image, "audio_encoder": audio, "event": event}
    with edge_mbm.load(tiny_bundle()) as bundle:
        encoder = bundle.manifest.components["audio_encoder"]
        assert isinstance(encoder, Encoder)
        assert encoder.window is not None
        finer = structs.replace(encoder, window=structs.replace(encoder.window, hop=BLOCK))
        manifest = structs.replace(bundle.manifest, components={**bundle.manifest.components, "audio_encoder": finer})
        return Session(
            WithManifest(bundle, manifest),  # type: ignore[arg-type]
            SessionOptions(heads=("event",)),
            load_engine=lambda name, part, graph: NullEngine(name, part, graph, compute=computes[name]),
        )


class WithManifest:
    """A bundle that says something else of itself."""

    def __init__(self, bundle: Any, manifest: Any) -> None:
        self.manifest = manifest
        self.read, self.read_labels = bundle.read, bundle.read_labels


# --- ROS 2's, written anew from their published descriptions ---------------------------------------------------------


def by_policy(world: World, times: np.ndarray, queue_size: int = 10) -> Pairs:
    """The ApproximateTime policy of message_filters for two topics, re-implemented from wiki.ros.org's description.

    Sets do not cross, are contiguous, and are the smallest that are: from the pivot, the later of the first two
    messages, the earlier topic is advanced for as long as this can make the set smaller.
    """
    stamps = (world.frame_stamps, times + BLOCK_NS)
    queues: tuple[deque[int], deque[int]] = (deque(), deque())
    found: list[tuple[int, int]] = []
    for _, kind, k in arrivals(world):
        queues[kind].append(k)
        if len(queues[kind]) > queue_size:
            queues[kind].popleft()
        while (best := smallest_set(queues, stamps)) is not None:
            found.append((queues[0][best[0]], queues[1][best[1]]))
            for queue, used in zip(queues, best, strict=True):
                for _ in range(used + 1):
                    queue.popleft()
    frames, blocks = np.array(found).T
    return pairs_of(world, frames, world.frame_stamps, blocks, times)


def smallest_set(
    queues: tuple[deque[int], deque[int]], stamps: tuple[np.ndarray, np.ndarray]
) -> tuple[int, int] | None:
    """Places in the queues of the next set; None if messages to come could still make it smaller."""
    if not (queues[0] and queues[1]):
        return None
    heads = [0, 0]
    times = [stamps[0][queues[0][0]], stamps[1][queues[1][0]]]
    pivot = int(times[1] > times[0])
    pivot_time, best, best_span = times[pivot], (0, 0), (min(times), max(times))
    while True:
        early = int(times[1] < times[0])
        span = (min(times), max(times))
        if span[1] - best_span[1] < span[0] - best_span[0]:
            best, best_span = (heads[0], heads[1]), span
        if early == pivot or span[1] - best_span[1] >= pivot_time - best_span[0]:
            return best
        heads[early] += 1
        if heads[early] == len(queues[early]):
            return None
        times[early] = stamps[early][queues[early][heads[early]]]


def by_slop(world: World, times: np.ndarray, queue_size: int = 10, slop_ns: int = 100 * MS) -> Pairs:
    """The ApproximateTimeSynchronizer of message_filters for Python, re-implemented from its description.

    Whatever comes takes the nearest message that waits on the other topic, if it is within the slop.
    """
    stamps = (world.frame_stamps, times + BLOCK_NS)
    queues: tuple[deque[int], deque[int]] = (deque(), deque())
    found: list[tuple[int, int]] = []
    for _, kind, k in arrivals(world):
        mine, other = queues[kind], queues[1 - kind]
        mine.append(k)
        if len(mine) > queue_size:
            mine.popleft()
        distances = [(abs(stamps[1 - kind][m] - stamps[kind][k]), m) for m in other]
        distance, nearest = min(distances, default=(slop_ns, 0))
        if distance < slop_ns:
            mine.remove(k)
            other.remove(nearest)
            found.append((k, nearest) if kind == 0 else (nearest, k))
    frames, blocks = np.array(found).T
    return pairs_of(world, frames, world.frame_stamps, blocks, times)


# --- the table -------------------------------------------------------------------------------------------------------

LATE_NS = 150 * MS
Row = Callable[[World, np.ndarray, int], Pairs]
ROWS: dict[str, tuple[int, Row]] = {
    "edge-mbm: session": (0, lambda world, times, _: through_session(world, times)),
    "edge-mbm: AudioClock alone": (0, lambda world, times, _: newest_before(world, world.frame_stamps, times)),
    "count from the first arrival": (
        0,
        lambda world, _, latency: newest_before(world, world.frame_stamps, times_by_count(world, latency)),
    ),
    "arrival times": (0, lambda world, _, __: newest_before(world, world.frame_arrivals, world.block_arrivals)),
    "150 ms late: edge-mbm: session": (LATE_NS, lambda world, times, _: through_session(world, times)),
    "150 ms late: ApproximateTime policy, our times": (LATE_NS, lambda world, times, _: by_policy(world, times)),
    "150 ms late: Python synchronizer, our times": (LATE_NS, lambda world, times, _: by_slop(world, times)),
    "150 ms late: arrival times": (
        LATE_NS,
        lambda world, _, __: newest_before(world, world.frame_arrivals, world.block_arrivals),
    ),
}


def measure(seeds: int, seconds: int) -> tuple[dict[str, list[dict[str, float]]], list[float]]:
    """Row -> figures per seed; and what a block costs the clock, us of a processor."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    costs = []
    for seed in range(seeds):
        for late_ns in (0, LATE_NS):
            world = make_world(seed, seconds, late_ns)
            started = process_time()
            times = times_by_clock(world, late_ns)
            costs.append((process_time() - started) / len(times) * 1e6)
            for name, (row_late_ns, pair) in ROWS.items():
                if row_late_ns == late_ns:
                    rows[name].append(pair(world, times, late_ns).figures())
    return rows, costs


def spread(values: list[float], scale: float = 1) -> str:
    low, middle, high = (f"{scale * v:.3g}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} - {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3600, help="simulated, per seed and row")
    parser.add_argument("--seeds", type=int, default=5, help="worlds with their own drifts, jitter and losses")
    parser.add_argument("--json", action="store_true", help="every figure of every seed instead of the table")
    arguments = parser.parse_args()
    rows, costs = measure(arguments.seeds, arguments.seconds)
    if arguments.json:
        print(json.dumps({"rows": rows, "clock_us_per_block": costs}))
        return
    table = Table(title=f"Alignment error, ms: median (range) of {arguments.seeds} x {arguments.seconds} s")
    columns = ("p50", "p95", "p99", "max", "spread50", "spread95", "used")
    for column in ("", *columns[:4], "spread p50", "spread p95", "frames used, %"):
        table.add_column(column, justify="right" if column else "left")
    for name, figures in rows.items():
        cells = [spread([f[c] for f in figures], 100 if c == "used" else 1) for c in columns]
        table.add_row(name, *cells)
    Console().print(table)
    print(f"AudioClock: {spread(costs)} us of a processor per block")


if __name__ == "__main__":
    main()
