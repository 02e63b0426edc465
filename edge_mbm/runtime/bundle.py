"""A bundle that can be run: its verified files, and ``session``."""

from __future__ import annotations

import os

from edge_mbm.bundle import BundleFiles
from edge_mbm.runtime.engine import EngineLoader
from edge_mbm.runtime.session import Session, SessionOptions

__all__ = ["Bundle", "load"]


class Bundle(BundleFiles):
    """An opened bundle. See ``BundleFiles`` for reading its files."""

    def session(self, options: SessionOptions | None = None, *, load_engine: EngineLoader | None = None) -> Session:
        """Load the components on this machine.

        Args:
            options: heads, variant, threads and bounds; see ``SessionOptions``.
            load_engine: makes each component's engine; ONNX Runtime on the CPU unless given.

        Raises:
            InputError, ManifestError, EngineError, MissingDependencyError: see ``Session``.
        """
        return Session(self, options, load_engine=load_engine)


def load(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle directory or ``.mbm`` file and check every byte of it.

    Raises:
        BundleError: see ``BundleFiles``.
    """
    return Bundle(path)
