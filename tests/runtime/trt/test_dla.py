"""Components on the Deep Learning Accelerator: asked for by name, built where enough of their layers can run there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_mbm
from edge_mbm import SessionOptions
from edge_mbm.errors import EngineError, InputError
from edge_mbm.runtime import Bundle
from edge_mbm.runtime.trt import place as place_module
from edge_mbm.runtime.trt.build_process import SubprocessBuilder
from edge_mbm.runtime.trt.builder import BuildJob
from edge_mbm.runtime.trt.cache import EngineCache
from edge_mbm.runtime.trt.compiling import CompileOptions, CompileReport, compile_bundle, plan_engines
from edge_mbm.runtime.trt.layers import DlaShare
from edge_mbm.runtime.trt.place import Place
from edge_mbm.runtime.trt.release import BuildSettings, Release
from edge_mbm.testing import tiny_bundle
from edge_mbm.testing.tensorrt import FakeDla, ScriptedBuilder, fake_tensorrt

pytestmark = pytest.mark.needs("onnxruntime")
FRAME = np.full((8, 8, 3), (200, 30, 10), np.uint8)
SOUND = np.linspace(-0.3, 0.3, 100, dtype=np.float32)
ORIN = FakeDla(cores=2, layers=(("CONSTANT", False), *[("CONVOLUTION", True)] * 3, ("GATHER", False)))
"""Three of four layers can run there; constants do not count."""
ENCODER = ("image_encoder",)
# The worker imports "tensorrt": this one is of a device with a DLA.
MODULE = """
from edge_mbm.testing.tensorrt import FakeDla, fake_tensorrt
layers = (("CONVOLUTION", True), ("CONVOLUTION", True), ("CONVOLUTION", True), ("GATHER", False))
globals().update(vars(fake_tensorrt("10.3.0", dla=FakeDla(2, layers))))
"""


class Watch:
    def begin(self, planned: Any) -> None: ...
    def advance(self, share: float, what: str) -> None: ...
    def wait(self) -> None: ...


def graph(component: str = "event") -> bytes:
    with edge_mbm.load(tiny_bundle()) as bundle:
        return bundle.read(bundle.manifest.components[component].variants["fp32"].graph or "")


def silent(severity: str, message: str) -> None:
    raise AssertionError(message)


def configured(version: str, dla: FakeDla = ORIN) -> tuple[Release, Any, Any]:
    """A release with the network and the configuration of a build for the DLA."""
    release = Release(fake_tensorrt(version, dla=dla))
    logger = release.logger(silent)
    builder = release.trt.Builder(logger)
    network = release.create_network(builder, dla=True)
    assert release.parse(network, logger, graph()) == ()
    return release, network, release.configure(builder, network, BuildSettings(dla_share=0.5))


@pytest.mark.parametrize(("version", "weak"), [("8.5.3.1", True), ("10.3.0", True), ("11.4.1", False)])
def test_the_dla_comes_first_and_the_gpu_takes_the_rest(version: str, weak: bool) -> None:
    """Weakly typed where there is such a thing, as NVIDIA's own tools build for it."""
    release, network, config = configured(version)
    assert config.default_device_type == release.trt.DeviceType.DLA
    assert "fallback" in config.flags
    assert network.flags == (1 << 0 if weak else 1 << 1)
    assert release.place_on_dla(network, config, 0.75) == DlaShare(able=3, total=4)


def test_too_few_layers_are_refused_with_those_that_stand_against_it() -> None:
    """Each change between the DLA and the GPU costs, so that a network in pieces is slower than on the GPU alone."""
    release, network, config = configured("10.3.0")
    with pytest.raises(
        EngineError, match=r"3 of 4 layers can run on the DLA, 80% are wanted.*'layer_4' \(GATHER\)\. L"
    ):
        release.place_on_dla(network, config, 0.8)
    nothing = FakeDla(cores=1, layers=(("GATHER", False),) * 5)
    release, network, config = configured("10.3.0", nothing)
    with pytest.raises(EngineError, match=r"0 of 5 layers.*'layer_2' \(GATHER\), \.\.\."):
        release.place_on_dla(network, config, 0)


def test_where_there_is_no_dla_it_says_which_devices_have_one() -> None:
    """An Orin Nano, a Thor, a desktop; and the releases between 10.7 and 11.4.1."""
    release = Release(fake_tensorrt("10.13.0"))
    with pytest.raises(EngineError, match=r"TensorRT 10\.13\.0 finds no DLA here: Jetson AGX Orin.*Leave out --dla"):
        release.create_network(release.trt.Builder(release.logger(silent)), dla=True)
    with pytest.raises(EngineError, match="finds no DLA here"):
        release.deserialize(release.trt.Runtime(release.logger(silent)), b"", dla_core=0)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildJob:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tensorrt.py").write_text(MODULE)
    root = Path(edge_mbm.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}{os.pathsep}{root}")
    return BuildJob("event fp16 on the DLA", graph(), "tensorrt", "TensorRT 10.3.0", BuildSettings(dla_share=0.7))


def test_the_builder_says_how_much_of_an_engine_is_there(worker: BuildJob, tmp_path: Path) -> None:
    """Or refuses before it builds for minutes."""
    built = SubprocessBuilder().build(worker, tmp_path, lambda share, what: None)
    assert built.dla == DlaShare(able=3, total=4)
    assert built.plan.startswith(b"FAKE 10.3.0")
    greedy = replace(worker, settings=BuildSettings(dla_share=0.9))
    with pytest.raises(EngineError, match=r"event fp16 on the DLA: 3 of 4 layers can run on the DLA, 90% are wanted"):
        SubprocessBuilder().build(greedy, tmp_path, lambda share, what: None)


