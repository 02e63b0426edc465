"""A TensorRT that is not there: the Python API of a release, over ONNX Runtime and a ``FakeDriver``.

An engine that it "builds" is the graph itself with the release's version before it, and is refused by any other
version, as TensorRT's are. It computes by ONNX Runtime what the graph says, out of the fake GPU's memory and into it:
so what comes out is right only if everything around it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from edge_mbm.errors import EngineError
from edge_mbm.runtime.engine import import_onnxruntime
from edge_mbm.runtime.trt.builder import Advance, BuildJob, Built
from edge_mbm.runtime.trt.layers import DlaShare
from edge_mbm.testing.cuda import FakeDriver

__all__ = ["FakeDla", "ScriptedBuilder", "fake_tensorrt"]

_MARK = b"FAKE"
_TYPES = {
    "tensor(float)": "FLOAT",
    "tensor(float16)": "HALF",
    "tensor(int8)": "INT8",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
}
_NUMPY = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool"}
_DataType = Enum("_DataType", ["FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL", "UINT8"])
_TensorIOMode = Enum("_TensorIOMode", ["INPUT", "OUTPUT"])
_LayerType = Enum("_LayerType", ["CONSTANT", "CONVOLUTION", "QUANTIZE", "CAST", "GATHER"])
_DeviceType = Enum("_DeviceType", ["GPU", "DLA"])


class ScriptedBuilder:
    """An ``EngineBuilder`` that does what a test wrote down.

    Args:
        script: for each attempt in turn what is raised, or None for an engine; engines when it is at its end.
        version: of the ``fake_tensorrt`` that the engines are for.
        busy: called in the middle of every build.
    """

    def __init__(
        self,
        *script: EngineError | None,
        version: str = "10.3.0",
        busy: Callable[[BuildJob], None] | None = None,
    ) -> None:
        self._script = list(script)
        self._version, self._busy = version, busy
        self.jobs: list[BuildJob] = []

    def build(self, job: BuildJob, folder: Path, advance: Advance) -> Built:
        """See ``EngineBuilder.build``."""
        self.jobs.append(job)
        advance(0.0, "Building Engine")
        if self._busy is not None:
            (folder / "unfinished.part").write_bytes(job.graph[: len(job.graph) // 2])
            self._busy(job)
            (folder / "unfinished.part").unlink()
        failure = self._script.pop(0) if self._script else None
        if failure is not None:
            raise failure
        advance(1.0, "Building Engine")
        share = None if job.settings.dla_share is None else DlaShare(able=9, total=10)
        plan = _plan(self._version, job.graph)
        return Built(plan, b"timed " + job.name.encode(), replace(job.settings, timing=b""), share)


class _Layered(SimpleNamespace):
    """A part of a network."""


@dataclass(frozen=True)
class FakeDla:
    """A Deep Learning Accelerator that is not there.

    Args:
        cores: 0 where a device has none.
        layers: what every graph is made of, by the parser: the kind of each layer ("CONVOLUTION"), and whether the
            DLA can run it.
    """

    cores: int = 0
    layers: tuple[tuple[str, bool], ...] = ()


def fake_tensorrt(
    version: str = "10.3.0",
    driver: FakeDriver | None = None,
    *,
    kind: Literal["tensorrt", "rtx"] = "tensorrt",
    refuses: str = "",
    layers: Mapping[str, int] | None = None,
    dla: FakeDla | None = None,
) -> Any:
    """The module of a release, with the names that this release has and without those that it has not.

    Args:
        version: "8.5.3.1" is weakly typed and tells no progress; from "11" on nothing of weak typing is left.
        driver: the GPU; without one nothing can be run.
        kind: "rtx" also builds for GPUs that are not there.
        refuses: what the parser says against every graph.
        layers: what its inspector says: precision ("Int8", "FP16", "FP32") -> layers.
        dla: the DLA of the device; ``cores`` of the module then says on which engines were loaded.
    """
    major = int(version.split(".", maxsplit=1)[0])
    weak, modern = kind == "tensorrt" and major < 11, kind == "rtx" or major >= 10
    trt = SimpleNamespace(__version__=version, driver=driver, log=[], refuses=refuses, layers=dict(layers or {}))
    trt.dla, trt.cores = dla or FakeDla(), []
    trt.DataType, trt.TensorIOMode, trt.LayerType = _DataType, _TensorIOMode, _LayerType
    trt.DeviceType = _DeviceType
    trt.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    trt.LayerInformationFormat = SimpleNamespace(JSON="json")
    flags = {"STRONGLY_TYPED": 1} if modern else {}
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(**flags, **({"EXPLICIT_BATCH": 0} if weak else {}))
    typing = {"FP16": "fp16", "INT8": "int8", "PREFER_PRECISION_CONSTRAINTS": "prefer"} if weak else {}
    trt.BuilderFlag = SimpleNamespace(GPU_FALLBACK="fallback", **typing)
    trt.ILogger = _logger_class()
    trt.IBuilderConfig = type("IBuilderConfig", (_Config,), {"builder_optimization_level": 3} if modern else {})
    if modern:
        trt.IProgressMonitor = type("IProgressMonitor", (), {})
    if kind == "rtx":
        trt.ComputeCapability = SimpleNamespace(SM86=86, SM89=89)
    trt.Builder = lambda logger: _Builder(trt, logger)
    trt.OnnxParser = lambda network, logger: _Parser(trt, network, logger)
    trt.Runtime = lambda logger: _Runtime(trt, logger)
    return trt


def _plan(version: str, graph: bytes) -> bytes:
    return b"%s %s\n%s" % (_MARK, version.encode(), graph)


def _logger_class() -> type:
    class ILogger:
        Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"], start=0)

        def log(self, severity: Any, message: str) -> None:
            raise NotImplementedError

    return ILogger


class _Config:
    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.workspace: int | None = None
        self.capability: Any = None
        self.profiles: list[Any] = []
        self.cache = b""
        self.default_device_type = _DeviceType.GPU

    def can_run_on_DLA(self, layer: Any) -> bool:  # noqa: N802 - TensorRT's name
        return bool(layer.on_dla) and not any(-1 in value.shape for value in layer.network.inputs)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        assert pool == "workspace"
        self.workspace = size

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def set_compute_capability(self, capability: Any, index: int) -> None:
        assert index == 0
        self.capability = capability

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: data + b"+")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class _Builder:
    def __init__(self, trt: Any, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self.num_DLA_cores = trt.dla.cores

    def create_network(self, flags: int) -> Any:
        known = vars(self._trt.NetworkDefinitionCreationFlag).values()
        assert flags in {1 << value for value in known}
        return _Layered(flags=flags, layers=[], inputs=[], graph=b"", num_layers=0, num_inputs=0)

    def create_builder_config(self) -> Any:
        return self._trt.IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *three: shapes.update({name: three}))

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            for step in range(2):
                monitor.phase_start("Timing", "Building Engine", 4)
                for part in range(4):
                    assert monitor.step_complete("Timing", part)
                monitor.phase_finish("Timing")
                assert monitor.step_complete("Building Engine", step)
            monitor.phase_finish("Building Engine")
        return _plan(self._trt.__version__, network.graph)


class _Parser:
    def __init__(self, trt: Any, network: Any, logger: Any) -> None:
        self._trt, self._network, self._logger = trt, network, logger
        self.num_errors = 0

    def parse(self, graph: bytes) -> bool:
        if self._trt.refuses:
            self.num_errors = 1
            self._logger.log(self._trt.ILogger.Severity.ERROR, self._trt.refuses)
            return False
        session = _session(graph)
        for value in session.get_inputs():
            shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
            self._network.inputs.append(SimpleNamespace(name=value.name, shape=shape))
        self._network.num_inputs = len(self._network.inputs)
        self._network.get_input = lambda index: self._network.inputs[index]
        self._network.graph = graph
        made = [_layer(self._network, index, *one) for index, one in enumerate(self._trt.dla.layers)]
        self._network.num_layers, self._network.get_layer = len(made), made.__getitem__
        return True

    def get_error(self, index: int) -> Any:
        assert index == 0
        if int(self._trt.__version__.split(".")[0]) < 10 and not hasattr(self._trt, "ComputeCapability"):
            return SimpleNamespace(node=lambda: 7, desc=lambda: self._trt.refuses)
        return SimpleNamespace(node_name=lambda: "make_y", node_operator=lambda: "Relu", desc=lambda: self._trt.refuses)


def _layer(network: Any, index: int, kind: str, on_dla: bool) -> Any:
    known = {"name": f"layer_{index}", "type": _LayerType[kind], "on_dla": on_dla, "network": network}
    return SimpleNamespace(**known, num_inputs=0, num_outputs=0, precision=None)


class _Runtime:
    def __init__(self, trt: Any, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self.num_DLA_cores, self.DLA_core = trt.dla.cores, 0

    def deserialize_cuda_engine(self, plan: bytes) -> Any | None:
        head, _, graph = plan.partition(b"\n")
        if head != b"%s %s" % (_MARK, self._trt.__version__.encode()):
            self._logger.log(self._trt.ILogger.Severity.ERROR, "the engine plan file is not compatible")
            return None
        if self.num_DLA_cores:
            self._trt.cores.append(self.DLA_core)
        return _Engine(self._trt, _session(graph))


class _Engine:
    def __init__(self, trt: Any, session: Any) -> None:
        self._trt, self.session = trt, session
        self.inputs, self.outputs = session.get_inputs(), session.get_outputs()
        self._tensors: dict[str, Any] = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return tuple(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        is_input = any(tensor.name == name for tensor in self.inputs)
        return self._trt.TensorIOMode.INPUT if is_input else self._trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensors[name].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType[_TYPES[self._tensors[name].type]]

    def create_execution_context(self) -> Any:
        return _Execution(self._trt, self)

    def create_engine_inspector(self) -> Any:
        listed = [
            {"LayerType": "Convolution", "Inputs": [{"Format/Datatype": f"Row major linear {precision} format"}]}
            for precision, count in self._trt.layers.items()
            for _ in range(count)
        ]
        return SimpleNamespace(get_engine_information=lambda _format: json.dumps({"Layers": listed}))


class _Execution:
    def __init__(self, trt: Any, engine: _Engine) -> None:
        self._trt, self._engine = trt, engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._trt.driver.calls["set_tensor_address"] += 1
        self.addresses[name] = address
        return address in self._trt.driver.bytes

    def execute_async_v3(self, handle: int) -> bool:
        self._trt.driver.calls["execute_async_v3"] += 1
        self._trt.driver.streams[handle].queue(self._compute)
        return True

    def _compute(self) -> None:
        """What the kernels do, when they do it."""
        driver = self._trt.driver
        given = {
            value.name: driver.tensor(self.addresses[value.name], self.shapes[value.name], _dtype(value)).copy()
            for value in self._engine.inputs
        }
        for value, found in zip(self._engine.outputs, self._engine.session.run(None, given), strict=True):
            driver.tensor(self.addresses[value.name], found.shape, found.dtype)[...] = found
        driver.done["kernel"] += 1


def _dtype(value: Any) -> np.dtype[Any]:
    name = _TYPES[value.type]
    return np.dtype(_NUMPY.get(name, name.lower()))


def _session(graph: bytes) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
