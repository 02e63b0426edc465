"""Every release of TensorRT by one code; what differs is asked of the module, never guessed from its number."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import edge_mbm
from edge_mbm.errors import MissingDependencyError
from edge_mbm.runtime.trt.release import BuildSettings, Release, find_release
from edge_mbm.testing import tiny_bundle
from edge_mbm.testing.tensorrt import fake_tensorrt

RELEASES = [
    pytest.param("8.5.3.1", "tensorrt", id="8.5"),
    pytest.param("10.3.0", "tensorrt", id="10.3"),
    pytest.param("10.13.0", "tensorrt", id="10.13"),
    pytest.param("10.16.1", "tensorrt", id="10.16"),
    pytest.param("11.4.0", "tensorrt", id="11.4"),
    pytest.param("1.7.1", "rtx", id="rtx"),
]
each = pytest.mark.parametrize(("version", "kind"), RELEASES)
NEEDS = pytest.mark.needs("onnxruntime")


def graph(component: str = "event") -> bytes:
    with edge_mbm.load(tiny_bundle()) as bundle:
        return bundle.read(bundle.manifest.components[component].variants["fp32"].graph or "")


def release(version: str, kind: Any, **fake: Any) -> Release:
    return Release(fake_tensorrt(version, kind=kind, **fake), kind)


def silent(severity: str, message: str) -> None:
    raise AssertionError(message)


@NEEDS
@each
def test_a_graph_becomes_an_engine(version: str, kind: str) -> None:
    """By the same calls; the fake of each release has the names that the release has, and no more."""
    made = release(version, kind)
    logger = made.logger(silent)
    builder = made.trt.Builder(logger)
    network = made.create_network(builder)
    assert made.parse(network, logger, graph()) == ()
    config = made.configure(builder, network, BuildSettings(workspace=1 << 20, level=2, timing=b"old"))
    steps: list[tuple[str, str, int, int]] = []
    made.watch(config, lambda *step: steps.append(step))
    assert made.serialize(builder, network, config) == b"FAKE %s\n%s" % (version.encode(), graph())
    assert made.timing_of(config) == b"old+"
    assert (config.workspace, config.profiling_verbosity) == (1 << 20, "detailed")
    [profile] = config.profiles
    assert profile.shapes == {"color": ((1, 3),) * 3, "level": ((1, 1),) * 3, "present": ((1, 2),) * 3}
    is_old = version.startswith("8")
    assert (getattr(config, "builder_optimization_level", None), bool(steps)) == (
        (None, False) if is_old else (2, True)
    )


@each
def test_typing_is_strong_where_there_is_such_a_thing(version: str, kind: str) -> None:
    """Then the types are the graph's; 8.5 gets an explicit batch and weak typing."""
    made = release(version, kind)
    network = made.create_network(made.trt.Builder(made.logger(silent)))
    assert network.flags == (1 << 0 if version.startswith("8") else 1 << 1)
    assert made.is_strongly_typed() is not version.startswith("8")
    assert made.has_levels is made.has_progress is made.is_strongly_typed()


def layer(kind: str, *types: str) -> Any:
    trt = fake_tensorrt("8.5.3.1")
    tensors = [SimpleNamespace(dtype=trt.DataType[name]) for name in types]
    return SimpleNamespace(
        type=trt.LayerType[kind],
        num_inputs=len(tensors) - 1,
        num_outputs=1,
        get_input=lambda index: tensors[index],
        get_output=lambda index: tensors[-1],
        precision=None,
    )


@pytest.mark.parametrize(
    ("layers", "flags", "held"),
    [
        ([("CONVOLUTION", "FLOAT", "FLOAT")], set(), []),
        ([("CAST", "FLOAT", "HALF"), ("CONVOLUTION", "HALF", "HALF")], {"fp16", "prefer"}, []),
        ([("CAST", "FLOAT", "HALF"), ("CONVOLUTION", "FLOAT", "FLOAT")], {"fp16", "prefer"}, [1]),
        ([("CAST", "FLOAT", "HALF"), ("CONSTANT", "FLOAT", "FLOAT")], {"fp16", "prefer"}, []),
        ([("QUANTIZE", "FLOAT", "INT8"), ("CONVOLUTION", "FLOAT", "FLOAT")], {"int8"}, []),
        ([("QUANTIZE", "HALF", "INT8"), ("CONVOLUTION", "HALF", "HALF")], {"int8", "fp16", "prefer"}, []),
    ],
    ids=["fp32", "fp16", "fp16 with fp32 kept", "constants are free", "int8", "int8 in fp16"],
)
def test_weak_typing_allows_what_the_graph_contains(
    layers: list[tuple[str, ...]], flags: set[str], held: list[int]
) -> None:
    """And no more: a layer that the graph keeps in fp32, since fp16 would not hold it, is held to fp32."""
    made = release("8.5.3.1", "tensorrt")
    listed = [layer(*one) for one in layers]
    network = SimpleNamespace(num_layers=len(listed), get_layer=lambda index: listed[index], num_inputs=0)
    config = made.configure(made.trt.Builder(made.logger(silent)), network, BuildSettings())
    assert config.flags == flags
    assert [index for index, one in enumerate(listed) if one.precision == made.trt.DataType.FLOAT] == held


@each
def test_only_rtx_builds_for_gpus_that_are_not_here(version: str, kind: str) -> None:
    """The others know no kinds of GPUs at all."""
    made = release(version, kind)
    assert made.capabilities == (("SM86", "SM89") if kind == "rtx" else ())
    if kind == "rtx":
        network = SimpleNamespace(num_inputs=0)
        config = made.configure(made.trt.Builder(made.logger(silent)), network, BuildSettings(capability="SM89"))
        assert (config.num_compute_capabilities, config.capability) == (1, 89)


@NEEDS
@each
def test_what_the_parser_cannot_read_is_named(version: str, kind: str) -> None:
    """By the node's name, or in 8.5 by its number; what is logged is passed on."""
    made = release(version, kind, refuses="If is not supported")
    said: list[tuple[str, str]] = []
    logger = made.logger(lambda *what: said.append(what))
    [problem] = made.parse(made.create_network(made.trt.Builder(logger)), logger, graph())
    assert problem.message == "If is not supported"
    assert problem.node == ("node 7" if version.startswith("8") else "make_y")
    assert said == [("error", "If is not supported")]


def test_what_is_not_installed_is_said_with_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Jetson it is JetPack's, which pip must not replace."""
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"'tensorrt', which is not installed.*JetPack's") as info:
        find_release()
    assert info.value.exit_code == 7
    with pytest.raises(MissingDependencyError, match=r"'tensorrt_rtx'.*trt-check"):
        find_release("rtx")


def test_a_library_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The module is there, and says what is missing: that is the thing to mend."""
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"libnvinfer\.so\.10: cannot open"):
        find_release()


def test_what_is_installed_is_found_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Product and version, as messages, keys and reports show them."""
    module = ModuleType("tensorrt")
    vars(module).update(vars(fake_tensorrt("10.16.1")))
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    assert str(find_release()) == "TensorRT 10.16.1"
    assert str(release("1.7.1", "rtx")) == "TensorRT-RTX 1.7.1"
