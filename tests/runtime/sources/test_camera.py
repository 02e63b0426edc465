"""Cameras, with a driver that a test plays; real ones are on devices."""

from __future__ import annotations

import itertools
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import InputError, MissingDependencyError, SourceError
from edge_mbm.runtime.sources.camera import CameraOptions, CameraSource, csi_pipeline, open_csi, open_v4l2
from edge_mbm.testing import FakeClock

MS, SECOND = 1_000_000, 1_000_000_000
CAP_PROP_FPS = 5
BLUE = np.zeros((2, 3, 3), np.uint8)
BLUE[..., 0] = 255  # BGR


class Driver:
    """A ``cv2.VideoCapture`` that takes a period for each frame but for those that wait in its ring."""

    def __init__(self, clock: FakeClock, *, waiting: int = 0, fps: float = 30.0, frames: int = 10**6) -> None:
        self.clock = clock
        self.waiting = waiting
        self.fps = fps
        self.frames = frames
        self.is_open = True
        self.decodes = True
        self.frame: Any = BLUE
        self.grabs = self.releases = 0

    def __call__(self, options: CameraOptions) -> Driver:
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return self.is_open

    def get(self, prop: int) -> float:
        return self.fps if prop == CAP_PROP_FPS else 0.0

    def grab(self) -> bool:
        self.grabs += 1
        if self.grabs > self.waiting:
            self.clock.advance(33 * MS)
        return self.grabs <= self.frames

    def retrieve(self) -> tuple[bool, Any]:
        self.clock.advance(5 * MS)  # decoding is no part of the capture
        return self.decodes, self.frame if self.decodes else None

    def release(self) -> None:
        self.releases += 1


def camera(driver: Driver, **options: Any) -> CameraSource:
    return CameraSource("v4l2:///dev/video0", driver, options=CameraOptions(**options), clock=driver.clock)


needs_cv2 = pytest.mark.needs("cv2")


