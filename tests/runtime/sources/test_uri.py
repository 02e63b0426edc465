"""Addresses: what they open, and what is said of wrong ones."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from edge_mbm.errors import EdgeMbmError, InputError, SourceError
from edge_mbm.runtime.sources import Supervised, open_source, uri
from edge_mbm.runtime.sources.mask import mask
from edge_mbm.runtime.sources.supervise import Supervision
from edge_mbm.testing import FakeClock, ScriptedSource


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the devices' classes were called with; nothing is touched."""
    calls: list[Any] = []

    def note(kind: str) -> Any:
        def make(*arguments: Any, **named: Any) -> Any:
            calls.append((kind, arguments, named))
            raise SourceError("not in a test")

        return make

    for name in ("CameraSource", "MicrophoneSource", "StreamSource", "FileSource"):
        monkeypatch.setattr(uri, name, note(name))
    monkeypatch.setattr(uri, "open_v4l2", lambda device, options: ("v4l2", device))
    monkeypatch.setattr(uri, "open_csi", lambda sensor, options: ("csi", sensor))
    return calls


def open_and_close(address: str, **names: Any) -> Supervised:
    source = open_source(address, clock=FakeClock(), **names)
    assert isinstance(source, Supervised)
    source.close()
    return source


@pytest.mark.parametrize(
    ("address", "driver", "width"),
    [
        ("v4l2:///dev/video0?width=1280&height=720&fps=30", ("v4l2", "/dev/video0"), 1280),
        ("v4l2://video2", ("v4l2", "/dev/video2"), None),
        ("v4l2:///dev/v4l/by-id/usb-A%20cam?fps=29.97&latency=12.5ms", ("v4l2", "/dev/v4l/by-id/usb-A cam"), None),
        ("csi://0?width=640", ("csi", 0), 640),
        ("csi:///1", ("csi", 1), None),
    ],
)
def test_cameras(opened: list[Any], address: str, driver: Any, width: int | None) -> None:
    """By device file or sensor, with what is asked of them; supervised, as the bundle's picture."""
    source = open_and_close(address, image="eye")
    assert source.modalities == ("eye",)
    [(kind, (_, open_capture), named)] = opened
    assert kind == "CameraSource"
    assert open_capture(named["options"]) == driver
    assert named["options"].width == width
    assert named["modality"] == "eye"


@pytest.mark.parametrize(
    ("address", "device", "rate", "block_ms"),
    [
        ("mic://default", None, 16_000, 20.0),
        ("mic://default?rate=48000&channels=2&block=10ms", None, 48_000, 10.0),
        ("mic://3?block=0.1s&buffer=2s", 3, 16_000, 100.0),
        ("mic://USB%20Audio", "USB Audio", 16_000, 20.0),
        ("mic://hw:1,0", "hw:1,0", 16_000, 20.0),
    ],
)
def test_microphones(opened: list[Any], address: str, device: Any, rate: int, block_ms: float) -> None:
    """By default, by number, or by a part of the name."""
    assert open_and_close(address).modalities == ("audio",)
    [(_, arguments, named)] = opened
    assert arguments == (device,)
    assert (named["options"].rate, named["options"].block_ms) == (rate, block_ms)


def test_network_cameras_keep_their_own_query(opened: list[Any]) -> None:
    """Their address goes to the camera as it is; ours are behind the #."""
    address = "rtsp://admin:pw@10.0.0.5:554/cam?channel=1#transport=udp&read_timeout=500ms"
    source = open_and_close(address)
    [(_, arguments, named)] = opened
    assert arguments == ("rtsp://admin:pw@10.0.0.5:554/cam?channel=1",)
    assert (named["options"].transport, named["options"].read_timeout_s) == ("udp", 0.5)
    assert source.modalities == ("image", "audio")
    assert open_and_close("udp://@239.0.0.1:5004", audio=None).modalities == ("image",)


@pytest.mark.parametrize(
    ("address", "path"),
    [("clip.mp4", "clip.mp4"), ("file:///data/a%20b.mp4", "/data/a b.mp4"), (Path("x/y.mkv"), "x/y.mkv")],
)
def test_recordings_are_not_supervised(opened: list[Any], address: Any, path: str) -> None:
    """A file that is not there is an error at once."""
    with pytest.raises(SourceError, match="not in a test"):
        open_source(address, audio=None)
    assert opened == [("FileSource", (path,), {"image": "image", "audio": None})]


def test_a_source_is_returned_as_it_is() -> None:
    """So that whoever takes an address takes a source too."""
    source = ScriptedSource([])
    assert open_source(source) is source


