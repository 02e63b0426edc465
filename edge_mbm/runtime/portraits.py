"""Photos of people to vectors of their faces, by a bundle's detector and the encoder that reads its regions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_mbm.errors import InputError
from edge_mbm.preprocess import import_cv2
from edge_mbm.runtime.bundle import Bundle
from edge_mbm.runtime.gallery import Calibration, calibrate, model_of
from edge_mbm.runtime.plan import needed_by
from edge_mbm.runtime.session import SessionOptions
from edge_mbm.spec import Encoder, Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = ["Face", "Portraits", "calibrate_on", "photos_in"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Face(NamedTuple):
    """One region of a photo."""

    box: NDArray[np.float32]
    """float32[4]: x0, y0, x1, y1 in the photo's pixels."""
    vector: NDArray[np.float32]
    """float32[width]."""


class Portraits:
    """Looks at photos with a bundle.

    Args:
        bundle: with an encoder that reads a detector's regions.
        encoder: which, if it has several.

    Raises:
        InputError: it has none, several, or not this one; or the encoder gives more than one output.
        EngineError, ManifestError, MissingDependencyError: see ``Session``.
    """

    def __init__(self, bundle: Bundle, encoder: str | None = None) -> None:
        manifest = bundle.manifest
        self.encoder = _encoder(manifest, encoder)
        self.model = model_of(manifest, self.encoder)
        """Whose vectors they are, see ``Gallery``."""
        component = manifest.components[self.encoder]
        [self._modality] = manifest.modalities_of(self.encoder)
        self._regions = next(iter(component.inputs.values())).source
        self._vectors = f"{self.encoder}.{next(iter(component.outputs))}"
        self._session = bundle.session(SessionOptions(heads=(_reader(manifest, self.encoder),)))

    def faces(self, photo: Path) -> list[Face]:
        """As ``faces_in``, of a file; raises InputError too if it cannot be read."""
        return self.faces_in(_read(photo))

    def faces_in(self, picture: NDArray[np.uint8]) -> list[Face]:
        """All that are found in a picture, uint8[H, W, 3] RGB, the surest first.

        Raises:
            InputError: it is no picture.
            EngineError: a component failed.
            MissingDependencyError: OpenCV is not installed.
        """
        found = self._session.run_components(**{self._modality: picture})
        regions, vectors = found[self._regions][0], found[self._vectors][0]
        there = regions[:, 4] > 0
        return [Face(box[:4], vector) for box, vector in zip(regions[there], vectors[there], strict=True)]

    def only_face(self, photo: Path) -> NDArray[np.float32]:
        """The vector of a photo of one person; errors as for ``faces``, and for none or several."""
        found = self.faces(photo)
        if len(found) != 1:
            problem = "nobody is found on it" if not found else f"{len(found)} faces are found on it"
            raise InputError(
                f"{photo}: {problem}. Give a photo of one person alone, with the face larger, or cut it out"
            )
        return found[0].vector

    def close(self) -> None:
        """Free the engines."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def photos_in(places: Sequence[Path]) -> list[Path]:
    """Photos, and those in folders, by name.

    Raises:
        InputError: a place that is not there, or a folder without photos.
    """
    return [photo for place in places for photo in _photos(place)]


def calibrate_on(portraits: Portraits, folder: Path) -> Calibration:
    """The threshold that photos of known people say, in a folder with one folder for each person.

    Raises:
        InputError: there are not two people, or no two photos of one; see ``Portraits.only_face``.
    """
    people = {place.name: photos_in([place]) for place in sorted(folder.iterdir()) if place.is_dir()}
    if len(people) < 2 or all(len(photos) < 2 for photos in people.values()):
        raise InputError(
            f"{folder} has photos of {len(people)} people: pairs of one and of two people need a folder for each, with "
            "two people at least, and two photos of somebody"
        )
    vectors = {name: np.stack([portraits.only_face(photo) for photo in photos]) for name, photos in people.items()}
    return calibrate(*_pairs(vectors))


def _pairs(vectors: Mapping[str, NDArray[np.float32]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Distances between all vectors of one person, and of two."""
    who = np.repeat(list(vectors), [len(rows) for rows in vectors.values()])
    every = np.concatenate(list(vectors.values())).astype(np.float64)
    first, second = np.triu_indices(len(who), 1)
    distances = np.linalg.norm(every[first] - every[second], axis=1)
    same = who[first] == who[second]
    return distances[same], distances[~same]


def _photos(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        if not place.exists():
            raise InputError(f"there is no photo {place}")
        yield place
        return
    found = [path for path in sorted(place.iterdir()) if path.suffix.lower() in _SUFFIXES]
    if not found:
        raise InputError(f"there are no photos in {place}: they end in {', '.join(_SUFFIXES)}")
    yield from found


def _read(photo: Path) -> NDArray[np.uint8]:
    """uint8[H, W, 3] in RGB."""
    cv2 = import_cv2("reading photos")
    bgr = cv2.imread(str(photo), cv2.IMREAD_COLOR)
    if bgr is None:
        raise InputError(f"{photo} is no photo that OpenCV can read")
    return np.ascontiguousarray(bgr[:, :, ::-1])


def _encoder(manifest: Manifest, wanted: str | None) -> str:
    known = [name for name, c in manifest.components.items() if isinstance(c, Encoder) and c.reads_crops]
    if wanted not in (None, *known):
        raise InputError(
            f"no encoder '{wanted}' in '{manifest.name}' reads a detector's regions; those that do: {known}"
        )
    if wanted is None and len(known) != 1:
        raise InputError(f"'{manifest.name}' has {known or 'no encoders'} that read a detector's regions: name one")
    name = known[0] if wanted is None else wanted
    if len(manifest.components[name].outputs) != 1:
        raise InputError(f"'{name}' gives {sorted(manifest.components[name].outputs)}: a gallery takes one vector")
    return name


def _reader(manifest: Manifest, encoder: str) -> str:
    """What gives results and needs the encoder, and the fewest modalities."""
    readers = [name for name in manifest.results() if encoder in needed_by(manifest, [name])]
    if not readers:
        raise InputError(f"nothing that gives results in '{manifest.name}' reads '{encoder}'")
    return min(readers, key=lambda name: len(manifest.modalities_of(name)))
