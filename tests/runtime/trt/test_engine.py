"""A TensorRT engine on a GPU that is not there: a driver with the real one's rules, and ONNX Runtime as kernels."""

from __future__ import annotations

import gc
import logging
import threading
from typing import Any

import numpy as np
import pytest

import edge_mbm
from edge_mbm.errors import DeviceLostError, EngineError
from edge_mbm.runtime.engine import OnnxRuntimeEngine
from edge_mbm.runtime.states import states_of
from edge_mbm.runtime.trt.engine import EngineOptions, TensorRTEngine
from edge_mbm.runtime.trt.place import Place
from edge_mbm.spec import Component, TensorSpec
from edge_mbm.testing import tiny_bundle
from edge_mbm.testing.cuda import FakeDriver

pytestmark = pytest.mark.needs("onnxruntime")
RNG = np.random.default_rng(0)


def part(name: str) -> tuple[str, Component, bytes]:
    with edge_mbm.load(tiny_bundle()) as bundle:
        component = bundle.manifest.components[name]
        return name, component, bundle.read(component.variants["fp32"].graph or "")


def plan_of(graph: bytes, version: str = "10.3.0") -> bytes:
    return b"FAKE %s\n%s" % (version.encode(), graph)


def load(place: Place, name: str = "event", **options: Any) -> TensorRTEngine:
    _, component, graph = part(name)
    return TensorRTEngine(name, component, plan_of(graph, place.release.version), place, EngineOptions(**options))


def some(name: str) -> dict[str, np.ndarray]:
    """Values that nothing else in memory has."""
    tensors = part(name)[1].graph_inputs()
    return {key: (RNG.uniform(0, 200, spec.resolve())).astype(spec.dtype) for key, spec in tensors.items()}


@pytest.mark.parametrize("name", ["event", "audio_encoder", "image_encoder"])
@pytest.mark.parametrize("use_graph", [True, False], ids=["replayed", "queued"])
@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "copied"])
def test_it_gives_what_onnx_runtime_gives(make_place: Any, name: str, use_graph: bool, mapped: bool) -> None:
    """On the same inputs, call after call: a copy, a wait or an address that is forgotten would give other numbers."""
    component = part(name)[1]
    reference = OnnxRuntimeEngine(*part(name))
    engine = load(make_place(), name, use_graph=use_graph, mapped=mapped)
    for _ in range(3):
        given = some(name)
        states = {state.input: given.pop(state.input) for state in component.states}
        for one in (reference, engine):
            states_of(one, component.states).restore(states)
        expected, got = reference.run(given), engine.run(given)
        for key in component.outputs:
            np.testing.assert_array_equal(got[key], expected[key])
            assert got[key].dtype == expected[key].dtype
    assert engine.provider == "TensorRT"


def test_buffers_are_allocated_and_bound_once(place: Place, driver: FakeDriver) -> None:
    """However often it runs: no allocation, no address, no capture more, and one launch a call."""
    engine = load(place)
    once = {key: driver.calls[key] for key in ("mem_alloc", "pagelocked_zeros", "set_tensor_address", "begin", "end")}
    assert once == {"mem_alloc": 4, "pagelocked_zeros": 4, "set_tensor_address": 4, "begin": 1, "end": 1}
    launched, queued = driver.calls["launch"], driver.calls["execute_async_v3"]
    for _ in range(10):
        engine.run({})
    assert {key: driver.calls[key] for key in once} == once
    assert driver.calls["launch"] - launched == 10
    assert driver.calls["execute_async_v3"] == queued == 2  # one to warm up, one that was taken down


@pytest.mark.parametrize("use_graph", [True, False], ids=["replayed", "queued"])
def test_each_call_copies_each_tensor_once(place: Place, driver: FakeDriver, use_graph: bool) -> None:
    """Three inputs in, one output out, one run of the engine; nothing is copied twice."""
    engine = load(place, use_graph=use_graph)
    before = driver.done.copy()
    for _ in range(5):
        engine.run({})
    assert driver.done - before == {"htod": 15, "dtoh": 5, "kernel": 5}


