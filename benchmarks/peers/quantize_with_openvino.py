"""OpenVINO with NNCF, run by OpenVINO itself on one thread, timed in turn with ONNX Runtime's float graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnxruntime as ort
import openvino as ov
from quantizing import Job, answer_job

_SECONDS = 3.0
_ONE_THREAD = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}


def _float(job: Job) -> Callable[[dict[str, Any]], Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(job.graph, options, providers=["CPUExecutionProvider"])
    return lambda call: session.run(None, call)


def _way(*, quantized: bool, precision: str = "f32") -> Any:
    def way(job: Job, target: Path) -> dict[str, Any]:
        model = ov.convert_model(job.graph)
        if quantized:
            kind = {"model_type": nncf.ModelType.TRANSFORMER} if job.kind == "transformer" else {}
            data = nncf.Dataset(list(job.calls(job.calibration)))
            model = nncf.quantize(model, data, fast_bias_correction=False, **kind)
        compiled = ov.Core().compile_model(model, "CPU", {**_ONE_THREAD, "INFERENCE_PRECISION_HINT": precision})
        request = compiled.create_infer_request()
        names = [output.get_any_name() for output in model.outputs]

        def call(given: dict[str, Any]) -> list[Any]:
            results = request.infer(given)
            return [results[name].copy() for name in names]

        outputs = [call(given) for given in job.calls(job.evaluation)]
        stored = target.with_suffix(".npz")
        np.savez(stored, **{name: np.concatenate([o[i] for o in outputs]) for i, name in enumerate(names)})
        return {"outputs": str(stored), "speedup": _speedup(_float(job), call, job)}

    return way


def _speedup(reference: Callable[[Any], Any], call: Callable[[Any], Any], job: Job) -> float:
    given = next(job.calls(job.evaluation))
    times: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + _SECONDS
    while time.perf_counter() < until or len(times[0]) < 10:
        for function, kept in zip((reference, call), times, strict=True):
            started = time.perf_counter()
            function(given)
            kept.append(time.perf_counter() - started)
    return statistics.median(times[0]) / statistics.median(times[1])


if __name__ == "__main__":
    answer_job(
        f"openvino {ov.__version__.split('-')[0]}",
        {
            "int8, full bias correction": _way(quantized=True),
            "bf16": _way(quantized=False, precision="bf16"),
            "float": _way(quantized=False),
        },
    )
