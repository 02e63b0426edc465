"""What systemd is told, at a socket that a test listens on."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edge_mbm
from edge_mbm import Sample, SessionOptions
from edge_mbm.runtime.notify import Heartbeat, Notifier, Progress
from edge_mbm.runtime.status import HeadStatus, LiveStatus, SourceState, SourceStatus
from edge_mbm.spec import Manifest
from edge_mbm.testing import NullEngine, ScriptedSource, tiny_bundle

SECOND = 1_000_000_000


class Systemd:
    """Listens where it says in its environment."""

    def __init__(self, address: str, **environment: str) -> None:
        self.environment = {"NOTIFY_SOCKET": address, **environment}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self) -> list[str]:
        """The lines so far."""
        lines = []
        self._socket.setblocking(False)
        try:
            while True:
                lines.append(self._socket.recv(65536).decode())
        except BlockingIOError:
            return lines

    def wait(self) -> str:
        """The next line."""
        self._socket.settimeout(30)
        return self._socket.recv(65536).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@edge-mbm-{uuid.uuid4()}"
    listening = Systemd(address, WATCHDOG_USEC="30000000")
    yield listening
    listening.close()


@pytest.fixture
def manifest() -> Iterator[Manifest]:
    with edge_mbm.load(tiny_bundle()) as bundle:
        yield bundle.manifest


def source(modality: str, samples: int, state: SourceState = "live") -> SourceStatus:
    return SourceStatus(
        name="x",
        state=state,
        since=0,
        modalities=(modality,),
        samples=samples,
        last=None,
        stalls=0,
        reconnects=0,
        error=None,
        uncertainty_ns=0,
    )


def status(
    *sources: SourceStatus, results: int = 0, head: str = "event", enabled: bool = True, **losses: int
) -> LiveStatus:
    heads = (HeadStatus(name=head, enabled=enabled, results=results, last=None, age_ns=None, missing=()),)
    named = {name.replace("__", "."): count for name, count in losses.items()}
    return LiveStatus(t=0, sources=sources, encoders=(), heads=heads, losses=named)


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_every_message_is_a_line_of_the_protocol(systemd: Systemd) -> None:
    """At a socket in the file system, or an abstract one."""
    with Notifier(systemd.environment) as notifier:
        assert (notifier.is_heard, notifier.watchdog_s) == (True, 30.0)
        notifier.ready()
        notifier.status("two\nlines, cut" + 5000 * "!")
        notifier.alive()
        notifier.stopping()
    ready, words, *rest = systemd.heard()
    assert (ready, rest) == ("READY=1", ["WATCHDOG=1", "STOPPING=1"])
    assert words.startswith("STATUS=two lines, cut!!!")
    assert len(words) < 1100


def test_without_a_service_manager_nothing_happens() -> None:
    """The same calls do nothing, twice closed too."""
    with Notifier({"WATCHDOG_USEC": "30000000"}) as notifier:
        assert (notifier.is_heard, notifier.watchdog_s) == (False, None)
        notifier.ready()
        notifier.close()
        notifier.alive()


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative/path", "/nowhere/at/all"])
def test_an_address_that_does_not_work_ends_nothing(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, once."""
    with Notifier({"NOTIFY_SOCKET": address}) as notifier:
        for _ in range(100):
            notifier.alive()
    assert len(caplog.records) == 1


def test_a_manager_that_does_not_read_holds_nothing_up(systemd: Systemd, caplog: pytest.LogCaptureFixture) -> None:
    """When its queue is full, lines are left out after a second, not waited with for ever."""
    with Notifier(systemd.environment) as notifier:
        assert notifier._socket is not None
        notifier._socket.settimeout(0.001)
        for _ in range(2000):
            notifier.alive()
            if caplog.records:
                break
    assert "cannot be told" in caplog.text


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdogs_time_is_this_processs_own(
    systemd: Systemd, environment: dict[str, str], seconds: float | None
) -> None:
    """Another process's, or nonsense, is none."""
    with Notifier({"NOTIFY_SOCKET": systemd.environment["NOTIFY_SOCKET"], **environment}) as notifier:
        assert notifier.watchdog_s == seconds