@pytest.fixture
def orin(make_place: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    """This machine is one with two DLA cores, and has a cache of its own."""
    place: Place = make_place(dla=ORIN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(place_module, "find_place", lambda target: place)
    return place


def compiled(bundle: Bundle, place: Place, **options: Any) -> tuple[CompileReport, ScriptedBuilder]:
    builder = ScriptedBuilder(version=place.release.version)
    report = compile_bundle(bundle, place, EngineCache(), builder, watch=Watch(), options=CompileOptions(**options))
    return report, builder


def test_what_is_named_is_built_for_the_dla_and_the_rest_for_the_gpu(orin: Place, tiny_trt: Bundle) -> None:
    """Of its variants the fp16 one; the GPU's engine of the same graph is another, and both are kept."""
    _, builder = compiled(tiny_trt, orin, dla=ENCODER)
    jobs = {job.name: job.settings.dla_share for job in builder.jobs}
    assert jobs == {
        "image_encoder trt-fp16 on the DLA": 0.8,
        "audio_encoder fp32": None,
        "color fp32": None,
        "event fp32": None,
    }
    report, builder = compiled(tiny_trt, orin)
    assert [job.name for job in builder.jobs] == ["image_encoder trt-fp16", "image_encoder trt-int8"]
    report, builder = compiled(tiny_trt, orin, dla=ENCODER)
    assert builder.jobs == []
    assert report.engines[0].record is not None
    assert report.engines[0].record.dla == DlaShare(able=9, total=10)


def test_an_engine_of_which_less_is_there_than_is_wanted_now_is_built_anew(orin: Place, tiny_trt: Bundle) -> None:
    """Which then refuses, with the layers."""
    compiled(tiny_trt, orin, dla=ENCODER, dla_share=0.5)
    assert compiled(tiny_trt, orin, dla=ENCODER, dla_share=0.9)[1].jobs == []
    _, builder = compiled(tiny_trt, orin, dla=ENCODER, dla_share=0.95)
    assert [job.name for job in builder.jobs] == ["image_encoder trt-fp16 on the DLA"]


def test_what_cannot_be_on_the_dla_is_refused_before_anything_is_built(orin: Place, tiny_trt: Bundle) -> None:
    """No such component, none that the heads need, or none in fp16."""
    cache = EngineCache()
    with pytest.raises(InputError, match="no 'camera' to be put on the DLA; what is built are image_encoder"):
        plan_engines(tiny_trt, orin, cache, CompileOptions(dla=("camera",)))
    with pytest.raises(InputError, match="no 'audio_encoder'"):
        plan_engines(tiny_trt, orin, cache, CompileOptions(dla=("audio_encoder",), heads=("color",)))
    with pytest.raises(EngineError, match="'event' has no fp16 variant, and the DLA computes in nothing else"):
        plan_engines(tiny_trt, orin, cache, CompileOptions(dla=("event",)))
    with pytest.raises(InputError, match="from 0 to 1, not 80"):
        CompileOptions(dla_share=80)


def test_a_session_runs_it_there_and_its_results_say_so(orin: Place, tiny_trt: Bundle) -> None:
    """It computes what the CPU computes; the others stay on the GPU."""
    compiled(tiny_trt, orin, dla=ENCODER)
    orin.release.trt.cores.clear()
    with (
        tiny_trt.session(SessionOptions(provider="tensorrt", dla=ENCODER, heads=("color",))) as session,
        tiny_trt.session(SessionOptions(variant="fp32", heads=("color",))) as reference,
    ):
        [got], [expected] = (s.infer(image=FRAME, audio=SOUND) for s in (session, reference))
    np.testing.assert_array_equal(got.output.scores, expected.output.scores)
    assert got.provider == "TensorRT+TensorRT DLA"
    assert orin.release.trt.cores == [0, 0]  # the encoder's, and the head's, which asks for none


def test_cores_are_taken_in_turn(orin: Place, tiny_trt: Bundle) -> None:
    """As many as the device has; a third component shares the first."""
    runtime = orin.release.trt.Runtime(orin.release.logger(silent))
    plan = b"FAKE 10.3.0\n" + graph()
    for core in range(3):
        orin.release.deserialize(runtime, plan, core)
    assert orin.release.trt.cores[-3:] == [0, 1, 0]


def test_what_is_not_built_for_the_dla_is_an_error_that_says_how(orin: Place, tiny_trt: Bundle) -> None:
    """The GPU's engine does not stand in unasked: whoever gave the GPU to others would lose them their deadlines."""
    compiled(tiny_trt, orin)
    options = SessionOptions(provider="tensorrt", dla=ENCODER)
    with pytest.raises(
        EngineError, match=r"no engine for the DLA by TensorRT 10.*edge-mbm compile BUNDLE --dla image_e"
    ):
        tiny_trt.session(options)
    with tiny_trt.session(replace(options, allow_fallback=True)) as session:
        providers = {result.provider for result in session.infer(image=FRAME, audio=SOUND)}
    assert providers == {"CPUExecutionProvider+TensorRT"}


def test_what_to_put_there_must_be_a_component_and_tensorrts(orin: Place, tiny_trt: Bundle) -> None:
    """A misspelt name would run on the GPU in silence."""
    with pytest.raises(InputError, match="no 'image_encodr' to run on the DLA; there are image_encoder"):
        tiny_trt.session(SessionOptions(provider="tensorrt", dla=("image_encodr",)))
    with pytest.raises(InputError, match="the DLA is TensorRT's: it runs nothing with provider 'cpu'"):
        SessionOptions(dla=ENCODER)
