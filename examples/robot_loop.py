"""A bundle inside a control loop that owns its sensors and its clock: no threads, no files, no camera needed.

The robot pushes what its drivers give, with the capture times they give, and polls once per tick. Here the drivers are
made up and the bundle is the tiny one of ``edge_mbm.testing``; with yours, only ``bundle`` and ``camera`` change.

    python examples/robot_loop.py
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import edge_mbm
from edge_mbm.testing import tiny_bundle

TICK_NS = 50_000_000  # a 20 Hz loop
RATE = 1000  # Hz, the bundle's


def camera(tick: int) -> NDArray[np.uint8]:
    """A frame, uint8[H, W, 3] RGB: red for the first second, then blue."""
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[:, :, 0 if tick < 20 else 2] = 255
    return frame


def microphone(tick: int) -> NDArray[np.float32]:
    """The samples of one tick, float32[50]: a bang after half a second."""
    loud = 10 <= tick < 14
    return np.full(RATE * TICK_NS // 1_000_000_000, 2.0 if loud else 0.01, np.float32)


def main() -> None:
    """Two seconds of the loop."""
    bundle = edge_mbm.load(tiny_bundle())
    with bundle.session(edge_mbm.SessionOptions(heads=("event",))) as session:
        for tick in range(40):
            now = tick * TICK_NS
            session.push("image", camera(tick), now)
            if tick < 30:  # then the microphone is unplugged: the head goes on without it
                session.push("audio", microphone(tick), now - TICK_NS)
            for result in session.poll(now):
                act(result)


def act(result: edge_mbm.Result) -> None:
    """Where the robot would do something."""
    answer = result.output.as_json()
    without = f" without {', '.join(result.missing)}" if result.missing else ""
    print(f"{result.t_capture / 1e9:5.2f} s  {answer['label']:6} {answer['score']:.2f}{without}")


if __name__ == "__main__":
    main()
