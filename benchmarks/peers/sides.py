"""Starts the sides of the comparisons: each in a process of its own, a peer in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Job, as_line

__all__ = ["PEERS", "SIDES", "Process", "Side", "Unavailable", "environment"]

_HERE = Path(__file__).resolve().parent
_START_S, _ANSWER_S = 60.0, 30.0


class Unavailable(Exception):  # noqa: N818 - not always an error
    """A side that can't run here, and what to do about it."""


@dataclass(frozen=True)
class Peer:
    """How to get one."""

    requirements: tuple[str, ...]
    remedy: str
    python: str = sys.executable
    sees_system: bool = False
    """Whether it uses the packages of the interpreter that it's made from."""
    alone: tuple[str, ...] = ()
    """Requirements to be installed without what they ask for."""


@dataclass(frozen=True)
class Side:
    """One row: a script in ``peers/``, and a variant of its settings."""

    name: str
    script: str
    variant: str = ""
    peer: str | None = None
    """Whose environment it runs in; None for this one."""
    is_first: bool = True
    """Of its peer's variants: the others are left out where nothing depends on them."""


PEERS = {
    "streamvision": Peer(("streamvision", "onnxruntime"), "pip install streamvision"),
    "gstreamer": Peer(
        ("onnxruntime", "numpy"),
        "apt-get install python3-gi python3-venv gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base",
        python="/usr/bin/python3",
        sees_system=True,
    ),
    "depthai": Peer(("depthai", "onnxruntime"), "pip install depthai"),
    "mediapipe": Peer(("mediapipe", "onnxruntime"), "pip install mediapipe"),
    "nncf": Peer(("nncf==3.4.*", "openvino", "onnx", "onnxruntime"), "pip install nncf openvino"),
    "modelopt": Peer(
        # Of its onnx extra all but a GPU's onnxruntime.
        ("onnx==1.21.*", "onnxruntime", "torch==2.13.0", "nvidia-ml-py", "onnxslim", "onnx-graphsurgeon")
        + ("onnxconverter-common", "cppimport", "pydantic", "rich", "safetensors", "scipy", "tqdm", "ninja", "pulp")
        + ("packaging", "regex", "onnxscript", "ml_dtypes", "pillow", "setuptools", "lief", "polygraphy"),
        "pip install 'nvidia-modelopt[onnx]'",
        alone=("nvidia-modelopt==0.47.*",),
    ),
}

SIDES = (
    Side("edge-mbm", "on_edge_mbm.py"),
    Side("reference slot", "on_slot.py"),
    Side("naive loop, driver's ring of 4", "on_ring.py"),
    Side("streamvision, default", "on_streamvision.py", "default", "streamvision"),
    Side("streamvision, freshest", "on_streamvision.py", "freshest", "streamvision", is_first=False),
    Side("GStreamer, leaky queues of 1", "on_gstreamer.py", "leaky", "gstreamer"),
    Side("GStreamer, queues of 4", "on_gstreamer.py", "queues of 4", "gstreamer", is_first=False),
    Side("depthai, newest 1", "on_depthai.py", "newest 1", "depthai"),
    Side("depthai, blocking 4", "on_depthai.py", "blocking 4", "depthai", is_first=False),
    Side("MediaPipe, LIVE_STREAM", "on_mediapipe.py", "", "mediapipe"),
)


def environment(name: str, cache: Path, wheels: str | None) -> str:
    """A peer's interpreter, made and filled if need be.

    Raises:
        Unavailable: it can't be had; says how it could.
    """
    peer, folder = PEERS[name], cache / name
    python, ready = folder / "bin" / "python", folder / "ready"
    wanted = " ".join((*peer.requirements, *peer.alone))
    if ready.exists() and ready.read_text() == wanted:
        return str(python)
    sees = ["--system-site-packages"] if peer.sees_system else []
    make = [peer.python, "-m", "venv", "--clear", *sees, str(folder)]
    fill = [str(python), "-m", "pip", "install", "--quiet", *(["--find-links", wheels] if wheels else [])]
    last = [[*fill, "--no-deps", *peer.alone]] if peer.alone else []
    for command in (make, [*fill, *peer.requirements], *last):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            raise Unavailable(f"not installed: {peer.remedy} ({why})") from error
    ready.write_text(wanted)
    return str(python)


class Process:
    """A side at work.

    Raises:
        Unavailable: it doesn't start.
    """

    def __init__(self, side: Side, python: str, log: Path) -> None:
        self.side = side
        self._log = log
        paths = [str(_HERE.parent.parent)] if side.peer is None else []
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, _HERE / side.script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
                if paths
                else {key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            )
        self.version = str(self._answer(_START_S)["version"])

    def run(self, job: Job) -> dict[str, Any]:
        """One run's report.

        Raises:
            Unavailable: it failed or hung; it is of no more use.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(as_line(job))
        self._process.stdin.flush()
        return self._answer(job.seconds + _ANSWER_S)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _answer(self, patience_s: float) -> dict[str, Any]:
        """The next line of JSON; libraries print others in between."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(patience_s, self._process.kill)
        watchdog.start()
        try:
            for line in self._process.stdout:
                if line.startswith("{"):
                    answer: dict[str, Any] = json.loads(line)
                    return answer
        finally:
            watchdog.cancel()
        last = (self._log.read_text().strip().splitlines() or ["no word"])[-1]
        remedy = PEERS[self.side.peer].remedy if self.side.peer else "see its traceback"
        raise Unavailable(f"did not run: {last[:120]} (needs: {remedy}; log: {self._log})")