@needs_cv2
def test_a_frame_has_the_time_of_its_grab_less_the_latency() -> None:
    """Not of its decoding; its colours are RGB, and a frame's period is how far the time may be off."""
    driver = Driver(FakeClock(SECOND))
    source = camera(driver, latency_ns=10 * MS)
    [first, second] = itertools.islice(source.samples(), 2)
    assert first.t == SECOND + 2 * 33 * MS - 10 * MS  # the first grab was to be sure
    assert second.t - first.t == 38 * MS
    assert first.data[0, 0].tolist() == [0, 0, 255]
    assert (source.timing.clock, source.timing.uncertainty_ns) == ("monotonic", SECOND // 30)


@needs_cv2
@pytest.mark.parametrize("waiting", [0, 1, 3])
def test_frames_that_waited_in_the_driver_are_not_given(waiting: int) -> None:
    """Nobody knows how old they are: the first that is given was waited for."""
    driver = Driver(FakeClock(SECOND), waiting=waiting)
    sample = next(iter(camera(driver).samples()))
    assert sample.t == SECOND + 2 * 33 * MS
    assert driver.grabs == waiting + 2


@needs_cv2
def test_a_grey_camera_gives_rgb() -> None:
    """Whatever the camera's colours, the form is one."""
    driver = Driver(FakeClock())
    driver.frame = np.full((2, 3), 7, np.uint8)
    assert next(iter(camera(driver).samples())).data.tolist() == np.full((2, 3, 3), 7).tolist()


@needs_cv2
@pytest.mark.parametrize("claimed", [0.0, -1.0, float("nan"), 1e9])
def test_a_driver_that_does_not_know_its_rate_is_not_believed(claimed: float) -> None:
    """What was asked for stands in."""
    assert camera(Driver(FakeClock(), fps=claimed), fps=20).timing.uncertainty_ns == SECOND // 20


@needs_cv2
def test_a_camera_that_cannot_be_opened_is_given_back() -> None:
    """The error says what to look at, and the handle is released."""
    driver = Driver(FakeClock())
    driver.is_open = False
    with pytest.raises(SourceError, match=r"v4l2:///dev/video0 cannot be opened.*v4l2-ctl"):
        camera(driver)
    assert driver.releases == 1


@needs_cv2
def test_an_unplugged_camera_is_an_error() -> None:
    """Whether it fails to grab or to decode."""
    with pytest.raises(SourceError, match="unplugged"):
        list(camera(Driver(FakeClock(), frames=3)).samples())
    torn = Driver(FakeClock())
    torn.decodes = False
    with pytest.raises(SourceError, match="cannot be decoded"):
        list(camera(torn).samples())


@needs_cv2
def test_closing_never_takes_the_handle_from_under_a_grab() -> None:
    """The thread that reads gives it back when it is done; and exactly once, however often it is closed."""
    driver = Driver(FakeClock())
    source = camera(driver)
    samples = iter(source.samples())
    next(samples)
    source.close()
    assert driver.releases == 0
    assert list(samples) == []
    source.close()
    assert driver.releases == 1
    assert list(source.samples()) == []


def fake_cv2(monkeypatch: pytest.MonkeyPatch, build: str) -> list[Any]:
    """A ``cv2`` that notes how a camera is opened."""
    noted: list[Any] = []

    class VideoCapture:
        def __init__(self, *arguments: Any) -> None:
            noted.append(arguments)

        def set(self, prop: str, value: float) -> None:
            noted.append((prop, value))

    names = ["CAP_V4L2", "CAP_GSTREAMER", "CAP_PROP_BUFFERSIZE", "CAP_PROP_FPS"]
    names += ["CAP_PROP_FRAME_WIDTH", "CAP_PROP_FRAME_HEIGHT"]
    module = types.SimpleNamespace(
        VideoCapture=VideoCapture, getBuildInformation=lambda: build, **{n: n for n in names}
    )
    monkeypatch.setitem(sys.modules, "cv2", module)  # type: ignore[arg-type]
    return noted


def test_a_usb_camera_is_asked_for_what_was_said_and_a_ring_of_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Through V4L2 by its device file; what was not said is left to the camera."""
    noted = fake_cv2(monkeypatch, "")
    device = tmp_path / "video0"
    device.touch()
    open_v4l2(str(device), CameraOptions(width=1280, height=720))
    assert noted == [
        (str(device), "CAP_V4L2"),
        ("CAP_PROP_BUFFERSIZE", 1),
        ("CAP_PROP_FRAME_WIDTH", 1280),
        ("CAP_PROP_FRAME_HEIGHT", 720),
    ]
    with pytest.raises(SourceError, match=r"no camera .*video7; in .* there are: .*video0"):
        open_v4l2(str(tmp_path / "video7"), CameraOptions())


def test_a_csi_camera_is_a_pipeline_that_keeps_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's source with what was asked for; an appsink that drops."""
    noted = fake_cv2(monkeypatch, "    GStreamer:                   YES (1.20.3)")
    options = CameraOptions(width=1280, height=720, fps=29.97)
    open_csi(1, options)
    pipeline = csi_pipeline(1, options)
    assert noted == [(pipeline, "CAP_GSTREAMER")]
    assert "nvarguscamerasrc sensor-id=1 !" in pipeline
    assert "video/x-raw(memory:NVMM),width=1280,height=720,framerate=29970/1000 !" in pipeline
    assert "max-buffers=1" in pipeline
    assert "drop=true" in pipeline


def test_an_opencv_without_gstreamer_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one from pip has none: which one has, and how to get it."""
    noted = fake_cv2(monkeypatch, "    GStreamer:                   NO")
    with pytest.raises(MissingDependencyError, match=r"csi://0.*GStreamer.*apt-get install python3-opencv"):
        open_csi(0, CameraOptions())
    assert not noted


def test_without_opencv_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module and the line to type."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependencyError, match=r"'cv2'.*pip install 'edge-mbm\[video\]'"):
        CameraSource("v4l2:///dev/video0", Driver(FakeClock()))


@pytest.mark.parametrize("wrong", [{"width": 0}, {"fps": float("nan")}, {"height": -1}, {"latency_ns": -1}])
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    """Before any camera is touched."""
    with pytest.raises(InputError):
        CameraOptions(**wrong)
