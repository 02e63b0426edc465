"""The process that shows a graph to TensorRT-RTX: reads a job from standard input, writes a line for each thing found.

Run by ``edge_mbm.export.trt_check``, as a script that imports nothing of edge-mbm; not for people. It ends with the
process: TensorRT's logger is one for the whole process, and some graphs end the builder.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["main"]

Answer: TypeAlias = Callable[[Mapping[str, Any]], None]


def main() -> int:
    """Do what the job says; returns the exit code."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the library prints there too
    job = json.load(sys.stdin)

    def answer(found: Mapping[str, Any]) -> None:
        lines.write(json.dumps(found) + "\n")

    try:
        trt = importlib.import_module(job["module"])
    except Exception as error:  # noqa: BLE001 - a missing or broken library, in whatever way
        answer({"unusable": f"{type(error).__name__}: {error}"})
        return 0
    answer({"version": trt.__version__})
    answer({"accepted": _accepted(trt, Path(job["graph"]).read_bytes(), job["compute_capability"], answer)})
    return 0


def _accepted(trt: Any, graph: bytes, compute_capability: str, answer: Answer) -> bool:
    logger = _logger(trt, answer)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            answer({"node": error.node_name(), "operator": error.node_operator(), "error": error.desc()})
        return False
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, compute_capability), 0)
    _add_profile(builder, network, config)
    answer({"stage": "build"})
    return builder.build_serialized_network(network, config) is not None


def _add_profile(builder: Any, network: Any, config: Any) -> None:
    """Every free size is 1: a stream's calls are of batch 1."""
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = [value for value in inputs if -1 in tuple(value.shape)]
    for value in free:
        shape = tuple(1 if size == -1 else size for size in value.shape)
        profile.set_shape(value.name, shape, shape, shape)
    if free:
        config.add_optimization_profile(profile)


def _logger(trt: Any, answer: Answer) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc] # a class of a module that is found at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                answer({"severity": str(severity).rpartition(".")[2].lower(), "log": message})

    return Logger()


if __name__ == "__main__":
    sys.exit(main())
