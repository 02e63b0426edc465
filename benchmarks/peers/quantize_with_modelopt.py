"""ModelOpt's ONNX quantization, on the CPU: its graphs are meant for TensorRT."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from modelopt.onnx.quantization import quantize
from quantizing import Job, answer_job


def _shapes(job: Job) -> str:
    return ",".join(f"{key}:{'x'.join(map(str, (1, *value.shape[1:])))}" for key, value in job.calibration.items())


def _way(method: str) -> Any:
    def way(job: Job, target: Path) -> None:
        quantize(
            job.graph,
            quantize_mode="int8",
            calibration_data=dict(job.calibration),
            calibration_method=method,
            calibration_eps=["cpu"],
            calibration_shapes=_shapes(job),
            high_precision_dtype="fp32",
            output_path=str(target),
            log_level="ERROR",
        )

    return way


if __name__ == "__main__":
    ways = {"int8, max": _way("max"), "int8, entropy": _way("entropy")}
    answer_job(f"nvidia-modelopt {version('nvidia-modelopt')}", ways)
