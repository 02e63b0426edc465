"""What Prometheus is told."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

import edge_mbm
from edge_mbm import Sample, SessionOptions
from edge_mbm.errors import DeviceError, InputError
from edge_mbm.runtime import ClassificationOutput, Result
from edge_mbm.runtime.metrics import Metrics
from edge_mbm.runtime.status import EncoderStatus, HeadStatus, LiveStatus, SourceStatus
from edge_mbm.testing import FakeClock, NullEngine, ScriptedSource, tiny_bundle

pytestmark = pytest.mark.needs("prometheus_client")

MS, SECOND = 1_000_000, 1_000_000_000
GREEN = ClassificationOutput("green", 0.5, 1, np.array([0.5, 0.5], np.float32), ("red", "green"))


def result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "head": "event",
        "seq": 0,
        "t_capture": 0,
        "age": 40 * MS,
        "outputs": {"logits": GREEN},
        "missing": (),
        "spread": 0,
        "dropped": 0,
        "stage_ns": {"queue": MS, "infer.image_encoder": 3 * MS},
        "provider": "x",
    }
    return Result(**fields | changes)


def source(modalities: tuple[str, ...], **changes: Any) -> SourceStatus:
    fields: dict[str, Any] = {
        "name": "rtsp://camera",
        "state": "live",
        "since": 0,
        "modalities": modalities,
        "samples": 9,
        "last": 8 * SECOND,
        "stalls": 2,
        "reconnects": 1,
        "error": None,
        "uncertainty_ns": 0,
    }
    return SourceStatus(**fields | changes)


STATUS = LiveStatus(
    t=10 * SECOND,
    sources=(source(("image",)), source(("audio",), state="stalled", last=None, drift_ppm=-12.5)),
    encoders=(EncoderStatus(name="image_encoder", runs=7, failed=1, gated=3, last_ns=5 * MS, min_interval_ns=50 * MS),),
    heads=(HeadStatus(name="event", enabled=True, results=6, last=None, age_ns=None, missing=()),),
    losses={"image.superseded": 4, "audio.lost_samples": 0, "image_encoder.failed": 1},
)


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    with edge_mbm.load(tiny_bundle()) as bundle, Metrics(bundle.manifest, lambda: STATUS) as made:
        yield made


@pytest.fixture
def value(metrics: Metrics) -> Callable[..., float | None]:
    def look(metric: str, /, **labels: str) -> float | None:
        found: float | None = metrics.registry.get_sample_value(f"edge_mbm_{metric}", labels)
        return found

    return look


def test_results_are_counted_by_head(metrics: Metrics, value: Callable[..., Any]) -> None:
    """With their ages, stages, what they had to do without, and what was dropped before them."""
    metrics.add(result(dropped=3))
    metrics.add(result(age=800 * MS, missing=("audio",)))
    assert value("results_total", head="event") == 2
    assert value("dropped_pivots_total", head="event") == 3
    assert value("missing_total", head="event", modality="audio") == 1
    assert value("result_age_seconds_sum", head="event") == pytest.approx(0.84)
    assert value("result_age_seconds_bucket", head="event", le="0.05") == 1
    assert value("stage_seconds_sum", stage="infer.image_encoder") == pytest.approx(0.006)


def test_the_status_is_asked_for_when_somebody_looks(value: Callable[..., Any]) -> None:
    """Sources by what they give, encoders, heads, and every loss by its cause."""
    assert value("source_state", source="image", state="live") == 1
    assert value("source_state", source="audio", state="live") == 0
    assert value("source_state", source="audio", state="stalled") == 1
    assert value("source_samples_total", source="image") == 9
    assert value("source_stalls_total", source="image") == 2
    assert value("source_reconnects_total", source="image") == 1
    assert value("source_last_sample_age_seconds", source="image") == 2
    assert value("source_last_sample_age_seconds", source="audio") is None
    assert value("source_drift_ppm", source="audio") == -12.5
    assert value("encoder_runs_total", encoder="image_encoder") == 7
    assert value("encoder_failures_total", encoder="image_encoder") == 1
    assert value("encoder_gated_total", encoder="image_encoder") == 3
    assert value("encoder_last_run_seconds", encoder="image_encoder") == 0.005
    assert value("encoder_hold_seconds", encoder="image_encoder") == 0.05
    assert value("head_enabled", head="event") == 1
    assert value("lost_total", name="image", cause="superseded") == 4


def test_names_that_the_manifest_does_not_have_make_no_new_series(metrics: Metrics) -> None:
    """A thousand made-up heads, modalities and stages are one "other" each."""

    def series() -> int:
        return sum(len(family.samples) for family in metrics.registry.collect())

    metrics.add(result(head="0", missing=("0",), stage_ns={"0": 1}))
    before = series()
    for k in range(1, 1000):
        metrics.add(result(head=str(k), missing=(str(k),), stage_ns={str(k): 1}))
    assert series() == before


def test_no_series_comes_twice_in_a_scrape() -> None:
    """Prometheus refuses such a scrape as a whole; two recordings may both give what the bundle does not know."""
    strange = msgspec.structs.replace(STATUS, sources=(source(("lidar",)), source(("radar",))))
    with edge_mbm.load(tiny_bundle()) as bundle, Metrics(bundle.manifest, lambda: strange) as made:
        names = [line.rpartition(" ")[0] for line in scrape(made.serve(0)).splitlines() if not line.startswith("#")]
    assert len(names) == len(set(names))


def test_an_address_is_no_label(metrics: Metrics) -> None:
    """It may hold a password."""
    metrics.add(result())
    assert "rtsp" not in scrape(metrics.serve(0))


def test_a_scrape_gets_it_in_prometheus_format(metrics: Metrics) -> None:
    """Over HTTP on this machine alone; every line is a comment or a sample. Closed, nobody answers."""
    metrics.add(result())
    port = metrics.serve(0)
    text = scrape(port)
    sample = re.compile(r'[a-z_]+(\{([a-z]+="[^"\n]*",?)*\})? [-+0-9.eInfNa]+')
    assert all(line.startswith("#") or sample.fullmatch(line) for line in text.splitlines())
    assert 'edge_mbm_results_total{head="event"} 1.0' in text.splitlines()
    assert listening(port) == ["127.0.0.1"]
    metrics.close()
    metrics.close()
    with pytest.raises(OSError):
        scrape(port)


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def listening(port: int) -> list[str]:
    """Addresses at which anybody listens at a port."""
    with open("/proc/net/tcp") as file:
        local = [line.split()[1] for line in file.readlines()[1:] if line.split()[3] == "0A"]
    found = [address for address, _, at in (entry.partition(":") for entry in local) if int(at, 16) == port]
    return [socket.inet_ntoa(bytes.fromhex(address)[::-1]) for address in found]


def test_everybody_is_asked_for_by_name(metrics: Metrics) -> None:
    """An empty host, which would mean the same, is refused."""
    with pytest.raises(InputError, match="named host"):
        metrics.serve(0, "")
    assert listening(metrics.serve(0, "0.0.0.0")) == ["0.0.0.0"]


def test_a_port_that_is_taken_is_said(metrics: Metrics) -> None:
    """With what to do; and one that is no port is refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DeviceError, match=rf"127\.0\.0\.1:{port}.*choose another port"):
            metrics.serve(port)
    with pytest.raises(InputError, match="0 to 65535"):
        metrics.serve(70_000)
    metrics.serve(0)
    with pytest.raises(InputError, match="served already"):
        metrics.serve(0)


