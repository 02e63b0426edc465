"""A source in a process of its own: stopped, killed, crashed, and never left behind."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import InputError, SourceError
from edge_mbm.runtime.source import Sample
from edge_mbm.runtime.sources import ArraySource, CallableSource, Supervised, Supervision
from edge_mbm.runtime.sources.isolate import SLOTS, IsolatedSource, _put, isolated

SHAPE = (48, 64, 3)
SIZE = 48 * 64 * 3
pytestmark = pytest.mark.timeout(120)

# Endless, 100 a second, and of the package's own parts, so that a child can import them.
endless = partial(CallableSource, "image", partial(np.full, SHAPE, 7, np.uint8), 100)


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def isolate(open_device: Any, **options: Any) -> IsolatedSource:
    return IsolatedSource(open_device, **{"slot_bytes": SIZE, "open_timeout_s": 30} | options)


def test_what_the_source_gives_comes_out() -> None:
    """Frames through shared memory and sound through the pipe, to the bit and with their times; then the end."""
    frames = [(np.random.default_rng(k).integers(0, 255, SHAPE, np.uint8), k) for k in range(3)]
    source = isolate(partial(ArraySource, "image", frames))
    assert (source.modalities, source.timing.clock) == (("image",), "monotonic")
    samples = iter(source.samples())
    for (data, t), sample in zip(frames, itertools.islice(samples, 3), strict=True):
        np.testing.assert_array_equal(sample.data, data)
        assert (sample.modality, sample.t) == ("image", t)
    with pytest.raises(SourceError, match="it ended"):
        next(samples)
    source.close()
    blocks = [(np.random.default_rng(k).random((160, 1), np.float32), k) for k in range(20)]
    source = isolate(partial(ArraySource, "audio", blocks, audio_rate=16_000))
    taken = list(itertools.islice(source.samples(), 20))
    assert [(s.t, s.rate, s.duration) for s in taken] == [(k, 16_000, 10_000_000) for k in range(20)]
    np.testing.assert_array_equal(np.stack([s.data for s in taken]), np.stack([data for data, _ in blocks]))
    source.close()


def test_a_frame_that_is_overwritten_while_it_is_read_is_not_given() -> None:
    """Before the copy or during it: counted, never a picture of two halves."""
    source = IsolatedSource.__new__(IsolatedSource)
    source._slot_bytes, source._overwritten = SIZE, 0
    source._memory = memory = SharedMemory(create=True, size=SLOTS * (8 + SIZE))
    try:
        frames = [_put(memory, SIZE, k, Sample("image", np.full(SHAPE, k, np.uint8), k)) for k in range(SLOTS + 1)]
        given = [source._read(frame) for frame in frames]  # type: ignore[arg-type]
        assert [sample and int(sample.data.max()) for sample in given] == [None, 1, 2, 3, 4]
        assert source.losses() == {"frames.overwritten": 1}
    finally:
        memory.close()
        memory.unlink()


def test_what_the_child_raises_is_heard() -> None:
    """On opening and on reading, in words, without passwords."""
    with pytest.raises(SourceError, match="image"):
        isolate(partial(CallableSource, "image", int, 0))
    source = isolate(partial(CallableSource, "image", partial(open, "rtsp://a:s3cr3t@h/x"), 10))
    with pytest.raises(SourceError, match=r"FileNotFoundError") as caught:
        next(iter(source.samples()))
    assert "s3cr3t" not in str(caught.value)
    source.close()
    source = isolate(endless, slot_bytes=100)
    with pytest.raises(SourceError, match=r"9216 bytes is too large for slot_bytes=100"):
        next(iter(source.samples()))
    source.close()


def test_what_another_process_cannot_have_is_refused() -> None:
    """A lambda, with what to give instead."""
    with pytest.raises(InputError, match=r"functools.partial"):
        isolate(lambda: ArraySource("image", []))


def test_closing_kills_the_child() -> None:
    """Even one that is stopped; twice is fine, and nothing is given afterwards."""
    source = isolate(endless)
    pid = source.pid
    assert pid is not None
    samples = iter(source.samples())
    next(samples)
    os.kill(pid, signal.SIGSTOP)
    source.close()
    assert list(samples) == []
    assert not is_alive(pid)
    source.close()
    assert source.pid is None


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_child_that_is_stopped_or_killed_is_replaced(how: signal.Signals) -> None:
    """A stall or an error for the supervisor: the stream goes on in order, from another process."""
    children: list[IsolatedSource] = []

    def open_device() -> IsolatedSource:
        children.append(isolated(endless, slot_bytes=SIZE)())
        return children[-1]

    options = Supervision(stall_s=0.5, backoff_s=(0.01, 0.1), open_timeout_s=30)
    source = Supervised("child", open_device, ("image",), audio_blocks=10, options=options)
    samples = iter(source.samples())
    times = [next(samples).t for _ in range(5)]
    first = children[0].pid
    assert first is not None
    os.kill(first, how)
    while source.status().reconnects == 0 or len(children) < 2:
        times.append(next(samples).t)
    times += [next(samples).t for _ in range(5)]
    status = source.status()
    source.close()
    assert times == sorted(set(times))
    assert status.stalls == (1 if how == signal.SIGSTOP else 0)
    assert ("no image for 0.5 s" if how == signal.SIGSTOP else "exit code -9") in (status.error or "")
    assert not is_alive(first)


PARENT = """
import os, signal
from functools import partial
import numpy as np
from edge_mbm.runtime.sources import CallableSource
from edge_mbm.runtime.sources.isolate import IsolatedSource

if __name__ == "__main__":
    source = IsolatedSource(partial(CallableSource, "image", partial(np.zeros, (2, 2, 3), np.uint8), 1), slot_bytes=12)
    print(source.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_dies_with_its_parent(tmp_path: Path, until: Any) -> None:
    """Also when nobody could tell it: a parent that is killed leaves no process behind."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    until(lambda: not is_alive(int(done.stdout)))
