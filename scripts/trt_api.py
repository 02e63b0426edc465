"""Which names of TensorRT's Python API each release has, read from its bindings without TensorRT itself.

    pip download --no-deps tensorrt-cu12-bindings==10.3.0    # and unzip it; 8.5 is in tensorrt==8.5.3.1 for Python 3.10
    python scripts/trt_api.py 10.3=PATH/tensorrt.so 11.4=... rtx-1.7=PATH/tensorrt_rtx.so > tests/export/trt_api.json

The bindings want TensorRT's libraries when they are imported, and call nothing in them before something is built: empty
libraries of the same names will do. Needs a C compiler and binutils.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

EVERYWHERE = (
    "Builder.build_serialized_network", "Builder.create_builder_config", "Builder.create_network",
    "Builder.create_optimization_profile", "DataType.BOOL", "DataType.FLOAT", "DataType.HALF", "DataType.INT32",
    "DataType.INT8", "EngineInspector.get_engine_information", "IBuilderConfig.add_optimization_profile",
    "IBuilderConfig.create_timing_cache", "IBuilderConfig.get_timing_cache", "IBuilderConfig.profiling_verbosity",
    "IBuilderConfig.set_memory_pool_limit", "IBuilderConfig.set_timing_cache", "ICudaEngine.create_engine_inspector",
    "ICudaEngine.create_execution_context", "ICudaEngine.get_tensor_dtype", "ICudaEngine.get_tensor_mode",
    "ICudaEngine.get_tensor_name", "ICudaEngine.get_tensor_shape", "ICudaEngine.num_io_tensors",
    "IExecutionContext.execute_async_v3", "IExecutionContext.set_input_shape", "IExecutionContext.set_tensor_address",
    "ILogger.Severity.WARNING", "INetworkDefinition.get_input", "INetworkDefinition.num_inputs",
    "IOptimizationProfile.set_shape", "ITensor.name", "ITensor.shape", "ITimingCache.serialize",
    "LayerInformationFormat.JSON", "MemoryPoolType.WORKSPACE", "OnnxParser.get_error", "OnnxParser.num_errors",
    "OnnxParser.parse", "ParserError.desc", "ProfilingVerbosity.DETAILED", "Runtime.deserialize_cuda_engine",
    "TensorIOMode.INPUT",
)  # fmt: skip
"""What building and running an engine takes in every release, TensorRT 8.5 among them."""
SINCE_10 = (
    "IBuilderConfig.builder_optimization_level", "IBuilderConfig.progress_monitor", "IProgressMonitor.phase_finish",
    "IProgressMonitor.phase_start", "IProgressMonitor.step_complete", "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "ParserError.node_name", "ParserError.node_operator",
)  # fmt: skip
"""What 8.5 lacks, and edge_mbm/runtime/trt/release.py looks for before it uses it."""
COMPILE = (*EVERYWHERE, *SINCE_10)
"""Wanted in every release that a target's devices have."""
WEAK = (
    "BuilderFlag.PREFER_PRECISION_CONSTRAINTS", "IBuilderConfig.set_flag", "ILayer.get_input", "ILayer.get_output",
    "ILayer.num_inputs", "ILayer.num_outputs", "ILayer.type", "INetworkDefinition.get_layer",
    "INetworkDefinition.num_layers", "ITensor.dtype", "LayerType.CONSTANT", "LayerType.QUANTIZE",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "ParserError.node",
)  # fmt: skip
"""What 8.5 takes besides, for want of strong typing."""
AHEAD_OF_TIME = (
    "ComputeCapability.SM86", "ComputeCapability.SM89", "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
)  # fmt: skip
"""What building for a GPU that is not there takes besides: TensorRT-RTX alone has it."""
DLA = (
    "BuilderFlag.GPU_FALLBACK", "Builder.num_DLA_cores", "DeviceType.DLA", "IBuilderConfig.can_run_on_DLA",
    "IBuilderConfig.default_device_type", "ILayer.name", "Runtime.DLA_core", "Runtime.num_DLA_cores",
)  # fmt: skip
"""What the Deep Learning Accelerator takes: names that are there also where the release has no use for one."""
REMOVED = ("BuilderFlag.FP16", "BuilderFlag.INT8", "IInt8Calibrator", "ILayer.precision")
"""Weak typing: in TensorRT 10, gone in 11; used for 8.5, which has nothing else, and for the DLA."""
NAMES = (*COMPILE, *WEAK, *AHEAD_OF_TIME, *DLA, *REMOVED)

_INSPECT = """
import importlib.util, json, operator, sys
path, *names = sys.argv[1:]
name = path.rpartition("/")[2].partition(".")[0]
spec = importlib.util.spec_from_file_location(name, path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

def has(dotted):
    try:
        operator.attrgetter(dotted)(module)
    except AttributeError:
        return False
    return True

print(json.dumps({name: has(name) for name in names}))
"""


def present(bindings: Path, names: Sequence[str] = NAMES) -> dict[str, bool]:
    """Name -> whether the bindings, a ``tensorrt.so`` for this Python, have it."""
    with tempfile.TemporaryDirectory() as folder:
        _write_stubs(bindings, Path(folder))
        done = subprocess.run(
            [sys.executable, "-c", _INSPECT, str(bindings), *names],
            env=os.environ | {"LD_LIBRARY_PATH": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{bindings} cannot be imported: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, bool] = json.loads(done.stdout)
    return found


def _write_stubs(bindings: Path, folder: Path) -> None:
    source = folder / "stub.c"
    source.write_text("".join(f"void {symbol}(void) {{}}\n" for symbol in _wanted_symbols(bindings)))
    for library in _wanted_libraries(bindings):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / library), str(source)], check=True)


def _wanted_libraries(bindings: Path) -> Iterator[str]:
    for line in _lines("readelf", "-d", str(bindings)):
        name = line.partition("[")[2].partition("]")[0]
        if "(NEEDED)" in line and name.startswith(("libnv", "libtensorrt")):
            yield name


def _wanted_symbols(bindings: Path) -> Iterator[str]:
    """Those without a version, which are neither Python's nor the C library's."""
    for line in _lines("nm", "-D", "--undefined-only", str(bindings)):
        kind, symbol = line.split()[-2:]
        if kind == "U" and "@" not in symbol and not symbol.lstrip("_").startswith("Py"):
            yield symbol


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def main(arguments: Sequence[str]) -> int:
    """Print the table of the releases given as LABEL=PATH."""
    if not arguments:
        sys.stderr.write(__doc__ or "")
        return 2
    table: Mapping[str, Mapping[str, bool]] = {
        label: present(Path(path)) for label, path in (argument.split("=", 1) for argument in arguments)
    }
    sys.stdout.write(json.dumps(table, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
