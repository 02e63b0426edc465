"""The captioner's scenes and its judge, and one short training that is written as a directory."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from av_digits import sources
from zoo import captioner

from edge_mbm.errors import InputError

pytestmark = pytest.mark.needs("transformers", "tokenizers")


@pytest.fixture(autouse=True)
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: each digit is a square whose brightness tells it, 1000 of each as in MNIST."""
    labels = np.repeat(np.arange(10), 1000)
    images = np.broadcast_to((25 + 20 * labels).astype(np.uint8)[:, None, None], (10000, 28, 28))
    monkeypatch.setattr(captioner, "cached", lambda name, make: {"images": images, "labels": labels})
    captioner._digits.cache_clear()


def first(split: str, count: int) -> list[captioner.Scene]:
    return list(itertools.islice(captioner.scenes(split), count))


def test_a_caption_says_what_is_where() -> None:
    """Read back from the pixels: colours and digits by brightness, the relation by the place of the centres."""
    for scene in first("training", 50):
        words = scene.caption.split()
        relation = " ".join(words[3:-3])
        low, high = np.argwhere(scene.image.any(axis=2)).min(0), np.argwhere(scene.image.any(axis=2)).max(0)
        assert (high - low)[{"above": 0, "left of": 1}[relation]] > 45
        for inside, (colour, digit) in ((low + 8, words[1:3]), (high - 8, words[-2:])):
            pixel = scene.image[tuple(inside)]
            brightness = 25 + 20 * sources.WORDS.index(digit)
            np.testing.assert_allclose(pixel, brightness * np.array(captioner.COLOURS[colour]) / 255, atol=1)


def test_splits_are_the_same_every_time_and_differ() -> None:
    """Scenes are made anew at each call."""
    for split in ("training", "calibration", "heldout", "golden"):
        assert [s.caption for s in first(split, 5)] == [s.caption for s in first(split, 5)]
    assert [s.caption for s in first("training", 5)] != [s.caption for s in first("heldout", 5)]
    with pytest.raises(InputError, match="no split is called 'test'"):
        first("test", 1)


def test_a_caption_is_right_only_as_a_whole() -> None:
    """One wrong word of two captions: half of them are right."""
    right = [scene.caption for scene in first("heldout", 2)]
    wrong = right[1].replace("a ", "the ", 1)
    assert captioner.caption_accuracy({"text": np.array(right)}, [0, 1]) == 1.0
    assert captioner.caption_accuracy({"text": np.array([right[0], wrong])}, [0, 1]) == 0.5


def test_training_writes_a_directory_that_can_be_exported(tmp_path: Path) -> None:
    """What it learnt in two steps is nothing; but it is whole, and the tokenizer knows every word."""
    captioner.train(tmp_path, steps=2)
    assert {"model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]["seven"] > captioner.END
    assert captioner.main([str(tmp_path)]) == 0  # it is there already
