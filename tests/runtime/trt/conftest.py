"""A machine with a GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

import edge_mbm
from edge_mbm.bundle import BundleFiles, write_bundle
from edge_mbm.runtime import Bundle
from edge_mbm.runtime.trt.cache import EngineCache
from edge_mbm.runtime.trt.cuda import Cuda
from edge_mbm.runtime.trt.device import look_at_gpu
from edge_mbm.runtime.trt.place import Place
from edge_mbm.runtime.trt.release import Release
from edge_mbm.spec import Decision, Variant
from edge_mbm.testing import tiny_bundle
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


@pytest.fixture
def tiny_trt(tmp_path: Path) -> Bundle:
    """The tiny bundle whose image encoder has what an export makes for TensorRT; its graphs are fp32's, named anew."""
    with BundleFiles(tiny_bundle()) as files:
        manifest = files.manifest
        contents = {path: files.read(path) for path in manifest.files}
    part = manifest.components["image_encoder"]
    graph = contents[part.variants["fp32"].graph or ""]
    made = {
        f"trt-{precision}": Variant(
            target="tensorrt",
            precision=precision,
            decision=Decision(kept=kept, reason="made by hand"),
            opset=17,
            graph=f"graphs/image_encoder.trt-{precision}.onnx" if kept else None,
        )
        for precision, kept in (("fp16", True), ("int8", True), ("fp32", False))
    }
    for key, variant in made.items():
        if variant.graph:
            contents[variant.graph] = graph + named(key)
    parts = manifest.components | {"image_encoder": structs.replace(part, variants={**part.variants, **made})}
    path = tmp_path / "trt.mbm"
    write_bundle(path, structs.replace(manifest, components=parts), contents)
    return edge_mbm.load(path)


def named(name: str) -> bytes:
    """ONNX's ``doc_string`` of a model: other bytes, the same graph."""
    return bytes([6 << 3 | 2, len(name)]) + name.encode()
