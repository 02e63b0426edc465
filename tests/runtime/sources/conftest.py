"""Real parts: a network camera and a sound server of our own, on loopback, ended by the process id that we started."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CAMERA = Path(__file__).with_name("rtsp_camera.py")
Until = Callable[[Callable[[], bool]], None]


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition, at most so long."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        pause.wait(0.01)


class RtspCamera:
    """The process of ``rtsp_camera.py``."""

    def __init__(self, python: str, gives: str) -> None:
        self.port = 0
        self._python = python
        self._gives = gives
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/live"

    def start(self) -> None:
        """On a free port; again on the same one."""
        command = [self._python, str(CAMERA), str(self.port), self._gives]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture
def rtsp_camera(request: pytest.FixtureRequest, gst_rtsp_server: str) -> Iterator[RtspCamera]:
    """A camera with picture and sound, or what the parameter says."""
    camera = RtspCamera(gst_rtsp_server, getattr(request, "param", "both"))
    camera.start()
    yield camera
    camera.kill()


class Proxy:
    """TCP between a client and a server on loopback, which a test can stop or cut.

    Args:
        port: of the server; the proxy has one of its own.
    """

    def __init__(self, port: int) -> None:
        self.connections = 0
        self._server = port
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        """Where to connect to."""
        port: int = self._listener.getsockname()[1]
        return port

    def stall(self) -> None:
        """Hand nothing on, and keep the connections."""
        self._flowing.clear()

    def resume(self) -> None:
        """Go on."""
        self._flowing.set()

    def cut(self) -> None:
        """Break all connections."""
        sockets, self._sockets = self._sockets, []
        for end in sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break everything, and wait for the threads."""
        self._closed = True
        self.resume()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closed:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection(("127.0.0.1", self._server))
                self._sockets += [client, server]
                for ends in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._carry, args=ends, daemon=True))
                    self._threads[-1].start()

    def _carry(self, origin: socket.socket, target: socket.socket) -> None:
        with origin, contextlib.suppress(OSError):
            while data := origin.recv(1 << 16):
                self._flowing.wait(60)
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy_to() -> Iterator[Callable[[int], Proxy]]:
    """Makes proxies to a port."""
    made: list[Proxy] = []

    def make(port: int) -> Proxy:
        made.append(Proxy(port))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


class SoundServer:
    """A PulseAudio of our own with a null sink, whose monitor is the default microphone."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "PULSE_SERVER": f"unix:{home}/native",
            "PULSE_COOKIE": str(home / "cookie"),
            "PATH": os.environ["PATH"],
        }
        script = [
            f"load-module module-native-protocol-unix socket={home}/native auth-anonymous=1",
            "load-module module-null-sink sink_name=room rate=16000 channels=1 format=s16le",
            "load-module module-remap-source master=room.monitor source_name=mic remix=no",
            "set-default-sink room",
            "set-default-source mic",
        ]
        (home / "room.pa").write_text("\n".join(script) + "\n")
        # ALSA's "default" device is this server's.
        (home / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        command = ["pulseaudio", "-n", "-F", str(home / "room.pa"), "--exit-idle-time=-1", "--daemonize=no"]
        command += ["--use-pid-file=no", "--disallow-exit", "--log-target=stderr"]
        self.log = (home / "log").open("w")
        self.process = subprocess.Popen(command, env=self.environment, stdout=self.log, stderr=self.log)
        until(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.home / "log").read_text()
        done = subprocess.run(["pactl", "info"], env=self.environment, capture_output=True, text=True, check=False)
        return "Default Source: mic" in done.stdout

    def play(self, wav: Path) -> None:
        subprocess.run(["paplay", str(wav)], env=self.environment, check=True, timeout=60)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self.log.close()


@pytest.fixture
def sound_server(pulseaudio: None) -> Iterator[SoundServer]:
    """A sound server; who uses it runs with its ``environment``."""
    # Not tmp_path: the name of a Unix socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="mic") as home:
        server = SoundServer(Path(home))
        yield server
        server.end()


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port on which somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(name="until")
def _until() -> Until:
    """See ``until``."""
    return until
