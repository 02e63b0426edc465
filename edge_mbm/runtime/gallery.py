"""Who is known: a file of people's embedding vectors, on the device that took them, and who a new vector is of."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from edge_mbm.errors import InputError
from edge_mbm.preprocess import as_array
from edge_mbm.runtime.plan import needed_by
from edge_mbm.spec import Encoder, Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Calibration", "Gallery", "Match", "Rate", "calibrate", "identify_jointly", "model_of"]

_NORMAL = statistics.NormalDist()
_ONE_SIDED_95 = 1.6448536269514722


class Rate(Struct, frozen=True):
    """How often something went wrong, and how often it may.

    Args:
        wrong: pairs that were decided wrongly.
        pairs: how many there were.
    """

    wrong: int
    pairs: int

    @property
    def share(self) -> float:
        """Of the pairs, 0..1."""
        return self.wrong / self.pairs

    @property
    def bound(self) -> float:
        """What the true rate is below with 95 % confidence: Wilson's score bound, for pairs that are independent.

        With nothing wrong it is about 2.7 / pairs, so that few pairs never promise much.
        """
        z2 = _ONE_SIDED_95**2
        centre = self.share + z2 / (2 * self.pairs)
        spread = math.sqrt(z2 * (self.share * (1 - self.share) + z2 / (4 * self.pairs)) / self.pairs)
        return min(1.0, (centre + spread) / (1 + z2 / self.pairs))


class Calibration(Struct, frozen=True, kw_only=True):
    """A threshold, and what was measured at it.

    Args:
        threshold: distance up to which two vectors are of one person.
        false_accept: pairs of two people that were taken for one.
        false_reject: pairs of one person that were taken for two.
    """

    threshold: float
    false_accept: Rate
    false_reject: Rate

    @property
    def separation(self) -> float:
        """How far apart the distances of one person and of two are, d' of signal detection, from the two rates.

        It is at least a little above 0, and finite where nothing went wrong: half a mistake is added to each.
        """
        shares = ((rate.wrong + 0.5) / (rate.pairs + 1) for rate in (self.false_accept, self.false_reject))
        return max(0.1, sum(-_NORMAL.inv_cdf(share) for share in shares))


class Match(Struct, frozen=True):
    """Who it is, and how far the nearest of the person's vectors is (Euclidean)."""

    name: str
    distance: float


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str
    people: dict[str, list[list[float]]]
    calibration: Calibration | None = None


def calibrate(genuine: object, impostor: object) -> Calibration:
    """The threshold at which the two rates of mistakes sum to the least; midway between the distances beside it.

    It is above 0, for no two photos are as near as that.

    Args:
        genuine: distances between vectors of one person, [pairs].
        impostor: distances between vectors of two people, [pairs].

    Raises:
        InputError: one of them is empty, a distance is negative or not finite, or all are 0.
    """
    same, other = _distances(genuine, "genuine"), _distances(impostor, "impostor")
    steps = np.unique(np.concatenate([same, other]))
    candidates = np.concatenate([[steps[0] / 2], (steps[1:] + steps[:-1]) / 2, [steps[-1]]])
    candidates = candidates[candidates > 0]
    if not len(candidates):
        raise InputError("every distance is 0: the pairs are of the same photos. Give photos that differ")
    accepted = np.searchsorted(other, candidates, side="right")
    rejected = len(same) - np.searchsorted(same, candidates, side="right")
    best = int((accepted / len(other) + rejected / len(same)).argmin())
    return Calibration(
        threshold=float(candidates[best]),
        false_accept=Rate(int(accepted[best]), len(other)),
        false_reject=Rate(int(rejected[best]), len(same)),
    )


