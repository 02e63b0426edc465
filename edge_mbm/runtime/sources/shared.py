"""One camera for several modalities of a bundle: single images for one encoder, windows of video for another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_mbm.runtime.source import Sample, Source, Timing

__all__ = ["SharedSource"]


class SharedSource:
    """Gives what another source gives, and the same once more under other names; nothing is copied.

    Args:
        source: whose samples they are; it is closed with this.
        modality: of its samples.
        also: under which names they come as well.
    """

    def __init__(self, source: Source, modality: str, also: tuple[str, ...]) -> None:
        self._source = source
        self._modality = modality
        self._also = also

    @property
    def modalities(self) -> tuple[str, ...]:
        """See ``Source.modalities``."""
        given = self._source.modalities
        return (*given, *(self._also if self._modality in given else ()))

    @property
    def timing(self) -> Timing:
        """See ``Source.timing``: the source's own."""
        return self._source.timing

    def samples(self) -> Iterator[Sample]:
        """See ``Source.samples``."""
        for sample in self._source.samples():
            yield sample
            if sample.modality == self._modality:
                for name in self._also:
                    yield sample._replace(modality=name)

    def close(self) -> None:
        """See ``Source.close``."""
        self._source.close()

    def __getattr__(self, name: str) -> Any:
        """What only some sources have, such as ``status`` and ``duration``."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)
