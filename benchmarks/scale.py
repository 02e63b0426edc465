"""What more streams cost, whether a stalled one holds up the others, and what a session weighs.

    python benchmarks/scale.py [--streams 1,2,4,8] [--repetitions N] [--seconds S]

A stream is a whole ``edge_mbm.open`` with a camera, all in one process. ``benchmarks/README.md`` has the goals.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import edge_mbm
from edge_mbm.runtime.source import Source, Timing
from edge_mbm.testing import tiny_bundle

_GRAPHS = ("image_encoder", "audio_encoder", "event")
_FRAME = np.zeros((8, 8, 3), np.uint8)


@dataclass(frozen=True)
class Job:
    """Some streams at once."""

    streams: int
    fps: float
    seconds: float
    stalled: str = ""
    """What happens to the last stream half-way: nothing, its "camera" stops, or its "consumer" does."""


@dataclass
class Found:
    """What a process measured."""

    cpu: float = 0.0
    """Of a core."""
    ages: list[list[float]] = field(default_factory=list)
    """Per stream that was not stalled, of the second half, ms."""


class Camera:
    """Frames at a fixed rate, of which some streams' clocks are out of step by a part of the period."""

    modalities = ("image",)
    timing = Timing("monotonic")

    def __init__(self, job: Job, number: int) -> None:
        self._job = job
        self._phase = number / job.streams
        self._stalls = job.stalled == "camera" and number == job.streams - 1
        self._closed = threading.Event()

    def samples(self) -> Iterator[edge_mbm.Sample]:
        job, begun = self._job, time.monotonic_ns()
        for k in range(round(job.seconds * job.fps)):
            if self._stalls and k > job.seconds * job.fps / 2:
                self._closed.wait()
            due = begun + int((k + self._phase) * 1e9 / job.fps)
            if self._closed.wait(max(0.0, (due - time.monotonic_ns()) / 1e9)):
                return
            yield edge_mbm.Sample("image", _FRAME, time.monotonic_ns())

    def close(self) -> None:
        self._closed.set()


def consume(job: Job, number: int, over: threading.Event, ages: list[float]) -> None:
    """One stream; its ages of the second half, ms."""
    begun = time.monotonic()
    is_stalled = job.stalled != "" and number == job.streams - 1
    options = edge_mbm.SessionOptions(heads=("color",))
    camera = Camera(job, number)
    with edge_mbm.open(tiny_bundle(), camera, options=options) as live:
        if is_stalled and job.stalled == "camera":
            threading.Thread(target=close_when, args=(over, camera), daemon=True).start()
        for result in live:
            if time.monotonic() - begun < job.seconds / 2:
                continue
            ages.append((time.monotonic_ns() - result.t_capture) / 1e6)
            if is_stalled and job.stalled == "consumer":
                over.wait()
                return


def close_when(over: threading.Event, camera: Camera) -> None:
    over.wait()
    camera.close()


class Microphone:
    """Sound in blocks of 0.1 s, that may stop half-way without a word."""

    modalities = ("audio",)
    timing = Timing("monotonic")

    def __init__(self, seconds: float, lasts: float) -> None:
        self._seconds, self._lasts = seconds, lasts
        self._closed = threading.Event()

    def samples(self) -> Iterator[edge_mbm.Sample]:
        begun = time.monotonic_ns()
        for k in range(round(self._lasts * 10)):
            if self._closed.wait(max(0.0, (begun + (k + 1) * 100_000_000 - time.monotonic_ns()) / 1e9)):
                return
            yield edge_mbm.Sample("audio", np.zeros(100, np.float32), begun + k * 100_000_000)
        self._closed.wait(max(0.0, self._seconds - self._lasts))

    def close(self) -> None:
        self._closed.set()