def test_an_integrated_gpu_works_in_place(make_place: Any) -> None:
    """On a Jetson host and GPU share their memory: nothing is copied, and nothing is allocated on the GPU."""
    jetson = FakeDriver(integrated=True)
    engine = load(make_place(gpu=jetson))
    engine.run(some("event"))
    assert jetson.done["htod"] == jetson.done["dtoh"] == jetson.calls["mem_alloc"] == 0
    assert jetson.done["kernel"] > 0


def test_input_buffers_may_be_written_in_place(place: Place) -> None:
    """What stands in ``inputs`` counts, as the preprocessing writes it there; what is not given keeps its value."""
    engine, reference = load(place), OnnxRuntimeEngine(*part("event"))
    given = some("event")
    for key, value in given.items():
        engine.inputs[key][...] = value
    np.testing.assert_array_equal(engine.run({})["logits"], reference.run(given)["logits"])
    again = engine.run({"level": engine.inputs["level"]})
    np.testing.assert_array_equal(again["logits"], reference.run(given)["logits"])


def test_wrong_inputs_are_refused_by_name(place: Place) -> None:
    """As by every engine."""
    engine = load(place)
    with pytest.raises(EngineError, match=r"'event' has no input 'x'; it has \['color', 'level', 'present'\]"):
        engine.run({"x": np.zeros((1, 1), np.float32)})
    with pytest.raises(EngineError, match=r"'color' of 'event' is float32\[1, 3\], got float64\[1, 3\]"):
        engine.run({"color": np.zeros((1, 3))})


