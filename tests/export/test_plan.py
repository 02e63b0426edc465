"""The dry run: what an export would do, said without doing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_mbm.errors import RecipeError
from edge_mbm.export import load_recipe, prove
from edge_mbm.export.origin import Origin
from edge_mbm.export.plan import Plan, plan
from edge_mbm.export.recordings import importable

Write = Callable[..., Path]


@pytest.fixture
def planned(project: Write, tones: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, Path]:
    """The audio-visual project's, which must not come to tracing."""

    def trace(*_: object) -> Iterator[None]:
        raise AssertionError("it came to tracing")
        yield

    monkeypatch.setattr(prove, "trace", trace)
    path = project(**tones)
    return plan(path), path


def test_components_are_as_they_will_be(planned: tuple[Plan, Path]) -> None:
    """In running order, with shapes, states, and as many parameters as torch counts."""
    found, path = planned
    assert list(found.components) == ["image_encoder", "audio_encoder", "both", "seen"]
    image, audio = found.components["image_encoder"], found.components["audio_encoder"]
    assert (image.kind, image.inputs, image.outputs) == (
        "encoder",
        {"image": "uint8[batch, 8, 8, 3]"},
        {"embedding": "float32[batch, 8]"},
    )
    assert audio.states == {"state": "float32[1, batch, 16]"}
    recipe = load_recipe(path)
    with importable(recipe.python_path()):
        origin = Origin(recipe)
        for name, component in found.components.items():
            assert component.parameters == sum(p.numel() for p in origin.module(name).parameters())
            assert component.call_ms is not None
            assert component.call_ms > 0


def test_variants_are_those_of_the_targets(planned: tuple[Plan, Path]) -> None:
    """fp32 for any machine, and what each target takes of the component's kind: heads stay float on a CPU."""
    found, _ = planned
    variants = {name: list(component.variants) for name, component in found.components.items()}
    assert variants["image_encoder"] == ["fp32", "x86-cpu-int8", "trt-fp16", "trt-int8"]
    assert variants["both"] == ["fp32", "trt-fp16"]
    image = found.components["image_encoder"].variants
    assert image["trt-int8"].targets == ("jetson-orin",)
    assert image["fp32"].targets == ()
    assert image["x86-cpu-int8"].presets
    assert image["trt-fp16"].presets == ()


def test_sizes_follow_the_precision(planned: tuple[Plan, Path]) -> None:
    """Four bytes a parameter, two, and one where it is a weight."""
    found, _ = planned
    image = found.components["image_encoder"]
    sizes = {key: variant.bytes for key, variant in image.variants.items()}
    assert image.parameters is not None
    assert sizes["fp32"] == 4 * image.parameters
    assert sizes["trt-fp16"] == 2 * image.parameters
    assert image.parameters < (sizes["x86-cpu-int8"] or 0) < 2 * image.parameters


def test_time_is_told_for_every_stage(planned: tuple[Plan, Path]) -> None:
    """Its sum too, and the search's by the bound that the recipe has."""
    found, path = planned
    assert found.total_seconds == pytest.approx(sum(found.seconds.values()))
    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert found.recordings == {"calibration": 9, "heldout": 12, "golden": 5}
    assert found.evaluations == 24
    path.write_text(path.read_text().replace("[labels]", "[search]\nevaluations = 6\n\n[labels]"))
    fewer = plan(path)
    assert fewer.evaluations == 6
    assert fewer.seconds["search"] < found.seconds["search"] / 2


def test_nothing_is_written(planned: tuple[Plan, Path], cache: Path) -> None:
    """Neither to the cache nor beside the recipe."""
    _, path = planned
    assert not cache.exists()
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["code", "data.toml", "recipe.toml"]


def test_what_is_wrong_is_found_as_by_an_export(project: Write, sensor: Any) -> None:
    """A recipe that could not be exported has no plan."""
    with pytest.raises(RecipeError, match="raised OSError: no weights here"):
        plan(project(**sensor, add="def load(): raise OSError('no weights here')"))
