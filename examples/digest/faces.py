"""Whose faces are in a shot's picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from digest.shots import Shot
from edge_mbm.runtime.gallery import Gallery
from edge_mbm.runtime.portraits import Portraits
from edge_mbm.runtime.source import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Faces"]


class Faces:
    """An ``Annotator``: how many faces there are, and the names of those whom a gallery knows.

    Args:
        portraits: of a bundle such as export/people.toml makes.
        gallery: whose people; None counts faces only.
    """

    def __init__(self, portraits: Portraits, gallery: Gallery | None = None) -> None:
        self._portraits, self._gallery = portraits, gallery

    def see(self, sample: Sample) -> None:
        """Nothing: the shot's picture is enough."""

    def note(self, shot: Shot, picture: NDArray[np.uint8]) -> Iterator[tuple[str, str]]:  # noqa: ARG002 - an Annotator's
        """One line, if there are faces."""
        faces = self._portraits.faces_in(picture)
        if not faces:
            return
        matches = [] if self._gallery is None else [self._gallery.identify(face.vector) for face in faces]
        names = [match.name for match in matches if match is not None]
        strangers = len(faces) - len(names)
        others = [f"{strangers} {'faces' if strangers > 1 else 'face'}"] if strangers else []
        yield "seen", ", ".join([*names, *others])
