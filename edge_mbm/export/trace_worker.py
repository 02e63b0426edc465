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
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from edge_mbm.errors import EdgeMbmError
from edge_mbm.export.origin import Origin
from edge_mbm.export.place import place
from edge_mbm.export.recipe import load_recipe
from edge_mbm.export.recordings import importable
from edge_mbm.export.weights import load_weights

__all__ = ["main"]

_BATCH = 2  # torch.export takes a size of 1 for a constant
_BRANCH = "; forward must not branch on what a tensor holds, nor on the batch: torch.where chooses inside the graph"
_MEMORY = "this machine's memory did not suffice"
_ADVICE = {
    "can't allocate memory": f"; {_MEMORY}",
    "data-dependent": _BRANCH,
    "to a Python boolean": _BRANCH,
    "len to get": "; use x.shape[0]",
}


def main() -> int:
    """Trace what the job says; returns the exit code."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a user's model prints must not mix with the answers
    job = json.load(sys.stdin)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    loaded = load_recipe(Path(job["recipe"]))
    with importable(loaded.python_path()):
        origin = Origin(loaded, only=job["components"])
        for name, component in job["components"].items():
            with suppress(OSError):
                os.ftruncate(2, 0)  # should it end here, these are its last words and no other's
            _answer(answers, {"name": name, **_try(origin, name, component, job)})
    return 0


def _answer(stream: BinaryIO, answer: Mapping[str, Any]) -> None:
    stream.write(json.dumps(answer).encode() + b"\n")


def _try(origin: Origin, name: str, component: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, str]:
    try:
        module = origin.module(name)
        if (tuned := Path(job["folder"], f"{name}.npz")).exists():
            load_weights(module, tuned.read_bytes())
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
    with warnings.catch_warnings():
        # What it warns of in the user's code it gets wrong: a branch, or a size, frozen as the example has it.
        warnings.simplefilter("error", TracerWarning)
        warnings.filterwarnings("ignore", category=TracerWarning, module=r"torch\.")
        _torchscript(module, component, opset, target, axes)


def _torchscript(
    module: nn.Module, component: Mapping[str, Any], opset: int, target: Path, axes: Mapping[str, Mapping[int, str]]
) -> None:
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
    """The first cause, the operator if one is named, what to do about it, and the line of the model it came from."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    if isinstance(chain[-1], MemoryError):
        return f"MemoryError: {_MEMORY}{place(error, _node(chain))}"
    text = str(chain[-1]).strip() or str(error).strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    op = re.search(r"aten[.:]+[\w.]+", f"{error}\n{text}")
    named = f"; operator {op[0].replace('::', '.')}" if op and op[0] not in first else ""
    known = next((advice for words, advice in _ADVICE.items() if words in text), "")
    return f"{type(chain[-1]).__name__}: {first[:400]}{named}{place(error, _node(chain))}{known}"


def _node(chain: Sequence[BaseException]) -> str:
    """The stack trace of the operation that the exporter stumbled over, which its messages leave out."""
    for error in chain:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, torch.fx.Node) and node.stack_trace:
                return node.stack_trace
    return ""


if __name__ == "__main__":
    sys.exit(main())
