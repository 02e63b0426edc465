"""What TensorRT engines are worth on this GPU: parity, the cost of a call, overlap, and leaks, of one bundle.

    python benchmarks/gpu.py model.mbm [--target rtx] [--steps 100000] [--json gpu.json]

For each component (its engine is built where it has none): its outputs against ONNX Runtime's on the same inputs; the
time of a call as edge-mbm makes it, replayed and queued, against the bare loop, which launches the CUDA graph and waits
and does nothing else (the goal: at least .9 of it). For two components: both at once against one after the other.
Then so many calls in a row, before and after which the GPU's free memory is compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

import edge_mbm
from edge_mbm.runtime import Bundle, OnnxRuntimeEngine
from edge_mbm.runtime.states import states_of
from edge_mbm.runtime.trt.build_process import SubprocessBuilder
from edge_mbm.runtime.trt.builder import EngineBuilder
from edge_mbm.runtime.trt.cache import EngineCache
from edge_mbm.runtime.trt.compiling import PlannedEngine, compile_bundle
from edge_mbm.runtime.trt.engine import EngineOptions, TensorRTEngine
from edge_mbm.runtime.trt.place import Place, find_place
from edge_mbm.spec import Component

BLOCK, BLOCKS = 50, 20
PARITY_CALLS = 10


def measure(bundle: Bundle, place: Place, cache: EngineCache, builder: EngineBuilder, steps: int) -> dict[str, Any]:
    """Everything, as plain values for JSON."""
    report = compile_bundle(bundle, place, cache, builder, watch=Said())
    components = {name: bundle.manifest.components[name] for name in report.choices}
    plans = {}
    for engine in report.engines:
        if engine.record is not None and report.choices[engine.component].variant == engine.variant:
            found = cache.find(engine.record.key)
            assert found is not None
            plans[engine.component] = found.plan
    found = {name: measure_component(bundle, name, plan, place) for name, plan in plans.items()}
    for name, figures in found.items():
        figures["variant"] = report.choices[name].variant
    first = next(iter(components))
    return {
        "bundle": report.bundle,
        "release": report.release,
        "gpu": report.gpu,
        "driver": place.gpu.driver,
        "components": found,
        "overlap": measure_overlap({name: (components[name], plans[name]) for name in list(components)[:2]}, place),
        "leak": measure_leak(first, components[first], plans[first], place, steps),
    }


def measure_component(bundle: Bundle, name: str, plan: bytes, place: Place) -> dict[str, Any]:
    """Parity with ONNX Runtime's fp32, and calls in turns: as edge-mbm makes them, and bare."""
    component = bundle.manifest.components[name]
    with ExitStack() as stack:
        replayed, queued = (
            stack.enter_context(closing(TensorRTEngine(name, component, plan, place, EngineOptions(use_graph=use))))
            for use in (True, False)
        )
        timed = {"replayed": lambda: replayed.run({}), "queued": lambda: queued.run({}), "bare": bare(replayed)}
        figures = in_turns(timed)
        parity = parity_of(bundle, name, component, replayed)
    return {"parity_db": parity, "us": figures, "of_bare": figures["bare"][1] / figures["replayed"][1]}


def parity_of(bundle: Bundle, name: str, component: Component, engine: TensorRTEngine) -> float:
    """Signal to noise over all outputs, dB, on random inputs; 200 where they are equal."""
    graph = next(v.graph for v in component.variants.values() if v.graph and v.target == "any")
    rng = np.random.default_rng(0)
    signal = noise = 0.0
    with closing(OnnxRuntimeEngine(name, component, bundle.read(graph))) as reference:
        for _ in range(PARITY_CALLS):
            given = inputs_of(component, rng)
            states = {state.input: given.pop(state.input) for state in component.states}
            for one in (reference, engine):
                states_of(one, component.states).restore(states)
            got, expected = engine.run(given), reference.run(given)
            for key, value in ((key, expected[key]) for key in component.outputs):
                signal += float(np.square(value.astype(np.float64)).sum())
                noise += float(np.square(value.astype(np.float64) - got[key]).sum())
    return 200.0 if noise == 0 else 10 * float(np.log10(signal / noise))


