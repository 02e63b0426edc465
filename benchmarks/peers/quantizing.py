"""What the quantizers of ``quantization.py`` share: a job comes in, an answer goes out. Nothing of edge-mbm."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Job", "answer_job"]

Arrays = Mapping[str, np.ndarray]


class Job:
    """One model to quantize.

    Args:
        given: ``graph`` (a float ONNX file), ``calibration`` and ``evaluation`` (``.npz``: input -> array, calls along
            the first axis), ``kind`` ("convnet", "transformer" or "recurrent"), ``out`` (a folder).
    """

    def __init__(self, given: Mapping[str, str]) -> None:
        self.graph, self.kind, self.out = given["graph"], given["kind"], Path(given["out"])
        self.calibration = _load(given["calibration"])
        self.evaluation = _load(given["evaluation"])

    def calls(self, arrays: Arrays) -> Iterator[dict[str, np.ndarray]]:
        """Call by call, batch 1."""
        for index in range(len(next(iter(arrays.values())))):
            yield {key: value[index : index + 1] for key, value in arrays.items()}


def answer_job(version: str, ways: Mapping[str, Callable[[Job, Path], dict[str, Any] | None]]) -> None:
    """Do one job in every way, and print what came of it.

    Args:
        version: of the peer.
        ways: name -> function that writes an ONNX file to the path it is given, or answers with figures of its own.
    """
    job = Job(json.load(sys.stdin))
    rows: dict[str, Any] = {}
    for index, (name, way) in enumerate(ways.items()):
        target, started = job.out / f"{Path(sys.argv[0]).stem}.{index}.onnx", time.perf_counter()
        try:
            found = way(job, target) or {"graph": str(target)}
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its row
            traceback.print_exc()
            found = {"fault": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"}
        rows[name] = {**found, "seconds": time.perf_counter() - started}
    print(json.dumps({"version": version, "rows": rows}), flush=True)


def _load(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}
