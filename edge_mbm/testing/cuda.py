"""A GPU that is not there: pycuda's driver as far as we use it, over memory of its own, with every rule that it has.

What is queued on a stream happens when somebody waits for it, copies need page-locked memory, everything needs a
current context, and what is freed twice, late or without one is an error. So a program that forgets one of these
gives wrong numbers here too, or stops.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FakeDriver", "FakeGraphs"]

_CALL_US = 250.0
"""What every call takes on this GPU, by its events."""


class _Error(Exception):
    """pycuda's ``Error``."""


class _LogicError(_Error):
    """pycuda's ``LogicError``."""


class _MemoryError(_Error):
    """pycuda's ``MemoryError``."""


class FakeDriver:
    """Takes the place of ``pycuda.driver``.

    Args:
        integrated: whether host and GPU share their memory.
        name: the GPU's.
        capability: its compute capability.
        memory: bytes; what is asked for beyond it is an error.

    Attributes:
        done: what was executed, by name ("htod", "dtoh", "dtod", "kernel"), not what was queued.
        calls: what was called, by name.
        leaked: what was freed without the context being current, which pycuda leaks.
    """

    Error, LogicError, MemoryError = _Error, _LogicError, _MemoryError
    host_alloc_flags = SimpleNamespace(DEVICEMAP=2)
    device_attribute = SimpleNamespace(INTEGRATED="integrated")

    def __init__(
        self,
        *,
        integrated: bool = False,
        name: str = "Fake Orin",
        capability: tuple[int, int] = (8, 7),
        memory: int = 8 << 30,
    ) -> None:
        self.integrated, self.name, self.capability, self.memory = integrated, name, capability, memory
        self.done: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.leaked = 0
        self.call_us = _CALL_US
        self.bytes: dict[int, NDArray[np.uint8]] = {}
        self.streams: dict[int, _Stream] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self._lost = ""
        self._local = threading.local()
        self._numbers = itertools.count(1)
        self.primary = _Context(self)
        self.Device = lambda _index: _Device(self)
        self.Context = SimpleNamespace(pop=self._pop, synchronize=self.check)
        self.Stream = lambda _flags=0: _Stream(self)
        self.Event = lambda: _Event(self)

    def lose(self, why: str = "unspecified launch failure") -> None:
        """From now on every call fails, as after an Xid."""
        self._lost = why

    # --- pycuda.driver -----------------------------------------------------------------------------------------------

    def get_driver_version(self) -> int:
        """CUDA 12.6."""
        return 12060

    def mem_get_info(self) -> tuple[int, int]:
        """Free and all of it."""
        self.check()
        return self.memory - self.allocated, self.memory

    def mem_alloc(self, size: int) -> _Allocation:
        """Memory of the GPU, filled with rubbish."""
        self.calls["mem_alloc"] += 1
        self.check()
        if self.allocated + size > self.memory:
            raise _MemoryError("cuMemAlloc failed: out of memory")
        return _Allocation(self, np.full(size, 0xA5, np.uint8))

    def pagelocked_zeros(self, shape: tuple[int, ...], dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        """Page-locked memory of the host; mapped where the flags say so."""
        assert order == "C"
        self.calls["pagelocked_zeros"] += 1
        self.check()
        backing = np.zeros(shape, dtype)
        return np.asarray(_Pinned(self, backing, mapped=bool(mem_flags & self.host_alloc_flags.DEVICEMAP)))

    def memcpy_htod_async(self, place: Any, array: NDArray[Any], stream: _Stream) -> None:
        """Queue a copy to the GPU."""
        source, target = self._pinned(array), self.bytes[int(place)]
        stream.queue(lambda: self._copy("htod", target, source))

    def memcpy_dtoh_async(self, array: NDArray[Any], place: Any, stream: _Stream) -> None:
        """Queue a copy from the GPU."""
        source, target = self.bytes[int(place)], self._pinned(array)
        stream.queue(lambda: self._copy("dtoh", target, source))

    def memcpy_dtod_async(self, to: Any, place: Any, size: int, stream: _Stream) -> None:
        """Queue a copy within the GPU."""
        source, target = self.bytes[int(place)][:size], self.bytes[int(to)]
        stream.queue(lambda: self._copy("dtod", target, source))

    def memset_d8_async(self, place: Any, value: int, size: int, stream: _Stream) -> None:
        """Queue the filling of memory."""
        target = self.bytes[int(place)][:size]
        stream.queue(lambda: target.fill(value))

    def memcpy_htod(self, place: Any, array: NDArray[Any]) -> None:
        """Copy now; a stream that is not waited for is not waited for."""
        self.check()
        self._copy("htod", self.bytes[int(place)], array.reshape(-1).view(np.uint8))

    def memcpy_dtoh(self, array: NDArray[Any], place: Any) -> None:
        """Copy back now."""
        self.check()
        self._copy("dtoh", array.reshape(-1).view(np.uint8), self.bytes[int(place)])

    # --- for tests ---------------------------------------------------------------------------------------------------

    @property
    def allocated(self) -> int:
        """Bytes of the GPU that are not freed."""
        return sum(memory.nbytes for memory in self.bytes.values() if memory.base is None)

    @property
    def depth(self) -> int:
        """Contexts that this thread has pushed and not popped."""
        return len(self._stack())

    def check(self) -> None:
        """What every call of the driver demands."""
        if self._lost:
            raise _LogicError(f"failed: {self._lost}")
        if not self._stack():
            raise _LogicError("failed: invalid device context")

    def number(self) -> int:
        """An address or handle that nothing else has."""
        return next(self._numbers) << 20

    def tensor(self, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """What is at an address, as a kernel sees it."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensor: NDArray[Any] = self.bytes[address][:count].view(dtype).reshape(shape)
        return tensor

    def _stack(self) -> list[_Context]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[_Context] = self._local.stack
        return stack

    def _pop(self) -> None:
        if not self._stack():
            raise _LogicError("context::pop failed: cannot pop non-current context")
        self._stack().pop()

    def _pinned(self, array: NDArray[Any]) -> NDArray[np.uint8]:
        self.check()
        if not isinstance(array.base, _Pinned):
            raise _LogicError("a copy that is not waited for needs page-locked memory")
        return array.reshape(-1).view(np.uint8)

    def _copy(self, name: str, target: NDArray[np.uint8], source: NDArray[np.uint8]) -> None:
        target[: source.nbytes] = source[: target.nbytes]
        self.done[name] += 1


class FakeGraphs:
    """CUDA graphs of a ``FakeDriver``: ``GraphCalls``.

    Args:
        driver: whose streams are captured.
        refuses: whether nothing can be captured.
    """

    def __init__(self, driver: FakeDriver, *, refuses: bool = False) -> None:
        self._driver, self._refuses = driver, refuses

    def begin(self, stream: int) -> None:
        """See ``GraphCalls.begin``."""
        self._driver.calls["begin"] += 1
        self._driver.streams[stream].captured = []

    def end(self, stream: int) -> int:
        """See ``GraphCalls.end``."""
        self._driver.calls["end"] += 1
        captured, self._driver.streams[stream].captured = self._driver.streams[stream].captured, None
        if self._refuses or captured is None:
            raise EngineError("cuStreamEndCapture failed: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        graph = self._driver.number()
        self._driver.graphs[graph] = captured
        return graph

    def launch(self, graph: int, stream: int) -> None:
        """See ``GraphCalls.launch``."""
        self._driver.calls["launch"] += 1
        self._driver.check()
        for operation in self._driver.graphs[graph]:
            self._driver.streams[stream].queue(operation)

    def destroy(self, graph: int) -> None:
        """See ``GraphCalls.destroy``; a second time is an error."""
        self._driver.calls["destroy"] += 1
        del self._driver.graphs[graph]


class _Device:
    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver

    def name(self) -> str:
        return self._driver.name

    def compute_capability(self) -> tuple[int, int]:
        return self._driver.capability

    def get_attribute(self, name: str) -> int:
        return int(name == "integrated" and self._driver.integrated)

    def retain_primary_context(self) -> _Context:
        self._driver.calls["retain_primary_context"] += 1
        return self._driver.primary


class _Context:
    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver

    def push(self) -> None:
        self._driver._stack().append(self)  # noqa: SLF001 - one fake in several classes, as pycuda's driver is

    def detach(self) -> None:
        self._driver.calls["detach"] += 1


class _Stream:
    def __init__(self, driver: FakeDriver) -> None:
        driver.check()
        self._driver = driver
        self.handle = driver.number()
        self.captured: list[Callable[[], None]] | None = None
        self._queued: list[Callable[[], None]] = []
        driver.streams[self.handle] = self

    def queue(self, operation: Callable[[], None]) -> None:
        """To be done, or taken down where a graph is captured."""
        self._driver.check()
        (self._queued if self.captured is None else self.captured).append(operation)

    def synchronize(self) -> None:
        """Do all that is queued."""
        self._driver.check()
        if self.captured is not None:
            raise _LogicError("cuStreamSynchronize failed: operation not permitted when stream is capturing")
        queued, self._queued = self._queued, []
        for operation in queued:
            operation()


class _Event:
    def __init__(self, driver: FakeDriver) -> None:
        driver.check()
        self._driver = driver
        self.kernels = 0

    def record(self, stream: _Stream) -> None:
        def note() -> None:
            self.kernels = self._driver.done["kernel"]

        stream.queue(note)

    def time_since(self, start: _Event) -> float:
        """Milliseconds: so much for every kernel between the two."""
        self._driver.check()
        return (self.kernels - start.kernels) * self._driver.call_us / 1000


class _Allocation:
    def __init__(self, driver: FakeDriver, memory: NDArray[np.uint8]) -> None:
        self._driver = driver
        self._address = driver.number()
        driver.bytes[self._address] = memory

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._driver.calls["free"] += 1
        self._driver.check()
        if self._driver.bytes.pop(self._address, None) is None:
            raise _LogicError("cuMemFree failed: invalid argument")


class _Pinned:
    """What a page-locked array is a view of."""

    def __init__(self, driver: FakeDriver, backing: NDArray[Any], *, mapped: bool) -> None:
        self._driver, self._backing, self._mapped = driver, backing, mapped
        self._address = driver.number()
        if mapped:
            driver.bytes[self._address] = backing.reshape(-1).view(np.uint8)
        self.__array_interface__ = backing.__array_interface__

    def get_device_pointer(self) -> int:
        if not self._mapped:
            raise _LogicError("cuMemHostGetDevicePointer failed: invalid argument")
        return self._address

    def __del__(self) -> None:
        self._driver.calls["free pinned"] += 1
        self._driver.leaked += not self._driver.depth
        self._driver.bytes.pop(self._address, None)
