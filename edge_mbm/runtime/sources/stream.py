"""Network cameras: RTSP, HTTP and UDP streams, picture and sound on one time base, decoded by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from edge_mbm.errors import InputError, SourceError
from edge_mbm.runtime.clock import Clock, MonotonicClock
from edge_mbm.runtime.source import Sample, Timing
from edge_mbm.runtime.sources.decoded import audio_samples, frame_samples, import_av, nanoseconds
from edge_mbm.runtime.sources.envelope import JUMP_NS, Envelope
from edge_mbm.runtime.sources.lease import Lease
from edge_mbm.runtime.sources.mask import mask

__all__ = ["StreamOptions", "StreamSource"]

_SECOND = 1_000_000_000
_UNKNOWN_LATENCY_NS = 200_000_000
"""A camera's encoder and network, where nobody has measured them; arrivals do not tell."""
_HELD_BACK = ("h264", "hevc")
"""Over RTSP FFmpeg sees the end of such a frame in the beginning of the next one: it comes one period late."""
_WAITED_NS = 5_000_000
"""A packet that had to be waited for this long is new; those before it waited themselves, nobody knows for how long."""
_BACKLOG_NS = 5 * _SECOND
"""A backlog that takes longer than this to read is no backlog, but a stream faster than its time."""
_MAX_UNDECODABLE = 300
"""Packets in a row that cannot be decoded before the stream is given up: ten seconds of waiting for a key frame."""


@dataclass(frozen=True)
class StreamOptions:
    """How a network stream is read.

    Args:
        transport: of RTSP; "udp" may be faster on a good network, and loses packets on a bad one.
        open_timeout_s: for connecting.
        read_timeout_s: without a packet; longer is an error.
        latency_ns: from capture to the earliest possible arrival, if it was measured: it is subtracted.
        keep_backlog: give also what had waited when reading began, in a server's cache or on the way; its times are
            too late. Without this it is decoded, for what follows, and dropped.

    Raises:
        InputError: a value that makes no sense.
    """

    transport: Literal["tcp", "udp"] = "tcp"
    open_timeout_s: float = 8.0
    read_timeout_s: float = 2.0
    latency_ns: int | None = None
    keep_backlog: bool = False

    def __post_init__(self) -> None:
        if self.transport not in ("tcp", "udp"):
            raise InputError(f"transport is 'tcp' or 'udp', not '{self.transport}'")
        if not min(self.open_timeout_s, self.read_timeout_s) > 0:
            raise InputError(f"a stream's time limits are above 0 s, not {self}")
        if self.latency_ns is not None and self.latency_ns < 0:
            raise InputError(f"a latency of {self.latency_ns} ns would be a frame from the future")


