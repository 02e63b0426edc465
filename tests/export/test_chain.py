"""A recording through all components: the same numbers as the model called by hand, and as the device's session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
import torch

import edge_mbm
from edge_mbm.errors import CalibrationError
from edge_mbm.export import Silent, load_recipe
from edge_mbm.export.chain import Arrays, Chain, GraphRunner
from edge_mbm.export.draft import Draft
from edge_mbm.export.origin import Origin
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.recordings import Recording, import_function, importable, recordings
from edge_mbm.export.refer import describe, origin_runners
from edge_mbm.runtime import SessionOptions

Load: TypeAlias = Callable[..., LoadedRecipe]


@pytest.fixture(scope="module")
def draft(loaded: Load, tones: dict[str, str]) -> Draft:
    recipe = loaded(**tones)
    return describe(Draft(recipe, Origin(recipe)), Silent())


@pytest.fixture(scope="module")
def heldout(draft: Draft) -> list[Recording]:
    return list(recordings(draft.loaded, draft.loaded.data.heldout))


def run(draft: Draft, recording: Recording, known: Arrays | None = None) -> Arrays:
    return Chain(draft.components or {}).run(recording, origin_runners(draft), known)


def test_it_is_the_model_called_by_hand(draft: Draft, heldout: list[Recording]) -> None:
    """Window after window from a zero state, then the heads; here with torch alone."""
    model, record = draft.origin.model, heldout[0]
    listen = import_function(draft.loaded.recipe.model.partition(":")[0] + ":listen", "test")
    with torch.inference_mode():
        seen = model.encoders["image"](torch.from_numpy(record.inputs["image"][None]))  # type: ignore[operator,index]
        heard = listen(model.encoders["audio"], record.inputs["audio"][None])  # type: ignore[operator,index]
        both = model.heads["both"](seen, heard, torch.ones(1, 2))  # type: ignore[operator,index]
        alone = model.heads["seen"](seen)  # type: ignore[operator,index]
    outputs = run(draft, record)
    assert list(outputs) == ["image_encoder.embedding", "audio_encoder.embedding", "both.logits", "seen.logits"]
    for value, expected in zip(outputs.values(), (seen, heard, both, alone), strict=True):
        np.testing.assert_allclose(value, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_missing_modality_is_masked(draft: Draft, heldout: list[Recording]) -> None:
    """Its encoder is not run; a head with a mask is told, and what stands in for it counts for nothing."""
    image = heldout[0].inputs["image"]
    outputs = run(draft, Recording("deaf", {"image": image}, None))
    assert list(outputs) == ["image_encoder.embedding", "both.logits", "seen.logits"]
    with torch.inference_mode():
        seen = torch.from_numpy(outputs["image_encoder.embedding"])
        mask = torch.tensor([[1.0, 0.0]])
        expected = draft.origin.model.heads["both"](seen, torch.full((1, 8), 1e6), mask)  # type: ignore[operator,index]
    np.testing.assert_allclose(outputs["both.logits"], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_head_that_cannot_do_without_gives_nothing(draft: Draft, heldout: list[Recording]) -> None:
    """One without a mask; one with a mask can, if anything is there at all."""
    outputs = run(draft, Recording("blind", {"audio": heldout[0].inputs["audio"]}, None))
    assert list(outputs) == ["audio_encoder.embedding", "both.logits"]


def test_what_is_known_is_not_run_again(draft: Draft, heldout: list[Recording]) -> None:
    """It is taken as it is, and all that depends on it follows."""
    known = {"image_encoder.embedding": np.zeros((1, 8), np.float32)}
    calls: list[str] = []
    runners = origin_runners(draft)
    outputs = Chain(draft.components or {}).run(heldout[0], runners, known, lambda name, _: calls.append(name))
    assert set(calls) == {"audio_encoder", "both", "seen"}
    assert outputs["image_encoder.embedding"] is known["image_encoder.embedding"]
    assert not np.allclose(outputs["seen.logits"], run(draft, heldout[0])["seen.logits"])


def test_silence_and_darkness_are_recordings(draft: Draft) -> None:
    """All zeros give finite numbers."""
    record = Recording("night", {"image": np.zeros((8, 8, 3), np.uint8), "audio": np.zeros(2000, np.float32)}, None)
    assert all(np.isfinite(value).all() for value in run(draft, record).values())


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            {"audio": np.zeros(799, np.float32)},
            "'odd' does not fit 'audio_encoder': it has 799 samples, a window takes 8",
        ),
        ({"image": np.zeros((8, 8, 3), np.float32)}, "recording 'odd' does not fit 'image_encoder': "),
        ({"image": np.zeros((8, 8, 4), np.uint8)}, "recording 'odd' does not fit 'image_encoder': "),
        ({"audio": np.zeros(2000, np.int64)}, "recording 'odd' does not fit 'audio_encoder': "),
        ({"audio": np.zeros((2, 3, 2000), np.float32)}, "recording 'odd' does not fit 'audio_encoder': "),
    ],
)
def test_what_does_not_fit_is_refused(draft: Draft, inputs: Arrays, said: str) -> None:
    """With the recording's id and the component."""
    with pytest.raises(CalibrationError, match=said):
        run(draft, Recording("odd", inputs, None))


def test_the_device_computes_the_same(exported: object) -> None:
    """The chain over a bundle's graphs and the session that runs the bundle are different code: same numbers, also
    where a modality is missing."""
    bundle, files = exported.bundle, exported.files  # type: ignore[attr-defined]
    manifest, recipe = files.manifest, load_recipe(exported.recipe)  # type: ignore[attr-defined]
    graphs = {name: files.read(c.variants["fp32"].graph) for name, c in manifest.components.items()}
    chain = Chain({name: manifest.components[name] for name in manifest.order()})
    runners = {name: GraphRunner(graph, name) for name, graph in graphs.items()}
    with edge_mbm.load(bundle) as loaded, importable(recipe.python_path()):
        for record in recordings(recipe, recipe.data.heldout):
            ours = chain.run(record, runners)
            heads = tuple(name for name in ("both", "seen") if f"{name}.logits" in ours)
            with loaded.session(SessionOptions(heads=heads, variant="fp32")) as session:
                theirs = session.run_components(**record.inputs)
            assert theirs.keys() == ours.keys()
            for key, value in theirs.items():
                np.testing.assert_allclose(value, ours[key], rtol=1e-5, atol=1e-6)