def test_what_cannot_be_captured_is_queued_and_said(make_place: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Slower, and right; never silently."""
    with caplog.at_level(logging.WARNING):
        engine = load(make_place(captures=False))
    assert "'event' runs without a CUDA graph: cuStreamEndCapture failed" in caplog.text
    assert not engine.replays
    given = some("event")
    expected = OnnxRuntimeEngine(*part("event")).run(given)
    np.testing.assert_array_equal(engine.run(given)["logits"], expected["logits"])


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "copied"])
def test_states_go_from_run_to_run_as_on_the_cpu(make_place: Any, mapped: bool) -> None:
    """Carried, started from zeros, saved and restored: the same numbers, wherever they are kept."""
    _, component, _ = part("audio_encoder")
    answers = []
    for engine in (OnnxRuntimeEngine(*part("audio_encoder")), load(make_place(), "audio_encoder", mapped=mapped)):
        states, told = states_of(engine, component.states), []
        states.reset()

        def step(value: float) -> None:
            outputs = engine.run({"samples": np.full((1, 100), value, np.float32)})  # noqa: B023 - called here only
            states.carry(outputs)  # noqa: B023
            told.append(float(outputs["level"].item()))  # noqa: B023

        step(8.0)
        step(6.0)
        saved = states.save()
        step(2.0)
        states.restore(saved)
        step(2.0)
        states.reset()
        step(1.0)
        answers.append((told, {key: value.tolist() for key, value in saved.items()}))
    assert answers[0] == answers[1]
    assert answers[1][0] == [4.0, 5.0, 3.5, 3.5, 0.5]


def test_states_never_leave_the_gpu(place: Place, driver: FakeDriver) -> None:
    """Of two inputs one is copied, of two outputs one; the state is copied where it is."""
    engine = load(place, "audio_encoder")
    assert engine.inputs.keys() == {"samples"}
    states = states_of(engine, part("audio_encoder")[1].states)
    before = driver.done.copy()
    for _ in range(5):
        states.carry(engine.run({}))
    engine.run({})
    assert driver.done - before == {"htod": 6, "dtoh": 6, "kernel": 6, "dtod": 5}


def test_what_is_held_is_copied_once(place: Place, driver: FakeDriver) -> None:
    """What a decoder reads throughout a text: the graph is taken down anew the first time, and no run copies it."""
    reference, engine = OnnxRuntimeEngine(*part("event")), load(place)
    states = states_of(engine, ())
    captured = driver.calls["begin"]
    for _ in range(3):
        held = {"level": RNG.uniform(0, 9, (1, 1)).astype(np.float32)}
        states.hold(held)
        before = driver.done.copy()
        for _ in range(4):
            given = {key: value for key, value in some("event").items() if key != "level"}
            expected = reference.run(given | held)
            np.testing.assert_array_equal(engine.run(given)["logits"], expected["logits"])
        assert driver.done - before == {"htod": 8, "dtoh": 4, "kernel": 4}
    assert driver.calls["begin"] == captured + 1
    given = some("event")
    np.testing.assert_array_equal(engine.run(given)["logits"], reference.run(given)["logits"])  # given after all
    engine.close()
    assert driver.graphs == {}
    with pytest.raises(EngineError, match="after it was closed"):
        states.carry({})


def test_events_time_the_gpu(place: Place, driver: FakeDriver) -> None:
    """What the GPU took between them, whatever Python did meanwhile."""
    engine = load(place)
    driver.call_us = 123.0
    engine.run({})
    assert engine.device_us == pytest.approx(123.0)


def test_the_hosts_own_context_stays_current(place: Place, driver: FakeDriver) -> None:
    """Around load, run and close; the primary context is retained once, however many engines there are."""
    engines = [load(place) for _ in range(3)]
    assert place.cuda is not None
    with place.cuda.current():
        for engine in engines:
            engine.run({})
            assert driver.depth == 1
            engine.close()
            assert driver.depth == 1
    assert driver.depth == 0
    assert driver.calls["retain_primary_context"] == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_everything_is_freed_once_in_any_order_from_any_thread(
    place: Place, driver: FakeDriver, order: tuple[int, ...]
) -> None:
    """Memory of the GPU, page-locked memory and graphs; closing twice is no error, and nothing leaks."""
    engines = [load(place, name) for name in ("event", "audio_encoder", "image_encoder")]
    made = driver.calls["pagelocked_zeros"]
    for index in order:
        thread = threading.Thread(target=engines[index].close)
        thread.start()
        thread.join()
        engines[index].close()
    assert driver.bytes == {}
    assert driver.graphs == {}
    assert driver.calls["free"] == driver.calls["mem_alloc"]
    assert driver.calls["free pinned"] == made
    assert driver.leaked == 0


def test_an_engine_that_nobody_closed_is_freed_with_its_last_reference(place: Place, driver: FakeDriver) -> None:
    """Under the right context: pycuda leaks what is freed under another."""
    engine = load(place)
    engine.run({})
    del engine
    gc.collect()
    assert driver.bytes == {}
    assert driver.graphs == {}
    assert driver.leaked == 0


def test_results_that_are_held_outlive_the_engine(place: Place) -> None:
    """Page-locked memory goes with its last view, so that nobody reads what is not there."""
    engine = load(place)
    given = some("event")
    held = engine.run(given)["logits"]
    expected = held.copy()
    engine.close()
    np.testing.assert_array_equal(held, expected)


def test_closing_waits_for_a_run_in_another_thread(place: Place, driver: FakeDriver) -> None:
    """A host program may close a session from anywhere: the run is finished, and the next is an error."""
    engine = load(place)
    inside, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        assert go_on.wait(60)

    [graph] = driver.graphs.values()
    graph.insert(0, slow)
    worker = threading.Thread(target=lambda: (engine.run({}), done.set()))
    worker.start()
    assert inside.wait(60)
    closer = threading.Thread(target=engine.close)
    closer.start()
    assert driver.graphs  # not freed under it
    go_on.set()
    worker.join(60)
    closer.join(60)
    assert done.is_set()
    assert driver.graphs == {}
    with pytest.raises(EngineError, match="'event' was run after it was closed"):
        engine.run({})


def test_a_lost_gpu_is_told_and_closes_the_engine(place: Place, driver: FakeDriver) -> None:
    """After an Xid every call of CUDA fails, by which it is told; the message says where to look."""
    engine = load(place)
    driver.lose("unspecified launch failure")
    with pytest.raises(
        DeviceLostError, match=r"GPU was lost: could not run 'event': .*unspecified launch.*Xid"
    ) as info:
        engine.run({})
    assert info.value.exit_code == 6
    with pytest.raises(EngineError, match="after it was closed"):
        engine.run({})
    engine.close()
    assert driver.depth == 0


def test_a_failure_that_is_not_the_gpus_end_is_an_error_with_tensorrts_reason(
    place: Place, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad run costs one result: the engine runs on."""
    engine = load(place, use_graph=False)
    context = engine._loaded.context
    good = context.execute_async_v3

    def bad(handle: int) -> bool:
        engine._said.append("Error Code 1: Cask (no kernel image)")
        return False

    monkeypatch.setattr(context, "execute_async_v3", bad)
    with pytest.raises(EngineError, match=r"TensorRT could not run 'event' \(Error Code 1: Cask"):
        engine.run({})
    monkeypatch.setattr(context, "execute_async_v3", good)
    assert engine.run({})["logits"].shape == (1, 4)


def test_an_engine_of_another_release_is_refused_with_the_remedy(make_place: Any, driver: FakeDriver) -> None:
    """With what TensorRT logged; nothing stays behind."""
    _, component, graph = part("event")
    with pytest.raises(
        EngineError, match=r"10\.3\.0 does not take the engine of 'event' \(.*not compatible\).*compile"
    ):
        TensorRTEngine("event", component, plan_of(graph, "10.16.1"), make_place("10.3.0"))
    assert driver.bytes == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"present": TensorSpec(dtype="float32", shape=(1, 3))},
            r"'present' of 'event' is FLOAT\[-?1, 2\] in the engine",
        ),
        ({"present": TensorSpec(dtype="int64", shape=(1, 2))}, "before 10 has no int64"),
        ({"extra": TensorSpec(dtype="float32", shape=(1, 2))}, "the manifest says .*'extra'.*export the bundle again"),
    ],
    ids=["shape", "type", "name"],
)
def test_an_engine_that_is_not_what_the_manifest_says_is_refused(
    place: Place, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, change: dict[str, TensorSpec], message: str
) -> None:
    """By name, both sides shown, before it runs."""
    _, component, graph = part("event")
    tensors = component.graph_inputs() | change
    monkeypatch.setattr(type(component), "graph_inputs", lambda self: tensors)
    with pytest.raises(EngineError, match=message):
        TensorRTEngine("event", component, plan_of(graph), place)
    assert driver.bytes == {}


