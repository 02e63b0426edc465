"""What a process that builds is told, and what it says: a line of JSON each."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from edge_mbm.runtime.trt.layers import DlaShare

__all__ = ["Done", "Failed", "Log", "Message", "NoRoom", "Refused", "Step", "WorkerJob", "read_message"]


class WorkerJob(Struct, frozen=True, kw_only=True):
    """What is to be built; paths are of the ONNX model, and of the engine and the timing cache that are written."""

    graph: str
    plan: str
    timing: str
    kind: Literal["tensorrt", "rtx"]
    workspace: int | None
    level: int | None
    capability: str | None
    dla_share: float | None


class Step(Struct, frozen=True, tag="step"):
    """See ``release.Stepped``."""

    phase: str
    parent: str
    done: int
    total: int


class Log(Struct, frozen=True, tag="log"):
    """What TensorRT logged."""

    severity: str
    message: str


class Refused(Struct, frozen=True, tag="refused"):
    """What its parser cannot read; see ``release.ParserProblem``."""

    node: str
    operator: str
    message: str


class Failed(Struct, frozen=True, tag="failed"):
    """An error of ours, in its own words."""

    message: str


class NoRoom(Struct, frozen=True, tag="no room"):
    """The engine is built, and cannot be written."""

    reason: str


class Done(Struct, frozen=True, tag="done"):
    """The engine is written; how much of it is on the DLA, if it is for that."""

    dla: DlaShare | None = None


Message: TypeAlias = Step | Log | Refused | Failed | NoRoom | Done
_DECODER = msgspec.json.Decoder(Message)


def read_message(line: bytes) -> Message | None:
    """What a line says; None if it is none, since the process may have ended in the middle of it."""
    try:
        message: Message = _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return message
