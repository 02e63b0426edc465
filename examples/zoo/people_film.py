"""A film of people, a face and a voice each, and galleries that know some of them, for ``examples/people.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import edge_mbm
from edge_mbm import Session, SessionOptions
from edge_mbm.runtime.gallery import Gallery, calibrate, model_of
from zoo import faces, people, photos
from zoo.film import write_film

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NAMES", "STRANGER", "make"]

NAMES = tuple(f"person {number}" for number in range(1, 10))
STRANGER = "somebody"  # the other four
_SECONDS = 3.2  # that each is seen: two pieces of the voice
_ROUND = 1.0  # widths of a face that are shown on each side of it


class _Person(NamedTuple):
    photo: NDArray[np.uint8]
    box: NDArray[np.float32]
    face: NDArray[np.float32]
    voice: list[NDArray[np.float32]]


def make(bundle: Path, film: Path, face_file: Path, voice_file: Path) -> None:
    """Enrol the first people by their photo and the beginning of their voice, then film all of them.

    Each is seen in another form of the photo than was enrolled, and heard with a later piece of the voice. Beside the
    film, ``NAME.truth.json`` has who is shown from when to when.
    """
    with edge_mbm.load(bundle) as opened, opened.session(SessionOptions(heads=("who",))) as session:
        files = {"face": face_file, "voice": voice_file}
        galleries = {kind: Gallery(path, model_of(opened.manifest, kind)) for kind, path in files.items()}
        _calibrate(session, galleries)
        cast = list(_cast(session))
        for name, person in zip(NAMES, cast, strict=False):
            galleries["face"].enrol(name, person.face)
            galleries["voice"].enrol(name, np.stack([people.hear(session, piece) for piece in person.voice[:4]]))
    names = [*NAMES, *[STRANGER] * (len(cast) - len(NAMES))]
    shown = [(_portrait(person, number), name) for number, (person, name) in enumerate(zip(cast, names, strict=True))]
    write_film(film, shown, _SECONDS, np.concatenate([piece for person in cast for piece in person.voice[4:6]]))


def _calibrate(session: Session, galleries: dict[str, Gallery]) -> None:
    """By the photos and the voices that are in no film."""
    albums = [people.album(session, path, people.FORMS) for path in faces.photo_paths()[:3]]
    spoken = [[people.hear(session, piece) for piece in pieces] for pieces in people.pieces_of("calibration")]
    galleries["face"].set_calibration(calibrate(*people.face_pairs(albums)))
    galleries["voice"].set_calibration(calibrate(*people.voice_pairs(spoken)))


def _cast(session: Session) -> Iterator[_Person]:
    """The faces of the other photos, with a voice each."""
    voices = iter(people.pieces_of("heldout"))
    for path in faces.photo_paths()[3:]:
        photo = photos.read(path)
        for box, vector in zip(*people.see(session, photo), strict=True):
            yield _Person(photo, box, vector, next(voices))


def _portrait(person: _Person, number: int) -> NDArray[np.uint8]:
    """The face and what is around it, in one of the photo's other forms."""
    forms = people.FORMS[1:]
    picture, moved = people.altered(person.photo, forms[number % len(forms)], np.random.default_rng(number))
    x, y = (moved @ (*person.box.reshape(2, 2).mean(0), 1)).astype(int)
    far = round((person.box[2] - person.box[0]) * (0.5 + _ROUND))
    return picture[max(0, y - far) : y + far, max(0, x - far) : x + far]