class Gallery:
    """People's vectors in one file that only its owner may read; every change is on the disk when a call returns.

    The file is JSON: of each person the name and the vectors. No photo is kept. A person who is deleted is in no later
    version of the file; copies that somebody else made of it, such as backups, are theirs to erase.

    Args:
        path: the file; made by the first change if it is not there.
        model: what gives the vectors, as ``model_of`` says: those of another are not comparable. None for a file that
            is there, whoever gave them: to list or delete people.

    Raises:
        InputError: the file is no gallery, or its vectors are another model's; or it is not there, and nobody said
            whose it would be.
    """

    def __init__(self, path: str | Path, model: str | None = None) -> None:
        self.path = Path(path)
        self._file = _read(self.path, model)

    @property
    def people(self) -> Mapping[str, int]:
        """How many vectors there are of each person, by name."""
        return {name: len(vectors) for name, vectors in sorted(self._file.people.items())}

    @property
    def calibration(self) -> Calibration | None:
        """The threshold and its rates, if there is one."""
        return self._file.calibration

    def enrol(self, name: str, vectors: object) -> None:
        """Add vectors of a person, who may be known already.

        Args:
            name: not empty, without line breaks or other control characters.
            vectors: one or more, float[n, width] or float[width].

        Raises:
            InputError: the name or a vector cannot be used, or they are not as wide as those of the others.
            OSError: the file cannot be written.
        """
        if not name.strip() or not name.isprintable():
            raise InputError(f"{name!r} cannot be a person's name: it must be printable and not empty")
        rows = self._checked(np.atleast_2d(as_array(vectors)))
        known = self._file.people
        self._write(people={**known, name: [*known.get(name, []), *rows.tolist()]})

    def delete(self, name: str) -> None:
        """Erase a person: the file is written anew without the name and the vectors.

        Raises:
            InputError: nobody has that name.
            OSError: the file cannot be written.
        """
        if name not in self._file.people:
            raise InputError(f"nobody in {self.path} is called {name!r}: there are {list(self.people)}")
        self._write(people={key: value for key, value in self._file.people.items() if key != name})

    def set_calibration(self, calibration: Calibration) -> None:
        """Keep a threshold with the rates measured at it; raises OSError if the file cannot be written."""
        self._write(calibration=calibration)

    def identify(self, vector: object) -> Match | None:
        """Whose vector it is.

        Args:
            vector: float[width].

        Returns:
            The person with the nearest vector; None if it is farther than the threshold, or nobody is enrolled.

        Raises:
            InputError: the vector cannot be used, or the gallery has people but no threshold.
        """
        distances = self.distances(vector)
        return _nearest(distances, self.calibrated.threshold) if distances else None

    def distances(self, vector: object) -> dict[str, float]:
        """How far each person's nearest vector is (Euclidean); arguments and errors as for ``identify``."""
        value = self._checked(as_array(vector)[None])[0]
        return {
            name: float(np.linalg.norm(np.array(rows) - value, axis=1).min())
            for name, rows in self._file.people.items()
        }

    @property
    def calibrated(self) -> Calibration:
        """``calibration``; raises InputError if there is none."""
        if self._file.calibration is None:
            raise InputError(f"{self.path} has no threshold: calibrate it with pairs of one and of two people")
        return self._file.calibration

    def _checked(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind not in "fiu" or not np.isfinite(rows).all():
            raise InputError(f"vectors are finite float[n, width], got {rows.dtype}{list(rows.shape)}")
        width = next((len(vectors[0]) for vectors in self._file.people.values()), rows.shape[1])
        if rows.shape[1] != width:
            raise InputError(f"the vectors in {self.path} have {width} numbers, this one has {rows.shape[1]}")
        return rows.astype(np.float64)

    def _write(self, **changes: Any) -> None:
        fresh = msgspec.structs.replace(self._file, **changes)
        _write_privately(self.path, msgspec.json.encode(fresh))
        self._file = fresh


def identify_jointly(evidence: Sequence[tuple[Gallery, object]]) -> Match | None:
    """Who it is by vectors of several kinds, such as a face and a voice of one moment.

    A person's distances, each in units of its gallery's threshold, are averaged with weights: how well that kind tells
    people apart (``Calibration.separation``; matcher weighting of Snelick et al. 2005, doi:10.1109/TPAMI.2005.57). Whom
    a gallery does not know is judged by the others; with one piece of evidence this is ``Gallery.identify``, but for
    the unit. What is spoiled, such as a voice in noise, is better left out: it is far from everybody.

    Args:
        evidence: the gallery of each kind, and its vector; leave out what is missing.

    Returns:
        The nearest person, the distance in units of the thresholds; None if it is more than 1, or nobody is enrolled.

    Raises:
        InputError: as for ``identify``, or there is no evidence.
    """
    if not evidence:
        raise InputError("nobody can be identified by nothing: give at least one vector")
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for gallery, vector in evidence:
        for name, distance in gallery.distances(vector).items():
            known = gallery.calibrated
            sums[name] = sums.get(name, 0.0) + known.separation * distance / known.threshold
            weights[name] = weights.get(name, 0.0) + known.separation
    return _nearest({name: total / weights[name] for name, total in sums.items()}, 1.0) if sums else None


def model_of(manifest: Manifest, encoder: str) -> str:
    """What vectors of an encoder may be compared with: the sha256 of the graphs in fp32 and the steps that make them.

    Other variants of the same graphs have the same one: they are held to be near enough by the recipe's budget.

    Args:
        manifest: of the bundle.
        encoder: whose outputs are the vectors.

    Raises:
        InputError: there is no such encoder.
    """
    if not isinstance(manifest.components.get(encoder), Encoder):
        known = [name for name, component in manifest.components.items() if isinstance(component, Encoder)]
        raise InputError(f"there is no encoder '{encoder}' in '{manifest.name}'; it has {known}")
    digest = hashlib.sha256()
    for name in sorted(needed_by(manifest, [encoder])):
        component = manifest.components[name]
        graph = component.variants["fp32"].graph
        digest.update(msgspec.json.encode([name, component.inputs, manifest.files[graph].sha256 if graph else ""]))
    return digest.hexdigest()


def _read(path: Path, model: str | None) -> _File:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        if model is None:
            raise InputError(f"there is no gallery at {path}: enrol somebody to make one") from None
        return _File(model=model, people={})
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not a gallery that can be read: {error}") from None
    if model is not None and file.model != model:
        raise InputError(f"{path} was made with the model {file.model[:12]}, not {model[:12]}: enrol everybody anew")
    widths = {len(vector) for vectors in file.people.values() for vector in vectors}
    if len(widths) > 1 or 0 in widths or not all(file.people.values()):
        raise InputError(f"{path} is not a gallery that can be read: people without vectors, or of different widths")
    if file.calibration is not None and not _is_possible(file.calibration):
        raise InputError(f"{path} is not a gallery that can be read: no pairs can have given its threshold and rates")
    return file


def _is_possible(calibration: Calibration) -> bool:
    rates = (calibration.false_accept, calibration.false_reject)
    return calibration.threshold >= 0 and all(0 <= rate.wrong <= rate.pairs and rate.pairs > 0 for rate in rates)


def _write_privately(path: Path, content: bytes) -> None:
    """Whole or not at all; mkstemp makes files with mode 0600."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _nearest(distances: Mapping[str, float], threshold: float) -> Match | None:
    name = min(distances, key=lambda person: distances[person])
    return Match(name, distances[name]) if distances[name] <= threshold else None


def _distances(values: object, which: str) -> NDArray[np.float64]:
    found = np.sort(np.asarray(values, np.float64).ravel())
    if not len(found) or not np.isfinite(found).all() or found[0] < 0:
        raise InputError(f"{which} distances must be finite, not negative, and at least one; got {len(found)}")
    return found
