"""What a stream does, for Prometheus."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edge_mbm.errors import DeviceError, InputError, MissingDependencyError
from edge_mbm.runtime.result import Result
from edge_mbm.runtime.status import EncoderStatus, HeadStatus, LiveStatus, SourceStatus
from edge_mbm.spec import Manifest

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Metrics"]

_REMEDY = "pip install 'edge-mbm[telemetry]'"
_SECOND = 1e9
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
"""Seconds: finest where 30 Hz is won or lost."""
_STATES = ("starting", "live", "stalled", "reconnecting", "ended")
_STAGES = ("queue", "wait")
_OTHER = "other"
"""Label of what the manifest does not name: so the bundle alone says how many time series there are."""
_JOIN_S = 5.0


class Metrics:
    """A registry of its own with what results and status say; ``serve`` hands it out over HTTP.

    Give it each result with ``add``. The rest is asked of ``status`` whenever somebody scrapes, so nothing has to be
    called at a rate. Labels are names from the manifest only; a source is called by what it gives.

    Args:
        manifest: of the bundle that runs.
        status: ``Live.status``; it is called from the server's thread.

    Raises:
        MissingDependencyError: prometheus-client is not installed.
    """

    def __init__(self, manifest: Manifest, status: Callable[[], LiveStatus]) -> None:
        prometheus = _import_prometheus()
        self.registry = prometheus.CollectorRegistry()
        """Prometheus's own kind, for those who serve or push it their way."""
        self._prometheus = prometheus
        self._heads = frozenset(manifest.results())
        self._modalities = frozenset(manifest.modalities)
        self._stages = frozenset(_STAGES) | {
            f"{stage}.{name}" for name in manifest.components for stage in ("preprocess", "infer")
        }
        self._server: tuple[Any, threading.Thread] | None = None

        def made(kind: Any, name: str, text: str, *labels: str, **options: Any) -> Any:
            return kind(f"edge_mbm_{name}", text, labels, registry=self.registry, **options)

        counter, histogram = prometheus.Counter, prometheus.Histogram
        self._results = made(counter, "results", "Results handed out.", "head")
        self._dropped = made(counter, "dropped_pivots", "Pivot samples that gave no result.", "head")
        self._missing = made(counter, "missing", "Results that had to do without a modality.", "head", "modality")
        age = "From capture until the result was handed out."
        self._age = made(histogram, "result_age_seconds", age, "head", buckets=_BUCKETS)
        self._stage = made(histogram, "stage_seconds", "Where a result's time went.", "stage", buckets=_BUCKETS)
        prometheus.ProcessCollector(registry=self.registry)
        self.registry.register(_StatusCollector(status, known=self._modalities | frozenset(manifest.components)))

    def add(self, result: Result) -> None:
        """Count one result."""
        head = _known(result.head, self._heads)
        self._results.labels(head).inc()
        self._dropped.labels(head).inc(result.dropped)
        self._age.labels(head).observe(result.age / _SECOND)
        for modality in result.missing:
            self._missing.labels(head, _known(modality, self._modalities)).inc()
        for stage, duration in result.stage_ns.items():
            self._stage.labels(_known(stage, self._stages)).observe(duration / _SECOND)

    def serve(self, port: int, host: str = "127.0.0.1") -> int:
        """Answer scrapes of ``http://host:port/metrics`` in threads of its own, until ``close``.

        Args:
            port: 0 for any that is free.
            host: this machine alone unless another address is asked for by name: whoever reaches it learns, without a
                password, what the machine sees and when. "0.0.0.0" is everybody.

        Returns:
            The port.

        Raises:
            InputError: no such port, an empty host, or it is served already.
            DeviceError: the port is taken, or the host is not one of this machine's.
        """
        if self._server is not None:
            raise InputError("these metrics are served already: close them first")
        if not 0 <= port <= 65535 or not host:
            raise InputError(f"metrics are served at a port of 0 to 65535 of a named host, got {host!r} and {port}")
        try:
            self._server = self._prometheus.start_http_server(port, host, self.registry)
        except OSError as error:
            raise DeviceError(
                f"metrics cannot be served at {host}:{port}: {error.strerror or error}; choose another port"
            ) from error
        assert self._server is not None
        bound: int = self._server[0].server_port
        return bound

    def close(self) -> None:
        """Stop serving. May be called twice."""
        server, self._server = self._server, None
        if server is not None:
            server[0].shutdown()
            server[0].server_close()
            server[1].join(_JOIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _StatusCollector:
    """A status as Prometheus's metric families, made when it is asked for."""

    def __init__(self, status: Callable[[], LiveStatus], known: frozenset[str]) -> None:
        from prometheus_client import core  # noqa: PLC0415 - an optional package

        self._core = core
        self._status = status
        self._known = known

    def describe(self) -> list[Any]:
        """Nothing: registering must not ask for the status."""
        return []

    def collect(self) -> Iterator[Any]:
        """The families of one status; none if it fails, since a scrape must not end a stream."""
        try:
            status = self._status()
        except Exception:
            logging.getLogger(__name__).exception("the status for a scrape failed")
            return
        yield from self._of_sources(status)
        yield from self._of_encoders(status)
        yield from self._of_heads(status)
        yield from self._of_losses(status)

    def _of_sources(self, status: LiveStatus) -> Iterator[Any]:
        sources = {self._source(source): source for source in status.sources}
        state = self._core.GaugeMetricFamily(
            "edge_mbm_source_state", "1 for the state that a source is in.", labels=("source", "state")
        )
        for name, source in sources.items():
            for each in _STATES:
                state.add_metric((name, each), float(source.state == each))
        yield state
        yield self._counter("source_samples", "Samples.", "source", {n: s.samples for n, s in sources.items()})
        yield self._counter(
            "source_stalls", "Times it fell silent.", "source", {n: s.stalls for n, s in sources.items()}
        )
        reconnects = {n: s.reconnects for n, s in sources.items()}
        yield self._counter("source_reconnects", "Times it came back.", "source", reconnects)
        ages = {name: (status.t - s.last) / _SECOND for name, s in sources.items() if s.last is not None}
        yield self._gauge("source_last_sample_age_seconds", "Since its newest sample was captured.", "source", ages)
        drifts = {name: s.drift_ppm for name, s in sources.items() if s.drift_ppm is not None}
        yield self._gauge("source_drift_ppm", "How fast its clock runs against this machine's.", "source", drifts)

    def _of_encoders(self, status: LiveStatus) -> Iterator[Any]:
        encoders = {self._name(encoder.name): encoder for encoder in status.encoders}

        def each(value: Callable[[EncoderStatus], float]) -> dict[str, float]:
            return {name: value(encoder) for name, encoder in encoders.items()}

        yield self._counter("encoder_runs", "Runs.", "encoder", each(lambda e: e.runs))
        yield self._counter("encoder_failures", "Runs that failed.", "encoder", each(lambda e: e.failed))
        yield self._counter("encoder_gated", "Items skipped as unchanged.", "encoder", each(lambda e: e.gated))
        last = each(lambda e: (e.last_ns or 0) / _SECOND)
        yield self._gauge("encoder_last_run_seconds", "How long its last run took.", "encoder", last)
        held = each(lambda e: e.min_interval_ns / _SECOND)
        yield self._gauge("encoder_hold_seconds", "How far apart its runs are held; 0 for not.", "encoder", held)

    def _of_heads(self, status: LiveStatus) -> Iterator[Any]:
        def enabled(head: HeadStatus) -> float:
            return float(head.enabled)

        heads = {self._name(head.name): enabled(head) for head in status.heads}
        yield self._gauge("head_enabled", "Whether a head runs.", "head", heads)

    def _of_losses(self, status: LiveStatus) -> Iterator[Any]:
        family = self._core.CounterMetricFamily(
            "edge_mbm_lost", "What was lost, by modality or component and cause.", labels=("name", "cause")
        )
        for key, count in status.losses.items():
            name, _, cause = key.rpartition(".")
            if name in self._known:
                family.add_metric((name, cause), count)
        yield family

    def _counter(self, name: str, text: str, label: str, values: dict[str, Any]) -> Any:
        return self._filled(self._core.CounterMetricFamily(f"edge_mbm_{name}", text, labels=(label,)), values)

    def _gauge(self, name: str, text: str, label: str, values: dict[str, float]) -> Any:
        return self._filled(self._core.GaugeMetricFamily(f"edge_mbm_{name}", text, labels=(label,)), values)

    def _filled(self, family: Any, values: dict[str, float]) -> Any:
        for name, value in values.items():
            family.add_metric((name,), value)
        return family

    def _source(self, source: SourceStatus) -> str:
        """What it gives: two sources never give the same, and an address may hold a password."""
        return "+".join(self._name(modality) for modality in source.modalities) or _OTHER

    def _name(self, name: str) -> str:
        return _known(name, self._known)


def _known(name: str, names: frozenset[str]) -> str:
    return name if name in names else _OTHER


def _import_prometheus() -> Any:
    try:
        import prometheus_client  # noqa: PLC0415 - an optional package
    except ImportError:
        raise MissingDependencyError("prometheus_client", "serving metrics", _REMEDY) from None
    return prometheus_client