def test_a_gpu_without_memory_is_an_error_and_nothing_stays(make_place: Any) -> None:
    """Of several engines the last may not fit: the others go on."""
    small = FakeDriver(memory=100)
    with pytest.raises(EngineError, match="CUDA could not load 'image_encoder': cuMemAlloc failed: out of memory"):
        load(make_place(gpu=small), "image_encoder")
    assert small.bytes == {}


def test_two_components_do_not_wait_for_each_other(place: Place, driver: FakeDriver) -> None:
    """Each has a stream of its own: a run of one ends while the other's is still queued."""
    first, second = load(place), load(place, "audio_encoder")
    assert first._loaded.stream.handle != second._loaded.stream.handle
    assert place.cuda is not None
    with place.cuda.current():
        second._cuda.graphs.launch(second._loaded.graph or 0, second._loaded.stream.handle)
    before = driver.done["kernel"]
    first.run({})
    assert driver.done["kernel"] == before + 1


def test_components_run_in_threads_of_their_own(place: Place) -> None:
    """As a live stream's encoders do: each thread's context is its own, and no numbers mix."""
    names = ("event", "image_encoder")
    wrong: dict[str, int] = {}

    def work(name: str) -> None:
        rng, component = np.random.default_rng(len(name)), part(name)[1]
        reference, engine = OnnxRuntimeEngine(*part(name)), load(place, name)
        wrong[name] = 0
        for _ in range(100):
            given = {k: rng.uniform(0, 200, s.resolve()).astype(s.dtype) for k, s in component.graph_inputs().items()}
            expected, got = reference.run(given), engine.run(given)
            wrong[name] += not all(np.array_equal(got[key], value) for key, value in expected.items())
        engine.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == dict.fromkeys(names, 0)
