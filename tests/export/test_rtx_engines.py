"""TensorRT-RTX itself goes through the device's code, which needs no GPU to build: here, where it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edge_mbm
from edge_mbm.cli import main
from edge_mbm.errors import EngineError
from edge_mbm.runtime.trt.build_process import SubprocessBuilder
from edge_mbm.runtime.trt.builder import BuildJob
from edge_mbm.runtime.trt.release import BuildSettings
from edge_mbm.testing import tiny_bundle

pytestmark = pytest.mark.needs("tensorrt_rtx_bindings")


def graph() -> bytes:
    with edge_mbm.load(tiny_bundle()) as bundle:
        return bundle.read(bundle.manifest.components["event"].variants["fp32"].graph or "")


BUILD = """
import sys
from pathlib import Path
from edge_mbm.runtime.trt.release import BuildSettings, find_release
made = find_release("rtx")
said = []
logger = made.logger(lambda severity, message: said.append(severity))
builder = made.trt.Builder(logger)
network = made.create_network(builder)
assert made.parse(network, logger, Path(sys.argv[1]).read_bytes()) == ()
config = made.configure(builder, network, BuildSettings(workspace=1 << 28, level=1, capability="SM86"))
steps = []
made.watch(config, lambda *step: steps.append(step))
plan = made.serialize(builder, network, config)
again = made.configure(builder, network, BuildSettings(capability="SM86", timing=made.timing_of(config)))
print(len(plan) > 1000, len(steps) > 2, steps[-1][2], made.is_strongly_typed(), made.has_levels, made.has_progress)
print(made, *made.capabilities)
assert set(said) <= {"warning", "error"}, said
assert made.parse(made.create_network(builder), logger, b"nonsense")
"""


def test_the_real_tensorrt_rtx_goes_through_all_of_it(tmp_path: Path) -> None:
    """In a process of its own: the same code, an engine that is none of ours, progress, and a timing cache."""
    (tmp_path / "graph.onnx").write_bytes(graph())
    command = [sys.executable, "-c", BUILD, str(tmp_path / "graph.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[-2:]
    assert first == "True True -1 True True True"
    assert second.startswith("TensorRT-RTX 1.")
    assert {"SM86", "SM89"} <= set(second.split())


def test_it_builds_a_whole_bundle_by_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], tiny: Path
) -> None:
    """NVIDIA's own builder in the real process; the engines lie in the cache, and are found there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ["compile", str(tiny), "--target", "rtx", "--capability", "SM86", "--json"]
    answers = []
    for _ in range(2):
        assert main(command) == 0
        answers.append(json.loads(capfd.readouterr().out))
    for answer, status in zip(answers, ("built", "cached"), strict=True):
        assert answer["gpu"] == "any SM86"
        assert [engine["status"] for engine in answer["engines"]] == [status] * 4
    for engine in answers[0]["engines"]:
        assert engine["record"]["size"] > 10_000
        assert engine["record"]["latency"] is None


def test_what_it_refuses_is_an_error_with_node_release_and_remedy(tmp_path: Path) -> None:
    """Its own words, through the real process; nothing is left in the folder."""
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(3), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="to_int8"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="from_int8"),
    ]
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [edges[0]], [edges[1]], [scale, zero]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    settings = BuildSettings(capability="SM86")
    job = BuildJob("net trt-int8", model.SerializeToString(), "rtx", "TensorRT-RTX 1.7", settings)
    with pytest.raises(EngineError) as info:
        SubprocessBuilder().build(job, tmp_path, lambda share, what: None)
    message = str(info.value)
    assert message.startswith("net trt-int8: TensorRT-RTX 1.7 cannot build it at 'to_int8' (QuantizeLinear): ")
    assert "Non-zero zero point is not supported" in message
    assert message.endswith("To mend it: quantize symmetrically, as edge-mbm export does for TensorRT targets")
    assert list(tmp_path.iterdir()) == []


def test_it_builds_for_no_gpu_that_it_does_not_know(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Orin's and Thor's among them."""
    assert main(["compile", str(tiny), "--target", "rtx", "--capability", "SM87"]) == 2
    assert "cannot build for 'SM87'; it knows" in capfd.readouterr().err