class StreamSource:
    """The first video and the first audio stream of a network address.

    Times are the stream's own, moved to the monotonic clock by the least delay seen in the last half minute, so that
    the network's jitter does not move them and picture and sound stay together. Frames are uint8[H, W, 3] RGB; audio
    is float32[samples, channels].

    Args:
        url: an address that FFmpeg opens; its account never appears in a message.
        image: modality that the pictures are; None to leave them out.
        audio: modality that the sound is; None to leave it out.
        options: how it is read.
        clock: monotonic time.

    Raises:
        MissingDependencyError: PyAV is not installed.
        SourceError: it cannot be opened, has neither stream, or is a recording on a web server.
    """

    def __init__(
        self,
        url: str,
        *,
        image: str | None = "image",
        audio: str | None = "audio",
        options: StreamOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = mask(url)
        self._options = options or StreamOptions()
        self._clock = clock or MonotonicClock()
        self._av = import_av("reading a network stream")
        self._container = self._open(url)
        self._lease = Lease(self._container.close)
        self._tracks: dict[int, _Track] = {}
        streams = self._container.streams
        for modality, found in ((image, streams.video), (audio, streams.audio)):
            if modality is not None and found:
                held_back = url.startswith("rtsp") and found[0].codec_context.name in _HELD_BACK
                self._tracks[found[0].index] = _Track(modality, found[0], held_back=held_back)
                found[0].thread_type = "SLICE"  # frame threads would hold several frames back
        if not self._tracks:
            self.close()
            raise SourceError(f"{self.name} has no {' and no '.join(filter(None, (image, audio)))} stream")
        self._check_live(url)
        # These have no times of their own; FFmpeg makes some up, at 25 frames a second.
        self._is_stamped = self._container.format.name not in ("mjpeg", "mpjpeg")

    @property
    def modalities(self) -> tuple[str, ...]:
        """See ``Source.modalities``."""
        return tuple(track.modality for track in self._tracks.values())

    @property
    def timing(self) -> Timing:
        """See ``Source.timing``: off by what the camera and the network take at least, unless it was given."""
        period = max((track.period_ns for track in self._tracks.values()), default=0)
        return Timing("monotonic", period + (_UNKNOWN_LATENCY_NS if self._options.latency_ns is None else 0))

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        with self._lease.held() as is_open:
            for sample in self._samples() if is_open else ():
                if self._lease.closed:
                    return
                yield sample

    def close(self) -> None:
        """See ``Source.close``; whoever reads stops within ``read_timeout_s``."""
        self._lease.close()

    def losses(self) -> dict[str, int]:
        """Counts by "modality.cause": ``undecodable`` packets, ``backlog``, ``backward`` samples, ``jumps`` in time."""
        return {f"{t.modality}.{cause}": n for t in self._tracks.values() for cause, n in t.losses().items() if n}

    def _open(self, url: str) -> Any:
        options = {"fflags": "nobuffer", "flags": "low_delay"}
        if url.startswith("rtsp"):
            options["rtsp_transport"] = self._options.transport
        begun, timeout = self._clock.now(), (self._options.open_timeout_s, self._options.read_timeout_s)
        try:
            return self._av.open(url, timeout=timeout, options=options)
        except (self._av.FFmpegError, ValueError) as error:
            # FFmpeg has different words for its time limit, depending on what it waited for.
            is_late = self._clock.now() - begun >= self._options.open_timeout_s * _SECOND
            why = f"it did not answer within {self._options.open_timeout_s:g} s" if is_late else self._reason(error)
        # Outside of the handler: the library's error has the whole address in it.
        raise SourceError(f"{self.name} cannot be opened: {why}. Is the address right, and the camera on the network?")

    def _check_live(self, url: str) -> None:
        """An RTSP server paces its recordings; a web server sends them as fast as it can."""
        if url.startswith("http") and self._container.duration is not None:
            seconds = self._container.duration / 1e6
            self.close()
            raise SourceError(f"{self.name} is a recording of {seconds:.0f} s: download it, and play the file")

    def _reason(self, error: Exception) -> str:
        if isinstance(error, self._av.error.ExitError):
            return f"nothing came for {self._options.read_timeout_s:g} s"
        return mask(getattr(error, "strerror", None) or type(error).__name__)

    def _samples(self) -> Iterator[Sample]:
        why = "the server ended it"
        begun = asked = self._clock.now()
        is_new = self._options.keep_backlog
        try:
            for packet in self._container.demux([track.stream for track in self._tracks.values()]):
                arrival = self._clock.now()
                is_new = is_new or arrival - asked >= _WAITED_NS or arrival - begun >= _BACKLOG_NS
                if packet.dts is not None or packet.pts is not None:
                    yield from self._decoded(packet, arrival) if is_new else self._passed_over(packet)
                asked = self._clock.now()
        except self._av.FFmpegError as error:
            why = self._reason(error)
        if not self._lease.closed:
            raise SourceError(f"{self.name} broke off: {why}")

    def _passed_over(self, packet: Any) -> tuple[()]:
        self._tracks[packet.stream.index].pass_over(packet, self._av.error.InvalidDataError)
        return ()

    def _decoded(self, packet: Any, arrival: int) -> Iterator[Sample]:
        track = self._tracks[packet.stream.index]
        track.observe(packet, arrival)
        offset, latency = self._offset(track), self._options.latency_ns or 0
        for frame in track.decode(packet, self._av.error.InvalidDataError):
            if not self._is_stamped or frame.pts is None:
                yield from track.rising(frame, arrival - latency)
            elif offset is not None:  # or when it was captured is not known yet
                yield from track.rising(frame, nanoseconds(frame.pts, frame.time_base) + offset - latency)
        if track.undecodable_in_a_row > _MAX_UNDECODABLE:
            raise SourceError(
                f"{self.name} gives {track.modality} that cannot be decoded: restart the camera's encoder"
            )

    def _offset(self, track: _Track) -> int | None:
        """From this track's time to the monotonic one: the least of all tracks that are on the same time base."""
        own = track.envelope.offset
        if own is None:
            return None
        others = (other.envelope.offset for other in self._tracks.values())
        return min(offset for offset in others if offset is not None and abs(offset - own) < JUMP_NS)


class _Track:
    """One stream of the container."""

    def __init__(self, modality: str, stream: Any, *, held_back: bool) -> None:
        self.modality = modality
        self.stream = stream
        self.envelope = Envelope()
        self.undecodable_in_a_row = 0
        self._undecodable = self._backward = self._backlog = 0
        self._newest: int | None = None
        self._is_sound = stream.type == "audio"
        # Kept, because FFmpeg's stream is gone once the container is closed, and asking it is a crash.
        rate = None if self._is_sound else stream.guessed_rate or stream.average_rate
        self.period_ns = int(_SECOND / Fraction(rate)) if rate else 0
        """Between two frames, as far as the stream says."""
        self._held_back = held_back
        self._arrival: int | None = None

    def observe(self, packet: Any, arrival: int) -> None:
        """Learn from when a packet came. Sound can't come before its last sample was heard."""
        # A frame that was held back began to arrive when the one before was handed over.
        began = self._arrival if self._held_back else arrival
        self._arrival = arrival
        if packet.pts is not None and began is not None:
            length = (packet.duration or 0) if self._is_sound else 0
            self.envelope.add(nanoseconds(packet.pts + length, packet.time_base), began)

    def decode(self, packet: Any, invalid: type[Exception]) -> list[Any]:
        """Its frames; none if it is damaged, or the first key frame has not come yet."""
        try:
            frames = list(packet.decode())
        except invalid:
            self._undecodable += 1
            self.undecodable_in_a_row += 1
            return []
        self.undecodable_in_a_row = 0
        return frames

    def pass_over(self, packet: Any, invalid: type[Exception]) -> None:
        """Decode a packet of the backlog, for the frames after it."""
        self._backlog += len(self.decode(packet, invalid))

    def rising(self, frame: Any, t: int) -> Iterator[Sample]:
        """A frame's samples, but for those that are not after what was given before."""
        for sample in (audio_samples if self._is_sound else frame_samples)(self.modality, frame, t):
            if self._newest is not None and sample.t <= self._newest:
                self._backward += 1
                continue
            self._newest = sample.t
            yield sample

    def losses(self) -> dict[str, int]:
        """Counts by cause."""
        return {
            "undecodable": self._undecodable,
            "backlog": self._backlog,
            "backward": self._backward,
            "jumps": self.envelope.jumps,
        }
