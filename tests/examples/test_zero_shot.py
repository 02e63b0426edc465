"""What the zero-shot examples are made of, without their weights: ConSE, ranks, stamps, films, and a small CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.needs("torch", "cv2", "av")


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_conse_mixes_the_names_of_what_is_probable() -> None:
    """Against the paper's sum, class by class, in float64; classes beyond the first ten have no part in it."""
    import torch
    from torch import nn
    from zoo.zero_shot import Conse

    rng = np.random.default_rng(0)
    features, weights, names = rng.normal(size=(3, 8)), rng.normal(size=(30, 8)), rng.normal(size=(30, 5))
    layer = nn.Linear(8, 30, bias=False)
    layer.weight.data = torch.tensor(weights, dtype=torch.float32)
    with torch.inference_mode():
        got = Conse(layer, torch.tensor(names, dtype=torch.float32))(torch.tensor(features, dtype=torch.float32))
    for row, found in zip(features, got.numpy(), strict=True):
        probable = np.exp(weights @ row) / np.exp(weights @ row).sum()
        mixed = np.zeros(5)
        for k in sorted(range(30), key=lambda k: -probable[k])[:10]:
            mixed += probable[k] * names[k] / np.linalg.norm(names[k])
        np.testing.assert_allclose(found, mixed / np.linalg.norm(mixed), atol=1e-5)


def test_recall_counts_who_comes_before() -> None:
    """A prompt that is nearer than the right one pushes it back by a place."""
    from zoo.zero_shot import ranks, recall

    prompts = np.eye(3, dtype=np.float32)
    pictures = np.array([[0.9, 0.1, 0.0], [0.6, 0.3, 0.5]], np.float32)
    places = ranks(pictures, prompts, [0, 1])
    assert places.tolist() == [0, 2]
    assert [recall(places, k) for k in (1, 2, 3)] == [0.5, 0.5, 1.0]


@pytest.fixture
def stamps_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three things, a drawing, and one with a sentence for a name."""
    import cv2
    from zoo import photos, stamps

    texts = {
        "animals/toucan": "A toucan.\nde.utf8=Ein Tukan.\nfr.utf8=\n",
        "animals/owl": "An Owl!\nes.utf8=Un búho.\n",
        "food/rice": "Some rice.\n",
        "cartoon/cat": "A cat.\n",
        "food/pie": "A mince pie is a traditional Christmas food.\n",
        "food/nameless": None,
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = np.zeros((20, 30, 4), np.uint8)
        pixels[4:14, 5:25] = (10, 20, 200, 255)  # blue, green, red, opaque
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        if text is not None:
            (tmp_path / f"{name}.txt").write_text(text)
    monkeypatch.setattr(photos, "STAMPS", tmp_path)
    monkeypatch.setattr(stamps, "STAMPS", tmp_path)
    stamps.stamps.cache_clear()
    yield tmp_path
    stamps.stamps.cache_clear()


def test_stamps_are_photographs_with_a_name(stamps_folder: Path) -> None:
    """Without article and full stop, and with what other languages call them; the ground becomes grey."""
    from zoo.photos import on_grey
    from zoo.stamps import describe, stamps

    found = {stamp.path: stamp for stamp in stamps()}
    assert {path: stamp.name for path, stamp in found.items()} == {
        "animals/owl": "owl",
        "animals/toucan": "toucan",
        "food/rice": "rice",
    }
    assert found["animals/toucan"].names == {"de": "Ein Tukan."}
    assert [describe(name) for name in ("owl", "toucan")] == ["a photo of an owl", "a photo of a toucan"]
    picture = on_grey("animals/owl")
    assert picture[0, 0].tolist() == [128, 128, 128]
    assert picture[picture.shape[0] // 2, picture.shape[1] // 2].tolist() == [200, 20, 10]


def test_a_missing_package_of_stamps_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that installs it."""
    from zoo import stamps

    from edge_mbm.errors import EdgeMbmError

    monkeypatch.setattr(stamps, "STAMPS", tmp_path / "none")
    stamps.stamps.cache_clear()
    with pytest.raises(EdgeMbmError, match="apt-get install tuxpaint-stamps-default"):
        stamps.stamps()


def test_a_film_shows_each_picture_for_its_time(tmp_path: Path) -> None:
    """And its truth file is one that edge-mbm run reads."""
    from zoo.film import FPS, write_film

    from edge_mbm.runtime.scoring import read_truth
    from edge_mbm.runtime.sources import open_source

    shown: list[Any] = [
        (np.full((60, 40, 3), colour, np.uint8), name) for colour, name in ((250, "white"), (5, "black"))
    ]
    write_film(tmp_path / "film.mp4", shown, seconds=1.0)
    source = open_source(str(tmp_path / "film.mp4"), image="image", audio=None)
    middles = [sample.data[240, 320].mean() for sample in source.samples()]
    source.close()
    assert len(middles) == 2 * FPS
    assert all(middle > 240 for middle in middles[:FPS])
    assert all(middle < 15 for middle in middles[FPS:])
    truth = read_truth(tmp_path / "film.truth.json")
    assert [(segment.label, segment.start, segment.end) for segment in truth.segments] == [
        ("white", 0.0, 1.0),
        ("black", 1.0, 2.0),
    ]


def test_a_small_clip_matches_pairs_that_it_never_saw() -> None:
    """From features of two kinds that have something in common: far above chance on names that are new."""
    import torch
    from zoo.contrastive import Pairs, learn, recalls

    from edge_mbm.models.similarity import unit

    rng = np.random.default_rng(0)
    seen, said = rng.normal(size=(6, 24)), rng.normal(size=(6, 16))

    def pairs(count: int) -> Pairs:
        things = rng.normal(size=(count, 6))
        views = np.stack([things @ seen + 0.1 * rng.normal(size=(count, 24)) for _ in range(2)], 1)
        texts = np.stack([things @ said + 0.1 * rng.normal(size=(count, 16)) for _ in range(3)], 1)
        return Pairs(*(torch.from_numpy(x.astype(np.float32)) for x in (views, texts)), torch.arange(count))

    unknown = pairs(50)
    model = learn(pairs(200))
    with torch.inference_mode():
        found = recalls(unit(model.image(unknown.seen[:, 0])), unit(model.text(unknown.said[:, 0])), unknown.names)
    assert found[0] > 0.3  # chance is 0.02
    assert found[1] > found[0]
