"""Whether NVIDIA's own parser and builder take a graph, asked on a workstation without a GPU.

TensorRT-RTX builds engines ahead of time for GPUs that are not there. What this proves: its parser reads every
operator of the graph, its types fit in a strongly typed network, and its builder finds kernels for all of it on the
GPU that stands in for the target. What it does not prove: speed; the numbers; that the kernels of Orin (sm_87) or Thor
(sm_110), which this builder does not know, exist too; that the older parser of a device's TensorRT (10.3 in JetPack 6)
reads the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_mbm.errors import InputError
from edge_mbm.export.lint import Finding, View, lint
from edge_mbm.export.recordings import import_path
from edge_mbm.export.targets import Kind, Target
from edge_mbm.spec import ParserCheck

__all__ = ["Check", "Refusal", "check_trt"]

_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")
_INSTALL = "pip install 'edge-mbm[trt-check]'"
_TIMEOUT_S = 600.0
_TRAPS = ("UINT8 zero_point", "with type int32 TensorRT will use INT8")
"""Of warnings, those after which an engine computes other numbers."""
_NOISE = ("catchCudaError", "ModelImporter.cpp", "While parsing node")
"""Said because there is no GPU here, or once more of what the parser reports itself."""
_ELSE = "leave the node in fp32 or take other operators; ship fp32 for this target until it is accepted"
_REMEDIES = (
    ("non-zero zero point", "quantize symmetrically: the tensorrt form"),
    ("uint8 zero_point", "quantize symmetrically with an int8 zero-point of 0: the tensorrt form"),
    ("type int32", "leave the bias in float: the tensorrt form"),
    ("number of scales", "quantize per output channel"),
    ("scale coefficients", "look for a tensor that is constant, NaN or infinite over the calibration set"),
    ("attention operation", "export at opset 20, which writes attention as MatMul and Softmax"),
    ("hw-specific datatypes", "this GPU has no fp8: take trt-fp16 or trt-int8"),
    ("same input types", "cast one side: in a strongly typed network nothing is converted by itself"),
    ("must have the same", "cast one side: in a strongly typed network nothing is converted by itself"),
    ("uint8", "cast to float32 first, resize and transpose after that"),
    ("antialias", "resize on the host (the image steps), or export with antialias=False"),
    ("plugin not found", "export with standard operators only: no plugins, no custom operators"),
    ("data type", "cast it to float32, int32 or int64"),
    ("failed to import initializer", "cast it to float32, int32 or int64"),
    ("failed to parse the onnx model", "check the file: it is no ONNX model"),
)


@dataclass(frozen=True)
class Refusal:
    """One thing that the parser or builder said; ``node`` is "" where it named none."""

    node: str
    message: str
    remedy: str

    def __str__(self) -> str:
        at = f"at '{self.node}': " if self.node else ""
        return f"{at}{self.message}. To mend it: {self.remedy}"


@dataclass(frozen=True)
class Check:
    """What came of it.

    Args:
        where: parser, builder, version and GPU, or why it was "not checked" and what to install.
        checked: whether there was a parser to ask.
        accepted: whether it took the graph; never without ``checked``.
        problems: what it said against it.
    """

    where: str
    checked: bool
    accepted: bool
    problems: tuple[Refusal, ...] = ()

    def records(self) -> tuple[ParserCheck, ...]:
        """For the manifest's ``parsed``; empty where nothing was checked."""
        if not self.checked:
            return ()
        said = "; ".join(map(str, self.problems))[:2000]
        return (ParserCheck(where=self.where, accepted=self.accepted, problem=said),)

    def __str__(self) -> str:
        if not self.checked:
            return self.where
        verdict = "accepted by" if self.accepted else "refused by"
        return "\n".join([f"{verdict} {self.where}", *(f"  {problem}" for problem in self.problems)])


