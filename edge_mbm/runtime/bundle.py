"""A bundle that can be run: its verified files, and ``session``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from edge_mbm.bundle import BundleFiles
from edge_mbm.errors import BundleIntegrityError
from edge_mbm.runtime.engine import EngineLoader
from edge_mbm.runtime.session import Session, SessionOptions
from edge_mbm.spec import TextModality

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Bundle", "load"]


class Bundle(BundleFiles):
    """An opened bundle. See ``BundleFiles`` for reading its files."""

    def session(self, options: SessionOptions | None = None, *, load_engine: EngineLoader | None = None) -> Session:
        """Load the components on this machine.

        Args:
            options: heads, variant, threads and bounds; see ``SessionOptions``.
            load_engine: makes each component's engine; what ``SessionOptions.provider`` says unless given.

        Raises:
            InputError, ManifestError, EngineError, MissingDependencyError: see ``Session``.
        """
        return Session(self, options, load_engine=load_engine)

    def read_sample(self, modality: str, path: str) -> NDArray[np.generic] | str:
        """What a golden sample has of a modality, as a source would push it.

        Raises:
            BundleIntegrityError: not listed, altered, or not a plain ``.npy`` array; of a text modality, not UTF-8.
        """
        if not isinstance(self.manifest.modalities[modality], TextModality):
            return self.read_array(path)
        return self.read_text(path)

    def read_text(self, path: str) -> str:
        """A listed file of text.

        Raises:
            BundleIntegrityError: not listed, altered, or not UTF-8.
        """
        try:
            return self.read(path).decode()
        except UnicodeDecodeError as error:
            raise BundleIntegrityError(f"'{path}' in the bundle is not UTF-8 text: {error}") from error


def load(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle directory or ``.mbm`` file and check every byte of it.

    Raises:
        BundleError: see ``BundleFiles``.
    """
    return Bundle(path)
