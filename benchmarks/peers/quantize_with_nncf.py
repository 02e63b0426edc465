"""NNCF on the ONNX graph, to be run by ONNX Runtime."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import nncf
import onnx
from quantizing import Job, answer_job


def _way(**options: Any) -> Any:
    def way(job: Job, target: Path) -> None:
        calls = list(job.calls(job.calibration))
        kind = {"model_type": nncf.ModelType.TRANSFORMER} if job.kind == "transformer" else {}
        model, data = onnx.load(job.graph), nncf.Dataset(calls)
        onnx.save(nncf.quantize(model, data, subset_size=len(calls), **kind, **options), target)

    return way


if __name__ == "__main__":
    ways = {
        "performance": _way(preset=nncf.QuantizationPreset.PERFORMANCE),
        "mixed, full bias correction": _way(preset=nncf.QuantizationPreset.MIXED, fast_bias_correction=False),
    }
    answer_job(f"nncf {version('nncf')}", ways)
