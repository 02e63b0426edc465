"""The process that traces: reads a job from standard input, writes graphs to a folder and a line for each.

Run by ``edge_mbm.export.trace``; not for people.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from edge_mbm.errors import EdgeMbmError
from edge_mbm.export.origin import load_model, submodule
from edge_mbm.export.recipe import load_recipe

__all__ = ["main"]

_BATCH = 2  # torch.export takes a size of 1 for a constant


def main() -> int:
    """Trace what the job says; returns the exit code."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a user's model prints must not mix with the answers
    job = json.load(sys.stdin)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    model = load_model(load_recipe(Path(job["recipe"])))
    for name, component in job["components"].items():
        _answer(answers, {"name": name, **_try(model, name, component, job)})
    return 0


def _answer(stream: BinaryIO, answer: Mapping[str, Any]) -> None:
    stream.write(json.dumps(answer).encode() + b"\n")


def _try(model: nn.Module, name: str, component: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, str]:
    try:
        module = submodule(model, component["module"], name)
        target = Path(job["folder"], f"{name}.onnx")
        write = _with_torch_export if job["exporter"] == "torch.export" else _with_torchscript
        write(module, component, job["opset"], target)
    except EdgeMbmError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever the exporter raises is what the user must be told
        return {"error": f"tracing '{name}' with {job['exporter']}: {_explain(error)}"}
    return {}


def _with_torch_export(module: nn.Module, component: Mapping[str, Any], opset: int, target: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = [{axis: batch for axis, dim in enumerate(shape) if dim == "batch"} for _, _, shape in component["inputs"]]
    program = torch.onnx.export(
        module,
        _example(component),
        dynamo=True,
        opset_version=opset,
        external_data=False,
        dynamic_shapes=_as_arguments(module, shapes),
        verbose=False,
    )
    assert program is not None
    target.write_bytes(program.model_proto.SerializeToString(deterministic=True))


def _with_torchscript(module: nn.Module, component: Mapping[str, Any], opset: int, target: Path) -> None:
    axes = {
        name: {axis: "batch" for axis, dim in enumerate(shape) if dim == "batch"}
        for name, _, shape in component["inputs"]
    }
    torch.onnx.export(
        module,
        _example(component),
        str(target),
        dynamo=False,
        opset_version=opset,
        input_names=list(axes),
        dynamic_axes=axes,
    )


def _example(component: Mapping[str, Any]) -> tuple[Tensor, ...]:
    def zeros(dtype: str, shape: Sequence[int | str]) -> Tensor:
        return torch.zeros([dim if isinstance(dim, int) else _BATCH for dim in shape], dtype=getattr(torch, dtype))

    return tuple(zeros(dtype, shape) for _, dtype, shape in component["inputs"])


def _as_arguments(module: nn.Module, shapes: list[Any]) -> tuple[Any, ...]:
    """As torch.export wants them: what ``*args`` takes is one tuple."""
    for named, parameter in enumerate(inspect.signature(module.forward).parameters.values()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return (*shapes[:named], tuple(shapes[named:]))
    return tuple(shapes)


def _explain(error: Exception) -> str:
    """The first cause, the operator if one is named, and the line of the model it came from."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause).strip() or str(error).strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    op = re.search(r"aten[.:]+[\w.]+", f"{error}\n{text}")
    parts = [f"{type(cause).__name__}: {first[:400]}"]
    parts += [f"operator {op[0].replace('::', '.')}"] if op and op[0] not in first else []
    place = _place(error, text)
    return "; ".join(parts + ([place] if place else []))


def _place(error: BaseException, text: str) -> str:
    """Where in the model's own code it happened: "at FILE:LINE", or nothing."""
    seen: BaseException | None = error
    frames: list[traceback.FrameSummary] = []
    while seen is not None:
        frames += traceback.extract_tb(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    own = [frame for frame in frames if not _is_library(frame.filename)]
    if own:
        return f"at {own[-1].filename}:{own[-1].lineno}"
    # torch.export reports the user's line only in its text.
    told = [hit for hit in re.findall(r'File "([^"]+)", line (\d+)', text) if not _is_library(hit[0])]
    return f"at {told[-1][0]}:{told[-1][1]}" if told else ""


def _is_library(filename: str) -> bool:
    return "site-packages" in filename or filename.startswith("<") or filename == __file__ or "/lib/python" in filename


if __name__ == "__main__":
    sys.exit(main())
