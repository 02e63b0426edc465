"""onnxruntime.quantization's own presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from quantizing import Job, answer_job


class _Reader(CalibrationDataReader):
    def __init__(self, job: Job) -> None:
        self._calls = iter(job.calls(job.calibration))

    def get_next(self) -> Any:
        return next(self._calls, None)


def _prepared(job: Job, target: Path) -> str:
    prepared = target.with_suffix(".prepared")
    quant_pre_process(job.graph, prepared, skip_symbolic_shape=True)
    return str(prepared)


def _static(method: CalibrationMethod, **extra: Any) -> Any:
    def way(job: Job, target: Path) -> None:
        quantize_static(
            _prepared(job, target),
            target,
            _Reader(job),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            extra_options=extra,
        )

    return way


def _dynamic(job: Job, target: Path) -> None:
    quantize_dynamic(_prepared(job, target), target, per_channel=True, weight_type=QuantType.QInt8)


if __name__ == "__main__":
    answer_job(
        f"onnxruntime {onnxruntime.__version__}",
        {
            "static, MinMax": _static(CalibrationMethod.MinMax),
            "static, Percentile": _static(CalibrationMethod.Percentile, CalibPercentile=99.99),
            "dynamic": _dynamic,
        },
    )
