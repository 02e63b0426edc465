"""``edge-mbm compile`` and ``edge-mbm cache``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_mbm.errors import EngineError
from edge_mbm.runtime import Bundle
from edge_mbm.runtime.trt import place as place_module
from edge_mbm.runtime.trt.cache import EngineCache
from edge_mbm.runtime.trt.cuda import Cuda, open_cuda
from edge_mbm.runtime.trt.device import look_at_gpu
from edge_mbm.runtime.trt.place import Place
from edge_mbm.runtime.trt.release import Release
from edge_mbm.testing.cuda import FakeDriver, FakeGraphs
from edge_mbm.testing.tensorrt import FakeDla, ScriptedBuilder, fake_tensorrt

NEEDS = pytest.mark.needs("onnxruntime")
compile_command = importlib.import_module("edge_mbm.cli.compile")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ScriptedBuilder:
    """This machine has a GPU, and builds what the script says."""
    driver = FakeDriver()
    cuda = Cuda(driver, FakeGraphs(driver))
    with cuda.current():
        place = Place(
            Release(fake_tensorrt("10.3.0", driver, layers={"FP16": 2, "FP32": 1}, dla=FakeDla(2))),
            look_at_gpu(driver),
            cuda,
        )
    scripted = ScriptedBuilder(version="10.3.0")
    monkeypatch.setattr(compile_command, "find_place", lambda target, capability: place)
    monkeypatch.setattr(place_module, "find_place", lambda target: place)
    monkeypatch.setattr(compile_command, "SubprocessBuilder", lambda: scripted)
    return scripted


@NEEDS
def test_it_builds_measures_and_says_what_runs(builder: ScriptedBuilder, cli: Callable[..., Any], tiny: Path) -> None:
    """Latency here, layers' precisions as they were read back, and the choice with its reason."""
    done = cli("compile", tiny)
    assert done.code == 0
    assert "tiny: TensorRT 10.3.0 on Fake Orin" in done.out
    assert "image_encoder fp32: asked fp32, got fp16 in 2 of 3 layers" in done.out
    assert "image_encoder runs fp32: the only engine" in done.out
    assert "250.0" in done.out
    assert "image_encoder fp32" in done.err  # the bar
    again = cli("compile", tiny, "--json")
    assert {engine["status"] for engine in again.json["engines"]} == {"cached"}
    assert again.json["choices"]["event"]["variant"] == "fp32"
    assert len(builder.jobs) == 4


@NEEDS
def test_a_dry_run_builds_nothing(builder: ScriptedBuilder, cli: Callable[..., Any], tiny: Path) -> None:
    """It shows what would be built, and what is there."""
    assert "to build" in cli("compile", tiny, "--dry-run").out
    assert builder.jobs == []
    cli("compile", tiny, "--head", "color")
    found = cli("compile", tiny, "--dry-run", "--json").json
    cached = {engine["component"] for engine in found["engines"] if engine["is_cached"]}
    assert (found["gpu"], cached) == ("Fake Orin", {"image_encoder", "color"})


@NEEDS
def test_what_was_compiled_runs(builder: ScriptedBuilder, cli: Callable[..., Any], tiny: Path, clip: Path) -> None:
    """By run, bench and verify; before it was compiled, run says how."""
    before = cli("run", tiny, "--source", clip, "--fast", "--provider", "tensorrt")
    assert before.code == 6
    assert "edge-mbm compile" in before.err
    allowed = cli("run", tiny, "--source", clip, "--fast", "--provider", "tensorrt", "--allow-fallback", "-o", "-")
    assert allowed.code == 0
    assert '"provider": "CPUExecutionProvider"' in allowed.out.replace('":"', '": "')
    cli("compile", tiny)
    after = cli("run", tiny, "--source", clip, "--fast", "--provider", "tensorrt", "-o", "-")
    assert '"provider": "TensorRT"' in after.out.replace('":"', '": "')
    assert cli("verify", tiny, "--provider", "tensorrt").code == 0
    assert cli("bench", tiny, "--provider", "tensorrt", "--seconds", "0.05").code == 0


