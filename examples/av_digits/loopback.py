"""A network camera and a microphone without hardware: an RTSP server and a sound server of our own, on loopback.

Both are processes of ours, ended by their ids; should we be killed, each ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TimeoutError_
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_mbm.errors import MissingDependencyError, SourceError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Camera", "Room"]

_SYSTEM_PYTHON = "/usr/bin/python3"
_START_S = 20.0
_SECOND = 1_000_000_000
_REMEDY = "make system-live"


class Camera:
    """A network camera that sees a clip; see ``rtsp_server.py``.

    Args:
        clip: an .mp4 with H.264.
        lead: seconds of black before it.

    Raises:
        MissingDependencyError: GStreamer's RTSP server or its bindings are not installed.
    """

    def __init__(self, clip: Path, lead: float) -> None:
        self.first_frame: Future[int] = Future()
        """When the first client sees the clip's first frame, monotonic ns."""
        command = [_SYSTEM_PYTHON, str(Path(__file__).with_name("rtsp_server.py")), str(clip.resolve()), str(lead)]
        # A session of its own: Ctrl-C is for us to handle, in order.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self._process.wait(_START_S)
            raise MissingDependencyError("GStreamer's RTSP server", "a camera without hardware", _REMEDY)
        self.url = f"rtsp://127.0.0.1:{port}/clip"
        self._thread = threading.Thread(target=self._listen, name="av-digits-camera", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def wait(self, seconds: float) -> int:
        """``first_frame``, once it is known.

        Raises:
            SourceError: nobody has seen the camera within so long.
        """
        try:
            return self.first_frame.result(seconds)
        except TimeoutError_:
            raise SourceError(f"{self.url} has shown nothing within {seconds:g} s") from None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self.first_frame.cancel()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not self.first_frame.done():
                self.first_frame.set_result(int(line))


class Room:
    """A PulseAudio of our own: what is played into its room, its default microphone hears.

    Args:
        rate: of the room, so that nothing is resampled on the way, Hz.

    Raises:
        MissingDependencyError: PulseAudio or ALSA's way to it is not installed.
        SourceError: the sound server does not start.
    """

    def __init__(self, rate: int) -> None:
        for program in ("pulseaudio", "pactl", "pacat"):
            if shutil.which(program) is None:
                raise MissingDependencyError(program, "a microphone without hardware", _REMEDY)
        self._rate = rate
        # Not in a deep folder: the name of a Unix socket has 107 bytes at most.
        self._folder = tempfile.TemporaryDirectory(prefix="mic", dir="/tmp")
        home = Path(self._folder.name)
        self.environment = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "PULSE_SERVER": f"unix:{home}/native",
            "PULSE_COOKIE": str(home / "cookie"),
        }
        """For whoever plays into the room, or listens: to be set before PortAudio is imported, which looks once."""
        script = [
            f"load-module module-native-protocol-unix socket={home}/native auth-anonymous=1",
            f"load-module module-null-sink sink_name=room rate={rate} channels=1 format=s16le",
            "load-module module-remap-source master=room.monitor source_name=mic remix=no",
            "set-default-sink room",
            "set-default-source mic",
        ]
        (home / "room.pa").write_text("\n".join(script) + "\n")
        # ALSA's "default" device is this server's.
        (home / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        self._log = home / "log"
        command = ["pulseaudio", "-n", "-F", str(home / "room.pa"), "--daemonize=no", "--use-pid-file=no"]
        # Without clients for so long it ends by itself.
        command += ["--exit-idle-time=60", f"--log-target=file:{self._log}"]
        self._server = self._start(command, stderr=subprocess.DEVNULL)
        self._player: subprocess.Popen[bytes] | None = None
        self._feeder: threading.Thread | None = None
        self._closed = threading.Event()
        try:
            self._wait_for_server()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def play(self, sound: bytes, at: Future[int], late_ms: float = 0) -> None:
        """Play into the room, once.

        The player is there and connected before, so that the sound starts within milliseconds.

        Args:
            sound: 16-bit samples at the room's rate, mono.
            at: monotonic ns at which it begins.
            late_ms: so much after that, on purpose.
        """
        command = ["pacat", "--playback", "--raw", f"--rate={self._rate}", "--channels=1", "--format=s16le"]
        self._player = self._start([*command, "--latency-msec=20"], stdin=subprocess.PIPE)
        self._feeder = threading.Thread(target=self._feed, args=(self._player, sound, at, late_ms))
        self._feeder.daemon = True
        self._feeder.start()

    def close(self) -> None:
        """End the processes."""
        self._closed.set()
        for process in (self._player, self._server):
            if process is not None:
                process.kill()
                process.wait()
        if self._feeder is not None:
            self._feeder.join(1)
        self._folder.cleanup()

    def _start(self, command: list[str], **pipes: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=os.environ | self.environment, start_new_session=True, **pipes)

    def _wait_for_server(self) -> None:
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text().strip() if self._log.exists() else ""
                raise SourceError(f"PulseAudio does not start: {said or 'it says nothing'}")
            self._closed.wait(0.05)

    def _answers(self) -> bool:
        asked = subprocess.run(
            ["pactl", "info"], env=os.environ | self.environment, capture_output=True, text=True, check=False
        )
        return "Default Source: mic" in asked.stdout

    def _feed(self, player: subprocess.Popen[bytes], sound: bytes, at: Future[int], late_ms: float) -> None:
        while not at.done():
            if self._closed.wait(0.01):
                return
        if at.cancelled():
            return
        ahead = (at.result() - time.monotonic_ns()) / _SECOND + late_ms / 1000
        if self._closed.wait(max(0.0, ahead)):
            return
        assert player.stdin is not None
        with contextlib.suppress(BrokenPipeError), player.stdin as pipe:
            pipe.write(sound)
