"""What a machine has to build and run engines with, and under which key an engine is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_mbm.errors import EngineError, InputError, MissingDependencyError
from edge_mbm.runtime.trt.cuda import Cuda
from edge_mbm.runtime.trt.device import Gpu, absent_gpu, engine_key, look_at_gpu, workspace_bytes
from edge_mbm.runtime.trt.place import find_place
from edge_mbm.runtime.trt.release import Release
from edge_mbm.testing.cuda import FakeDriver, FakeGraphs
from edge_mbm.testing.tensorrt import fake_tensorrt

GRAPH = "a" * 64
MEMINFO = "MemTotal:       16000000 kB\nMemAvailable:    8388608 kB\n"


def installed(**versions: str) -> Any:
    """Finds these, and nothing else."""

    def find(kind: Any) -> Release:
        if kind not in versions:
            raise MissingDependencyError(kind, "running TensorRT engines", "install it")
        return Release(fake_tensorrt(versions[kind], kind=kind), kind)

    return find


def opened(driver: FakeDriver) -> Any:
    return lambda: Cuda(driver, FakeGraphs(driver))


def no_gpu() -> Cuda:
    raise EngineError("there is no GPU")


def root(tmp_path: Path, **files: str) -> Path:
    for name, text in {"meminfo": MEMINFO, **files}.items():
        path = (
            tmp_path / {"meminfo": "proc/meminfo", "nvidia": "sys/module/nvidia/version", "id": "etc/machine-id"}[name]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_gpu_is_described_by_what_engines_depend_on(tmp_path: Path) -> None:
    """Name, compute capability, driver; and whether it shares the machine's memory."""
    driver = FakeDriver(integrated=True, name="Orin (nvgpu)", capability=(8, 7), memory=1 << 30)
    with opened(driver)().current():
        seen = look_at_gpu(driver, root(tmp_path, nvidia="540.4.0\n"))
    assert seen == Gpu(
        name="Orin (nvgpu)", capability="8.7", driver="CUDA 12.6, 540.4.0", is_integrated=True, free_bytes=1 << 30
    )
    assert seen.is_here


def test_auto_takes_tensorrt_before_rtx(driver: FakeDriver) -> None:
    """And says what TensorRT lacks where there is neither."""
    both = find_place(release=installed(tensorrt="10.3.0", rtx="1.7.1"), cuda=opened(driver))
    assert str(both) == "TensorRT 10.3.0 on Fake Orin"
    assert str(find_place(release=installed(rtx="1.7.1"), cuda=opened(driver))) == "TensorRT-RTX 1.7.1 on Fake Orin"
    with pytest.raises(MissingDependencyError, match="'tensorrt'"):
        find_place(release=installed(), cuda=opened(driver))
    assert driver.depth == 0


def test_without_a_gpu_there_is_no_place_but_elsewhere() -> None:
    """TensorRT-RTX alone, for a kind of GPU that it knows."""
    with pytest.raises(EngineError, match="there is no GPU"):
        find_place(release=installed(tensorrt="10.3.0"), cuda=no_gpu)
    found = find_place("rtx", "SM86", release=installed(rtx="1.7.1"), cuda=no_gpu)
    assert (found.cuda, found.capability, found.gpu) == (None, "SM86", absent_gpu("SM86"))
    assert not found.gpu.is_here
    with pytest.raises(InputError, match=r"TensorRT-RTX 1\.7\.1 cannot build for 'SM42'; it knows SM86, SM89"):
        find_place("rtx", "SM42", release=installed(rtx="1.7.1"), cuda=no_gpu)
    with pytest.raises(InputError, match="--target rtx"):
        find_place("tensorrt", "SM86", release=installed(tensorrt="10.3.0"), cuda=no_gpu)


def test_kinds_of_gpus_have_their_numbers_in_their_names() -> None:
    """SM120 is 12.0."""
    assert absent_gpu("SM120").capability == "12.0"
    assert absent_gpu("SM86").capability == "8.6"


def test_a_key_changes_with_typing_and_machine(tmp_path: Path) -> None:
    """8.5 computes by other rules; and the machine's id is in it, but not to be read out of it."""
    gpu = absent_gpu("SM86")
    old, new = (Release(fake_tensorrt(version)) for version in ("8.5.3.1", "10.3.0"))
    here = root(tmp_path / "a", id="0123456789abcdef\n")
    key = engine_key(GRAPH, new, gpu, here)
    assert (key.options, engine_key(GRAPH, old, gpu, here).options) == (("strongly typed",), ("weakly typed",))
    assert key == engine_key(GRAPH, new, gpu, here)
    assert key.machine != engine_key(GRAPH, new, gpu, root(tmp_path / "b", id="fedcba\n")).machine
    assert "0123456789abcdef" not in key.machine


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (Gpu(name="RTX", capability="8.6", free_bytes=6 << 30), 3 << 30),
        (Gpu(name="Orin", capability="8.7", is_integrated=True, free_bytes=15 << 30), 4 << 30),
        (Gpu(name="Orin", capability="8.7", is_integrated=True, free_bytes=2 << 30), 1 << 30),
        (absent_gpu("SM86"), 4 << 30),
    ],
    ids=["own memory", "the machine's memory", "less than the machine's", "elsewhere"],
)
def test_a_build_takes_half_of_what_is_free(tmp_path: Path, gpu: Gpu, expected: int) -> None:
    """On a Jetson of what Linux could free, which the GPU's own figure ignores."""
    assert workspace_bytes(gpu, root(tmp_path)) == expected


def test_where_nothing_is_known_tensorrt_decides(tmp_path: Path) -> None:
    """No /proc, no GPU: no limit of ours."""
    assert workspace_bytes(absent_gpu("SM86"), tmp_path) is None
