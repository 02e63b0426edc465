"""A session on TensorRT: from what was compiled, or not at all, or on the CPU where that is allowed, and said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_mbm
from edge_mbm import Sample, SessionOptions
from edge_mbm.errors import DeviceLostError, EngineError, InputError, MissingDependencyError, SessionClosedError
from edge_mbm.runtime import Bundle
from edge_mbm.runtime.backend import OnnxRuntimeBackend
from edge_mbm.runtime.trt import backend as backend_module
from edge_mbm.runtime.trt import place as place_module
from edge_mbm.runtime.trt.backend import TensorRTBackend
from edge_mbm.runtime.trt.cache import EngineCache
from edge_mbm.runtime.trt.compiling import CompileOptions, compile_bundle
from edge_mbm.runtime.trt.device import absent_gpu
from edge_mbm.runtime.trt.place import Place
from edge_mbm.runtime.verify import verify_bundle
from edge_mbm.testing import ScriptedSource
from edge_mbm.testing.cuda import FakeDriver
from edge_mbm.testing.tensorrt import ScriptedBuilder

pytestmark = pytest.mark.needs("onnxruntime")
FRAME = np.full((8, 8, 3), (200, 30, 10), np.uint8)
SOUND = np.linspace(-0.3, 0.3, 100, dtype=np.float32)


class Watch:
    def begin(self, planned: Any) -> None: ...
    def advance(self, share: float, what: str) -> None: ...
    def wait(self) -> None: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Place) -> Place:
    """This machine has that TensorRT and that GPU, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(place_module, "find_place", lambda target: place)
    return place


def build(bundle: Bundle, place: Place, *script: EngineError | None) -> None:
    builder = ScriptedBuilder(*script, version=place.release.version)
    compile_bundle(bundle, place, EngineCache(), builder, watch=Watch())


def test_a_session_runs_what_was_compiled_and_computes_the_same(here: Place, tiny_trt: Bundle) -> None:
    """Every component on TensorRT, by the variants that were chosen here; each result says so."""
    build(tiny_trt, here)
    with (
        tiny_trt.session(SessionOptions(provider="tensorrt")) as session,
        tiny_trt.session(SessionOptions(variant="fp32")) as reference,
    ):
        assert {planned.name: planned.variant for planned in session.plan} == {
            "image_encoder": "trt-fp16",
            "audio_encoder": "fp32",
            "event": "fp32",
        }
        got, expected = (s.infer(image=FRAME, audio=SOUND) for s in (session, reference))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a.output.scores, b.output.scores)
            assert (a.provider, b.provider) == ("TensorRT", "CPUExecutionProvider")


def test_carried_state_and_streams_work_as_on_the_cpu(here: Place, tiny_trt: Bundle) -> None:
    """The level that the audio encoder carries goes from call to call; results are equal, bit for bit."""
    build(tiny_trt, here)
    answers = []
    for options in (SessionOptions(provider="tensorrt"), SessionOptions(variant="fp32")):
        with tiny_trt.session(options) as session:
            results = []
            for tick in range(10):
                session.push("audio", SOUND * tick, tick * 100_000_000)
                session.push("image", FRAME, tick * 100_000_000)
                results += session.poll()
            answers.append([result.output.scores for result in (*results, *session.finish())])
    assert len(answers[0]) > 5
    np.testing.assert_array_equal(answers[0], answers[1])


def test_verify_holds_engines_to_the_golden_samples(here: Place, tiny_trt: Bundle) -> None:
    """The same command that proves the CPU."""
    build(tiny_trt, here)
    found = verify_bundle(tiny_trt, provider="tensorrt")
    assert found.passed
    [replay] = found.replays
    assert replay.components["image_encoder"] == "trt-fp16"


def test_what_is_not_compiled_is_an_error_that_says_how(here: Place, tiny_trt: Bundle) -> None:
    """Never a silent CPU: a robot that is ten times slower than it was tested is worse than one that does not start."""
    with pytest.raises(EngineError, match=r"no engine for TensorRT 10\.3\.0 on Fake Orin.*edge-mbm compile.*--allow-f"):
        tiny_trt.session(SessionOptions(provider="tensorrt"))


