"""A source in a process of its own: a driver that hangs, crashes or holds the GIL takes nothing else with it."""

from __future__ import annotations

import multiprocessing
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection as Pipe
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np

from edge_mbm.errors import InputError, SourceError
from edge_mbm.runtime.source import Sample, Source, Timing
from edge_mbm.runtime.sources.lease import Lease
from edge_mbm.runtime.sources.mask import mask

__all__ = ["IsolatedSource", "isolated"]

SLOTS = 4
"""Frames in the shared memory: one being written, one being read, and two for a reader that is late."""
_HEADER = struct.Struct("<Q")
_WAIT_S = 0.1
_JOIN_S = 2.0


def isolated(open_device: Callable[[], Source], *, slot_bytes: int) -> Callable[[], IsolatedSource]:
    """What to give to ``Supervised`` for a device that is to be opened in a process of its own.

    ::

        camera = partial(CameraSource, "front", partial(open_v4l2, "/dev/video0"))
        source = Supervised("front", isolated(camera, slot_bytes=1280 * 720 * 3), ("image",), audio_blocks=500)

    Args:
        open_device: see ``IsolatedSource``.
        slot_bytes: the largest frame, width x height x 3.
    """
    return partial(IsolatedSource, open_device, slot_bytes=slot_bytes)


class IsolatedSource:
    """Runs another source in a child process; frames come through shared memory, all else through a pipe.

    Put it into ``Supervised``: a child that is stopped is a stall there, and one that is killed an error, and both are
    replaced. The child ends with this process, however that ends. It is spawned, not forked: ``open_device`` is a
    function of a module or a ``functools.partial`` of one, and a program's own start is behind
    ``if __name__ == "__main__"``.

    Args:
        open_device: opens the device and gives its source, in the child.
        slot_bytes: the largest frame, width x height x 3.
        open_timeout_s: for the child to start and open the device.

    Raises:
        InputError: ``open_device`` cannot be handed to another process.
        SourceError: the device cannot be opened, or not in time.
    """

    def __init__(self, open_device: Callable[[], Source], *, slot_bytes: int, open_timeout_s: float = 10.0) -> None:
        self._slot_bytes = slot_bytes
        self._overwritten = 0
        self._memory = SharedMemory(create=True, size=SLOTS * (_HEADER.size + slot_bytes))
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe(duplex=False)
        lifeline, self._lifeline = spawn.Pipe(duplex=False)
        arguments = (open_device, self._memory.name, slot_bytes, theirs, lifeline)
        self._child = spawn.Process(target=_serve, args=arguments, name="edge-mbm-source", daemon=True)
        self._lease = Lease(self._release)
        try:
            self._start(theirs, lifeline)
            self.modalities, self.timing = self._await_opened(open_timeout_s)
        except BaseException:
            self.close()
            raise
        finally:
            self._memory.unlink()  # both have it mapped by now, so nothing is left behind whoever dies

    @property
    def pid(self) -> int | None:
        """The child's process id; None once it is closed."""
        return None if self._lease.closed else self._child.pid

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        with self._lease.held():
            while not self._lease.closed:
                message = self._receive()
                if isinstance(message, _Failed):
                    raise SourceError(message.words)
                if isinstance(message, _Frame):
                    message = self._read(message)
                if message is not None:
                    yield message

    def close(self) -> None:
        """See ``Source.close``: the child is killed, which also ends a device call that hangs."""
        with suppress(ValueError, AttributeError):  # it never started, or is closed
            self._child.kill()
        self._lease.close()

    def losses(self) -> dict[str, int]:
        """Counts by cause: frames ``overwritten`` before they were read."""
        return {"frames.overwritten": self._overwritten} if self._overwritten else {}

    def _start(self, theirs: Pipe, lifeline: Pipe) -> None:
        try:
            self._child.start()
        except (AttributeError, TypeError, ValueError) as error:
            reason = f"what opens the device cannot be handed to another process: {error}"
            raise InputError(f"{reason}. Give a function of a module, or a functools.partial of one") from error
        finally:
            theirs.close()
            lifeline.close()

    def _await_opened(self, timeout_s: float) -> tuple[tuple[str, ...], Timing]:
        if not self._pipe.poll(timeout_s):
            raise SourceError(f"the source's process did not open the device within {timeout_s:g} s")
        message = self._receive()
        if isinstance(message, _Failed):
            raise SourceError(message.words)
        modalities, timing = message
        return modalities, Timing(*timing)

    def _receive(self) -> Any:
        """The next message; None for none yet."""
        try:
            return self._pipe.recv() if self._pipe.poll(_WAIT_S) else None
        except (EOFError, OSError):
            if self._lease.closed:
                return None
        self._child.join(_JOIN_S)
        raise SourceError(f"the source's process ended (exit code {self._child.exitcode})")

    def _read(self, frame: _Frame) -> Sample | None:
        """Copy a frame out; None if it was overwritten meanwhile."""
        memory, begin = self._memory.buf, frame.slot * (_HEADER.size + self._slot_bytes)
        assert memory is not None
        before = _HEADER.unpack_from(memory, begin)
        data = np.ndarray(frame.shape, frame.dtype, memory, begin + _HEADER.size).copy()
        if before == _HEADER.unpack_from(memory, begin) == (frame.generation,):
            return frame.sample._replace(data=data)
        self._overwritten += 1
        return None

    def _release(self) -> None:
        if self._child.pid is not None:
            self._child.join(_JOIN_S)
        self._pipe.close()
        self._lifeline.close()
        self._memory.close()


class _Frame(NamedTuple):
    """A frame that lies in a slot."""

    sample: Sample
    slot: int
    generation: int
    shape: tuple[int, ...]
    dtype: str


class _Failed(NamedTuple):
    """The child's last words."""

    words: str


def _serve(open_device: Callable[[], Source], name: str, slot_bytes: int, pipe: Pipe, lifeline: Pipe) -> None:
    """The child: opens, reads, hands over, and never outlives its parent."""
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    memory = SharedMemory(name)
    try:
        source = open_device()
        pipe.send((source.modalities, tuple(source.timing)))
        for count, sample in enumerate(source.samples()):
            pipe.send(_put(memory, slot_bytes, count, sample))
        pipe.send(_Failed("it ended"))
    except BaseException as error:  # noqa: BLE001 - the parent is to hear of it, whatever it is
        with suppress(OSError):
            pipe.send(_Failed(mask(str(error) if isinstance(error, SourceError) else repr(error))))
    finally:
        memory.close()


def _put(memory: SharedMemory, slot_bytes: int, count: int, sample: Sample) -> Sample | _Frame:
    """Write a frame to its slot; sound and whatever is no array goes through the pipe, which loses nothing."""
    if sample.rate is not None or not isinstance(sample.data, np.ndarray):
        return sample
    data = sample.data
    if data.nbytes > slot_bytes:
        raise SourceError(f"a frame of {data.nbytes} bytes is too large for slot_bytes={slot_bytes}: give it more")
    slot, generation = count % SLOTS, 2 * count + 2
    assert memory.buf is not None
    begin = slot * (_HEADER.size + slot_bytes)
    _HEADER.pack_into(memory.buf, begin, generation - 1)  # odd while it is written
    np.ndarray(data.shape, data.dtype, memory.buf, begin + _HEADER.size)[...] = data
    _HEADER.pack_into(memory.buf, begin, generation)
    return _Frame(sample._replace(data=None), slot, generation, data.shape, data.dtype.str)


def _die_with_parent(lifeline: Pipe) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent: it ends with the parent
    os._exit(1)
