"""Photographed things with their names, in English and dozens of other languages, from Tux Paint's stamps (GPL-2).

A stamp is a cut-out on a transparent ground, with a text file beside it: its English name on the first line ("A
toucan."), and the same in another language on each of the others ("de.utf8=Ein Tukan."). Those that are drawings, and
those whose text is a sentence and no name, are left out.

Half of the stamps, drawn by a hash of their names, are held out: they calibrate nothing and train nothing. Stamps of
one name are in the same half.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_mbm.errors import EdgeMbmError, InputError
from zoo.photos import STAMPS, is_photo, on_grey, photographs
from zoo.photos import recordings as photo_recordings

__all__ = ["CHOICES", "Recording", "Stamp", "describe", "recordings", "stamps"]

CHOICES = 8
"""Prompts that a recording has: its own name and seven others."""
_WORDS = 4
"""Of a name, without its article; longer texts are sentences about the thing."""
_ARTICLE = re.compile(r"^(an?|the|some)\s+", re.IGNORECASE)
_GOLDEN = {"astronaut": "an astronaut", "chelsea": "a cat", "coffee": "a cup of coffee", "rocket": "a rocket"}


@dataclass(frozen=True)
class Stamp:
    """One thing.

    Args:
        path: among the stamps, without its extension.
        name: in English, without its article: "toucan".
        names: language -> its name there, "de" -> "Ein Tukan.".
        heldout: whether it is in the half that nothing is learnt from.
    """

    path: str
    name: str
    names: Mapping[str, str]
    heldout: bool


@dataclass(frozen=True)
class Recording:
    """A picture, prompts of which one names it, and which; None where nobody has told."""

    id: str
    inputs: dict[str, Any]
    label: int | None


def describe(name: str) -> str:
    """The prompt for a name: "a photo of a toucan"."""
    return f"a photo of {'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


@functools.cache
def stamps() -> tuple[Stamp, ...]:
    """All photographed stamps that have a name, by path.

    Raises:
        EdgeMbmError: the package tuxpaint-stamps-default is missing.
    """
    if not STAMPS.is_dir():
        raise EdgeMbmError(f"there are no stamps in {STAMPS}. To mend it: apt-get install tuxpaint-stamps-default")
    paths = sorted(str(path.relative_to(STAMPS).with_suffix("")) for path in STAMPS.rglob("*.png"))
    found = (_stamp(path) for path in paths if is_photo(path))
    return tuple(stamp for stamp in found if stamp is not None)


def recordings(split: str) -> Iterator[Recording]:
    """Pictures with prompts, always the same ones in the same order.

    Args:
        split: "heldout": stamps with ``CHOICES`` names each; "calibration": the other stamps, and whole photographs
            and film frames, which have no label; "golden": four photographs that are free of anyone's rights.

    Raises:
        InputError: another split.
        EdgeMbmError: a package that has pictures is missing.
    """
    if split == "golden":
        yield from _golden()
    elif split in ("heldout", "calibration"):
        yield from _named(split)
        yield from _unnamed() if split == "calibration" else ()
    else:
        raise InputError(f"no split is called {split!r}: there are calibration, heldout, golden")


def _named(split: str) -> Iterator[Recording]:
    chosen = [stamp for stamp in stamps() if stamp.heldout == (split == "heldout")]
    rng = np.random.default_rng(0)
    for number in rng.permutation(len(chosen)):
        stamp = chosen[number]
        prompts, label = _choices(stamp.name, rng)
        inputs = {"image": on_grey(stamp.path), "prompt": prompts}
        yield Recording(f"{split}-{number:03d}-{stamp.path.replace('/', '-')}", inputs, label)


def _unnamed() -> Iterator[Recording]:
    rng = np.random.default_rng(1)
    for name, image in photographs("tuning").items():
        yield Recording(
            f"photo-{name}", {"image": np.ascontiguousarray(image), "prompt": _choices("thing", rng)[0]}, None
        )


def _golden() -> Iterator[Recording]:
    prompts = "\n".join(_GOLDEN.values())
    for photo in photo_recordings("golden"):
        label = next(k for k, name in enumerate(_GOLDEN) if photo.id.endswith(name))
        yield Recording(photo.id, {"image": photo.inputs["image"], "prompt": prompts}, label)


def _choices(name: str, rng: np.random.Generator) -> tuple[str, int]:
    """Prompts, one a line, and which of them is the name."""
    others = [other for other in dict.fromkeys(stamp.name for stamp in stamps()) if other != name]
    chosen = [str(other) for other in rng.choice(others, CHOICES - 1, replace=False)]
    label = int(rng.integers(CHOICES))
    chosen.insert(label, name)
    return "\n".join(map(describe, chosen)), label


def _stamp(path: str) -> Stamp | None:
    text = STAMPS / f"{path}.txt"
    lines = text.read_text(encoding="utf-8", errors="replace").splitlines() if text.is_file() else []
    name = _ARTICLE.sub("", lines[0].strip().rstrip(".!")).strip() if lines else ""
    if not name or len(name.split()) > _WORDS:
        return None
    name = name[0].lower() + name[1:]
    pairs = (line.partition(".utf8=") for line in lines[1:])
    names = {language: said.strip() for language, _, said in pairs if said.strip()}
    return Stamp(path, name, names, hashlib.sha256(name.encode()).digest()[0] % 2 == 1)
