"""``edge-mbm gallery``: who is known by face, on this device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import typer

from edge_mbm.cli.options import BundlePath, Json
from edge_mbm.cli.terminal import clean, human, make_table, write_json
from edge_mbm.runtime.bundle import load
from edge_mbm.runtime.gallery import Calibration, Gallery, Rate
from edge_mbm.runtime.portraits import Portraits, calibrate_on, photos_in

__all__ = ["gallery_app"]

gallery_app = typer.Typer(
    no_args_is_help=True,
    help="Who is known by face: a file on this device, with vectors and no photos. A person who is deleted is gone.",
)

GalleryPath: TypeAlias = Annotated[
    Path, typer.Argument(metavar="GALLERY", help="The gallery's file; enrol and calibrate make it.", show_default=False)
]
Photos: TypeAlias = Annotated[
    list[Path], typer.Argument(metavar="PHOTO...", help="Photos, or folders of them.", show_default=False)
]
EncoderName: TypeAlias = Annotated[
    str | None,
    typer.Option("--encoder", metavar="NAME", help="Whose vectors, if the bundle has several.", show_default=False),
]
Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="The person's.", show_default=False)]


@gallery_app.command()
def enrol(
    gallery: GalleryPath,
    bundle: BundlePath,
    name: Name,
    photos: Photos,
    *,
    encoder: EncoderName = None,
    as_json: Json = False,
) -> None:
    """Add a person, or more photos of one, each of that person alone.

    Nothing is kept if one of the photos cannot be used.

    Example: edge-mbm gallery enrol people.json people.mbm Ada photos/ada
    """
    with load(bundle) as opened, Portraits(opened, encoder) as portraits:
        known = Gallery(gallery, portraits.model)
        known.enrol(name, [portraits.only_face(photo) for photo in photos_in(photos)])
    _list(known, as_json=as_json)


@gallery_app.command("list")
def list_people(gallery: GalleryPath, *, as_json: Json = False) -> None:
    """Say who is known, and how sure a match is.

    Example: edge-mbm gallery list people.json
    """
    _list(Gallery(gallery), as_json=as_json)


@gallery_app.command()
def delete(gallery: GalleryPath, name: Name, *, as_json: Json = False) -> None:
    """Erase a person: the file is written anew without the name and the vectors.

    Example: edge-mbm gallery delete people.json Ada
    """
    known = Gallery(gallery)
    known.delete(name)
    _list(known, as_json=as_json)


@gallery_app.command()
def calibrate(
    gallery: GalleryPath,
    bundle: BundlePath,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="One folder for each person, with photos of that person alone.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ],
    *,
    encoder: EncoderName = None,
    as_json: Json = False,
) -> None:
    """Find how near two photos of one person are, from photos of people whom you know; they are not enrolled by it.

    The more people and days, the better: what is said of strangers holds for pairs like these.

    Example: edge-mbm gallery calibrate people.json people.mbm photos
    """
    with load(bundle) as opened, Portraits(opened, encoder) as portraits:
        known = Gallery(gallery, portraits.model)
        known.set_calibration(calibrate_on(portraits, folder))
    _list(known, as_json=as_json)


@gallery_app.command()
def identify(
    gallery: GalleryPath, bundle: BundlePath, photos: Photos, *, encoder: EncoderName = None, as_json: Json = False
) -> None:
    """Name those who are on photos.

    Example: edge-mbm gallery identify people.json people.mbm party.jpg
    """
    table, rows = make_table("photo", "box", "who", "distance"), []
    with load(bundle) as opened, Portraits(opened, encoder) as portraits:
        known = Gallery(gallery, portraits.model)
        for photo in photos_in(photos):
            for face in portraits.faces(photo):
                match = known.identify(face.vector)
                box = [round(float(edge)) for edge in face.box]
                who, distance = ("-", "-") if match is None else (match.name, f"{match.distance:.3f}")
                table.add_row(clean(photo.name), " ".join(map(str, box)), clean(who), distance)
                rows.append({"photo": str(photo), "box": box, "match": msgspec.to_builtins(match)})
    if as_json:
        write_json(rows)
    else:
        human().print(table)


def _list(known: Gallery, *, as_json: bool) -> None:
    if as_json:
        write_json(_as_json(known))
        return
    table = make_table("person", "vectors")
    for name, count in known.people.items():
        table.add_row(clean(name), str(count))
    console = human()
    console.print(table)
    console.print(_said(known.calibration))


def _as_json(known: Gallery) -> dict[str, Any]:
    calibration = known.calibration
    found = {} if calibration is None else {"false_accept_at_most": calibration.false_accept.bound}
    return {"people": dict(known.people), "calibration": msgspec.to_builtins(calibration), **found}


def _said(calibration: Calibration | None) -> str:
    if calibration is None:
        return (
            "No threshold yet: edge-mbm gallery calibrate GALLERY BUNDLE FOLDER finds one from photos of known people."
        )
    return (
        f"One person up to a distance of {calibration.threshold:.3f}. "
        f"Two people taken for one: {_rate(calibration.false_accept)}; "
        f"one person not recognised: {_rate(calibration.false_reject)}."
    )


def _rate(rate: Rate) -> str:
    return f"{rate.wrong} of {rate.pairs} pairs (below {rate.bound:.1%} with 95 % confidence)"
