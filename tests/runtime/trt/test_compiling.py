"""Every engine of a bundle, built by a script and run on a GPU that is not there."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge_mbm
from edge_mbm.errors import DeviceLostError, EngineError
from edge_mbm.runtime import Bundle
from edge_mbm.runtime.trt.builder import BuildJob, OutOfMemoryError
from edge_mbm.runtime.trt.cache import EngineCache, EngineRecord, Latency
from edge_mbm.runtime.trt.choosing import choose_engine, variants_for
from edge_mbm.runtime.trt.compiling import (
    CompileOptions,
    CompileReport,
    Look,
    PlannedEngine,
    compile_bundle,
    look_into,
    plan_engines,
)
from edge_mbm.runtime.trt.engine import EngineOptions
from edge_mbm.runtime.trt.place import Place
from edge_mbm.testing import tiny_bundle
from edge_mbm.testing.cuda import FakeDriver
from edge_mbm.testing.tensorrt import ScriptedBuilder

pytestmark = pytest.mark.needs("onnxruntime")


class Watched:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.shares: list[float] = []
        self.waits = 0

    def begin(self, planned: PlannedEngine) -> None:
        self.begun.append(f"{planned.component} {planned.variant}")

    def advance(self, share: float, what: str) -> None:
        self.shares.append(share)

    def wait(self) -> None:
        self.waits += 1


def compiled(
    bundle: Bundle, place: Place, cache: EngineCache, *script: EngineError | None, **options: Any
) -> tuple[CompileReport, ScriptedBuilder, Watched]:
    builder, watch = ScriptedBuilder(*script, version=place.release.version), Watched()
    look = options.pop("look", None)
    report = compile_bundle(bundle, place, cache, builder, watch=watch, options=CompileOptions(**options), look=look)
    return report, builder, watch


def speeds(**microseconds: float) -> Any:
    """A look that finds these latencies, by precision of the graph's name."""

    def look(name: str, component: Any, plan: bytes, place: Place, options: EngineOptions) -> Look:
        found = next((us for key, us in microseconds.items() if plan.endswith(f"trt-{key}".encode())), 10.0)
        return Look(got={"fp16": 2}, latency=Latency(median_us=found, iqr_us=0.1, runs=3))

    return look


def test_it_builds_what_was_made_for_tensorrt_and_else_what_runs_anywhere(
    tiny_trt: Bundle, place: Place, cache: EngineCache
) -> None:
    """Graphs for CPUs, and graphs that did not keep their budget, are none of its business."""
    report, builder, watch = compiled(tiny_trt, place, cache)
    expected = [
        "image_encoder trt-fp16",
        "image_encoder trt-int8",
        "audio_encoder fp32",
        "color fp32",
        "event fp32",
    ]
    assert [job.name for job in builder.jobs] == watch.begun == expected
    assert [engine.status for engine in report.engines] == ["built"] * 5
    assert (report.release, report.gpu) == ("TensorRT 10.3.0", "Fake Orin")
    assert max(watch.shares) == 1.0


def test_what_is_in_the_cache_is_not_built_again(tiny_trt: Bundle, place: Place, cache: EngineCache) -> None:
    """Unless that is asked for; another bundle with the same graph profits too."""
    first, _, _ = compiled(tiny_trt, place, cache)
    second, builder, watch = compiled(tiny_trt, place, cache)
    assert (builder.jobs, watch.begun) == ([], [])
    assert [e.status for e in second.engines] == ["cached"] * 5
    assert [e.record for e in second.engines] == [e.record for e in first.engines]
    _, builder, _ = compiled(edge_mbm.load(tiny_bundle()), place, cache)
    assert [job.name for job in builder.jobs] == ["image_encoder fp32"]
    _, builder, _ = compiled(tiny_trt, place, cache, rebuild=True)
    assert len(builder.jobs) == 5


def test_after_an_update_engines_are_built_anew(tiny_trt: Bundle, make_place: Any, cache: EngineCache) -> None:
    """In silence, and the old ones go."""
    compiled(tiny_trt, make_place("10.3.0"), cache)
    report, builder, _ = compiled(tiny_trt, make_place("10.16.1"), cache)
    assert len(builder.jobs) == 5
    assert {entry.record.key.version for entry in cache.entries() if entry.record} == {"10.16.1"}
    assert len(cache.entries()) == len(report.engines)


def test_a_damaged_engine_is_built_anew(tiny_trt: Bundle, place: Place, cache: EngineCache) -> None:
    """And nothing else."""
    report, _, _ = compiled(tiny_trt, place, cache)
    record = report.engines[2].record
    assert record is not None
    path = cache.folder / f"{record.key.digest}.engine"
    path.write_bytes(path.read_bytes()[:-1])
    _, builder, _ = compiled(tiny_trt, place, cache)
    assert [job.name for job in builder.jobs] == ["audio_encoder fp32"]
    assert cache.find(record.key) is not None


