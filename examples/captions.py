"""Captions of frames, word by word: what stands in a picture is said while it is found, and can be cut short.

    python examples/captions.py

The first time it trains the small captioner and exports it, which takes some minutes. A captioner of yours is another
path in ``export/captions.toml``; the code here stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import captioner

import edge_mbm
from edge_mbm import DecodeOptions, SessionOptions

if TYPE_CHECKING:
    from edge_mbm import Session

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "build" / "captions" / "captions.mbm"
FRAMES = 5


def prepare() -> None:
    """The model and the bundle, made once."""
    captioner.main([str(ROOT / ".cache" / "zoo" / "captioner")])
    if not BUNDLE.exists():
        from edge_mbm.cli.bars import ExportBars  # noqa: PLC0415 - for the workstation
        from edge_mbm.export import export_bundle  # noqa: PLC0415 - brings torch, which a device lacks

        BUNDLE.parent.mkdir(parents=True, exist_ok=True)
        print("exporting, once: a few minutes")
        with ExportBars() as bars:
            export_bundle(ROOT / "export" / "captions.toml", BUNDLE, bars)


def frames() -> Iterator[captioner.Scene]:
    """As a camera would give them, and what they show; of digits that training never saw."""
    return itertools.islice(captioner.scenes("heldout"), FRAMES)


def stream(session: Session) -> None:
    """Say what each frame shows, a token at a time."""
    for scene in frames():
        for piece in session.generate("caption", image=scene.image):
            print(piece.text, end="", flush=True)
        print(f"   (it is {scene.caption})")


def first_digit(session: Session) -> None:
    """Whoever has heard enough stops asking: no further step is computed."""
    for scene in frames():
        for piece in session.generate("caption", image=scene.image):
            if piece.text.strip() in captioner.VOCABULARY[-10:]:
                print(f"{piece.text.strip()}, by {piece.log_probability:.2f}")
                break


def main() -> None:
    """Stream; then stop early; then with a budget of three tokens."""
    prepare()
    with edge_mbm.load(BUNDLE) as bundle:
        with bundle.session() as session:
            stream(session)
            first_digit(session)
        with bundle.session(SessionOptions(decoding=DecodeOptions(max_tokens=3))) as session:
            [result] = session.infer(image=next(frames()).image)
            print(result.as_json()["outputs"])


if __name__ == "__main__":
    main()
