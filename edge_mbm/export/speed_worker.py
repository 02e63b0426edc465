"""The process that loads and times graphs: reads a job from standard input, writes a line for each graph.

Run by ``edge_mbm.export.speed``, as a script that imports nothing of edge-mbm; not for people.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, TextIO

import numpy as np
import onnxruntime as ort

__all__ = ["main"]

_WARM_UP = 20
_MOST = 20_000
_WANTED, _FEWEST = 10, 3  # rounds of timing: quartiles need some
_LONGEST = 8  # times the seconds asked for: slow graphs then make do with the fewest rounds
_ALLOCATION = re.compile(r"bad_alloc|[Ff]ailed to allocate memory")
_OUT_OF_MEMORY = " (out of memory: close other programs, or take a smaller model)"


def main() -> int:
    """Do what the job says; returns the exit code."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    job = json.load(sys.stdin)
    with np.load(Path(job["folder"], "inputs.npz"), allow_pickle=False) as arrays:
        inputs = {key: arrays[key] for key in arrays.files}
    calls: dict[str, Callable[[], None]] = {}
    for index, variant in enumerate(job["variants"]):
        graph = Path(job["folder"], f"{index}.onnx").read_bytes()
        try:
            calls[variant] = _bound(graph, inputs, extended=variant in job["extended"])
            calls[variant]()
            _answer(answers, {"variant": variant})
        except Exception as error:  # noqa: BLE001 - whatever it raises is the finding
            calls.pop(variant, None)
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            more = _OUT_OF_MEMORY if isinstance(error, MemoryError) or _ALLOCATION.search(str(error)) else ""
            _answer(answers, {"variant": variant, "fault": f"does not load or run: {first[:300]}{more}"})
    if job["seconds"] > 0 and calls:
        _answer(answers, {"times": _in_turn(calls, job["seconds"])})
    return 0


def _answer(stream: TextIO, answer: Mapping[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")


def _bound(graph: bytes, inputs: Mapping[str, Any], *, extended: bool) -> Callable[[], None]:
    """A call with its buffers bound once, one thread, not spinning: as the device's engine makes it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if extended:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    binding = session.io_binding()
    for value in session.get_inputs():
        binding.bind_cpu_input(value.name, np.ascontiguousarray(inputs[value.name]))
    for value in session.get_outputs():
        binding.bind_output(value.name)
    return lambda: session.run_with_iobinding(binding)


def _in_turn(calls: Mapping[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    """Times of each, us, alternating so that whatever else the machine does hits all alike."""
    until = perf_counter() + seconds
    for _ in range(_WARM_UP):
        for call in calls.values():
            call()
        if perf_counter() >= until:
            break
    times: dict[str, list[float]] = {variant: [] for variant in calls}
    started = perf_counter()
    rounds = 0
    while _goes_on(rounds, perf_counter() - started, seconds):
        for variant, call in calls.items():
            times[variant].append(_timed_us(call))
        rounds += 1
    return times


def _goes_on(rounds: int, spent: float, seconds: float) -> bool:
    """Whether another round is due: enough of them, within bounds of time."""
    if rounds < _FEWEST:
        return True
    if rounds < _WANTED:
        return spent < _LONGEST * seconds
    return spent < seconds and rounds < _MOST


def _timed_us(call: Callable[[], None]) -> float:
    started = perf_counter_ns()
    call()
    return (perf_counter_ns() - started) / 1e3


if __name__ == "__main__":
    sys.exit(main())
