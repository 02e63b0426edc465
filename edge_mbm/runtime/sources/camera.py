"""Cameras on this machine, through OpenCV: USB (V4L2) and CSI (GStreamer)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge_mbm.errors import InputError, MissingDependencyError, SourceError
from edge_mbm.runtime.clock import Clock, MonotonicClock
from edge_mbm.runtime.source import Sample, Timing
from edge_mbm.runtime.sources.lease import Lease

__all__ = ["CameraOptions", "CameraSource", "Capture", "open_csi", "open_v4l2"]

_SECOND = 1_000_000_000
_RING = 4
"""Frames that a driver may hold from before somebody looked."""
_DEFAULT_FPS = 30.0


@dataclass(frozen=True)
class CameraOptions:
    """What a camera is asked for.

    Args:
        width: of a frame, pixels; None for the camera's own.
        height: the same.
        fps: frames a second; None for the camera's own.
        latency_ns: from the middle of the exposure to the moment at which the driver has the frame.

    Raises:
        InputError: a value that no camera has.
    """

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    latency_ns: int = 0

    def __post_init__(self) -> None:
        if any(value is not None and not value > 0 for value in (self.width, self.height, self.fps)):
            raise InputError(f"a camera's width, height and fps are above 0, not {self}")
        if self.latency_ns < 0:
            raise InputError(f"a latency of {self.latency_ns} ns would be a frame from the future")


class Capture(Protocol):
    """What is used of ``cv2.VideoCapture``; a protocol, so that tests can be the driver."""

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        """Whether there is a camera."""
        ...

    def get(self, prop: int, /) -> float:
        """One of its properties."""
        ...

    def grab(self) -> bool:
        """Wait for the next frame."""
        ...

    def retrieve(self) -> tuple[bool, Any]:
        """Decode the frame that was grabbed: BGR, or grey."""
        ...

    def release(self) -> None:
        """Give the camera back."""
        ...


class CameraSource:
    """A camera's frames as uint8[H, W, 3] RGB, each with the monotonic time at which it was grabbed, less the latency.

    Args:
        name: for people.
        open_capture: opens the camera: ``open_v4l2`` or ``open_csi`` with its arguments, or a test's.
        modality: that its frames are.
        options: what it was asked for.
        clock: monotonic time.

    Raises:
        MissingDependencyError: OpenCV is not installed, or cannot do this.
        SourceError: there is no such camera, or it is in use.
    """

    def __init__(
        self,
        name: str,
        open_capture: Callable[[CameraOptions], Capture],
        *,
        modality: str = "image",
        options: CameraOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.modalities = (modality,)
        self._options = options or CameraOptions()
        self._clock = clock or MonotonicClock()
        self._cv2 = _import_cv2()
        self._capture = open_capture(self._options)
        self._lease = Lease(self._capture.release)
        if not self._capture.isOpened():
            self.close()
            raise SourceError(
                f"{name} cannot be opened: is it a camera, and does no other program use it? "
                "'v4l2-ctl --list-devices' shows what is there"
            )
        self._period = int(_SECOND / self._fps())

    @property
    def timing(self) -> Timing:
        """See ``Source.timing``: off by a frame's period at most, if the latency was given right."""
        return Timing("monotonic", self._period)

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        with self._lease.held() as is_open:
            if is_open:
                self._skip_old()
            while not self._lease.closed:
                t = self._grab()
                ok, frame = self._capture.retrieve()
                if not ok or frame is None:
                    raise SourceError(
                        f"{self.name} gave a frame that cannot be decoded: is its cable too long or loose?"
                    )
                yield Sample(self.modalities[0], self._rgb(frame), t)

    def close(self) -> None:
        """See ``Source.close``."""
        self._lease.close()

    def _fps(self) -> float:
        claimed = self._capture.get(self._cv2.CAP_PROP_FPS)
        # Drivers that do not know say 0, -1 or NaN.
        return claimed if 0.1 <= claimed <= 10_000 else self._options.fps or _DEFAULT_FPS

    def _grab(self) -> int:
        """Wait for a frame; returns its capture time."""
        if not self._capture.grab():
            raise SourceError(f"{self.name} gave no frame: was it unplugged?")
        return self._clock.now() - self._options.latency_ns

    def _skip_old(self) -> None:
        """Drop frames that waited in the driver since it was opened: their age is not known. A new one takes time."""
        for _ in range(_RING):
            begun = self._clock.now()
            self._grab()
            if self._clock.now() - begun >= self._period // 2 or self._lease.closed:
                return

    def _rgb(self, frame: Any) -> Any:
        code = self._cv2.COLOR_GRAY2RGB if frame.ndim == 2 else self._cv2.COLOR_BGR2RGB
        return self._cv2.cvtColor(frame, code)


def open_v4l2(device: str, options: CameraOptions) -> Capture:
    """Open a camera by its device file ("/dev/video0").

    Raises:
        MissingDependencyError: OpenCV is not installed.
        SourceError: there is no such device file, or this user may not use it.
    """
    cv2 = _import_cv2()
    _check_device(Path(device))
    capture: Capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
    asked = {
        cv2.CAP_PROP_BUFFERSIZE: 1,  # a frame that waits in the driver is a frame that lies
        cv2.CAP_PROP_FRAME_WIDTH: options.width,
        cv2.CAP_PROP_FRAME_HEIGHT: options.height,
        cv2.CAP_PROP_FPS: options.fps,
    }
    for prop, value in asked.items():
        if value is not None:
            capture.set(prop, value)  # type: ignore[attr-defined] # only here, and not always obeyed
    return capture


def _check_device(device: Path) -> None:
    if not device.exists():
        there = ", ".join(sorted(str(path) for path in device.parent.glob("video*"))) or "none"
        raise SourceError(f"there is no camera {device}; in {device.parent} there are: {there}. Is it plugged in?")
    if not os.access(device, os.R_OK | os.W_OK):
        raise SourceError(f"this user may not use {device}: add it to the group 'video', and log in again")


def open_csi(sensor: int, options: CameraOptions) -> Capture:
    """Open a Jetson's CSI camera through GStreamer and NVIDIA's camera stack.

    Raises:
        MissingDependencyError: there is no OpenCV with GStreamer.
    """
    cv2 = _import_cv2()
    if "GStreamer: YES" not in " ".join(cv2.getBuildInformation().split()):
        remedy = (
            "use the system's OpenCV (apt-get install python3-opencv, and a virtual environment made with "
            "--system-site-packages); the one from pip has no GStreamer"
        )
        raise MissingDependencyError("cv2 with GStreamer", f"the camera csi://{sensor}", remedy)
    capture: Capture = cv2.VideoCapture(csi_pipeline(sensor, options), cv2.CAP_GSTREAMER)
    return capture


def csi_pipeline(sensor: int, options: CameraOptions) -> str:
    """The GStreamer pipeline of a CSI camera: one frame waits at most, and older ones are dropped."""
    sizes = {"width": options.width, "height": options.height}
    caps = "".join(f",{key}={value}" for key, value in sizes.items() if value is not None)
    if options.fps is not None:
        caps += f",framerate={round(options.fps * 1000)}/1000"
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM){caps} ! nvvidconv ! video/x-raw,format=BGRx "
        "! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )


def _import_cv2() -> Any:
    try:
        import cv2  # noqa: PLC0415 - optional: a device keeps its own build
    except ImportError:
        remedy = "pip install 'edge-mbm[video]'; on a Jetson, apt-get install python3-opencv"
        raise MissingDependencyError("cv2", "reading a camera", remedy) from None
    return cv2