@NEEDS
def test_a_component_without_an_engine_is_an_error(
    builder: ScriptedBuilder, cli: Callable[..., Any], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 6, with the reason."""
    refusing = ScriptedBuilder(EngineError("image_encoder fp32: refused at 'conv1'"), version="10.3.0")
    monkeypatch.setattr(compile_command, "SubprocessBuilder", lambda: refusing)
    done = cli("compile", tiny)
    assert (done.code, "error: image_encoder fp32: refused at 'conv1'" in done.err) == (6, True)


def test_without_tensorrt_it_says_what_to_install(
    cli: Callable[..., Any], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 7."""
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    done = cli("compile", tiny)
    assert done.code == 7
    assert "'tensorrt', which is not installed" in done.err


def test_without_a_gpu_it_says_what_can_be_done(
    cli: Callable[..., Any], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT is here, and pycuda is not."""
    open_cuda.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.3.0"))
    monkeypatch.setitem(sys.modules, "pycuda", None)
    done = cli("compile", tiny)
    assert done.code == 7
    assert "'pycuda', which is not installed" in done.err


@NEEDS
def test_the_cache_is_listed_and_emptied(builder: ScriptedBuilder, cli: Callable[..., Any], tiny: Path) -> None:
    """By name, or all; names may be cut short."""
    assert ": 0 engines, 0 bytes" in cli("cache", "ls").out
    cli("compile", tiny)
    listed = cli("cache", "ls")
    assert ": 4 engines" in listed.out
    assert "TensorRT 10.3.0" in listed.out
    engines = cli("cache", "ls", "--json").json["engines"]
    assert {engine["record"]["component"] for engine in engines} == {"image_encoder", "audio_encoder", "color", "event"}
    removed = cli("cache", "rm", engines[0]["name"][:12], "--json").json["removed"]
    assert [engine["name"] for engine in removed] == [engines[0]["name"]]
    assert "3 engines removed" in cli("cache", "rm", "--all").out
    assert EngineCache().entries() == []


@NEEDS
def test_the_list_says_which_engines_are_not_used(
    builder: ScriptedBuilder, cli: Callable[..., Any], tiny: Path
) -> None:
    """And why."""
    cli("compile", tiny)
    entry, *_ = EngineCache().entries()
    path = EngineCache().folder / f"{entry.name}.engine"
    path.write_bytes(b"rubbish")
    assert "not used: it is no engine of this edge-mbm" in cli("cache", "ls").out


def test_what_to_remove_must_be_said(cli: Callable[..., Any]) -> None:
    """Names, or all: not both, not neither; and names that there are."""
    assert cli("cache", "rm").code == 2
    assert cli("cache", "rm", "abc", "--all").code == 2
    done = cli("cache", "rm", "abc")
    assert (done.code, "no engines of the cache begin with 'abc'" in done.err) == (2, True)


@NEEDS
def test_what_is_on_the_dla_is_told(
    builder: ScriptedBuilder, cli: Callable[..., Any], tiny_trt: Bundle, clip: Path
) -> None:
    """How many of its layers are, when it is built and by every result."""
    asked = ("--dla", "image_encoder")
    assert "to build, for the DLA" in cli("compile", tiny_trt.path, *asked, "--dry-run").out
    done = cli("compile", tiny_trt.path, *asked)
    assert (done.code, "image_encoder trt-fp16: 9 of 10 layers on the DLA, the rest on the GPU" in done.out) == (
        0,
        True,
    )
    assert "Fake Orin's DLA" in cli("cache", "ls").out
    run = cli("run", tiny_trt.path, "--source", clip, "--fast", "--provider", "tensorrt", *asked, "-o", "-")
    assert "TensorRT DLA" in run.out
    assert cli("verify", tiny_trt.path, "--provider", "tensorrt", *asked).code == 0
    assert cli("run", tiny_trt.path, "--source", clip, *asked).code == 2