def test_only_what_a_head_needs_is_built(tiny_trt: Bundle, place: Place, cache: EngineCache) -> None:
    """A robot that runs one head does not wait for the others' engines."""
    report, _, _ = compiled(tiny_trt, place, cache, heads=("color",))
    assert {engine.component for engine in report.engines} == {"image_encoder", "color"}


def test_a_plan_says_what_would_be_built_and_builds_nothing(tiny_trt: Bundle, place: Place, cache: EngineCache) -> None:
    """No folder, no lock, no process."""
    planned = plan_engines(tiny_trt, place, cache)
    assert [engine.is_cached for engine in planned] == [False] * 5
    assert not cache.folder.exists()
    compiled(tiny_trt, place, cache, heads=("color",))
    cached = {engine.component for engine in plan_engines(tiny_trt, place, cache) if engine.is_cached}
    assert cached == {"image_encoder", "color"}


def test_an_engine_is_measured_and_asked_for_its_precisions(
    tiny_trt: Bundle, make_place: Any, cache: EngineCache, driver: FakeDriver
) -> None:
    """On the GPU that is here, before it is kept; and freed."""
    driver.call_us = 321.0
    place = make_place(layers={"Int8": 3, "FP32": 2})
    report, _, _ = compiled(tiny_trt, place, cache)
    for engine in report.engines:
        assert engine.record is not None
        assert engine.record.latency == Latency(median_us=321.0, iqr_us=0.0, runs=200)
        assert engine.record.got == {"fp32": 2, "int8": 3}
    assert driver.bytes == {}
    assert driver.leaked == 0


def test_without_a_gpu_nothing_is_measured(tiny_trt: Bundle, make_place: Any, cache: EngineCache) -> None:
    """Ahead of time, by TensorRT-RTX: the more accurate engine then."""
    here = make_place("1.7.1", kind="rtx")
    report, builder, _ = compiled(tiny_trt, replace(here, cuda=None, capability="SM86"), cache)
    assert {engine.record.latency for engine in report.engines if engine.record} == {None}
    assert {job.settings.capability for job in builder.jobs} == {"SM86"}
    choice = report.choices["image_encoder"]
    assert (choice.variant, choice.reason) == ("trt-fp16", "no latency was measured: the more accurate one")


@pytest.mark.parametrize(("int8", "chosen"), [(95.3, "trt-fp16"), (95.2, "trt-int8"), (130.0, "trt-fp16")])
def test_int8_runs_only_where_it_pays_on_this_device(
    tiny_trt: Bundle, place: Place, cache: EngineCache, int8: float, chosen: str
) -> None:
    """From 1.05x on, as measured here; the reason has the figure."""
    report, _, _ = compiled(tiny_trt, place, cache, look=speeds(fp16=100.0, int8=int8))
    assert report.choices["image_encoder"].variant == chosen
    assert f"trt-int8 is {100 / int8:.2f}x as fast as trt-fp16 here" in report.choices["image_encoder"].reason


def test_a_variant_that_fails_leaves_the_other(tiny_trt: Bundle, place: Place, cache: EngineCache) -> None:
    """It is reported; the component runs what there is, here INT8 for want of FP16."""
    report, _, _ = compiled(tiny_trt, place, cache, EngineError("refused at 'conv1'"))
    failed = report.engines[0]
    assert (failed.status, failed.problem, failed.record) == ("failed", "refused at 'conv1'", None)
    assert report.choices["image_encoder"].variant == "trt-int8"


def test_a_component_without_any_engine_is_an_error_after_the_others_were_built(
    tiny_trt: Bundle, place: Place, cache: EngineCache
) -> None:
    """What was built stays in the cache for the next time."""
    with pytest.raises(EngineError, match="refused at 'gru'"):
        compiled(tiny_trt, place, cache, None, None, EngineError("refused at 'gru'"))
    assert len(cache.entries()) == 4


def test_want_of_memory_is_met_with_less_and_kept_in_the_record(
    tiny_trt: Bundle, place: Place, cache: EngineCache
) -> None:
    """At which level it went is shown: the engine may be slower for it."""
    report, builder, _ = compiled(tiny_trt, place, cache, OutOfMemoryError("killed"), OutOfMemoryError("killed"))
    assert [job.settings.level for job in builder.jobs[:4]] == [None, 2, 1, None]
    assert report.engines[0].record is not None
    assert report.engines[0].record.level == 1


def test_timings_go_from_one_build_to_the_next(tiny_trt: Bundle, place: Place, cache: EngineCache) -> None:
    """TensorRT then measures only what is new."""
    _, builder, _ = compiled(tiny_trt, place, cache)
    timings = [job.settings.timing for job in builder.jobs]
    assert timings[:2] == [b"", b"timed image_encoder trt-fp16"]


def test_a_lost_gpu_ends_it(tiny_trt: Bundle, place: Place, cache: EngineCache) -> None:
    """Nothing after it could be measured."""

    def look(*asked: Any) -> Look:
        raise DeviceLostError("Xid 79")

    with pytest.raises(DeviceLostError, match="Xid 79"):
        compiled(tiny_trt, place, cache, look=look)
    assert cache.entries() == []


