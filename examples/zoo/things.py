"""Things held to a camera while somebody says what they are: a photograph and an utterance, clean or spoiled.

The photographs and their names are Tux Paint's stamps (``zoo.stamps``); half of the names is held out, and nothing is
learnt from it. Who speaks:

| voice | what is said | of which names |
|---|---|---|
| awb, a synthesizer | "This is a toucan." | those that may be learnt from |
| slt and rms, two others | the same | those that are held out |
| a person, in the stamps' package | "toucan" | 65 animals, of both halves |

Noise and occlusion come from generators that are seeded by what they spoil: the same at every call.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from av_digits.cache import write_whole
from av_digits.degrade import coloured_noise
from av_digits.sources import trim
from rich.progress import track

from edge_mbm.errors import InputError, MissingDependencyError
from zoo import speech
from zoo.photos import STAMPS, on_grey
from zoo.stamps import Stamp, stamps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "HUMAN",
    "LEVELS",
    "TEST",
    "TRAINING",
    "heard",
    "kinds",
    "names",
    "noisy",
    "person_named",
    "said",
    "sentence",
    "shown",
    "spoil",
    "spoiling",
    "utterance",
    "utterances",
]

TRAINING, TEST, HUMAN = ("awb",), ("slt", "rms"), "person"
LEVELS: Mapping[str, float | None] = {"clean": None, "10 dB": 10.0, "0 dB": 0.0}
"""How much louder than the noise the speech is, by RMS; None without noise."""
_AROUND = speech.RATE // 5  # samples before and after the speech
_NOISE, _OCCLUSION = 0.1, 0.3
"""Of a spoiled photograph: standard deviation where white is 1; the grey square's side by the photograph's."""
_KEPT_EVERY = 20


def names() -> tuple[str, ...]:
    """What things may be called: every name of a stamp once, in a fixed order."""
    return tuple(dict.fromkeys(stamp.name for stamp in stamps()))


def kinds(least: int) -> Mapping[str, str]:
    """Name -> what kind of thing it is, "animals", by its stamp's folder; of kinds with ``least`` stamps or more."""
    folders = [stamp.path.partition("/")[0] for stamp in stamps()]
    return {
        stamp.name: folder for stamp, folder in zip(stamps(), folders, strict=True) if folders.count(folder) >= least
    }


def person_named(stamp: Stamp) -> bool:
    """Whether a person's recording of its name is there."""
    return _recording(stamp).is_file()


def sentence(name: str) -> str:
    """What is said of a thing: "This is an owl."."""
    return f"This is {'an' if name[:1].lower() in 'aeiou' else 'a'} {name}."


def shown(stamp: Stamp, *, spoiled: bool = False) -> NDArray[np.uint8]:
    """A thing's photograph on grey, uint8[H, W, 3], RGB; spoiled, in noise and behind a grey square somewhere."""
    image = on_grey(stamp.path)
    return spoil(image, _seeded("photo", stamp.path)) if spoiled else image


def spoil(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Hide a square of it, then add noise to every channel of every pixel: uint8[H, W, 3] to the same."""
    pixels = image.astype(np.float32) / 255
    side = round(_OCCLUSION * min(image.shape[:2]))
    top, left = (int(rng.integers(extent - side + 1)) for extent in image.shape[:2])
    pixels[top : top + side, left : left + side] = 0.5
    pixels += _NOISE * rng.standard_normal(image.shape, np.float32)
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def spoiling() -> str:
    """How photographs are spoiled, in a few letters: of a file's name, so that another way has another file."""
    return f"noise{_NOISE}-hidden{_OCCLUSION}"


def said(stamp: Stamp, voice: str, snr_db: float | None = None) -> NDArray[np.float32]:
    """What a voice says of a thing, float32[samples] at 16 kHz, a fifth of a second around it.

    Args:
        stamp: the thing.
        voice: of ``TRAINING`` or ``TEST``, or ``HUMAN``.
        snr_db: power of the speech by that of the noise, dB; None for no noise.

    Raises:
        InputError: no such person's recording.
        MissingDependencyError: a synthesizer, or what reads recordings, is not installed.
    """
    return noisy(trim(_spoken(stamp, voice)), snr_db, _seeded(voice, stamp.name))


def noisy(clip: NDArray[np.float32], snr_db: float | None, rng: np.random.Generator) -> NDArray[np.float32]:
    """A clip at a usual level, with noise, white to pink, that begins before and ends after it."""
    clip = clip * np.float32(0.08 / np.sqrt(np.mean(clip**2)))
    sound = np.pad(clip, _AROUND)
    if snr_db is not None:
        sound = sound + coloured_noise(len(sound), rng) * np.float32(0.08 * 10 ** (-snr_db / 20))
    return np.clip(sound, -1, 1).astype(np.float32)


def heard(
    clips: Mapping[str, Callable[[], NDArray[np.float32]]],
    listen: Callable[[NDArray[np.float32]], str],
    kept: Path,
    what: str = "listening",
) -> dict[str, str]:
    """What a listener makes of each clip, in a file from then on: a second for each, which is long for thousands.

    Args:
        clips: name -> what gives the sound.
        listen: a recognizer of speech.
        kept: a JSON file of this listener's texts, which is written as they come.
        what: said beside the progress bar.
    """
    texts: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
    missing = [name for name in clips if name not in texts]
    for number, name in enumerate(track(missing, what, transient=True, disable=not missing)):
        texts[name] = listen(clips[name]())
        if number % _KEPT_EVERY == 0 or name == missing[-1]:
            write_whole(kept, lambda part: part.write_text(json.dumps(texts, indent=0)))
    return {name: texts[name] for name in clips}


def utterances(chosen: Iterable[Stamp], voice: str) -> dict[str, Callable[[], NDArray[np.float32]]]:
    """The names that a voice says, at each level, for ``heard``: ``utterance`` -> what gives the sound."""
    named = (stamp for stamp in chosen if voice != HUMAN or person_named(stamp))
    return {
        utterance(stamp, voice, level): functools.partial(said, stamp, voice, snr_db)
        for stamp in {stamp.name: stamp for stamp in named}.values()
        for level, snr_db in LEVELS.items()
    }


def utterance(stamp: Stamp, voice: str, level: str) -> str:
    """An utterance's key: "slt, 10 dB: toucan"."""
    return f"{voice}, {level}: {stamp.name}"


def _spoken(stamp: Stamp, voice: str) -> NDArray[np.float32]:
    if voice == HUMAN:
        return _read(_recording(stamp))
    return speech.say(sentence(stamp.name), speech.Voice("flite", ("-voice", voice)))


def _recording(stamp: Stamp) -> Path:
    return STAMPS / f"{stamp.path}_desc.ogg"


def _read(path: Path) -> NDArray[np.float32]:
    if not path.is_file():
        raise InputError(f"nobody says a name in {path}: a person's voice is there for `person_named` stamps only")
    try:
        import av  # noqa: PLC0415 - of the video extra
    except ImportError:
        raise MissingDependencyError("av", "recordings in Ogg Vorbis", "pip install 'edge-mbm[video]'") from None
    resampler = av.AudioResampler(format="flt", layout="mono", rate=speech.RATE)
    with av.open(str(path)) as file:
        parts = [part.to_ndarray()[0] for frame in file.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate(parts)


def _seeded(*what: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256("/".join(what).encode()).digest()))
