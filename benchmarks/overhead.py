"""What edge-mbm adds to bare onnxruntime: per result, and from a cold start.

    python benchmarks/overhead.py [--steps N] [--starts N]

Both sides run the same graphs on the same inputs with the same session options, one after the other in every
repetition, so that whatever else the machine does hits both alike. ``benchmarks/README.md`` has the goals.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

import edge_mbm
from edge_mbm.testing import tiny_bundle

HOP = 100  # samples, the tiny bundle's
HOP_NS = 100_000_000
GRAPHS = ("image_encoder", "audio_encoder", "event")

Step = Callable[[int], None]


def bare_options() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def bare_steps(frame: np.ndarray, sound: np.ndarray, *, resize: bool) -> Step:
    """What one writes by hand: three ``session.run``, the state carried along, softmax over the scores."""
    with edge_mbm.load(tiny_bundle()) as bundle:
        graphs = [bundle.read(bundle.manifest.components[name].variants["fp32"].graph or "") for name in GRAPHS]
    image, audio, head = (ort.InferenceSession(graph, bare_options()) for graph in graphs)
    present = np.ones((1, 2), np.float32)
    state = np.zeros((1, 1), np.float32)

    def step(_: int) -> None:
        nonlocal state
        small = cv2.resize(frame, (8, 8), interpolation=cv2.INTER_AREA) if resize else frame
        [color] = image.run(["color"], {"image": small[None]})
        level, state = audio.run(["level", "next_state"], {"samples": sound[None], "state": state})
        [logits] = head.run(["logits"], {"color": color, "level": level, "present": present})
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()

    return step


def our_steps(session: edge_mbm.Session, frame: np.ndarray, sound: np.ndarray) -> Step:
    """A hop of sound, a frame at its end, one result."""

    def step(k: int) -> None:
        session.push("audio", sound, k * HOP_NS)
        session.push("image", frame, (k + 1) * HOP_NS)
        [result] = session.poll()
        assert not result.missing

    return step


def interleaved(ours: Step, bare: Step, steps: int) -> tuple[list[float], list[float]]:
    """Times of each, us, in turn and with the turn's order changing; the first fifth only warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    for k in range(steps + steps // 5):
        for side in (0, 1) if k % 2 else (1, 0):
            started = perf_counter_ns()
            (ours, bare)[side](k)
            times[side].append((perf_counter_ns() - started) / 1e3)
    return times[0][steps // 5 :], times[1][steps // 5 :]


COLD_OURS = """
from time import perf_counter
started = perf_counter()
import numpy as np
import edge_mbm
session = edge_mbm.load({bundle!r}).session()
[result] = session.infer(image=np.zeros((8, 8, 3), np.uint8), audio=np.zeros(100, np.float32))
print(perf_counter() - started)
"""
COLD_BARE = """
from time import perf_counter
started = perf_counter()
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
image, audio, head = [ort.InferenceSession(path, options) for path in {graphs!r}]
[color] = image.run(None, {{"image": np.zeros((1, 8, 8, 3), np.uint8)}})
level, state = audio.run(None, {{"samples": np.zeros((1, 100), np.float32), "state": np.zeros((1, 1), np.float32)}})
head.run(None, {{"color": color, "level": level, "present": np.ones((1, 2), np.float32)}})
print(perf_counter() - started)
"""


def cold_starts(starts: int) -> tuple[list[float], list[float]]:
    """Import, load and first result in a fresh process, without the interpreter's own start, ms; in turn."""
    with tempfile.TemporaryDirectory() as folder, edge_mbm.load(tiny_bundle()) as bundle:
        paths = []
        for name in GRAPHS:
            path = Path(folder, f"{name}.onnx")
            path.write_bytes(bundle.read(bundle.manifest.components[name].variants["fp32"].graph or ""))
            paths.append(str(path))
        # Compiled once, as an installed package is; a checkout may be told not to keep its bytecode.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        scripts = (COLD_OURS.format(bundle=str(tiny_bundle())), COLD_BARE.format(graphs=paths))
        times: tuple[list[float], list[float]] = ([], [])
        for k in range(starts + 1):  # the first only compiles, and warms the disk's cache
            for side in (0, 1) if k % 2 else (1, 0):
                command = [sys.executable, "-c", scripts[side]]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                times[side].append(float(done.stdout) * 1e3)
    return times[0][1:], times[1][1:]


def spread(times: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(times, n=4)
    return f"{statistics.median(times):.1f} ({low:.1f} - {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="results per side and row")
    parser.add_argument("--starts", type=int, default=11, help="fresh processes per side")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    sound = rng.uniform(-1, 1, HOP).astype(np.float32)
    table = Table(title="edge-mbm against bare onnxruntime: median (quartiles)")
    for column in ("", "edge-mbm", "bare", "ratio", "added", "goal"):
        table.add_column(column, justify="left" if not column else "right")

    def row(name: str, ours: Sequence[float], bare: Sequence[float], unit: str, goal: str) -> None:
        middle = statistics.median(ours), statistics.median(bare)
        added = (middle[0] - middle[1]) / (1000 if unit == "us" else 1)
        table.add_row(
            f"{name}, {unit}", spread(ours), spread(bare), f"{middle[0] / middle[1]:.2f}x", f"{added:.3f} ms", goal
        )

    for name, size, resize in (("step", (8, 8), False), ("step with a 640x480 frame", (480, 640), True)):
        frame = rng.integers(0, 256, (*size, 3), np.uint8)
        with edge_mbm.load(tiny_bundle()).session() as session:
            ours, bare = our_steps(session, frame, sound), bare_steps(frame, sound, resize=resize)
            row(name, *interleaved(ours, bare, arguments.steps), "us", "+0.3 ms")
    row("cold start", *cold_starts(arguments.starts), "ms", "1.15x")
    Console().print(table)


if __name__ == "__main__":
    main()
