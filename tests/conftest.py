"""What every test may use: ``needs`` for optional parts, and ``--require`` for places where they must be there.

Programs of the system that take the place of hardware are fixtures: a test that asks for one is skipped without it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from msgspec import structs

import edge_mbm
from edge_mbm.bundle import BundleFiles, write_bundle
from edge_mbm.runtime import Bundle
from edge_mbm.spec import Decision, Variant
from edge_mbm.testing import tiny_bundle

SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = {
    "gst-rtsp-server": "gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-{good,bad,ugly} gstreamer1.0-libav",
    "pulseaudio": "pulseaudio pulseaudio-utils libasound2-plugins libportaudio2, and pip install sounddevice",
}
ELEMENTS = ("x264enc", "rtph264pay", "rtppcmapay", "alawenc", "qtdemux", "h264parse", "avdec_h264", "appsrc", "appsink")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        metavar="NAME",
        help="fail instead of skipping where the module NAME is not installed; 'all' for every one",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(module, ...): skip where a module is not installed; see --require")


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = item.config.getoption("--require")
    for mark in item.iter_markers("needs"):
        for module in mark.args:
            if importlib.util.find_spec(module) is None:
                if module in required or "all" in required:
                    pytest.fail(f"'{module}' is required here (--require) and not installed", pytrace=False)
                pytest.skip(f"'{module}' is not installed")


@pytest.fixture
def tiny() -> Path:
    return tiny_bundle()


@pytest.fixture
def gst_rtsp_server(pytestconfig: pytest.Config) -> str:
    """The Python that has GStreamer's bindings, its RTSP server and what our cameras are made of."""
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; "
    probe += f"Gst.init(None); assert all(map(Gst.ElementFactory.find, {ELEMENTS}))"
    if not Path(SYSTEM_PYTHON).exists():
        absent(pytestconfig, "gst-rtsp-server", f"no {SYSTEM_PYTHON}")
    if subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True, check=False).returncode:
        absent(pytestconfig, "gst-rtsp-server", "no bindings or plugins")
    return SYSTEM_PYTHON


@pytest.fixture
def pulseaudio(pytestconfig: pytest.Config) -> None:
    """A sound server's programs."""
    for program in ("pulseaudio", "pactl", "paplay", "pacat"):
        if shutil.which(program) is None:
            absent(pytestconfig, "pulseaudio", f"no {program}")


def absent(config: pytest.Config, name: str, why: str) -> None:
    """Skip, or fail where ``--require`` says that it must be here."""
    required = config.getoption("--require")
    reason = f"{name} is not here ({why}): apt-get install {PACKAGES[name]}"
    if name in required or "all" in required:
        pytest.fail(f"required (--require): {reason}", pytrace=False)
    pytest.skip(reason)


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
