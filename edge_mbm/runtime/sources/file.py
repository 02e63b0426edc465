"""A video file's pictures and sound on one time base, decoded by PyAV."""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_mbm.errors import SourceError
from edge_mbm.runtime.source import MEDIA, Sample, Timing
from edge_mbm.runtime.sources.decoded import audio_samples, frame_samples, import_av, nanoseconds
from edge_mbm.runtime.sources.lease import Lease

__all__ = ["FileSource"]

_SECOND = 1_000_000_000
_LOOKAHEAD_NS = 2 * _SECOND
"""How far one stream may be ahead of the other in the file before samples are handed out unsorted by arrival."""


class FileSource:
    """Plays the first video and the first audio stream of a file.

    Times are the file's presentation times in ns, so sound and picture share one clock. Frames are uint8[H, W, 3] RGB;
    audio is float32[samples, channels] at the file's rate, which the session resamples.

    Args:
        path: anything that FFmpeg demuxes.
        image: modality that the pictures are; None to leave them out.
        audio: modality that the sound is; None to leave it out.

    Raises:
        MissingDependencyError: PyAV is not installed.
        SourceError: the file cannot be opened, or has neither stream.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, image: str | None = "image", audio: str | None = "audio"
    ) -> None:
        self._av = import_av("playing a file")
        self.path = Path(path)
        self._container = self._open()
        self._lease = Lease(self._container.close)
        duration = self._container.duration  # kept, because asking a closed container is a crash
        self._duration = None if duration is None else duration * 1000
        streams = self._container.streams
        self._names: dict[int, str] = {}
        for modality, found in ((image, streams.video), (audio, streams.audio)):
            if modality is not None and found:
                self._names[found[0].index] = modality
                found[0].thread_type = "SLICE"  # frame threads would hold several frames back
        if not self._names:
            self._container.close()
            raise SourceError(f"{self.path} has no {' and no '.join(filter(None, (image, audio)))} stream to play")

    @property
    def modalities(self) -> tuple[str, ...]:
        """See ``Source.modalities``."""
        return tuple(self._names.values())

    @property
    def timing(self) -> Timing:
        """See ``Source.timing``: the file's presentation times."""
        return MEDIA

    @property
    def duration(self) -> int | None:
        """Length that the file claims, ns."""
        return self._duration

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``: sorted by the moment at which a live source would have had them."""
        with self._lease.held() as is_open:
            if not is_open:
                return
            for sample in _in_order(self._decoded(), len(self._names)):
                if self._lease.closed:
                    return
                yield sample

    def close(self) -> None:
        """See ``Source.close``."""
        self._lease.close()

    def _open(self) -> Any:
        try:
            if not self.path.is_file():
                raise SourceError(f"there is no file {self.path}")
            return self._av.open(str(self.path))
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"{self.path} cannot be played: {error}. Is it a video file, and whole?") from error

    def _decoded(self) -> Iterator[Sample]:
        streams = [stream for stream in self._container.streams if stream.index in self._names]
        # Recordings start at 0, whatever number their container gives the first moment; what is before is priming.
        start = max(0, self._container.start_time or 0) * 1000
        newest: dict[str, int] = {}
        try:
            for packet in self._container.demux(streams):
                modality = self._names[packet.stream.index]
                for sample in (sample for frame in packet.decode() for sample in _samples(modality, frame, start)):
                    # A damaged file may repeat times or go back; time does not.
                    if sample.t > newest.get(modality, -1):
                        newest[modality] = sample.t
                        yield sample
        except self._av.FFmpegError as error:
            last = max(newest.values(), default=0)
            raise SourceError(f"{self.path} breaks off after {last / 1e9:.2f} s: {error}") from error


def _samples(modality: str, frame: Any, start: int) -> Iterator[Sample]:
    if frame.pts is None:
        return iter(())
    to_samples = audio_samples if hasattr(frame, "sample_rate") else frame_samples
    return to_samples(modality, frame, nanoseconds(frame.pts, frame.time_base) - start)


def _in_order(decoded: Iterator[Sample], streams: int) -> Iterator[Sample]:
    """Merge the streams by time of availability, holding back no more than a file's interleaving makes necessary."""
    if streams == 1:
        yield from decoded
        return
    waiting: list[tuple[int, int, Sample]] = []
    reached: dict[str, int] = {}
    for count, sample in zip(itertools.count(), decoded, strict=False):
        available = sample.t + sample.duration
        heapq.heappush(waiting, (available, count, sample))
        reached[sample.modality] = available
        safe = min(reached.values()) if len(reached) == streams else available - _LOOKAHEAD_NS
        while waiting and waiting[0][0] <= max(safe, available - _LOOKAHEAD_NS):
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]
