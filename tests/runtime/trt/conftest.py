"""A machine with a GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_mbm.runtime.trt.cache import EngineCache
from edge_mbm.runtime.trt.cuda import Cuda
from edge_mbm.runtime.trt.device import look_at_gpu
from edge_mbm.runtime.trt.place import Place
from edge_mbm.runtime.trt.release import Release
from edge_mbm.testing.cuda import FakeDriver, FakeGraphs
from edge_mbm.testing.tensorrt import fake_tensorrt

MakePlace = Callable[..., Place]


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def make_place(driver: FakeDriver) -> MakePlace:
    def make(version: str = "10.3.0", gpu: FakeDriver | None = None, *, captures: bool = True, **fake: Any) -> Place:
        gpu = gpu or driver
        cuda = Cuda(gpu, FakeGraphs(gpu, refuses=not captures))
        with cuda.current():
            seen = look_at_gpu(gpu)
        kind = fake.get("kind", "tensorrt")
        return Place(Release(fake_tensorrt(version, gpu, **fake), kind), seen, cuda)

    return make


@pytest.fixture
def place(make_place: MakePlace) -> Place:
    return make_place()


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")