def test_two_programs_that_compile_the_same_bundle_build_each_engine_once(
    tiny_trt: Bundle, place: Place, cache: EngineCache
) -> None:
    """One waits while the other builds, and takes what it built."""
    inside, go_on = threading.Event(), threading.Event()

    def busy(job: BuildJob) -> None:
        inside.set()
        assert go_on.wait(60)

    slow = ScriptedBuilder(version=place.release.version, busy=busy)
    thread = threading.Thread(
        target=lambda: compile_bundle(tiny_trt, place, cache, slow, watch=Watched(), look=speeds())
    )
    thread.start()
    assert inside.wait(60)
    quick, watch = ScriptedBuilder(version=place.release.version), Watched()
    waited = threading.Event()
    watch.wait = lambda: (go_on.set(), waited.set())  # type: ignore[method-assign,assignment]
    report = compile_bundle(
        edge_mbm.load(tiny_trt.path), place, EngineCache(cache.folder), quick, watch=watch, look=speeds()
    )
    thread.join(60)
    assert waited.is_set()
    assert len(report.engines) == 5
    names = [job.name for job in (*slow.jobs, *quick.jobs)]
    assert len(names) == len(set(names)) == 5


KILLED = """
import os, signal, sys
from pathlib import Path
import edge_mbm
from edge_mbm.runtime.trt.cache import EngineCache
from edge_mbm.runtime.trt.compiling import compile_bundle
from edge_mbm.runtime.trt.device import absent_gpu
from edge_mbm.runtime.trt.engine import EngineOptions
from edge_mbm.runtime.trt.place import Place
from edge_mbm.runtime.trt.release import Release
from edge_mbm.testing.tensorrt import ScriptedBuilder, fake_tensorrt
class Watch:
    begin = advance = wait = lambda self, *said: None
place = Place(Release(fake_tensorrt("1.7.1", kind="rtx"), "rtx"), absent_gpu("SM86"), capability="SM86")
die = lambda job: os.kill(os.getpid(), signal.SIGKILL) if job.name == sys.argv[3] else None
builder = ScriptedBuilder(version="1.7.1", busy=die)
report = compile_bundle(edge_mbm.load(sys.argv[1]), place, EngineCache(Path(sys.argv[2])), builder, watch=Watch())
print(*(engine.status for engine in report.engines))
"""


def test_kill_9_in_the_middle_of_a_compilation_costs_one_engine(tmp_path: Path, cache: EngineCache) -> None:
    """Those before it are kept and sound, half of the one in work goes, and the next time goes on from there."""

    def run(dies_at: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, str(tiny_bundle()), str(cache.folder), dies_at]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert run("color fp32").returncode == -9
    assert [entry.record.component for entry in cache.entries() if entry.record] == ["audio_encoder", "image_encoder"]
    assert (cache.folder / "unfinished.part").exists()
    done = run("nothing")
    assert done.stdout.split() == ["cached", "cached", "built", "built"], done.stderr
    assert not list(cache.folder.glob("*.part"))


def test_a_look_at_an_engine_frees_it(place: Place, driver: FakeDriver) -> None:
    """Also where it cannot run."""
    with edge_mbm.load(tiny_bundle()) as bundle:
        component = bundle.manifest.components["event"]
        plan = b"FAKE 10.3.0\n" + bundle.read(component.variants["fp32"].graph or "")
    assert look_into("event", component, plan, place, EngineOptions()).latency.runs == 200
    with pytest.raises(EngineError, match="does not take"):
        look_into("event", component, b"nonsense", place, EngineOptions())
    assert driver.bytes == {}


def record(asked: str, median_us: float | None) -> EngineRecord:
    latency = None if median_us is None else Latency(median_us=median_us, iqr_us=0.0, runs=1)
    return EngineRecord(
        sha256="",
        size=0,
        key=None,
        component="eyes",
        variant="",
        asked=asked,
        latency=latency,  # type: ignore[arg-type]
    )


def test_without_measurements_the_more_accurate_engine_runs() -> None:
    """FP16 before FP32, which is no more accurate by much and slower, before INT8."""
    assert choose_engine({}) is None
    found = choose_engine({"a": record("int8", None), "b": record("fp32", 1.0), "c": record("fp16", None)})
    assert found is not None
    assert found.variant == "c"
    only = choose_engine({"a": record("int8", 5.0)})
    assert only is not None
    assert (only.variant, only.reason) == ("a", "the only engine")


def test_what_was_not_kept_is_no_variant(tiny_trt: Bundle) -> None:
    """It broke its budget on the workstation, and has no graph."""
    assert set(variants_for(tiny_trt.manifest.components["image_encoder"])) == {"trt-fp16", "trt-int8"}
    assert set(variants_for(tiny_trt.manifest.components["event"])) == {"fp32"}
