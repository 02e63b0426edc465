"""A bundle loaded on this machine: the clock-free core that the live app, robots, tests and replays share."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from msgspec import structs

from edge_mbm.bundle import BundleFiles
from edge_mbm.errors import DeviceLostError, EngineError, InputError, ManifestError, SessionClosedError
from edge_mbm.preprocess import (
    as_array,
    as_frame,
    as_lines,
    as_utterance,
    as_video,
    as_waveform,
    frame_windows,
    in_turn,
)
from edge_mbm.runtime.align import Aligner, Match
from edge_mbm.runtime.backend import Backend, Provider, open_backend
from edge_mbm.runtime.component import About, ComponentRunner, Encoded, Node
from edge_mbm.runtime.decode import GREEDY, DecodeOptions, DecoderRunner, Piece
from edge_mbm.runtime.detect import CropsRunner, DetectorRunner
from edge_mbm.runtime.engine import Engine, EngineLoader
from edge_mbm.runtime.feed import FOREVER, Feed
from edge_mbm.runtime.frames import FrameWindows, Stream, VideoStream, frame_times, video_stream
from edge_mbm.runtime.head import Answering, HeadNode, Prompts, Relay
from edge_mbm.runtime.plan import Planned, choose_heads, needed_by, plan
from edge_mbm.runtime.result import RegionsOutput, Result
from edge_mbm.runtime.ring import AudioRing
from edge_mbm.runtime.status import EncoderStatus, HeadStatus
from edge_mbm.runtime.stream import MAX_RATE, MAX_SLIP_NS, AudioStream, FrameSlot, FrameStream
from edge_mbm.runtime.utterance import UtteranceRing
from edge_mbm.spec import (
    AudioModality,
    Classification,
    Component,
    Decoder,
    Detector,
    Encoder,
    Head,
    ImageModality,
    Manifest,
    Modality,
    SensorModality,
    TextModality,
    TokenSteps,
    VideoModality,
    Window,
    tensor_given,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = ["Session", "SessionOptions"]

_LONGEST_S = 3600
_MOST_THREADS = 1024
"""ONNX Runtime starts them all, and a slip of the keyboard would take minutes and the machine."""


@dataclass(frozen=True)
class SessionOptions:
    """How a session runs.

    Args:
        heads: what gives results, of ``Manifest.results``; None means its default ones. What none needs is not loaded.
        variant: "auto" for the fastest kept for this machine, or a name ("fp32").
        threads: intra-op threads of each engine.
        provider: what runs the components: "cpu" or "cuda" (ONNX Runtime), "tensorrt" or "rtx" (engines that
            ``edge-mbm compile`` built on this device).
        allow_fallback: whether the CPU runs what the provider cannot, such as a component whose engine is not built
            yet; ``Result.provider`` says so. Otherwise that is an error.
        dla: components that "tensorrt" runs on the Deep Learning Accelerator of some Jetsons, which leaves the GPU to
            the others; ``edge-mbm compile --dla`` builds their engines.
        audio_buffer_s: audio, and video in windows, that may wait to be encoded, seconds; beyond it the oldest is
            dropped and counted.
        max_pending: pivots that may wait for the other modalities, per head; beyond it the oldest is dropped.
        decoding: how decoders choose tokens, and how many.
    """

    heads: tuple[str, ...] | None = None
    variant: str = "auto"
    threads: int = 1
    provider: Provider = "cpu"
    allow_fallback: bool = False
    dla: tuple[str, ...] = ()
    audio_buffer_s: float = 10.0
    max_pending: int = 64
    decoding: DecodeOptions = GREEDY

    def __post_init__(self) -> None:
        """Raise InputError for a number out of range."""
        if not 1 <= self.threads <= _MOST_THREADS:
            raise InputError(f"threads are from 1 to {_MOST_THREADS}, not {self.threads}")
        if self.max_pending < 1 or not 0 < self.audio_buffer_s <= _LONGEST_S:
            raise InputError(f"max_pending is at least 1, audio_buffer_s is above 0 and at most {_LONGEST_S}")
        if self.provider not in get_args(Provider):
            raise InputError(f"there is no provider '{self.provider}'; there are {', '.join(get_args(Provider))}")
        if self.dla and self.provider != "tensorrt":
            raise InputError(f"the DLA is TensorRT's: it runs nothing with provider '{self.provider}'")

    def open_backend(self, load: EngineLoader | None = None) -> Backend:
        """What runs the components; see ``open_backend``."""
        return open_backend(
            self.provider, threads=self.threads, allow_fallback=self.allow_fallback, dla=self.dla, load=load
        )


class Session:
    """A loaded bundle. No threads, no clock, no queue without a bound.

    Push samples with their capture times, then poll for results; or ``infer`` for one shot. Times are ns on any
    monotonic clock, the same one for all modalities.

    Any thread may ``push``. ``poll`` does all the work in the calling thread. To spread it, call ``encode_next`` for
    each of ``encoders`` from a thread of its own, and ``collect_one`` from one more. No lock is held while an engine
    runs.

    Args:
        bundle: the verified files.
        options: see ``SessionOptions``.
        load_engine: makes each component's engine; what ``SessionOptions.provider`` says unless given.

    Raises:
        InputError, ManifestError: see ``plan``.
        EngineError, MissingDependencyError: see ``open_backend`` and ``Backend``.
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
        backend = self.options.open_backend(load_engine)
        self.plan = plan(bundle.manifest, self.options.heads, self.options.variant, backend.choose)
        self._closed = False
        self._lock = threading.Lock()
        self._disabled: set[str] = set()
        self._held: list[Result] = []
        with ExitStack() as undo:
            self._runners = self._load(bundle, backend.load, undo)
            before = [p.name for p in self.plan if not isinstance(p.component, Head)]
            self._nodes = {name: Node(self._runners[name]) for name in before}
            self._streams = self._make_streams()
            self._feeds = self._make_feeds()
            self._followers = {name: self._find_followers(name) for name in self._nodes}
            self._told = {name: self._find_told(name) for name in self._nodes}
            answering = choose_heads(bundle.manifest, self.options.heads)
            self._heads = [self._make_answering(bundle, p) for p in self.plan if p.name in answering]
            undo.pop_all()

    # --- streaming ---------------------------------------------------------------------------------------------------

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that the running heads use; others are accepted by ``push`` and ignored."""
        return tuple(self._streams)

    @property
    def newest(self) -> int:
        """The newest time pushed, ns; 0 before the first."""
        return max((s.bound for s in self._streams.values() if s.bound is not None), default=0)

    def push(self, modality: str, data: object, t: int, *, rate: int | None = None) -> None:
        """Hand in one sample; nothing is computed until ``poll``.

        Args:
            modality: its name in the manifest.
            data: image: uint8[H, W, 3] RGB or uint8[H, W] gray, kept by reference until the next poll; video: the same,
                kept as small as the encoders see it. Audio: float or int16 [samples] or [samples, channels]. Text: str,
                which counts until the next, see ``Manifest.latched``; a list of prompts has one a line, see
                ``TokenSteps.lines``. Sensor: a vector of the manifest's shape.
            t: capture time, ns; of the first sample for audio. Must not go back.
            rate: audio only: its sample rate, Hz, if it is not the manifest's; it is resampled with soxr.

        Raises:
            InputError: an unknown modality, a wrong shape or dtype, NaN, or time that goes back.
            SessionClosedError: after ``close``.
        """
        stream, t, rate = self._stream(modality), _as_time(t), _as_rate(rate)
        if isinstance(stream, AudioStream | VideoStream):
            fitted = stream.fit(data) if isinstance(stream, VideoStream) else None
            with self._lock:
                broken = stream.push(data, t, rate) if isinstance(stream, AudioStream) else stream.push(fitted or [], t)
                for node, is_broken in zip(self._listeners(modality), broken, strict=True):
                    node.starts_anew |= is_broken
        elif stream is not None:
            _check_item(self.manifest, data, modality)
            with self._lock:
                stream.push(data, t)

    def count_dropped(self, modality: str, count: int) -> None:
        """Tell that ``count`` frames were lost before they could be pushed, so that results report them."""
        stream = self._stream(modality)
        if isinstance(stream, FrameStream | VideoStream):
            with self._lock:
                stream.count_dropped(count)

    def end(self, modality: str) -> None:
        """No more of this modality will come: pivots stop waiting for it. A later push takes that back."""
        stream = self._stream(modality)
        if stream is not None:
            with self._lock:
                stream.end()
                for feed in self._feeds.values():
                    self._finish_utterances(feed)

    def poll(self, now: int | None = None) -> list[Result]:
        """Encode what was pushed and return the results that are settled, oldest first.

        Args:
            now: the time, ns, on the clock of ``push``: deadlines are measured against it. None means the newest time
                pushed, which makes a replay repeat itself exactly.

        Raises:
            EngineError: a component failed on one sample, which costs one result; the next call returns the others.
            DeviceLostError: the GPU does not answer any more; the session is closed.
            SessionClosedError: after ``close``.
        """
        self._check_open()
        started = perf_counter_ns()
        failures = [error for encoder in self._feeds for error in self._encode_all(encoder)]
        results, failed = self._collect(now, started)
        return self._unless_failed(results, [*failures, *failed])

    @property
    def encoders(self) -> tuple[str, ...]:
        """Encoders that read a modality, for ``encode_next``."""
        return tuple(self._feeds)

    def want_results(self) -> list[str]:
        """Somebody waits for a result: encoders of pivots take whatever comes.

        Returns:
            Encoders that have something to do.
        """
        with self._lock:
            self._let_go()
            return [name for name, feed in self._feeds.items() if feed.has_work]

    def leave_results(self, back: int | None) -> None:
        """Nobody waits: leave what would become a pivot to be replaced by what is newer, until shortly before ``back``.

        Encoders that only support a head go on. One item is encoded ahead, so that it is ready and new at ``back``.

        Args:
            back: when somebody is expected to wait again, ns on the clock of ``push``; None for unknown.
        """
        with self._lock:
            for head in self._heads:
                head.aligner.mark()
                took = head.aligner.pivot_node.last_ns or 0
                head.aligner.pivot_feed.held_until = FOREVER if back is None else back - took

    def resumes(self, encoder: str) -> int | None:
        """When a held encoder takes the next item, ns; None if it is not held, or until it is wanted."""
        held_until = self._feeds[encoder].held_until
        return None if held_until is None or held_until >= FOREVER else held_until

    @property
    def is_settling(self) -> bool:
        """Whether a pivot waits for other modalities, so that any push may settle it."""
        return any(head.aligner.waiting is not None for head in self._heads)

    def encode_next(self, encoder: str, now: int | None = None) -> bool:
        """Run an encoder on the next item that waits for it, and the encoders that feed on it.

        Args:
            encoder: one of ``encoders``.
            now: the time, ns, for ``leave_results``.

        Returns:
            Whether there was one.

        Raises:
            EngineError: it failed; that item is lost and counted, and the next call goes on.
        """
        feed, node = self._feeds[encoder], self._nodes[encoder]
        with self._lock:
            work = feed.take(now)
            starts_anew, node.starts_anew = node.starts_anew, False
        if work is None:
            node.starts_anew |= starts_anew
            return False
        if starts_anew:
            self._start_anew(node)
        try:
            stages = {} if work.pushed is None else {"queue": perf_counter_ns() - work.pushed}
            about = About(work.segment, work.data if isinstance(work.data, str) else None)
            self._encode_with(node, {feed.stream.name: work.data}, work.t, stages, about)
        finally:
            with self._lock:
                feed.done()
                self._finish_utterances(feed)
                if now is not None and any(h.aligner.has_settled for h in self._heads if h.aligner.pivot_feed is feed):
                    feed.held_until = FOREVER  # the consumer has it before anything newer is begun
        return True

    def collect_one(self, now: int | None = None) -> Result | None:
        """The oldest settled result, if there is one: so that no more is computed than is taken.

        Raises:
            EngineError: the head failed on it; that result is lost and counted.
        """
        self._check_open()
        started = perf_counter_ns()
        with self._lock:
            now = self.newest if now is None else now
            ready = [head for head in self._heads if head.name not in self._disabled]
            ready.sort(key=lambda head: head.aligner.waiting or 0)
            found = next(((head, m) for head in ready if (m := head.aligner.take(now)) is not None), None)
            if found is None:
                # What a feed holds back for may have been skipped: whoever asks waits on, for what is newer.
                self._let_go()
            self._forget()
        if found is None:
            return None
        head, match = found
        return _aged(head, self._run_head(head, match), now, started)

    def keep_newest(self, now: int) -> None:
        """The consumer was away: drop, and count, settled results that newer pivots have overtaken."""
        with self._lock:
            for head in self._heads:
                head.aligner.keep_newest(now)

    def is_over(self) -> bool:
        """Whether no running head can give another result, since its pivot modality has ended.

        Where every head is disabled, one may be enabled again: it is over when that would be of no use.
        """
        with self._lock:
            running = [head for head in self._heads if head.name not in self._disabled]
            return all(head.aligner.is_over() for head in running or self._heads)

    def reads(self, encoder: str, modality: str) -> bool:
        """Whether an encoder reads a modality."""
        return self._feeds[encoder].stream.name == modality

    def explain(self, now: int) -> dict[str, str]:
        """Per head, in words, why it has not fired, or when it last did; ``now`` in ns on the clock of ``push``."""
        with self._lock:
            return {head.name: self._explain(head, now) for head in self._heads}

    def _encode_all(self, encoder: str) -> list[EngineError]:
        """All that waits for an encoder; what failed."""
        failures: list[EngineError] = []
        while True:
            try:
                if not self.encode_next(encoder):
                    return failures
            except EngineError as error:
                failures.append(error)

    def _unless_failed(self, results: list[Result], failures: list[EngineError]) -> list[Result]:
        """The results, or the first failure; then the results are kept for the next call, so that none is lost."""
        results, self._held = [*self._held, *results], []
        if not failures:
            return results
        self._held = results
        raise failures[0]

    def _collect(self, now: int | None, started: int) -> tuple[list[Result], list[EngineError]]:
        with self._lock:
            now = self.newest if now is None else now
            matches = [(head, match) for head in self._heads for match in head.aligner.settled(now)]
            self._forget()
        results, failed = [], []
        for head, match in matches:
            if head.name in self._disabled:
                continue
            try:
                results.append((head, self._run_head(head, match)))
            except EngineError as error:
                failed.append(error)
        aged = [_aged(head, result, now, started) for head, result in results]
        return sorted(aged, key=lambda result: result.t_capture), failed

    def _run_head(self, head: Answering, match: Match) -> Result:
        try:
            return head.result(match)
        except EngineError as error:
            with self._lock:
                head.aligner.failed_on(match)
                head.aligner.pivot_feed.held_until = None
            self._close_if_lost(error)
            raise

    def _close_if_lost(self, error: EngineError) -> None:
        if isinstance(error, DeviceLostError):
            self.close()

    def _let_go(self) -> None:
        for head in self._heads:
            head.aligner.pivot_feed.held_until = None

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
        with self._lock:
            for part in (*self._streams.values(), *self._feeds.values(), *self._nodes.values()):
                part.clear()
            for head in self._heads:
                head.aligner.clear()

    def stats(self) -> dict[str, int]:
        """Losses by cause since the start, "name.cause" -> count."""
        with self._lock:
            counts = {f"{s.name}.{cause}": n for s in self._streams.values() for cause, n in s.losses().items()}
            counts |= {f"{name}.failed": node.failed for name, node in self._nodes.items()}
            for head in self._heads:
                counts[f"{head.name}.overflowed"] = head.aligner.overflowed
                counts[f"{head.name}.overtaken"] = head.aligner.overtaken
                counts[f"{head.name}.skipped"] = head.aligner.skipped
                # A decoder that answers is a node as well.
                counts[f"{head.name}.failed"] = counts.get(f"{head.name}.failed", 0) + head.aligner.failed
        return counts

    # --- choosing and watching ---------------------------------------------------------------------------------------

    def disable(self, head: str) -> None:
        """Stop a head; encoders that no other running head needs rest too.

        Raises:
            InputError: it is not one of the heads that this session loaded.
        """
        self._switch(head, on=False)

    def enable(self, head: str) -> None:
        """Run a head again, from what comes next; its encoders' carried states start from zeros.

        Raises:
            InputError: it is not one of the heads that this session loaded.
        """
        self._switch(head, on=True)

    def status(self) -> tuple[tuple[EncoderStatus, ...], tuple[HeadStatus, ...]]:
        """What each encoder and each head is doing."""
        with self._lock:
            intervals = {name: feed.min_interval_ns for name, feed in self._feeds.items()}
            encoders = tuple(
                EncoderStatus(
                    name=name,
                    runs=node.runs,
                    failed=node.failed,
                    gated=node.gated,
                    last_ns=node.last_ns,
                    min_interval_ns=intervals.get(name, 0),
                )
                for name, node in self._nodes.items()
            )
            return encoders, tuple(head.status(enabled=head.name not in self._disabled) for head in self._heads)

    def hold_rate(self, encoder: str, min_interval_ns: int) -> None:
        """Run an encoder of frames at most this often; 0 for as they come. A governor's lever."""
        with self._lock:
            self._feeds[encoder].min_interval_ns = min_interval_ns

    def _switch(self, name: str, *, on: bool) -> None:
        head = next((head for head in self._heads if head.name == name), None)
        if head is None:
            raise InputError(f"no head '{name}' runs in this session; there is {[head.name for head in self._heads]}")
        with self._lock:
            (self._disabled.discard if on else self._disabled.add)(name)
            head.aligner.clear()
            needed = self._needed_feeds()
            for encoder, feed in self._feeds.items():
                self._nodes[encoder].starts_anew |= feed not in needed
                # A text that comes while nobody needs it still counts when somebody does.
                is_text = isinstance(self.manifest.modalities[feed.stream.name], TextModality)
                feed.switch(on=feed in needed or is_text)

    def _needed_feeds(self) -> set[Feed]:
        """Of the running heads, and of what tells their encoders where speech is."""
        running = (head for head in self._heads if head.name not in self._disabled)
        needed = {feed for head in running for feed in head.aligner.feeds}
        return needed | {feed.teller for feed in needed if feed.teller is not None}

    # --- one shot ----------------------------------------------------------------------------------------------------

    def infer(self, **inputs: object) -> list[Result]:
        """Results of the running heads, those that are not disabled, for one set of inputs, apart from any stream.

        Args:
            inputs: modality -> data as for ``push``; audio at the manifest's rate, from a stream's start, and video as
                uint8[T, H, W, 3]: windows are encoded in turn from a zero state, and the last one counts. So are the
                frames of a clip, uint8[T, H, W, 3], and a sensor's vectors, [T, *shape]. What is left out is missing.

        Raises:
            InputError: an unknown modality, wrong data, or a head that cannot do without a missing modality.
            EngineError: a component failed.
        DeviceLostError: the GPU does not answer any more; the session is closed.
        """
        return self._run_once(inputs)[0]

    def generate(self, decoder: str, **inputs: object) -> Iterator[Piece]:
        """What a decoder writes about one set of inputs, piece by piece as it comes, apart from any stream.

        Whoever stops asking ends it; the session's budget of tokens does too. Nothing else may run meanwhile.

        Args:
            decoder: one that this session loaded. It takes the likeliest token at each step.
            inputs: as for ``infer``.

        Raises:
            InputError: no such decoder, wrong data, or it cannot do without a missing modality.
            EngineError: a component failed.
        """
        self._check_open()
        runner = self._runners.get(decoder)
        if not isinstance(runner, DecoderRunner):
            known = [name for name, made in self._runners.items() if isinstance(made, DecoderRunner)]
            raise InputError(f"no decoder '{decoder}' runs in this session; there is {known}")
        for modality in inputs:
            self._check_modality(modality)
        outputs: dict[str, Any] = dict(inputs)
        needed = needed_by(self.manifest, [decoder]) - {decoder}
        for name in (planned.name for planned in self.plan if planned.name in needed):  # in running order
            self._encode_once(self._runners[name], outputs, {})
        if not runner.sources <= outputs.keys():
            lacking = [m for m in self.manifest.modalities_of(decoder) if m not in inputs]
            raise InputError(f"decoder '{decoder}' cannot do without {', '.join(map(repr, lacking))}: give it")
        return self._pieces(runner, outputs)

    def _pieces(self, runner: DecoderRunner, outputs: Mapping[str, Any]) -> Iterator[Piece]:
        with runner.fresh_state():
            yield from runner.pieces(outputs)

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

    def _load(self, bundle: BundleFiles, load: EngineLoader, undo: ExitStack) -> dict[str, ComponentRunner]:
        runners = {}
        for planned in self.plan:
            engine = load(planned.name, planned.component, bundle.read(planned.graph))
            undo.callback(engine.close)
            assets = _assets(bundle, planned.component)
            runners[planned.name] = self._make_runner(planned, engine, assets)
        return runners

    def _make_runner(self, planned: Planned, engine: Engine, assets: Mapping[str, bytes]) -> ComponentRunner:
        name, component = planned.name, planned.component
        if isinstance(component, Decoder):
            return DecoderRunner(name, component, engine, assets, self.options.decoding)
        if isinstance(component, Detector):
            picture = self.manifest.picture_of(name)
            assert picture is not None  # Manifest.check demands one
            return DetectorRunner(name, component, engine, assets, picture)
        if isinstance(component, Encoder) and component.reads_crops:
            given = {key: tensor_given(self.manifest.components, f"{name}.{key}") for key in component.outputs}
            [modality] = self.manifest.modalities_of(name)
            return CropsRunner(name, component, engine, assets, modality=modality, given=given)
        return ComponentRunner(name, component, engine, assets)

    def _make_streams(self) -> dict[str, Stream]:
        used = {value.source for planned in self.plan for value in planned.component.inputs.values()}
        return {name: self._make_stream(name, m) for name, m in self.manifest.modalities.items() if name in used}

    def _make_stream(self, name: str, modality: Modality) -> Stream:
        if isinstance(modality, AudioModality):
            return self._make_audio(name, modality)
        if isinstance(modality, VideoModality):
            watching = [node.runner.component for node in self._listeners(name)]
            return video_stream(name, modality, watching, self.options.audio_buffer_s)
        return FrameStream(name, [FrameSlot() for _ in self._listeners(name)])

    def _make_feeds(self) -> dict[str, Feed]:
        """One per encoder that reads a modality, in the order of the streams."""
        feeds = {}
        for name, stream in self._streams.items():
            parts: Sequence[FrameSlot | AudioRing | FrameWindows] = stream.parts
            for node, part in zip(self._listeners(name), parts, strict=True):
                feeds[node.runner.name] = Feed(node.runner.name, stream, part)
        for name, feed in feeds.items():
            component = self._nodes[name].runner.component
            if isinstance(component, Encoder) and component.utterances is not None:
                feed.teller = feeds[component.utterances.source.partition(".")[0]]
        return feeds

    def _root_feed(self, encoder: str) -> Feed:
        """What the first encoder on the way to this one reads."""
        while encoder not in self._feeds:
            value = next(iter(self._nodes[encoder].runner.component.inputs.values()))  # all are of one source
            encoder = value.source.partition(".")[0]
        return self._feeds[encoder]

    def _make_audio(self, name: str, modality: AudioModality) -> AudioStream:
        """One ring for each encoder that listens, in running order."""
        rings = [self._make_ring(modality, node.runner.component) for node in self._listeners(name)]
        return AudioStream(name, modality.sample_rate, rings)

    def _make_ring(self, modality: AudioModality, encoder: Component) -> AudioRing:
        assert isinstance(encoder, Encoder)
        assert encoder.window is not None  # Manifest.check demands one for a stream
        _check_sound(modality, encoder.window)
        ahead = int(self.options.audio_buffer_s * modality.sample_rate)
        if encoder.utterances is not None:
            teller = self.manifest.components[encoder.utterances.source.partition(".")[0]]
            assert isinstance(teller, Encoder)
            assert teller.window is not None  # as above
            return UtteranceRing(
                sample_rate=modality.sample_rate,
                window=encoder.window,
                cut=encoder.utterances,
                heard=teller.window.length,
                capacity=ahead,
                max_slip_ns=MAX_SLIP_NS,
            )
        return AudioRing(
            sample_rate=modality.sample_rate,
            length=encoder.window.length,
            hop=encoder.window.hop,
            # A part of the next window always waits; the bound is on top of it.
            capacity=ahead + encoder.window.length,
            max_slip_ns=MAX_SLIP_NS,
        )

    def _make_answering(self, bundle: BundleFiles, planned: Planned) -> Answering:
        component, name = planned.component, planned.name
        timing = self.manifest.results()[name]
        if isinstance(component, Head):
            feeding = {key: value.source.partition(".")[0] for key, value in component.inputs.items()}
        else:
            feeding = {name: name}
        modalities = {key: self.manifest.modalities_of(node)[0] for key, node in feeding.items()}
        feeds = {key: self._root_feed(node) for key, node in feeding.items()}
        pivots = [key for key, modality in modalities.items() if modality == timing.pivot]
        running = list(self._run_by(feeds[pivots[0]].encoder))
        aligner = Aligner(
            timing,
            nodes={key: self._nodes[node] for key, node in feeding.items()},
            modalities=modalities,
            feeds=feeds,
            pivot=max((key for key in pivots if feeding[key] in running), key=lambda key: running.index(feeding[key])),
            max_pending=self.options.max_pending,
            latched=self.manifest.latched(name),
        )
        answering: dict[str, Any] = {
            "frames": frame_times(self.manifest, name),
            "timing": timing,
            "aligner": aligner,
            "modalities": self.manifest.modalities_of(name),
            "provider": "+".join(sorted({self._runners[part].engine.provider for part in (name, *feeding.values())})),
        }
        if not isinstance(component, Head):
            return Relay(name, component, **answering)
        tasks = {key: output.task for key, output in component.outputs.items()}
        labels = {key: self._labels(bundle, t) for key, t in tasks.items() if isinstance(t, Classification)}
        return HeadNode(self._runners[name], component, labels, **answering)

    def _labels(self, bundle: BundleFiles, task: Classification) -> tuple[str, ...] | Prompts:
        if self.manifest.is_prompted(task):
            return Prompts(task.labels, self.manifest.lines(task.labels))
        return bundle.read_labels(task.labels)

    def _listeners(self, modality: str) -> list[Node]:
        """What reads a modality, in running order."""
        return [node for node in self._nodes.values() if modality in node.runner.sources]

    def _find_followers(self, name: str) -> tuple[Node, ...]:
        """What reads outputs of a component, in running order."""
        nodes = self._nodes.values()
        return tuple(node for node in nodes if any(s.startswith(f"{name}.") for s in node.runner.sources))

    def _run_by(self, encoder: str) -> Iterator[str]:
        """An encoder, and those that feed on it, in the order in which ``_encode_with`` runs them."""
        yield encoder
        for follower in self._followers[encoder]:
            yield from self._run_by(follower.runner.name)

    def _find_told(self, encoder: str) -> tuple[str, ...]:
        feed = self._feeds.get(encoder)
        return tuple(name for name, told in self._feeds.items() if feed is not None and told.teller is feed)

    def told_by(self, encoder: str) -> tuple[str, ...]:
        """Encoders that an encoder tells where speech is: after each of its runs they may have something to do."""
        return self._told[encoder]

    # --- encoding ----------------------------------------------------------------------------------------------------

    def _encode_with(
        self, node: Node, sources: Mapping[str, Any], t: int, stages: dict[str, int], about: About
    ) -> None:
        """Run one component, then those that feed on it, and announce pivots."""
        name = node.runner.name
        try:
            encoded = node.encode(sources, t, stages, about)
        except EngineError as error:
            node.failed += 1
            self._close_if_lost(error)
            raise
        with self._lock:
            node.remember(encoded)
            for head in self._heads:
                if head.aligner.pivot_node is node and head.name not in self._disabled:
                    head.aligner.add(t)
            self._tell(name, encoded)
        followers = self._followers[name]
        given = {f"{name}.{key}": value for key, value in encoded.outputs.items()} if followers else {}
        for follower in followers:
            self._encode_with(follower, {**given, **sources}, t, dict(stages), about)

    def _tell(self, name: str, encoded: Encoded) -> None:
        """Those who cut sound where this encoder hears speech."""
        for told in self._told[name]:
            component = self._nodes[told].runner.component
            assert isinstance(component, Encoder)
            assert component.utterances is not None
            ring = self._feeds[told].part
            assert isinstance(ring, UtteranceRing)
            ring.hear(encoded.t, float(encoded.outputs[component.utterances.source.partition(".")[2]].reshape(-1)[0]))

    def _finish_utterances(self, feed: Feed) -> None:
        for told in self._told[feed.encoder]:
            self._feeds[told].finish_utterance()

    def _start_anew(self, node: Node) -> None:
        """Zero the state of a component, and of those that feed on it: they remember the same broken stream."""
        node.reset()
        for follower in self._followers[node.runner.name]:
            self._start_anew(follower)

    def _explain(self, head: Answering, now: int) -> str:
        if head.name in self._disabled:
            return "disabled"
        aligner = head.aligner
        if aligner.waiting is not None:
            late = ", ".join(self._silence(name, now) for name in aligner.lacking(aligner.waiting))
            left = max(0, (aligner.deadline or now) - now)
            age = (now - aligner.waiting) / 1e6
            return f"waits for the moment of {age:.0f} ms ago: {late}; at most {left / 1e6:.0f} ms more"
        fired = f"; last result about {(now - head.last) / 1e6:.0f} ms ago" if head.last is not None else ""
        return f"{self._silence(head.pivot, now)}{fired}"

    def _silence(self, modality: str, now: int) -> str:
        stream = self._streams[modality]
        if stream.ended:
            return f"'{modality}' has ended"
        if stream.bound is None:
            return f"no '{modality}' has come yet"
        return f"no '{modality}' for {max(0, now - stream.bound) / 1e6:.0f} ms; the last at {stream.bound / 1e9:.3f} s"

    def _forget(self) -> None:
        """Drop encoder outputs that no waiting or coming pivot can ask for."""
        horizons = [t for head in self._heads if (t := head.aligner.horizon) is not None]
        if len(horizons) == len(self._heads):
            for node in self._nodes.values():
                node.forget_before(min(horizons))

    # --- one shot, inside --------------------------------------------------------------------------------------------

    def _run_once(self, inputs: Mapping[str, object]) -> tuple[list[Result], dict[str, NDArray[Any]]]:
        try:
            return self._compute_once(inputs)
        except DeviceLostError as error:
            self._close_if_lost(error)
            raise

    def _compute_once(self, inputs: Mapping[str, object]) -> tuple[list[Result], dict[str, NDArray[Any]]]:
        self._check_open()
        for modality in inputs:
            self._check_modality(modality)
        started = perf_counter_ns()
        stages: dict[str, int] = {}
        known: dict[str, Any] = dict(inputs)
        results = []
        for node in self._nodes.values():
            self._encode_once(node.runner, known, stages)
        for head in (head for head in self._heads if head.name not in self._disabled):
            result, outputs = head.infer(known, stages)
            known.update({f"{head.name}.{key}": value for key, value in outputs.items()})
            results.append(structs.replace(result, age=perf_counter_ns() - started))
        found = {key: value for key, value in known.items() if "." in key}
        return results, {k: v.padded if isinstance(v, RegionsOutput) else v for k, v in found.items()}

    def _encode_once(self, runner: ComponentRunner, known: dict[str, Any], stages: dict[str, int]) -> None:
        """Encode what is known, if the encoder's input is; its streaming state is left as it was."""
        if any(value.source not in known for value in runner.component.inputs.values()):
            return
        with runner.fresh_state():
            for sources in self._windows(runner.component, known):
                outputs = runner.compute(sources, stages)
            known.update({f"{runner.name}.{key}": value for key, value in outputs.items()})

    def _windows(self, component: Component, known: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The sources themselves, each item of a series, or each whole window of the sound or the video among them."""
        audio = [v.source for v in component.inputs.values() if isinstance(self._streams.get(v.source), AudioStream)]
        window = component.window if isinstance(component, Encoder) else None
        video = [v.source for v in component.inputs.values() if isinstance(self._streams.get(v.source), VideoStream)]
        if video and window is not None:
            frames = as_video(known[video[0]])
            for found in frame_windows(len(frames), window):
                yield {**known, video[0]: [frames[index] for index in found.indices]}
            return
        if not audio or window is None:
            value = next(iter(component.inputs.values()))  # all are of one source
            yield from ({**known, value.source: item} for item in in_turn(known[value.source], value))
            return
        samples = as_waveform(known[audio[0]])
        if isinstance(component, Encoder) and component.utterances is not None:
            yield {**known, audio[0]: as_utterance(samples, window.length)}
            return
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


def _aged(head: Answering, result: Result, now: int, started: int) -> Result:
    """The result with its age: until ``now``, and the time spent since ``started`` on perf_counter."""
    age = max(0, now - result.t_capture) + perf_counter_ns() - started
    head.handed_out(age)
    return structs.replace(result, age=age)


def _assets(bundle: BundleFiles, component: Component) -> dict[str, bytes]:
    """The files that a component's preprocessing needs."""
    steps = [value.preprocess for value in component.inputs.values()]
    names = {s.asset for s in steps if isinstance(s, TokenSteps)}
    if isinstance(component, Decoder):
        names.add(component.tokenizer)
    return {name: bundle.read(bundle.manifest.assets[name].path) for name in names}


def _check_sound(modality: AudioModality, window: Window) -> None:
    """Refuse numbers that no microphone and no model has, before memory is taken by them."""
    if modality.sample_rate > MAX_RATE or max(window.length, window.hop) > _LONGEST_S * modality.sample_rate:
        raise ManifestError(
            f"windows of {window.length} samples every {window.hop} at {modality.sample_rate} Hz are not of sound: a "
            f"rate is at most {MAX_RATE} Hz, a window and its hop at most {_LONGEST_S} s. Export the bundle again."
        )


def _as_time(t: int) -> int:
    """A plain int, whatever integer type the caller's clock gives."""
    try:
        return operator.index(t)
    except TypeError:
        raise InputError(f"t is a time in whole nanoseconds, got {t!r}") from None


def _as_rate(rate: Any) -> int | None:
    """A plain int: times are counted in it for days, which other types do not hold."""
    if rate is None or type(rate) is int:
        return rate
    try:
        return int(rate) if isinstance(rate, float) and rate.is_integer() else operator.index(rate)
    except TypeError:
        raise InputError(f"rate is a sample rate in whole Hz, got {rate!r}") from None


def _check_item(manifest: Manifest, data: object, name: str) -> None:
    """Refuse wrong data where it is handed in, not later where it is encoded."""
    modality = manifest.modalities[name]
    if isinstance(modality, ImageModality):
        as_frame(data)
    elif isinstance(modality, TextModality):
        as_lines(data, manifest.lines(name))
    elif isinstance(modality, SensorModality):
        vector = as_array(data)
        if vector.shape != modality.shape or vector.dtype.kind not in "fiu":
            raise InputError(f"'{name}' is numbers of shape {list(modality.shape)}, got {vector.dtype}{vector.shape}")
        if not np.isfinite(vector).all():
            raise InputError(f"'{name}' has NaN or infinite values: drop or repair such samples before pushing them")