@pytest.mark.parametrize("address", ["mcap:///data/drive.mcap", "/data/drive.mcap"])
def test_mcap_is_replayed_where_there_is_a_replay(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """It is imported when it is asked for; where it is absent, the error says so."""
    name = "edge_mbm.runtime.recording"
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(ReplaySource=lambda path: ("replay", path)))  # type: ignore[arg-type]
    assert open_source(address) == ("replay", "/data/drive.mcap")
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="cannot replay"):
        open_source(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("v4l:///dev/video0", "Did you mean 'v4l2'"),
        ("gopher://x", "There are: v4l2, csi, mic, rtsp"),
        ("v4l2:///dev/video0?widht=3", "no option 'widht'. Did you mean 'width'"),
        ("v4l2:///dev/video0?width=wide", "'width=wide' .*whole number"),
        ("v4l2:///dev/video0?width=-1", "'width=-1' .*whole number"),
        ("v4l2:///dev/video0?fps=nan", "'fps=nan' .*a number"),
        ("v4l2:///dev/video0?width=3&width=4", "'width' twice"),
        ("v4l2:///dev/video0?width", "not key=value"),
        ("v4l2:///dev/video0?width=0", "above 0"),
        ("v4l2://", "names no camera"),
        ("csi://front", "names no sensor"),
        ("mic://", "names no microphone"),
        ("mic://default?block=20", "with its unit"),
        ("mic://default?rate=12", "12 Hz"),
        ("mic://default?channels=0", "channels"),
        ("rtsp:///path", "names no host"),
        ("rtsp://[::1/x", "no address"),
        ("rtsp://h:99999/x", "has a port"),
        ("v4l2://[x", "no address"),
        ("csi://[0", "no address"),
        ("mic://[x", "no address"),
        ("file://[x", "no address"),
        ("rtsp://h/x#transprot=udp", "Did you mean 'transport'"),
        ("rtsp://h/x#transport=pigeon", "'tcp' or 'udp'"),
    ],
)
def test_wrong_addresses_are_refused_with_a_hint(opened: list[Any], address: str, message: str) -> None:
    """Before anything is opened."""
    with pytest.raises(EdgeMbmError, match=message) as caught:
        open_source(address)
    assert isinstance(caught.value, InputError | SourceError)
    assert not opened


@pytest.mark.parametrize(
    ("address", "names"),
    [("v4l2:///dev/video0", {"image": None}), ("mic://default", {"audio": None}), ("rtsp://h/x", {})],
)
def test_what_the_bundle_has_no_use_for_is_refused(opened: list[Any], address: str, names: dict[str, Any]) -> None:
    """A camera for a bundle that only listens."""
    with pytest.raises(SourceError, match=r"no use|neither"):
        open_source(address, **(names or {"image": None, "audio": None}))
    assert not opened


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://admin:s3cr3t@10.0.0.5/live",
        "rtsp://admin:s3/cr3t@x@10.0.0.5/live",
        "rtsp://admin:s3cr3t/x@10.0.0.5/live",
        "rtsp://admin:[s3cr3t@10.0.0.5/live",
        "http://10.0.0.5/video?user=admin&pwd=s3cr3t",
        "rtps://admin:s3cr3t@10.0.0.5/live",
        "rtsp://admin:s3cr3t@10.0.0.5/live#transport=pigeon",
    ],
)
def test_no_error_or_status_has_a_password_in_it(opened: list[Any], address: str) -> None:
    """Whatever is wrong with the address, and when nothing is."""
    try:
        seen = repr(open_and_close(address).status())
    except EdgeMbmError as error:
        seen = str(error)
    assert "s3" not in seen
    assert "cr3t" not in seen


def test_masking_leaves_the_rest_readable() -> None:
    """Host and path stay, and so does what is no address."""
    assert mask("cannot open rtsp://a:b@cam:554/x: refused") == "cannot open rtsp://***@cam:554/x: refused"
    assert mask("a@b.c wrote to v4l2:///dev/video0?width=3") == "a@b.c wrote to v4l2:///dev/video0?width=3"


def test_the_supervision_is_the_callers(opened: list[Any]) -> None:
    """How patient to be with a device is handed through."""
    options = Supervision(attempts=1)
    source = open_source("mic://default", supervision=options, clock=FakeClock())
    with pytest.raises(SourceError, match="failed 1 times in a row, first with: not in a test"):
        list(source.samples())


def test_importing_sources_imports_no_driver() -> None:
    """Neither OpenCV nor PyAV nor PortAudio: a robot has what it uses."""
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('cv2', 'av', 'sounddevice', 'torch', 'onnx')))\n"
        "import edge_mbm.runtime.sources\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_opening_an_address_does_not_import_numpys_chance() -> None:
    """A Ctrl-C while ``numpy.random`` is imported is cleared by its Cython: the program went on as if none had come."""
    script = (
        "import sys\n"
        "from edge_mbm.runtime.sources import open_source\n"
        "open_source('rtsp://127.0.0.1:9/x').close()\n"
        "assert 'numpy.random' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
