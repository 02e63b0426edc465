"""Where ``FileSource`` is imported from; its code is with the other sources."""

from edge_mbm.runtime.sources.file import FileSource

__all__ = ["FileSource"]