# --- progress --------------------------------------------------------------------------------------------------------


def test_results_are_progress(manifest: Manifest) -> None:
    """And samples without results are not, however many come."""
    progress = Progress(manifest)
    assert progress.made(status(source("image", 10), results=1))
    assert not progress.made(status(source("image", 20), results=1))
    assert not progress.made(status(source("image", 99), results=1))
    assert progress.made(status(source("image", 100), results=2))


def test_one_sample_since_the_last_progress_is_enough_to_be_stuck(manifest: Manifest) -> None:
    """A driver that has hung after it is still stuck."""
    progress = Progress(manifest)
    assert progress.made(status(source("image", 10), results=1))
    assert not any(progress.made(status(source("image", 11), results=1)) for _ in range(3))


@pytest.mark.parametrize("state", ["starting", "stalled", "reconnecting", "ended"])
def test_a_source_at_rest_is_no_fault(manifest: Manifest, state: SourceState) -> None:
    """Whatever it gave before: its own supervision sees to it."""
    progress = Progress(manifest)
    progress.made(status(source("image", 10), results=1))
    assert progress.made(status(source("image", 12, state), results=1))


def test_a_silent_source_is_no_fault(manifest: Manifest) -> None:
    """A source that the program itself feeds may have nothing to say."""
    progress = Progress(manifest)
    progress.made(status(source("image", 10), results=1))
    assert progress.made(status(source("image", 10), results=1))


def test_what_a_head_can_do_without_is_not_waited_for(manifest: Manifest) -> None:
    """Sound alone gives no result, so its samples prove nothing; a dead microphone excuses no missing picture."""
    progress = Progress(manifest)
    progress.made(status(source("image", 10), source("audio", 10), results=1))
    assert progress.made(status(source("image", 10), source("audio", 20), results=1))
    assert not progress.made(status(source("image", 20), source("audio", 20, "reconnecting"), results=1))


def test_a_disabled_head_owes_nothing(manifest: Manifest) -> None:
    """Samples may come."""
    progress = Progress(manifest)
    assert progress.made(status(source("image", 10), enabled=False))


def test_a_head_that_owes_nothing_excuses_no_other(manifest: Manifest) -> None:
    """Of two heads one is off, and the other is stuck."""
    progress = Progress(manifest)
    off = status(source("image", 10), head="color", enabled=False)
    both = msgspec.structs.replace(off, heads=off.heads + status().heads)
    assert not progress.made(both)


@pytest.mark.parametrize("loss", ["image_encoder__failed", "event__failed", "event__skipped"])
def test_a_loss_that_is_counted_is_no_standstill(manifest: Manifest, loss: str) -> None:
    """Failures end the stream by themselves when they are many; a restart would mend none of them."""
    progress = Progress(manifest)
    assert progress.made(status(source("image", 10), **{loss: 1}))
    assert not progress.made(status(source("image", 20), **{loss: 1}))


# --- the heartbeat ---------------------------------------------------------------------------------------------------


@pytest.fixture
def looks(systemd: Systemd, manifest: Manifest) -> Iterator[Callable[[LiveStatus], list[str]]]:
    """One look at a status, and the lines it led to, without their words."""
    seen: list[LiveStatus] = []
    heartbeat = Heartbeat(Notifier(systemd.environment), lambda: seen[-1], manifest)

    def look(given: LiveStatus) -> list[str]:
        seen.append(given)
        heartbeat.look()
        return [line.partition("=")[0] for line in systemd.heard()]

    yield look
    heartbeat.close()


def test_ready_is_said_once_when_sources_are_live(looks: Any) -> None:
    """Not while one of them starts or is looked for; what waits for this service finds it working."""
    assert looks(status(source("image", 0, "starting"), source("audio", 5))) == ["STATUS"]
    assert looks(status(source("image", 0, "reconnecting"), source("audio", 9))) == ["STATUS"]
    assert looks(status(source("image", 1), source("audio", 10)))[0] == "READY"
    assert "READY" not in looks(status(source("image", 2), source("audio", 11)))


