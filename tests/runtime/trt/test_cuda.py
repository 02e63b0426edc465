"""The driver: contexts, what is lost, and CUDA graphs by libcuda's own calls."""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edge_mbm.errors import DeviceLostError, EngineError, MissingDependencyError
from edge_mbm.runtime.trt import cuda as cuda_module
from edge_mbm.runtime.trt.cuda import Cuda, LibcudaGraphs, open_cuda
from edge_mbm.testing.cuda import FakeDriver, FakeGraphs

# Six of libcuda's functions, as cuda.h declares them: what came in is noted; 719 is an error.
LIBRARY = """
#include <stdio.h>
#include <stdint.h>
typedef struct stream *CUstream; typedef struct graph *CUgraph; typedef struct exec *CUgraphExec;
static char said[4096]; static int at; static int fail;
const char *log_of(void) { return said; }
void fail_next(void) { fail = 719; }
static int end(void) { int code = fail; fail = 0; return code; }
#define SAY(...) at += snprintf(said + at, sizeof said - at, __VA_ARGS__)
int cuStreamBeginCapture_v2(CUstream s, int mode) { SAY("begin %lx %d;", (long)s, mode); return end(); }
int cuStreamEndCapture(CUstream s, CUgraph *g) { SAY("end %lx;", (long)s); *g = (CUgraph)0x7f00000000a0; return end(); }
int cuGraphInstantiateWithFlags(CUgraphExec *e, CUgraph g, unsigned long long flags) {
  SAY("instantiate %lx %llu;", (long)g, flags); *e = (CUgraphExec)0x7f00000000e0; return end(); }
int cuGraphDestroy(CUgraph g) { SAY("destroy %lx;", (long)g); return end(); }
int cuGraphLaunch(CUgraphExec e, CUstream s) { SAY("launch %lx %lx;", (long)e, (long)s); return end(); }
int cuGraphExecDestroy(CUgraphExec e) { SAY("destroy exec %lx;", (long)e); return end(); }
int cuGetErrorName(int code, const char **name) { *name = code == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : 0; return 0; }
"""
STREAM = 0x7F12345678C0


@pytest.fixture
def libcuda(tmp_path: Path) -> Any:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    (tmp_path / "cuda.c").write_text(LIBRARY)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "cuda.so", tmp_path / "cuda.c"], check=True)
    library = ctypes.CDLL(str(tmp_path / "cuda.so"))
    library.log_of.restype = ctypes.c_char_p
    return library


def test_graphs_go_through_libcuda_with_whole_handles(libcuda: Any) -> None:
    """Handles are 64-bit pointers; the graph that was taken down is freed once it is ready to launch."""
    graphs = LibcudaGraphs(libcuda)
    graphs.begin(STREAM)
    made = graphs.end(STREAM)
    graphs.launch(made, STREAM)
    graphs.destroy(made)
    assert made == 0x7F00000000E0
    assert libcuda.log_of().decode().rstrip(";").split(";") == [
        "begin 7f12345678c0 1",
        "end 7f12345678c0",
        "instantiate 7f00000000a0 0",
        "destroy 7f00000000a0",
        "launch 7f00000000e0 7f12345678c0",
        "destroy exec 7f00000000e0",
    ]


def test_a_call_that_fails_is_an_error_by_cudas_name(libcuda: Any) -> None:
    """Not a number that must be looked up."""
    libcuda.fail_next()
    with pytest.raises(EngineError, match="cuStreamBeginCapture_v2 failed: CUDA_ERROR_LAUNCH_FAILED"):
        LibcudaGraphs(libcuda).begin(STREAM)


def test_the_context_is_current_inside_and_gone_afterwards(driver: FakeDriver) -> None:
    """Also where something fails inside."""
    cuda = Cuda(driver, FakeGraphs(driver))
    with cuda.current():
        assert driver.depth == 1
        with cuda.current():
            assert driver.depth == 2
    with pytest.raises(KeyError), cuda.current():
        raise KeyError
    assert driver.depth == 0


def test_the_context_is_let_go_after_everything_that_was_made_in_it(driver: FakeDriver) -> None:
    """Once, with the last that holds it; and not by pycuda itself, which takes it for a context of its own making."""
    cuda = Cuda(driver, FakeGraphs(driver))
    assert driver.calls["detach"] == 0
    del cuda
    gc.collect()
    assert driver.calls["detach"] == 1


def test_what_fails_once_and_what_is_lost_are_told_apart(driver: FakeDriver) -> None:
    """By whether the next call works."""
    cuda = Cuda(driver, FakeGraphs(driver))
    with pytest.raises(EngineError, match="CUDA could not copy: no") as once, cuda.explain("copy"):
        raise driver.Error("no")
    assert not isinstance(once.value, DeviceLostError)
    driver.lose("GPU has fallen off the bus")
    with pytest.raises(DeviceLostError, match=r"could not copy: .*fallen off.*start it again"), cuda.explain("copy"):
        driver.Context.synchronize()


def pretend(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    """``pycuda.driver`` is ``made``; None for not installed."""
    open_cuda.cache_clear()
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", made)


@pytest.fixture(autouse=True)
def _opened_anew() -> Any:
    yield
    open_cuda.cache_clear()


def test_without_pycuda_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled where it is installed, which takes nvcc."""
    pretend(monkeypatch, None)
    with pytest.raises(MissingDependencyError, match=r"'pycuda', which is not installed.*edge-mbm\[tensorrt\].*nvcc"):
        open_cuda()


def test_without_nvidias_driver_it_is_said_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pycuda is there, and its library is not: in a container that was started without the GPU."""
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").touch()
    reason = "libcuda.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "pycuda" / "driver.py").write_text(f"raise ImportError({reason!r})")
    open_cuda.cache_clear()
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"install NVIDIA's driver.*--gpus all"):
        open_cuda()


@pytest.mark.parametrize("fault", ["no device", "none"])
def test_without_a_gpu_it_is_said_what_else_can_be_done(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Run on the CPU, or build ahead of time: no traceback out of pycuda."""

    def init() -> None:
        if fault == "no device":
            raise FakeDriver.Error("cuInit failed: no CUDA-capable device is detected")

    made = FakeDriver()
    made.init = init  # type: ignore[attr-defined]
    made.Device = type("Device", (), {"count": staticmethod(lambda: 0)})  # type: ignore[assignment]
    pretend(monkeypatch, made)
    with pytest.raises(EngineError, match=r"there is no GPU that CUDA can use.*--provider cpu.*--target rtx") as info:
        open_cuda()
    assert info.value.exit_code == 6


def test_every_name_of_pycuda_that_we_use_is_in_pycuda() -> None:
    """As it was read from its releases themselves, by scripts/pycuda_api.py."""
    recorded = json.loads(Path(__file__).with_name("pycuda_api.json").read_text())
    for names in recorded.values():
        assert [name for name, there in names.items() if not there] == []
    [first, *_] = recorded.values()
    used = {part for name in first for part in name.split(".")}
    faked = {name for name in vars(FakeDriver) if not name.startswith("_")} | {"Device", "Context", "Stream", "Event"}
    ours = {"lose", "allocated", "depth", "check", "number", "tensor"}
    assert faked - ours <= used
    assert cuda_module.__doc__
