"""The CUDA driver, as much of it as running an engine takes.

pycuda does memory, streams and events, but knows no CUDA graphs: those are six calls of ``libcuda`` itself. All work is
done in the device's primary context, which is the one that the CUDA runtime uses too: a host program with torch or a
ROS node with its own kernels shares it. It is pushed around each call and popped after it, so that the host's own
context is current again, and it is retained once for the life of the process: pycuda cannot release it from another
thread than the one that retained it.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from edge_mbm.errors import DeviceLostError, EngineError, MissingDependencyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Cuda", "GraphCalls", "LibcudaGraphs", "open_cuda"]

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: a stream that does not wait for the host program's default stream."""
_THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may use CUDA while this one captures."""


class GraphCalls(Protocol):
    """CUDA graphs: what is queued on a stream is taken down, and can be launched again as one.

    A protocol because the fake of the tests has them too. Handles are integers. All raise EngineError.
    """

    def begin(self, stream: int) -> None:
        """From now on what is queued on the stream is not run, but taken down."""
        ...

    def end(self, stream: int) -> int:
        """The graph of what was queued since, ready to launch."""
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Queue all of it."""
        ...

    def destroy(self, graph: int) -> None:
        """Free it."""
        ...


class LibcudaGraphs:
    """CUDA graphs by ``libcuda``'s own calls, which pycuda lacks; CUDA 11.4 and later have all of them.

    Args:
        library: the loaded ``libcuda.so.1``.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def begin(self, stream: int) -> None:
        """See ``GraphCalls.begin``."""
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_THREAD_LOCAL))

    def end(self, stream: int) -> int:
        """See ``GraphCalls.end``."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return executable.value or 0

    def launch(self, graph: int, stream: int) -> None:
        """See ``GraphCalls.launch``."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy(self, graph: int) -> None:
        """See ``GraphCalls.destroy``."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise EngineError(f"{name} failed: {self._name_of(code)}")

    def _name_of(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
        return (text.value or b"").decode() or f"CUDA error {code}"


class Cuda:
    """The first GPU, by pycuda.

    Args:
        driver: ``pycuda.driver``, initialised.
        graphs: see ``GraphCalls``.

    Raises:
        EngineError: there is no GPU, or it cannot be used.
    """

    def __init__(self, driver: Any, graphs: GraphCalls) -> None:
        self.driver = driver
        self.graphs = graphs
        with self.explain("open the GPU"):
            self._context = driver.Device(0).retain_primary_context()
        # After all engines, which hold this; by itself pycuda would release it as if it were no primary context.
        weakref.finalize(self, self._context.detach)

    @contextmanager
    def current(self) -> Iterator[None]:
        """The primary context is current inside, in this thread, and what was current is so again afterwards."""
        self._context.push()
        try:
            yield
        finally:
            self.driver.Context.pop()

    @contextmanager
    def explain(self, action: str) -> Iterator[None]:
        """Turn what the driver raises into an EngineError, and into DeviceLostError where the GPU does no more.

        After an Xid, an illegal access or a reset every further call fails: that tells the two apart.
        """
        try:
            yield
        except self.driver.Error as error:
            if self._is_lost():
                raise DeviceLostError(
                    f"the GPU was lost: could not {action}: {error}. The kernel's log says why (journalctl -k | "
                    "grep -e Xid -e nvgpu); this process cannot use the GPU any more: start it again"
                ) from error
            raise EngineError(f"CUDA could not {action}: {error}") from error

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype[Any] | str, *, mapped: bool) -> NDArray[Any]:
        """Page-locked memory as an array of zeros, freed with its last view; ``mapped`` into the GPU's addresses."""
        flags = self.driver.host_alloc_flags.DEVICEMAP if mapped else 0
        array: NDArray[Any] = self.driver.pagelocked_zeros(shape, dtype, mem_flags=flags)
        return array

    def address_of(self, array: NDArray[Any]) -> int:
        """Where the GPU sees a mapped array."""
        base: Any = array.base
        return int(base.get_device_pointer())

    def stream(self) -> Any:
        """A stream of its own."""
        return self.driver.Stream(_NON_BLOCKING)

    def _is_lost(self) -> bool:
        context = getattr(self, "_context", None)
        if context is None:
            return False
        try:
            context.push()
            try:
                self.driver.Context.synchronize()
            finally:
                self.driver.Context.pop()
        except self.driver.Error:
            return True
        return False


@cache
def open_cuda() -> Cuda:
    """The GPU of this machine, opened once for the process.

    Raises:
        MissingDependencyError: pycuda is not installed, or NVIDIA's driver is not.
        EngineError: there is no GPU, or the driver does not work.
    """
    try:
        driver: Any = importlib.import_module("pycuda.driver")
    except ImportError as error:
        remedy = (
            "pip install 'edge-mbm[tensorrt]' (it is compiled here: nvcc and CUDA's headers must be on this machine)"
        )
        if "libcuda" in str(error):
            remedy = (
                "install NVIDIA's driver: its libcuda.so.1 is not here (in a container: --runtime nvidia, --gpus all)"
            )
        raise MissingDependencyError("pycuda", "running TensorRT engines", remedy) from None
    try:
        driver.init()
        if driver.Device.count() == 0:
            raise EngineError(_NO_GPU)
    except driver.Error as error:
        raise EngineError(f"{_NO_GPU} ({error})") from error
    return Cuda(driver, LibcudaGraphs(ctypes.CDLL("libcuda.so.1")))


_NO_GPU = (
    "there is no GPU that CUDA can use on this machine: see edge-mbm doctor. Run the bundle on the CPU (--provider "
    "cpu), or build for a GPU that is elsewhere with edge-mbm compile --target rtx --capability SM86"
)