def test_the_first_result_is_ready_too(looks: Any) -> None:
    """Though the microphone is not there."""
    assert looks(status(source("image", 1), source("audio", 0, "starting"), results=1))[0] == "READY"


def test_the_watchdog_is_fed_by_results(looks: Any, systemd: Systemd) -> None:
    """Fed, then not while it is stuck, then fed again."""
    assert looks(status(source("image", 1), results=1)) == ["READY", "WATCHDOG", "STATUS"]
    assert looks(status(source("image", 9), results=1)) == ["STATUS"]
    assert looks(status(source("image", 99), results=1)) == ["STATUS"]
    assert looks(status(source("image", 100), results=2)) == ["WATCHDOG", "STATUS"]


def test_status_says_in_words_what_it_does(systemd: Systemd, manifest: Manifest) -> None:
    """Results by head, and sources with their states."""
    with Notifier(systemd.environment) as notifier:
        Heartbeat(notifier, lambda: status(source("image", 1), results=7), manifest).look()
    assert systemd.heard()[-1] == "STATUS=results: event 7; image live"


def test_it_looks_four_times_in_the_watchdogs_time(systemd: Systemd, manifest: Manifest) -> None:
    """More often until it is ready; and never less than every 5 s, for the words."""
    address = systemd.environment["NOTIFY_SOCKET"]
    for usec, period in (("2000000", 0.5), ("600000000", 5.0), ("", 5.0)):
        with Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": usec}) as notifier:
            heartbeat = Heartbeat(notifier, lambda: status(source("image", 1), results=1), manifest)
            assert heartbeat.period_s == 0.2
            heartbeat.look()
            assert heartbeat.period_s == period


def test_a_stuck_engine_is_not_kept_alive(systemd: Systemd) -> None:
    """A real stream whose encoder hangs while frames come: the watchdog goes hungry until a result is there."""
    free = threading.Event()

    def stuck(inputs: Any, _: Any) -> None:
        assert "image" not in inputs or free.wait(30)

    def frames() -> Iterator[Sample]:
        yield Sample("image", np.zeros((8, 8, 3), np.uint8), 0)
        free.wait(30)
        over.wait(30)

    def fed() -> bool:
        heartbeat.look()
        return "WATCHDOG=1" in systemd.heard()

    over = threading.Event()
    camera = ScriptedSource(frames(), modalities=("image",))
    with edge_mbm.open(
        tiny_bundle(),
        camera,
        options=SessionOptions(heads=("color",)),
        load_engine=lambda name, component, graph: NullEngine(name, component, graph, compute=stuck),
    ) as live:
        heartbeat = Heartbeat(Notifier(systemd.environment), live.status, live.session.manifest)
        live.latest()
        until(lambda: live.status().sources[0].samples)
        assert not any(fed() for _ in range(5))
        free.set()
        until(live.latest)
        assert fed()
        over.set()
        heartbeat.close()


def until(done: Callable[[], Any]) -> None:
    for _ in range(2000):
        if done():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it did not happen within 10 s")


def test_its_thread_looks_and_ends_with_it(systemd: Systemd, manifest: Manifest) -> None:
    """A look that fails is logged, and feeds nothing; leaving says STOPPING, and leaves no thread."""
    failed = threading.Event()

    def look() -> LiveStatus:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("not yet")
        return status(source("image", 1), results=1)

    with Heartbeat(Notifier(systemd.environment), look, manifest):
        assert systemd.wait() == "READY=1"
        assert systemd.wait() == "WATCHDOG=1"
    assert systemd.heard()[-1] == "STOPPING=1"
    assert not [thread for thread in threading.enumerate() if thread.name == "edge-mbm-heartbeat"]


def test_without_a_service_manager_there_is_no_thread(manifest: Manifest) -> None:
    """Nobody to tell, nothing to look at."""
    with Heartbeat(Notifier({}), status, manifest):
        assert not [thread for thread in threading.enumerate() if thread.name == "edge-mbm-heartbeat"]