def check_trt(graph: bytes, target: Target, *, kind: Kind, name: str, timeout_s: float = _TIMEOUT_S) -> Check:
    """Show a graph to TensorRT-RTX's parser and builder, strongly typed, every free size at 1, in another process.

    Args:
        graph: for TensorRT, of any precision.
        target: of the TensorRT family; says which GPU stands in for it.
        kind: the component's.
        name: the component's, for messages.
        timeout_s: after which it counts as refused.

    Raises:
        TraceError: it is no ONNX model.
        InputError: the target is not of the TensorRT family.
    """
    if not target.stand_in:
        raise InputError(f"'{target.name}' is no target of TensorRT: it has nothing to ask its parser")
    findings = lint(graph, target, kind=kind, name=name)
    module = next((module for module in _MODULES if importlib.util.find_spec(module) is not None), None)
    if module is None:
        return _unchecked(f"TensorRT-RTX is not installed: {_INSTALL}")
    capability = _stand_in(graph, target)
    answers, ending = _worker(graph, {"module": module, "compute_capability": capability}, timeout_s)
    said = {key: value for answer in answers for key, value in answer.items()}
    if "unusable" in said:
        return _unchecked(f"TensorRT-RTX cannot be loaded ({said['unusable'][:300]}): {_INSTALL}")
    where = f"TensorRT-RTX {said.get('version', '(version unknown)')} {capability}"
    problems = tuple(dict.fromkeys(_problems(answers, ending, findings)))
    return Check(where, checked=True, accepted=said.get("accepted") is True and not problems, problems=problems)


# --- inside ----------------------------------------------------------------------------------------------------------


def _unchecked(why: str) -> Check:
    return Check(f"not checked: {why}", checked=False, accepted=False)


def _stand_in(graph: bytes, target: Target) -> str:
    has_fp8 = any(dtype.startswith("float8") for dtype in View.read(graph).dtypes.values())
    return target.stand_in_fp8 if has_fp8 and target.stand_in_fp8 else target.stand_in


def _worker(graph: bytes, job: Mapping[str, str], timeout_s: float) -> tuple[list[dict[str, Any]], str]:
    """What the process said, and how it ended where that was not well."""
    with tempfile.TemporaryDirectory(prefix="edge-mbm-trt-") as folder:
        path = Path(folder, "graph.onnx")
        path.write_bytes(graph)
        command = [sys.executable, "-P", str(Path(__file__).with_name("trt_worker.py"))]
        try:
            done = subprocess.run(
                command,
                input=json.dumps({**job, "graph": str(path)}).encode(),
                env=os.environ | {"PYTHONPATH": import_path()},
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            return _parse(late.stdout or b""), f"was not built within {timeout_s:.0f} s"
    ending = "" if done.returncode == 0 else f"ends TensorRT's process with code {done.returncode} (a crash)"
    return _parse(done.stdout), ending


def _parse(lines: bytes) -> list[dict[str, Any]]:
    """Whole lines only: the process may have ended in the middle of one."""
    return [json.loads(line) for line in lines.splitlines(keepends=True) if line.endswith(b"\n")]


def _problems(answers: Sequence[Mapping[str, Any]], ending: str, findings: Sequence[Finding]) -> Iterator[Refusal]:
    errors = [finding for finding in findings if finding.severity == "error"]
    reported = [answer for answer in answers if "error" in answer]
    for answer in reported:
        yield _refusal(answer["node"], answer["error"], errors)
    for answer in answers:
        if "log" in answer and _counts(answer, parsed=not reported):
            yield _refusal(_node_in(answer["log"], errors), answer["log"], errors)
    if ending:
        # A crash names no node: what the rules found is the likeliest cause.
        cause = next(iter(errors), None)
        yield Refusal(cause.node if cause else "", ending, cause.remedy if cause else _ELSE)


def _counts(answer: Mapping[str, Any], *, parsed: bool) -> bool:
    """The parser's errors are logged too; the builder's only logged."""
    message = answer["log"]
    if answer["severity"] == "warning":
        return any(trap in message for trap in _TRAPS)
    return parsed and not any(noise in message for noise in _NOISE)


def _refusal(node: str, message: str, errors: Sequence[Finding]) -> Refusal:
    """With the remedy of the rule that is broken there, or else of what such a message means."""
    rule = next((finding for finding in errors if node and finding.node == node), None)
    known = next((remedy for part, remedy in _REMEDIES if part in message.lower()), _ELSE)
    return Refusal(node, _plain(message).removeprefix(f"{node}: "), rule.remedy if rule else known)


def _node_in(message: str, errors: Sequence[Finding]) -> str:
    """A node with a broken rule that a message names."""
    return next((finding.node for finding in errors if finding.node and finding.node in message), "")


def _plain(message: str) -> str:
    """The sentence inside of the assertions, source lines and error codes around it."""
    patterns = (
        r"Error Code \d+: [\w ]+ \((.*?)\.? In \w+ at ",
        r'&& "(.*?)"',
        r"Assertion failed: [^:]*(?:::[^:]*)*: (.*)",
        r"Error Code \d+: (.*)",
    )
    found = (re.search(pattern, message, re.DOTALL) for pattern in patterns)
    text = next((match[1] for match in found if match), message)
    return (text.strip().splitlines() or ["refused without a word"])[0].rstrip(". ")[:300]
