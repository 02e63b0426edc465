"""Sources that give what a test wrote down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edge_mbm.runtime.source import MEDIA, Sample, Timing

__all__ = ["ScriptedSource"]


class ScriptedSource:
    """A ``Source`` that gives a list of samples, then ends or fails.

    Args:
        samples: in the order to give them; may be a generator that waits for the test.
        modalities: what it claims to give; those of ``samples`` if it is a list.
        error: raised after the last sample.
        timing: which clock the samples' times are on.
    """

    def __init__(
        self,
        samples: Iterable[Sample],
        *,
        modalities: tuple[str, ...] | None = None,
        error: Exception | None = None,
        timing: Timing = MEDIA,
    ) -> None:
        if modalities is None:
            samples = list(samples)
            modalities = tuple(dict.fromkeys(sample.modality for sample in samples))
        self.modalities = modalities
        self.timing = timing
        self.closed = False
        self._samples = samples
        self._error = error

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        for sample in self._samples:
            if self.closed:
                return
            yield sample
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """See ``Source.close``."""
        self.closed = True
