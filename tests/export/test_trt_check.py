"""What NVIDIA's parser and builder say of a graph; a stand-in module says it where they are not installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.errors import InputError, TraceError
from edge_mbm.export.lint import lint
from edge_mbm.export.targets import target
from edge_mbm.export.trt_check import Check, check_trt

ORIN, RTX = target("jetson-orin"), target("rtx")
NEEDS = pytest.mark.needs("tensorrt_rtx_bindings")

FAKE = """
import os, signal, sys, time
__version__ = "9.9"
MODE = os.environ["FAKE_TRT"]
if MODE == "broken":
    raise ImportError("libcudart.so.13: cannot open shared object file")

class ILogger:
    class Severity:
        ERROR, WARNING = 1, 2
    def __init__(self): pass

class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 0

class ComputeCapability:
    SM86 = SM89 = 86

class Thing:
    num_inputs = 0
    def set_compute_capability(self, capability, index): self.capability = capability
    def create_network(self, flags):
        assert flags == 1
        return Thing()
    create_builder_config = create_optimization_profile = lambda self: Thing()
    def build_serialized_network(self, network, config):
        assert config.num_compute_capabilities == 1 and config.capability == 86
        print("chatter of the library", flush=True)
        os.write(1, b"{}\\n")
        if MODE == "crash": os.kill(os.getpid(), signal.SIGSEGV)
        if MODE == "hang": time.sleep(60)
        if MODE == "build": self.logger.log(1, "Error Code 1: Myelin (no kernel for make_y. In build at x.cpp:1)")
        return None if MODE == "build" else b"engine"

def Builder(logger):
    builder = Thing()
    builder.logger = logger
    return builder

class OnnxParser:
    num_errors = 0
    def __init__(self, network, logger): pass
    def parse(self, graph): return True
"""


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [outputs], name=f"make_{outputs}", **attributes)


def graph(nodes: Sequence[onnx.NodeProto], opset: int = 20, **weights: Any) -> bytes:
    """``x`` float32[batch, 4] to ``y``."""
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    constants = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    made = helper.make_graph(nodes, "g", [edges[0]], [edges[1]], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


RELU = graph([node("Relu", "x", "y")])


def quantized(dtype: Any = np.int8, zero: int = 0) -> bytes:
    """A product of 8-bit numbers."""
    kind = np.int8 if dtype is np.uint8 else dtype  # weights are signed
    weights = {"s": np.float32(0.1), "z": np.asarray(zero).astype(dtype), "w": np.eye(4).astype(kind)}
    weights["wz"] = np.zeros((), kind)
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w s wz", "wd"),
        node("MatMul", "d wd", "y"),
    ]
    return graph(nodes, **weights)


def attention(inputs: str) -> bytes:
    edges = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 8]) for name in inputs.split()}
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 8])
    made = helper.make_graph([node("Attention", inputs, "y")], "g", list(edges.values()), [output])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=11).SerializeToString()


def ask(model: bytes, machine: Any = ORIN, **options: float) -> Check:
    return check_trt(model, machine, kind="encoder", name="net", **options)


# --- TensorRT-RTX itself ---------------------------------------------------------------------------------------------


@NEEDS
def test_a_graph_that_fits_is_accepted_and_the_record_says_by_whom() -> None:
    """Parser and builder, version, and the GPU that stands in for Orin; the batch is free and built at 1."""
    check = ask(quantized())
    assert (check.checked, check.accepted, check.problems) == (True, True, ())
    assert check.where.startswith("TensorRT-RTX 1.")
    assert check.where.endswith(" SM86")
    [record] = check.records()
    assert (record.where, record.accepted, record.problem) == (check.where, True, "")
    assert str(check) == f"accepted by {check.where}"


@NEEDS
def test_a_refusal_names_the_node_and_the_remedy_of_our_own_rule() -> None:
    """One wording for one fault, whether the linter or NVIDIA's parser finds it."""
    check = ask(quantized(zero=3))
    assert not check.accepted
    [problem] = check.problems
    assert problem.node == "make_q"
    assert problem.message.startswith("Non-zero zero point is not supported")
    rules = {found.node: found.remedy for found in lint(quantized(zero=3), ORIN, kind="encoder", name="net")}
    assert problem.remedy == rules["make_q"]
    assert "refused by TensorRT-RTX" in str(check)
    assert f"at 'make_q': {problem.message}. To mend it: {problem.remedy}" in check.records()[0].problem


@NEEDS
def test_a_warning_after_which_other_numbers_come_out_is_a_refusal() -> None:
    """uint8 is taken and read as int8: TensorRT only mutters."""
    check = ask(quantized(np.uint8))
    assert not check.accepted
    assert "Defaulting to INT8" in check.problems[0].message
    assert "int8 zero-point of 0" in check.problems[0].remedy


