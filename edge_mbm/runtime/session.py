"""A bundle loaded on this machine: the clock-free core that the live app, robots, tests and replays share."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import structs

from edge_mbm.bundle import BundleFiles
from edge_mbm.errors import InputError, SessionClosedError
from edge_mbm.preprocess import as_array, as_frame, as_waveform
from edge_mbm.runtime.align import Aligner
from edge_mbm.runtime.component import ComponentRunner, EncoderNode
from edge_mbm.runtime.engine import Engine, EngineLoader, OnnxRuntimeEngine
from edge_mbm.runtime.head import HeadNode
from edge_mbm.runtime.plan import Planned, plan
from edge_mbm.runtime.result import Result
from edge_mbm.runtime.ring import AudioRing
from edge_mbm.runtime.stream import MAX_SLIP_NS, AudioStream, FrameStream, Stream
from edge_mbm.spec import (
    AudioModality,
    Classification,
    Component,
    Encoder,
    Head,
    ImageModality,
    Modality,
    SensorModality,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = ["Session", "SessionOptions"]


@dataclass(frozen=True)
class SessionOptions:
    """How a session runs.

    Args:
        heads: heads to run; None means the manifest's default ones. Encoders that no head needs are not loaded.
        variant: "auto" for the fastest kept for this machine, or a name ("fp32").
        threads: intra-op threads of each engine.
        audio_buffer_s: audio that may wait to be encoded, seconds; beyond it the oldest is dropped and counted.
        max_pending: pivots that may wait for the other modalities, per head; beyond it the oldest is dropped.
    """

    heads: tuple[str, ...] | None = None
    variant: str = "auto"
    threads: int = 1
    audio_buffer_s: float = 10.0
    max_pending: int = 64

    def __post_init__(self) -> None:
        """Raise InputError for a number out of range."""
        if self.threads < 1 or self.max_pending < 1 or not 0 < self.audio_buffer_s <= 3600:
            raise InputError("threads and max_pending are at least 1, audio_buffer_s is above 0 and at most 3600")


class Session:
    """A loaded bundle. No threads, no clock, no queue without a bound.

    Push samples with their capture times, then poll for results; or ``infer`` for one shot. Times are ns on any
    monotonic clock, the same one for all modalities. Not thread-safe: one thread pushes and polls.

    Args:
        bundle: the verified files.
        options: see ``SessionOptions``.
        load_engine: makes each component's engine; ONNX Runtime on the CPU unless given.

    Raises:
        InputError, ManifestError: see ``plan``.
        EngineError, MissingDependencyError: see ``OnnxRuntimeEngine``.
    """

    def __init__(
        self,
        bundle: BundleFiles,
        options: SessionOptions | None = None,
        *,
        load_engine: EngineLoader | None = None,
    ) -> None:
        self.options = options or SessionOptions()
        self.manifest = bundle.manifest
        self.plan = plan(bundle.manifest, self.options.heads, self.options.variant)
        self._closed = False
        with ExitStack() as undo:
            self._runners = self._load(bundle, load_engine or self._onnxruntime, undo)
            encoders = [p.name for p in self.plan if isinstance(p.component, Encoder)]
            self._nodes = {name: EncoderNode(self._runners[name]) for name in encoders}
            self._streams = self._make_streams()
            self._heads = [self._make_head(bundle, p) for p in self.plan if isinstance(p.component, Head)]
            undo.pop_all()

    # --- streaming ---------------------------------------------------------------------------------------------------

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that the running heads use; others are accepted by ``push`` and ignored."""
        return tuple(self._streams)

    def push(self, modality: str, data: object, t: int, *, rate: int | None = None) -> None:
        """Hand in one sample; nothing is computed until ``poll``.

        Args:
            modality: its name in the manifest.
            data: image: uint8[H, W, 3] RGB or uint8[H, W] gray, kept by reference until the next poll. Audio: float or
                int16 [samples] or [samples, channels]. Sensor: a vector of the manifest's shape.
            t: capture time, ns; of the first sample for audio. Must not go back.
            rate: audio only: its sample rate, Hz, if it is not the manifest's; it is resampled with soxr.

        Raises:
            InputError: an unknown modality, a wrong shape or dtype, NaN, or time that goes back.
            SessionClosedError: after ``close``.
        """
        stream, t = self._stream(modality), _as_time(t)
        if isinstance(stream, AudioStream):
            for node, is_broken in zip(self._listeners(modality), stream.push(data, t, rate), strict=True):
                if is_broken:
                    node.reset()
        elif stream is not None:
            _check_item(self.manifest.modalities[modality], data, modality)
            stream.push(data, t)

    def count_dropped(self, modality: str, count: int) -> None:
        """Tell that ``count`` frames were lost before they could be pushed, so that results report them."""
        stream = self._stream(modality)
        if isinstance(stream, FrameStream):
            stream.dropped += count

    def end(self, modality: str) -> None:
        """No more of this modality will come: pivots stop waiting for it. A later push takes that back."""
        stream = self._stream(modality)
        if stream is not None:
            stream.end()

    def poll(self, now: int | None = None) -> list[Result]:
        """Encode what was pushed and return the results that are settled, oldest first.

        Args:
            now: the time, ns, on the clock of ``push``: deadlines are measured against it. None means the newest time
                pushed, which makes a replay repeat itself exactly.

        Raises:
            EngineError: a component failed.
            SessionClosedError: after ``close``.
        """
        self._check_open()
        started = perf_counter_ns()
        for name, stream in self._streams.items():
            if isinstance(stream, AudioStream):
                self._encode_audio(name, stream)
            elif (frame := stream.take()) is not None:
                self._encode(name, frame.data, frame.t, {"queue": perf_counter_ns() - frame.pushed})
        if now is None:
            now = max((s.bound for s in self._streams.values() if s.bound is not None), default=0)
        results = [result for head in self._heads for result in head.results(now)]
        self._forget()
        spent = perf_counter_ns() - started
        results = [structs.replace(result, age=max(0, now - result.t_capture) + spent) for result in results]
        return sorted(results, key=lambda result: result.t_capture)

    def finish(self, now: int | None = None) -> list[Result]:
        """End every modality and return what was still waiting."""
        for name in self._streams:
            self.end(name)
        return self.poll(now)

    def deadline(self) -> int | None:
        """When a waiting pivot settles even if nothing more is pushed, ns; None if none waits."""
        deadlines = (head.aligner.deadline for head in self._heads)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def reset(self) -> None:
        """Forget all samples, states and waiting pivots; sequence numbers and counters stay."""
        self._check_open()
        for part in (*self._streams.values(), *self._nodes.values(), *(head.aligner for head in self._heads)):
            part.clear()

    def stats(self) -> dict[str, int]:
        """Losses by cause since the start, "name.cause" -> count."""
        counts = {f"{s.name}.{cause}": n for s in self._streams.values() for cause, n in s.losses().items()}
        for head in self._heads:
            counts[f"{head.name}.overflowed"] = head.aligner.overflowed
            counts[f"{head.name}.skipped"] = head.aligner.skipped
        return counts

    # --- one shot ----------------------------------------------------------------------------------------------------

    def infer(self, **inputs: object) -> list[Result]:
        """Results of the running heads for one set of inputs, apart from any stream.

        Args:
            inputs: modality -> data as for ``push``; audio at the manifest's rate, from a stream's start: whole windows
                are encoded in turn from a zero state, and the last one counts. A modality left out is missing.

        Raises:
            InputError: an unknown modality, wrong data, or a head that cannot do without a missing modality.
            EngineError: a component failed.
        """
        return self._run_once(inputs)[0]

    def run_components(self, **inputs: object) -> dict[str, NDArray[Any]]:
        """Every raw output, "component.output" -> array with a batch axis of 1; arguments and errors as ``infer``."""
        return self._run_once(inputs)[1]

    # --- life --------------------------------------------------------------------------------------------------------

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The loaded engines by component."""
        return {name: runner.engine for name, runner in self._runners.items()}

    def close(self) -> None:
        """Free the engines; may be called twice."""
        if not self._closed:
            self._closed = True
            for engine in self.engines.values():
                engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- wiring ------------------------------------------------------------------------------------------------------

    def _onnxruntime(self, name: str, component: Component, graph: bytes) -> Engine:
        return OnnxRuntimeEngine(name, component, graph, threads=self.options.threads)

    def _load(self, bundle: BundleFiles, load: EngineLoader, undo: ExitStack) -> dict[str, ComponentRunner]:
        runners = {}
        for planned in self.plan:
            engine = load(planned.name, planned.component, bundle.read(planned.graph))
            undo.callback(engine.close)
            runners[planned.name] = ComponentRunner(planned.name, planned.component, engine)
        return runners

    def _make_streams(self) -> dict[str, Stream]:
        used = {value.source for planned in self.plan for value in planned.component.inputs.values()}
        return {
            name: self._make_audio(name, modality) if isinstance(modality, AudioModality) else FrameStream(name)
            for name, modality in self.manifest.modalities.items()
            if name in used
        }

    def _make_audio(self, name: str, modality: AudioModality) -> AudioStream:
        """One ring for each encoder that listens, in running order."""
        encoders = [node.runner.component for node in self._listeners(name)]
        windows = [encoder.window for encoder in encoders if isinstance(encoder, Encoder)]
        rings = [
            AudioRing(
                sample_rate=modality.sample_rate,
                length=window.length,
                hop=window.hop,
                # A part of the next window always waits; the bound is on top of it.
                capacity=int(self.options.audio_buffer_s * modality.sample_rate) + window.length,
                max_slip_ns=MAX_SLIP_NS,
            )
            for window in windows
            if window is not None  # Manifest.check demands one for a stream
        ]
        return AudioStream(name, modality.sample_rate, rings)

    def _make_head(self, bundle: BundleFiles, planned: Planned) -> HeadNode:
        head, name = planned.component, planned.name
        assert isinstance(head, Head)
        feeding = {key: value.source.partition(".")[0] for key, value in head.inputs.items()}
        tasks = {key: output.task for key, output in head.outputs.items()}
        return HeadNode(
            self._runners[name],
            head,
            Aligner(
                head,
                nodes={key: self._nodes[encoder] for key, encoder in feeding.items()},
                modalities={key: self.manifest.modalities_of(encoder)[0] for key, encoder in feeding.items()},
                streams=self._streams,
                max_pending=self.options.max_pending,
            ),
            modalities=self.manifest.modalities_of(name),
            labels={key: bundle.read_labels(t.labels) for key, t in tasks.items() if isinstance(t, Classification)},
            provider="+".join(sorted({self._runners[part].engine.provider for part in (name, *feeding.values())})),
        )

    def _listeners(self, source: str) -> list[EncoderNode]:
        """Encoders that take ``source`` as input, in running order."""
        return [node for node in self._nodes.values() if node.runner.reads(source)]

    # --- encoding ----------------------------------------------------------------------------------------------------

    def _encode_audio(self, modality: str, stream: AudioStream) -> None:
        for ring, node in zip(stream.rings, self._listeners(modality), strict=True):
            while (window := ring.next_window()) is not None:
                samples, t = window
                self._encode_with(node, {modality: samples}, t, {})

    def _encode(self, source: str, data: object, t: int, stages: dict[str, int]) -> None:
        for node in self._listeners(source):
            self._encode_with(node, {source: data}, t, dict(stages))

    def _encode_with(self, node: EncoderNode, sources: Mapping[str, Any], t: int, stages: dict[str, int]) -> None:
        """Run one encoder, then those that feed on it, and announce pivots."""
        encoded = node.encode(sources, t, stages)
        for head in self._heads:
            if head.aligner.pivot_node is node:
                head.aligner.add(t)
        for key, value in encoded.outputs.items():
            self._encode(f"{node.runner.name}.{key}", value, t, {})

    def _forget(self) -> None:
        """Drop encoder outputs that no waiting or coming pivot can ask for."""
        horizons = [t for head in self._heads if (t := head.aligner.horizon) is not None]
        if len(horizons) == len(self._heads):
            for node in self._nodes.values():
                node.forget_before(min(horizons))

    # --- one shot, inside --------------------------------------------------------------------------------------------

    def _run_once(self, inputs: Mapping[str, object]) -> tuple[list[Result], dict[str, NDArray[Any]]]:
        self._check_open()
        for modality in inputs:
            self._check_modality(modality)
        started = perf_counter_ns()
        stages: dict[str, int] = {}
        known: dict[str, Any] = dict(inputs)
        results = []
        for node in self._nodes.values():
            self._encode_once(node.runner, known, stages)
        for head in self._heads:
            result, outputs = head.infer(known, stages)
            known.update({f"{head.name}.{key}": value for key, value in outputs.items()})
            results.append(structs.replace(result, age=perf_counter_ns() - started))
        return results, {key: value for key, value in known.items() if "." in key}

    def _encode_once(self, runner: ComponentRunner, known: dict[str, Any], stages: dict[str, int]) -> None:
        """Encode what is known, if the encoder's input is; its streaming state is left as it was."""
        if any(value.source not in known for value in runner.component.inputs.values()):
            return
        with runner.fresh_state():
            for sources in self._windows(runner.component, known):
                outputs = runner.run(sources, stages)
            known.update({f"{runner.name}.{key}": outputs[key].copy() for key in runner.component.outputs})

    def _windows(self, component: Encoder | Head, known: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The sources themselves, or each whole window of the audio among them."""
        audio = [v.source for v in component.inputs.values() if isinstance(self._streams.get(v.source), AudioStream)]
        window = component.window if isinstance(component, Encoder) else None
        if not audio or window is None:
            yield known
            return
        samples = as_waveform(known[audio[0]])
        if len(samples) < window.length:
            raise InputError(f"'{audio[0]}' has {len(samples)} samples, fewer than one window of {window.length}")
        for start in range(0, len(samples) - window.length + 1, window.hop):
            yield {**known, audio[0]: samples[start : start + window.length]}

    # --- checks ------------------------------------------------------------------------------------------------------

    def _stream(self, modality: str) -> Stream | None:
        """The stream of a modality; None if no running head uses it."""
        self._check_open()
        stream = self._streams.get(modality)
        if stream is None:
            self._check_modality(modality)
        return stream

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError("the session is closed: make a new one with bundle.session()")

    def _check_modality(self, modality: str) -> None:
        if modality not in self.manifest.modalities:
            known = sorted(self.manifest.modalities)
            raise InputError(f"there is no modality '{modality}' in '{self.manifest.name}'; it has {known}")


def _as_time(t: int) -> int:
    """A plain int, whatever integer type the caller's clock gives."""
    try:
        return operator.index(t)
    except TypeError:
        raise InputError(f"t is a time in whole nanoseconds, got {t!r}") from None


def _check_item(modality: Modality, data: object, name: str) -> None:
    """Refuse wrong data where it is handed in, not later where it is encoded."""
    if isinstance(modality, ImageModality):
        as_frame(data)
    elif isinstance(modality, SensorModality):
        vector = as_array(data)
        if vector.shape != modality.shape or vector.dtype.kind not in "fiu":
            raise InputError(f"'{name}' is numbers of shape {list(modality.shape)}, got {vector.dtype}{vector.shape}")
        if not np.isfinite(vector).all():
            raise InputError(f"'{name}' has NaN or infinite values: drop or repair such samples before pushing them")