def test_where_it_is_allowed_the_cpu_runs_what_is_not_compiled_and_results_say_so(
    here: Place, tiny_trt: Bundle, driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """By component: what has an engine uses it."""
    builder = ScriptedBuilder(version=here.release.version)
    compile_bundle(tiny_trt, here, EngineCache(), builder, watch=Watch(), options=CompileOptions(heads=("color",)))
    options = SessionOptions(provider="tensorrt", allow_fallback=True, heads=("color", "event"))
    with caplog.at_level(logging.WARNING), tiny_trt.session(options) as session:
        results = {result.head: result.provider for result in session.infer(image=FRAME, audio=SOUND)}
    assert results == {"color": "TensorRT", "event": "CPUExecutionProvider+TensorRT"}
    assert "'audio_encoder' has no engine for TensorRT" in caplog.text
    assert "runs on ONNX Runtime instead, as allowed" in caplog.text
    assert driver.bytes == {}


def test_without_tensorrt_it_is_an_error_unless_the_cpu_is_allowed(
    monkeypatch: pytest.MonkeyPatch, tiny_trt: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """What is asked for and missing is told with where to get it."""

    def missing(target: str) -> Place:
        raise MissingDependencyError("tensorrt", "running TensorRT engines", "install JetPack's")

    monkeypatch.setattr(place_module, "find_place", missing)
    with pytest.raises(MissingDependencyError, match="install JetPack's"):
        tiny_trt.session(SessionOptions(provider="tensorrt"))
    with tiny_trt.session(SessionOptions(provider="tensorrt", allow_fallback=True)) as session:
        [result, *_] = session.infer(image=FRAME, audio=SOUND)
    assert result.provider == "CPUExecutionProvider"
    assert "TensorRT cannot be used" in caplog.text


def test_a_variant_by_its_name_is_taken_where_it_is_built(here: Place, tiny_trt: Bundle) -> None:
    """INT8 also where it does not pay; components without it run what they have."""
    build(tiny_trt, here)
    with tiny_trt.session(SessionOptions(provider="tensorrt", variant="trt-int8")) as session:
        chosen = {planned.name: planned.variant for planned in session.plan}
    assert (chosen["image_encoder"], chosen["event"]) == ("trt-int8", "fp32")


def test_an_engine_that_was_damaged_since_it_was_chosen_is_an_error(here: Place, tiny_trt: Bundle) -> None:
    """Its record is whole and its code is not: it is never run."""
    build(tiny_trt, here)
    [entry] = [e for e in EngineCache().entries() if e.record and e.record.component == "event"]
    path = EngineCache().folder / f"{entry.name}.engine"
    path.write_bytes(path.read_bytes()[:-3] + b"bad")
    with pytest.raises(
        EngineError, match=r"the engine of 'event' in the cache cannot be used\. Build it with edge-mbm"
    ):
        tiny_trt.session(SessionOptions(provider="tensorrt"))


def test_an_engine_for_all_gpus_of_a_kind_runs_on_one_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_place: Any, tiny_trt: Bundle
) -> None:
    """TensorRT-RTX: built ahead of time where no GPU is, in an image say, and run where one is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    desktop = make_place("1.7.1", gpu=FakeDriver(name="RTX 3060", capability=(8, 6)), kind="rtx")
    monkeypatch.setattr(place_module, "find_place", lambda target: desktop)
    build(tiny_trt, Place(desktop.release, absent_gpu("SM86"), capability="SM86"))
    with tiny_trt.session(SessionOptions(provider="rtx")) as session:
        [result, *_] = session.infer(image=FRAME, audio=SOUND)
    assert result.provider == "TensorRT-RTX"
    ada = make_place("1.7.1", gpu=FakeDriver(name="RTX 4060", capability=(8, 9)), kind="rtx")
    monkeypatch.setattr(place_module, "find_place", lambda target: ada)
    with pytest.raises(EngineError, match="no engine"):
        tiny_trt.session(SessionOptions(provider="rtx"))


def test_a_gpu_that_is_lost_closes_the_session(here: Place, tiny_trt: Bundle, driver: FakeDriver) -> None:
    """One error with the cause; then it is closed, and says so."""
    build(tiny_trt, here)
    session = tiny_trt.session(SessionOptions(provider="tensorrt"))
    session.push("image", FRAME, 0)
    driver.lose("Xid 79: GPU has fallen off the bus")
    with pytest.raises(DeviceLostError, match="fallen off the bus"):
        session.poll()
    with pytest.raises(SessionClosedError):
        session.poll()
    one_shot = tiny_trt.session
    with pytest.raises(EngineError):
        one_shot(SessionOptions(provider="tensorrt"))


def test_a_gpu_that_is_lost_ends_a_live_stream_at_once(here: Place, tiny_trt: Bundle, driver: FakeDriver) -> None:
    """Not after ten failures: nothing will work again in this process."""
    build(tiny_trt, here)
    source = ScriptedSource([Sample("image", FRAME, k * 33_000_000) for k in range(20)])
    options = SessionOptions(provider="tensorrt", heads=("color",))
    with edge_mbm.open(tiny_trt, [source], options=options, realtime=False) as live:
        results = iter(live)
        next(results)
        driver.lose()
        with pytest.raises(DeviceLostError):
            for _ in results:
                pass


def test_a_one_shot_on_a_lost_gpu_closes_the_session(here: Place, tiny_trt: Bundle, driver: FakeDriver) -> None:
    """As a stream's does."""
    build(tiny_trt, here)
    session = tiny_trt.session(SessionOptions(provider="tensorrt"))
    driver.lose()
    with pytest.raises(DeviceLostError):
        session.infer(image=FRAME, audio=SOUND)
    with pytest.raises(SessionClosedError):
        session.infer(image=FRAME)


def test_a_provider_that_there_is_not_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(InputError, match="no provider 'npu'; there are cpu, cuda, tensorrt, rtx"):
        SessionOptions(provider="npu")  # type: ignore[arg-type]


def test_a_backend_without_a_place_runs_everything_elsewhere(tiny_trt: Bundle, cache: EngineCache) -> None:
    """No GPU, and the CPU allowed: it chooses as the CPU does."""

    def nothing() -> Place:
        raise EngineError("no GPU")

    backend = TensorRTBackend(nothing, cache, OnnxRuntimeBackend())
    chosen = backend.choose(tiny_trt.manifest, "image_encoder")
    assert chosen == OnnxRuntimeBackend().choose(tiny_trt.manifest, "image_encoder")
    assert backend_module.__doc__