@NEEDS
def test_what_only_the_builder_refuses_is_found_in_its_log() -> None:
    """The parser takes Attention; the builder has no kernel for it and returns nothing."""
    check = ask(attention("q k v"))
    assert not check.accepted
    assert "Attention operation was not supported" in check.problems[0].message
    assert "opset 20" in check.problems[0].remedy


@NEEDS
def test_fp8_is_shown_to_a_gpu_that_has_it() -> None:
    """SM89 stands in for an RTX card; for Orin, which has no fp8, SM86 refuses it."""
    model = quantized(ml_dtypes.float8_e4m3fn)
    taken, refused = ask(model, RTX), ask(model, ORIN)
    assert taken.accepted, taken
    assert taken.where.endswith(" SM89")
    assert not refused.accepted
    assert "fp8" in refused.problems[0].message
    assert "trt-fp16 or trt-int8" in refused.problems[0].remedy


@NEEDS
def test_a_graph_that_ends_tensorrts_process_does_not_end_ours() -> None:
    """This builder crashes on attention of a tensor with itself: a refusal, with the broken rule as likeliest cause."""
    check = ask(attention("x x x"))
    assert not check.accepted
    assert "ends TensorRT's process with code -11 (a crash)" in check.problems[-1].message
    assert "opset_version=20" in check.problems[-1].remedy


# --- a module in its place -------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    (tmp_path / "tensorrt_rtx.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FAKE_TRT", "well")
    return monkeypatch


def test_an_engine_is_an_acceptance(fake: pytest.MonkeyPatch) -> None:
    """And what the library prints does not mix with the answers."""
    check = ask(RELU)
    assert check == Check("TensorRT-RTX 9.9 SM86", checked=True, accepted=True)


def test_no_engine_is_a_refusal_with_what_was_logged(fake: pytest.MonkeyPatch) -> None:
    """Where no rule is broken and no message is known, there is still something to do."""
    fake.setenv("FAKE_TRT", "build")
    check = ask(RELU)
    assert not check.accepted
    [problem] = check.problems
    assert problem.message == "no kernel for make_y"
    assert problem.remedy.startswith("leave the node in fp32")


def test_a_crash_is_a_refusal(fake: pytest.MonkeyPatch) -> None:
    """With the code, and the version that was heard before it."""
    fake.setenv("FAKE_TRT", "crash")
    check = ask(RELU)
    assert check.where == "TensorRT-RTX 9.9 SM86"
    assert [problem.message for problem in check.problems] == ["ends TensorRT's process with code -11 (a crash)"]
    assert not check.accepted


def test_a_build_without_an_end_is_a_refusal(fake: pytest.MonkeyPatch) -> None:
    """After the time that was given."""
    fake.setenv("FAKE_TRT", "hang")
    check = ask(RELU, timeout_s=2.0)
    assert [problem.message for problem in check.problems] == ["was not built within 2 s"]
    assert (check.checked, check.accepted) == (True, False)


def test_a_library_that_does_not_load_is_no_verdict(fake: pytest.MonkeyPatch) -> None:
    """It says so, with what is missing and how to install it; nothing is recorded as refused."""
    fake.setenv("FAKE_TRT", "broken")
    check = ask(RELU)
    assert (check.checked, check.accepted, check.records()) == (False, False, ())
    assert check.where.startswith("not checked: TensorRT-RTX cannot be loaded (ImportError: libcudart.so.13")
    assert check.where.endswith("pip install 'edge-mbm[trt-check]'")


def test_where_nothing_is_installed_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never taken for accepted, never for refused."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check = ask(RELU)
    assert str(check) == "not checked: TensorRT-RTX is not installed: pip install 'edge-mbm[trt-check]'"
    assert (check.checked, check.accepted, check.records()) == (False, False, ())


def test_a_target_without_tensorrt_cannot_be_asked() -> None:
    """A mistake of the caller's."""
    with pytest.raises(InputError, match="'x86-cpu' is no target of TensorRT"):
        ask(RELU, target("x86-cpu"))


def test_what_is_no_graph_never_reaches_tensorrt() -> None:
    """The component is named."""
    with pytest.raises(TraceError, match="the graph of 'net'"):
        ask(b"rubbish")


def test_tensorrt_is_never_loaded_into_this_process() -> None:
    """Its logger is one for a process, and a graph may end it."""
    if importlib.util.find_spec("tensorrt_rtx_bindings") is not None:
        ask(RELU)
    assert not {"tensorrt_rtx", "tensorrt"} & sys.modules.keys()