def test_a_status_that_fails_costs_the_scrape_its_part_only(caplog: pytest.LogCaptureFixture) -> None:
    """The stream goes on, results are still told, and the log says why."""

    def fail() -> LiveStatus:
        raise RuntimeError("closed")

    with edge_mbm.load(tiny_bundle()) as bundle, Metrics(bundle.manifest, fail) as metrics:
        metrics.add(result())
        text = scrape(metrics.serve(0))
    assert "edge_mbm_results_total" in text
    assert "edge_mbm_source" not in text
    assert "closed" in caplog.text


def test_a_live_stream_is_told() -> None:
    """The real thing: two streams in one process do not get in each other's way."""
    frames = [Sample("image", np.zeros((8, 8, 3), np.uint8), k * MS) for k in range(3)]
    for _ in range(2):
        with (
            edge_mbm.open(
                tiny_bundle(),
                ScriptedSource(frames),
                options=SessionOptions(heads=("color",)),
                realtime=False,
                clock=FakeClock(),
                load_engine=NullEngine,
            ) as live,
            Metrics(live.session.manifest, live.status) as metrics,
        ):
            for found in live:
                metrics.add(found)
            assert metrics.registry.get_sample_value("edge_mbm_results_total", {"head": "color"}) == 3
            assert metrics.registry.get_sample_value("edge_mbm_encoder_runs_total", {"encoder": "image_encoder"}) == 3


WITHOUT = """
import sys
sys.modules["prometheus_client"] = None
import edge_mbm
from edge_mbm.runtime.metrics import Metrics
from edge_mbm.testing import tiny_bundle
try:
    Metrics(edge_mbm.load(tiny_bundle()).manifest, lambda: None)
except edge_mbm.errors.MissingDependencyError as error:
    print(error)
"""


def test_without_the_package_the_line_to_type_is_said() -> None:
    """And importing the module needs it not."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert "pip install 'edge-mbm[telemetry]'" in done.stdout