def inputs_of(component: Component, rng: np.random.Generator) -> dict[str, Any]:
    """Bytes over their range, small whole numbers (tokens, places), and numbers of about 1."""
    made = {}
    for key, spec in component.graph_inputs().items():
        kind = np.dtype(spec.dtype).kind
        values = (
            rng.integers(0, 256 if kind == "u" else 2, spec.resolve())
            if kind in "uib"
            else rng.normal(size=spec.resolve())
        )
        made[key] = values.astype(spec.dtype)
    return made


def bare(engine: TensorRTEngine) -> Callable[[], object]:
    """Launch and wait, with the context current all the while: what no Python around it can be faster than."""
    cuda, loaded = engine._cuda, engine._loaded  # noqa: SLF001 - the loop that it is compared with has its insides
    handle, graph = loaded.stream.handle, loaded.graph or 0

    def step() -> None:
        with cuda.current():
            for _ in range(BLOCK):
                cuda.graphs.launch(graph, handle)
                loaded.stream.synchronize()

    return step


def in_turns(calls: Mapping[str, Callable[[], object]]) -> dict[str, tuple[float, float, float]]:
    """Microseconds a call: quartiles over blocks; a bare block is many calls in one."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(BLOCKS):
        for name, call in calls.items():
            started = time.perf_counter_ns()
            for _ in range(1 if name == "bare" else BLOCK):
                call()
            times[name].append((time.perf_counter_ns() - started) / BLOCK / 1000)
    return {name: _quartiles(found) for name, found in times.items()}


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, median, high = np.percentile(values, (25, 50, 75))
    return float(low), float(median), float(high)


def measure_overlap(parts: Mapping[str, tuple[Component, bytes]], place: Place) -> dict[str, Any]:
    """Seconds for the same calls of two components: one after the other, and each in a thread of its own."""
    with ExitStack() as stack:
        engines = [
            stack.enter_context(closing(TensorRTEngine(name, component, plan, place)))
            for name, (component, plan) in parts.items()
        ]
        pool = stack.enter_context(ThreadPoolExecutor(len(engines)))

        def all_calls(engine: TensorRTEngine) -> None:
            for _ in range(BLOCK * BLOCKS):
                engine.run({})

        started = time.perf_counter()
        for engine in engines:
            all_calls(engine)
        middle = time.perf_counter()
        list(pool.map(all_calls, engines))
        ended = time.perf_counter()
    return {"components": list(parts), "in_turn_s": middle - started, "at_once_s": ended - middle}


def measure_leak(name: str, component: Component, plan: bytes, place: Place, steps: int) -> dict[str, int]:
    """Bytes of the GPU that are gone after so many calls, and after loading and freeing the engine ten times."""
    assert place.cuda is not None
    with closing(TensorRTEngine(name, component, plan, place)) as engine:
        before = free_bytes(place)
        for _ in range(steps):
            engine.run({})
        after = free_bytes(place)
    closed = free_bytes(place)
    for _ in range(10):
        TensorRTEngine(name, component, plan, place).close()
    return {"steps": steps, "lost_in_calls": before - after, "lost_in_loads": closed - free_bytes(place)}


def free_bytes(place: Place) -> int:
    """Of the GPU's memory."""
    assert place.cuda is not None
    with place.cuda.current():
        free, _ = place.cuda.driver.mem_get_info()
    return int(free)


class Said:
    """A ``Watch`` that says on stderr what is built."""

    def begin(self, planned: PlannedEngine) -> None:
        """A line for each."""
        sys.stderr.write(f"building {planned.component} {planned.variant}\n")

    def advance(self, share: float, what: str) -> None:
        """Nothing: there is no bar."""

    def wait(self) -> None:
        """Nothing either."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", choices=("auto", "tensorrt", "rtx"), default="auto")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with edge_mbm.load(options.bundle) as bundle:
        report = measure(bundle, find_place(options.target), EngineCache(), SubprocessBuilder(), options.steps)
    text = json.dumps(report, indent=2)
    if options.json:
        options.json.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
