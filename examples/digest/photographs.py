"""A film of four photographs that are free of anyone's rights, two seconds each, to look at a digest of.

PYTHONPATH=examples python -m digest.photographs build/digest/photographs.mp4
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from zoo.film import write_film
from zoo.photos import recordings


def main(arguments: Sequence[str]) -> None:
    """Write it."""
    [path] = arguments
    write_film(Path(path), [(photo.inputs["image"], photo.id.rpartition("-")[2]) for photo in recordings("golden")])


if __name__ == "__main__":
    main(sys.argv[1:])
