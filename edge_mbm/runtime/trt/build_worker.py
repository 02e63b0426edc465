"""The process that builds one engine: reads a job from standard input, writes a line for each thing that happens.

Run by ``edge_mbm.runtime.trt.build_process``; not for people. TensorRT's logger is one for a whole process, some graphs
crash its builder, and when memory runs out this is the process that Linux should kill. It ends with its parent: when
standard input closes, nobody wants the engine any more.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

from edge_mbm.errors import EdgeMbmError
from edge_mbm.runtime.trt.build_messages import Done, Failed, Log, Message, NoRoom, Refused, Step, WorkerJob
from edge_mbm.runtime.trt.release import BuildSettings, find_release

__all__ = ["main"]

Tell: TypeAlias = Callable[[Message], None]


def main() -> int:
    """Do what the job says; returns the exit code."""
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # the library prints there too
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerJob)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _be_the_one_to_kill()

    def tell(message: Message) -> None:
        lines.write(msgspec.json.encode(message) + b"\n")

    try:
        _build(job, tell)
    except EdgeMbmError as error:
        tell(Failed(str(error)))
    except OSError as error:
        tell(NoRoom(error.strerror or str(error)))
    return 0


def _build(job: WorkerJob, tell: Tell) -> None:
    release = find_release(job.kind)
    logger = release.logger(lambda severity, message: tell(Log(severity, message)))
    builder = release.trt.Builder(logger)
    network = release.create_network(builder, dla=job.dla_share is not None)
    problems = release.parse(network, logger, Path(job.graph).read_bytes())
    for problem in problems:
        tell(Refused(problem.node, problem.operator, problem.message))
    if problems:
        return
    timing = Path(job.timing)
    settings = BuildSettings(job.workspace, job.level, job.capability, timing.read_bytes(), job.dla_share)
    config = release.configure(builder, network, settings)
    share = None if job.dla_share is None else release.place_on_dla(network, config, job.dla_share)
    release.watch(config, lambda *step: tell(Step(*step)))
    plan = release.serialize(builder, network, config)
    if plan is not None:
        Path(job.plan).write_bytes(plan)
        timing.write_bytes(release.timing_of(config))
        tell(Done(share))


def _end_with_parent() -> None:
    while os.read(0, 1):  # not by sys.stdin, whose lock would be held when this process ends by itself
        pass
    os._exit(1)


def _be_the_one_to_kill() -> None:
    """When memory runs out (proc(5)): not the robot's other processes."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