def measure_heads(job: Job) -> Found:
    """One stream with two heads: how old results are of the one that only sees, beside one that also listens."""
    begun = time.monotonic()
    ages: list[float] = []
    lasts = job.seconds / 2 if job.stalled else job.seconds
    sources: list[Source] = [Camera(job, 0), Microphone(job.seconds, lasts)]
    options = edge_mbm.SessionOptions(heads=("event", "color"))
    with edge_mbm.open(tiny_bundle(), sources, options=options) as live:
        for result in live:
            age = (time.monotonic_ns() - result.t_capture) / 1e6
            if result.head == "color" and time.monotonic() - begun > job.seconds / 2:
                ages.append(age)
    return Found(0.0, [ages])


def measure(job: Job) -> Found:
    """All streams of a job, in this process."""
    over = threading.Event()
    ages: list[list[float]] = [[] for _ in range(job.streams)]
    threads = [threading.Thread(target=consume, args=(job, k, over, ages[k])) for k in range(job.streams)]
    for thread in threads:
        thread.start()
    healthy = threads[:-1] if job.stalled else threads
    time.sleep(job.seconds / 2)  # opening isn't streaming
    begun, cpu = time.monotonic(), time.process_time()
    for thread in healthy:
        thread.join()
    found = Found((time.process_time() - cpu) / (time.monotonic() - begun), ages[: len(healthy)])
    over.set()
    for thread in threads:
        thread.join()
    return found


def in_process(job: Job, work: Callable[[Job], Found] = measure) -> Found:
    """The same in a fresh process, which is alone on the machine as far as we can help it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(time.sleep, 0).result()  # its start and our imports are not measured
        return pool.submit(work, job).result()


def spread(values: Sequence[float], digits: int = 2) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def p99(found: Found) -> float:
    return float(np.percentile(np.concatenate(found.ages), 99))


def verdict(measured: float, most: float) -> str:
    return f"<= {most:g}: {'met' if measured <= most else 'missed'}"


def show_cost(console: Console, streams: Sequence[int], repetitions: int, job: Job) -> None:
    """CPU by the number of streams, in turn."""
    found: dict[int, list[Found]] = {count: [] for count in streams}
    for _ in range(repetitions):
        for count in streams:
            found[count].append(in_process(Job(count, job.fps, job.seconds)))
    table = Table(title=f"streams in one process, {job.fps:g} fps each: median (quartiles)")
    for column in ("streams", "CPU, %", "CPU per stream, %", "age p50, ms", "age p99, ms", "goal"):
        table.add_column(column, justify="right")
    one = statistics.median(f.cpu / streams[0] for f in found[streams[0]])
    for count, runs in found.items():
        each = [100 * f.cpu / count for f in runs]
        ratio = statistics.median(each) / (100 * one)
        table.add_row(
            str(count),
            spread([100 * f.cpu for f in runs], 1),
            spread(each),
            spread([float(np.median(np.concatenate(f.ages))) for f in runs]),
            spread([p99(f) for f in runs]),
            "" if count == streams[0] else f"{ratio:.2f}x of one's, {verdict(ratio, 1.1)}",
        )
    console.print(table)


def show_stall(console: Console, streams: int, repetitions: int, job: Job) -> None:
    """The healthy streams beside one that stalls, in turn with the same without a stall."""
    table = Table(title="one stalls: p99 age of the others' results, median (quartiles)")
    for column in ("", "stalled", "p99, ms", "added, ms", "goal"):
        table.add_column(column, justify="right" if "ms" in column or column == "goal" else "left")
    several = f"{streams} streams"
    for name, work, count, kinds in (
        (several, measure, streams, ("", "camera", "consumer")),
        ("one stream, the head that only sees", measure_heads, 1, ("", "microphone")),
    ):
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(repetitions):
            for kind in kinds:
                found[kind].append(p99(in_process(Job(count, job.fps, job.seconds, kind), work)))
        for kind in kinds:
            added = statistics.median(b - a for a, b in zip(found[""], found[kind], strict=True))
            goal = verdict(added, round(1e3 / job.fps, 1)) if kind else ""
            table.add_row(name, kind or "none", spread(found[kind]), f"{added:.2f}" if kind else "", goal)
    console.print(table)


# --- memory ----------------------------------------------------------------------------------------------------------

_RSS = """
def rss():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1e3
"""
_BARE = """
import numpy as np
import onnxruntime as ort
if {resizes}:
    import cv2
    cv2.resize(np.zeros((480, 640, 3), np.uint8), (8, 8), interpolation=cv2.INTER_AREA)
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
image, audio, head = [ort.InferenceSession(path, options) for path in {graphs!r}]
[color] = image.run(None, {{"image": np.zeros((1, 8, 8, 3), np.uint8)}})
level, state = audio.run(None, {{"samples": np.zeros((1, 100), np.float32), "state": np.zeros((1, 1), np.float32)}})
head.run(None, {{"color": color, "level": level, "present": np.ones((1, 2), np.float32)}})
print(rss())
"""
_SESSION = """
import numpy as np
import edge_mbm
session = edge_mbm.load({bundle!r}).session()
session.infer(image=np.zeros({shape}, np.uint8), audio=np.zeros(100, np.float32))
print(rss())
"""
_LIVE = """
import numpy as np
import edge_mbm
from edge_mbm.testing import ScriptedSource
frames = [edge_mbm.Sample("image", np.zeros((8, 8, 3), np.uint8), k * 33_333_333) for k in range(30)]
sound = [edge_mbm.Sample("audio", np.zeros(100, np.float32), k * 100_000_000, 100_000_000) for k in range(10)]
with edge_mbm.open({bundle!r}, [ScriptedSource(frames), ScriptedSource(sound)]) as live:
    for result in live:
        pass
    print(rss())
