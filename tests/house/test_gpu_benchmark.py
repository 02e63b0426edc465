"""``benchmarks/gpu.py`` is for a GPU; that it can be run at all is shown on one that is not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import edge_mbm
from edge_mbm.runtime.trt.cache import EngineCache
from edge_mbm.runtime.trt.cuda import Cuda
from edge_mbm.runtime.trt.device import look_at_gpu
from edge_mbm.runtime.trt.place import Place
from edge_mbm.runtime.trt.release import Release
from edge_mbm.testing import tiny_bundle
from edge_mbm.testing.cuda import FakeDriver, FakeGraphs
from edge_mbm.testing.tensorrt import ScriptedBuilder, fake_tensorrt

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.needs("onnxruntime")
def test_it_measures_every_component_and_frees_what_it_made(tmp_path: Path) -> None:
    """Parity is exact where ONNX Runtime is compared with itself, nothing leaks, and each figure is there."""
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    driver = FakeDriver()
    cuda = Cuda(driver, FakeGraphs(driver))
    with cuda.current():
        place = Place(Release(fake_tensorrt("10.3.0", driver)), look_at_gpu(driver), cuda)
    with edge_mbm.load(tiny_bundle()) as bundle:
        builder = ScriptedBuilder(version="10.3.0")
        found = gpu.measure(bundle, place, EngineCache(tmp_path / "engines"), builder, steps=100)
    assert set(found["components"]) == set(bundle.manifest.components)
    for figures in found["components"].values():
        assert figures["parity_db"] == 200.0
        assert set(figures["us"]) == {"replayed", "queued", "bare"}
        assert figures["of_bare"] > 0
    assert found["leak"] == {"steps": 100, "lost_in_calls": 0, "lost_in_loads": 0}
    assert found["overlap"]["components"] == ["image_encoder", "audio_encoder"]
    assert driver.bytes == {}
    assert driver.leaked == 0
