"""Graphs tried and timed in a process of their own, and figures that are measured once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.errors import ExportError
from edge_mbm.export import speed, speed_worker
from edge_mbm.export.speed import SpeedCache, host, measure_speed, probe

INPUTS = {"x": np.ones((1, 2), np.float32)}


def graph(*nodes: onnx.NodeProto, batch: int | str = "batch", weights: object = 1.0) -> bytes:
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 2]) for name in ("x", "y")]
    made = helper.make_graph(
        list(nodes) or [helper.make_node("Add", ["x", "w"], ["y"])],
        "main",
        edges[:1],
        edges[1:],
        [numpy_helper.from_array(np.asarray(weights, np.float32), "w")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


BAD_ENGINE = """
import os, runpy, sys, time
import onnxruntime as ort

make = ort.InferenceSession


def load(graph, *arguments, **options):
    print("an engine that talks", flush=True)
    if b"aborting" in graph:
        os.abort()
    if b"sleeping" in graph:
        time.sleep(1000)
    session = make(graph, *arguments, **options)
    if b"fainting" in graph:
        return Fainting(session)
    return session


class Fainting:
    def __init__(self, session):
        self.session, self.calls = session, 0

    def __getattr__(self, name):
        self.calls += name == "run_with_iobinding"
        if self.calls > 3:
            os._exit(9)
        return getattr(self.session, name)


ort.InferenceSession = load
runpy.run_path(REAL, run_name="__main__")
"""


@pytest.fixture
def bad_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real worker, with an engine that does to certain graphs what real ones have done."""
    worker = Path(speed.__file__).with_name("speed_worker.py")
    (tmp_path / "speed_worker.py").write_text(BAD_ENGINE.replace("REAL", repr(str(worker))))
    monkeypatch.setattr(speed, "__file__", str(tmp_path / "speed.py"))


def named(name: str) -> bytes:
    return graph(helper.make_node("Add", ["x", "w"], ["y"], name=name))


def test_what_loads_and_runs_has_no_fault() -> None:
    """And is not timed unless that is asked for."""
    found = probe({"a": graph(), "b": graph(weights=2.0)}, INPUTS)
    assert found.faults == {"a": None, "b": None}
    assert found.times_us == {}


def test_a_fault_is_one_graphs_own() -> None:
    """In the engine's words, whatever is wrong with it; those before and after are none the worse."""
    found = probe(
        {
            "good": graph(),
            "nonsense": b"no graph",
            "unknown": graph(helper.make_node("NoSuchOperator", ["x"], ["y"])),
            "frozen": graph(batch=2),
            "too": graph(weights=2.0),
        },
        INPUTS,
        seconds=0.05,
    )
    assert {key for key, fault in found.faults.items() if fault is None} == {"good", "too"}
    assert list(found.faults) == ["good", "nonsense", "unknown", "frozen", "too"]
    for key in ("nonsense", "unknown", "frozen"):
        assert str(found.faults[key]).startswith("does not load or run: ")
    assert "NoSuchOperator" in str(found.faults["unknown"])
    assert {key: len(times) >= 10 for key, times in found.times_us.items()} == {"good": True, "too": True}


@pytest.mark.usefixtures("bad_engine")
def test_a_crash_is_one_graphs_own() -> None:
    """The process goes, the others are tried in another; what a library prints is in nobody's way."""
    found = probe({"a": graph(), "b": named("aborting"), "c": graph(), "d": named("aborting"), "e": graph()}, INPUTS)
    crash = "ends ONNX Runtime's process with code -6 (a crash)"
    assert found.faults == {"a": None, "b": crash, "c": None, "d": crash, "e": None}