"""


def show_memory(console: Console, repetitions: int) -> None:
    """Resident memory after a first result, in fresh processes in turn."""
    bundle = str(tiny_bundle())
    with tempfile.TemporaryDirectory() as folder, edge_mbm.load(tiny_bundle()) as opened:
        graphs = [str(Path(folder, f"{name}.onnx")) for name in _GRAPHS]
        for name, path in zip(_GRAPHS, graphs, strict=True):
            Path(path).write_bytes(opened.read(opened.manifest.components[name].variants["fp32"].graph or ""))
        scripts = {
            "bare onnxruntime": _BARE.format(graphs=graphs, resizes=False),
            "session, frame of the model's size": _SESSION.format(bundle=bundle, shape=(8, 8, 3)),
            "session, 640x480 frame": _SESSION.format(bundle=bundle, shape=(480, 640, 3)),
            "live, camera and microphone": _LIVE.format(bundle=bundle),
            "bare, 640x480 frame": _BARE.format(graphs=graphs, resizes=True),
        }
        found: dict[str, list[float]] = {name: [] for name in scripts}
        for _ in range(repetitions):
            for name, script in scripts.items():
                done = subprocess.run([sys.executable, "-c", _RSS + script], capture_output=True, text=True, check=True)
                found[name].append(float(done.stdout))
    middle = {name: statistics.median(values) for name, values in found.items()}
    table = Table(title="resident memory after the first result: median (quartiles)")
    for column in ("", "MB", "above bare, MB", "goal"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in found.items():
        # Both sides load OpenCV for a frame that has to be resized.
        bare = middle["bare, 640x480 frame" if "640x480" in name else "bare onnxruntime"]
        above = middle[name] - bare
        figures = ("", "") if name.startswith("bare") else (f"{above:.1f}", verdict(above, 20))
        table.add_row(name, spread(values, 1), *figures)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,2,4,8", help="how many at once, comma-separated")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="per run")
    parser.add_argument("--fps", type=float, default=30.0)
    arguments, console = parser.parse_args(), Console()
    streams = [int(count) for count in arguments.streams.split(",")]
    job = Job(1, arguments.fps, arguments.seconds)
    show_cost(console, streams, arguments.repetitions, job)
    show_stall(console, max(2, streams[-1] // 2), arguments.repetitions, job)
    show_memory(console, arguments.repetitions)


if __name__ == "__main__":
    main()