@pytest.mark.usefixtures("bad_engine")
def test_a_graph_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone: what answered before it is not blamed."""
    monkeypatch.setattr(speed, "_TIMEOUT_S", 2.5)
    monkeypatch.setattr(speed, "_PER_GRAPH_S", 0.5)
    found = probe({"good": graph(), "late": named("sleeping")}, INPUTS)
    assert found.faults == {"good": None, "late": "did not load and run within 3 s"}


@pytest.mark.usefixtures("bad_engine")
def test_a_crash_while_timing_is_told(cache: Path) -> None:
    """After every graph had run once; nothing is kept of it."""
    with pytest.raises(ExportError, match=r"the variant '(fp32|int8)' ends ONNX Runtime's process with code 9"):
        measure_speed({"fp32": graph(), "int8": named("fainting")}, INPUTS, SpeedCache(cache / "speed"))
    assert not (cache / "speed").exists()


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder, whatever became of the graphs."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    probe({"good": graph(), "bad": b"no graph"}, INPUTS)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_file_in_the_current_folder_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is called as a module that the worker imports."""
    for name in ("json", "numpy", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken for the real one')")
    monkeypatch.chdir(tmp_path)
    assert probe({"good": graph()}, INPUTS).faults == {"good": None}


class Clock:
    """Time that passes only while a graph is computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(speed_worker, "perf_counter", lambda: self.now)
        monkeypatch.setattr(speed_worker, "perf_counter_ns", lambda: int(self.now * 1e9))

    def call(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [(10.0, 3), (0.9, 5), (0.2, 10), (0.001, 500)],
)
def test_slow_graphs_are_timed_less_often(seconds: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the second asked for as often as it goes, ten times within a few, and never less than three times."""
    clock = Clock(monkeypatch)
    times = speed_worker._in_turn({"a": clock.call(seconds), "b": clock.call(seconds)}, 1.0)
    assert times.keys() == {"a", "b"}
    for found in times.values():
        assert len(found) == pytest.approx(rounds, abs=1 if rounds > 10 else 0)
        assert found == pytest.approx([seconds * 1e6] * len(found), abs=1)


def test_warming_up_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six graphs of ten seconds each are called once to get warm, not twenty times."""
    clock = Clock(monkeypatch)
    times = speed_worker._in_turn({str(index): clock.call(10.0) for index in range(6)}, 1.0)
    assert clock.now == pytest.approx(10.0 * 6 * (1 + len(times["0"])))


def test_the_time_limit_grows_with_what_is_asked() -> None:
    """With each graph, and with the seconds of timing."""
    limits = [speed._limit_s(graphs, seconds) for graphs, seconds in ((1, 0.0), (6, 0.0), (6, 1.5))]
    assert limits == sorted(set(limits))
    assert limits[0] == speed._TIMEOUT_S


# --- figures ---------------------------------------------------------------------------------------------------------

GRAPHS = {"fp32": graph(weights=np.ones((2000, 2))[:1]), "int8": graph(weights=2.0)}


def measured(cache: Path) -> tuple[dict[str, object], Path]:
    figures = measure_speed(GRAPHS, INPUTS, SpeedCache(cache / "speed"))
    [file] = (cache / "speed").iterdir()
    return dict(figures), file


def test_figures_are_of_the_times(cache: Path) -> None:
    """The median beside fp32's in the same process, on this host."""
    figures = measure_speed(GRAPHS, INPUTS, SpeedCache(cache / "speed"))
    assert figures.keys() == GRAPHS.keys()
    assert figures["fp32"].speedup == 1.0
    ratio = figures["fp32"].median_us / figures["int8"].median_us
    assert figures["int8"].speedup == pytest.approx(ratio, rel=0.05)
    assert all(f.host == host() and f.median_us > 0 and f.iqr_us >= 0 for f in figures.values())


def test_figures_are_measured_once(cache: Path) -> None:
    """For the same graphs: others are measured, and where they are kept is safe to delete."""
    _, file = measured(cache)
    stored = json.loads(file.read_bytes())
    stored["int8"]["median_us"] = 12345.0
    file.write_text(json.dumps(stored))
    again = measure_speed(GRAPHS, INPUTS, SpeedCache(cache / "speed"))
    assert again["int8"].median_us == 12345.0, "it was measured anew"
    other = measure_speed({"fp32": GRAPHS["fp32"], "int8": graph(weights=3.0)}, INPUTS, SpeedCache(cache / "speed"))
    assert other["int8"].median_us != 12345.0
    file.unlink()
    assert measure_speed(GRAPHS, INPUTS, SpeedCache(cache / "speed"))["int8"].median_us != 12345.0


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff\xfe", b'{"fp32": {"host": "a"}}'],
)
def test_a_damaged_entry_is_measured_anew(cache: Path, content: bytes) -> None:
    """Cut short, of another kind, or with variants missing: it is written again, whole."""
    _, file = measured(cache)
    file.write_bytes(content)
    assert measure_speed(GRAPHS, INPUTS, SpeedCache(cache / "speed")).keys() == GRAPHS.keys()
    assert json.loads(file.read_bytes()).keys() == GRAPHS.keys()


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    """A home folder may be read-only, or its place taken."""
    (tmp_path / "taken").write_text("a file where the folder would be")
    figures = measure_speed(GRAPHS, INPUTS, SpeedCache(tmp_path / "taken" / "speed"))
    assert figures.keys() == GRAPHS.keys()
