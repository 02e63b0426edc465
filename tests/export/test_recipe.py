"""Recipes: what is wrong is found at once, where it is, and with what was probably meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_mbm.calibration import MinMax, Percentile
from edge_mbm.errors import RecipeError
from edge_mbm.export import load_recipe
from edge_mbm.export.recipe import Budget, EncoderRecipe, HeadRecipe, InputRecipe, Recipe

Write = Callable[..., Path]


@pytest.fixture
def complaint(project: Write, tones: dict[str, str]) -> Callable[[str, str], str]:
    """What is said of the audio-visual recipe, or its calibration set, with one thing changed."""

    def change(old: str, new: str) -> str:
        path = project(**tones)
        for name in ("recipe.toml", "data.toml"):
            path.with_name(name).write_text(path.with_name(name).read_text().replace(old, new, 1))
        assert new in path.read_text() + path.with_name("data.toml").read_text()
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        return str(caught.value).replace(f"{path.parent}/", "")

    return change


@pytest.mark.parametrize(
    ("old", "new", "where", "meant"),
    [
        ("default_heads", "default_head", "default_head", "default_heads"),
        ("[require]", "[requires]", "requires", "require"),
        ("min_cosine", "min_cosin", "budget.min_cosin", "min_cosine"),
        ("accuracy = {", "acuracy = {", "require.acuracy", "accuracy"),
        (
            "height = 8, width = 8",
            'height = 8, width = 8, colour = "rgb"',
            "components.image_encoder.inputs.image.preprocess.colour",
            "color",
        ),
        ("f_max = 3900.0", "fmax = 3900.0", "components.audio_encoder.inputs.features.preprocess.fmax", "f_max"),
        ("window = {", "windw = {", "components.audio_encoder.windw", "window"),
        ("states = [", "state = [", "components.audio_encoder.state", "states"),
        ("shape = [1,", 'dtyp = "float32", shape = [1,', "components.audio_encoder.states.0.dtyp", "dtype"),
        ('task = "embedding"', 'task = "embedding", normalised = true', "", "normalized"),
        ("present = [", "presents = [", "components.both.presents", "present"),
        ("tolerance_ns", "tolerence_ns", "components.both.tolerence_ns", "tolerance_ns"),
        ('kind = "image"', 'kind = "image", kindd = 1', "modalities.image.kindd", "kind"),
        ('description = "Made', 'descripton = "Made', "descripton", "description"),
        ("samples = 9", "samples = 9, splitt = 1", "calibration.splitt", "split"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_meant(
    complaint: Callable[[str, str], str], old: str, new: str, where: str, meant: str
) -> None:
    """At every depth, with the path to it and all keys that are known there."""
    said = complaint(old, new)
    assert f"unknown key '{where}" in said
    assert f"did you mean '{meant}'? Known here: " in said
    assert meant in said.partition("Known here: ")[2].split(", ")


@pytest.mark.parametrize(
    ("old", "new", "where", "meant"),
    [
        ("name = ", "nam = ", "", "name"),
        ('kind = "head"', 'knd = "head"', "components.both: ", "kind"),
        ("hop = 400", "hopp = 400", "components.audio_encoder.window: ", "hop"),
        ('input = "state"', 'inptu = "state"', "components.audio_encoder.states.0: ", "input"),
        ('source = "audio"', 'sorce = "audio"', "components.audio_encoder.inputs.features: ", "source"),
        ("n_mels = 8", "nmels = 8", "components.audio_encoder.inputs.features.preprocess: ", "n_mels"),
        ("sample_rate = 8000 }", "samplerate = 8000 }", "modalities.audio: ", "sample_rate"),
        ("heldout = {", "held_out = {", "", "heldout"),
        ("samples = 9", "sample = 9", "calibration: ", "samples"),
    ],
)
def test_a_misspelled_required_key_is_found(
    complaint: Callable[[str, str], str], old: str, new: str, where: str, meant: str
) -> None:
    """In the table where it is, though msgspec names no keys of free tables, with the word that stands for it."""
    said = complaint(old, new)
    written = new.partition(" ")[0]
    assert said.endswith(f": {where}Object missing required field `{meant}`: did you mean '{meant}' by '{written}'?")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "head"', 'kind = "haed"', "components.both.kind: Invalid value 'haed': did you mean 'head'?"),
        ('kind = "audio"', 'kind = "audoi"', "modalities.audio.kind: Invalid value 'audoi': did you mean 'audio'?"),
        (
            "default_heads",
            'targets = ["x86-cpu", "jetson-orion"]\ndefault_heads',
            "targets: unknown target 'jetson-orion', did you mean 'jetson-orin'?",
        ),
        (
            "default_heads",
            "search = { evaluation = 9 }\ndefault_heads",
            "search.evaluation': did you mean 'evaluations'?",
        ),
        (
            "[require]",
            '[require]\nkeep = { both = ["trt-fp17"] }',
            "require.keep.both.0: Invalid enum value 'trt-fp17': did you mean 'trt-fp16'?",
        ),
        (
            "width = 8",
            'width = 8, fit = "strech"',
            "preprocess.fit: Invalid enum value 'strech': did you mean 'stretch'",
        ),
        (
            "default_heads",
            'method = { method = "percentile", percentil = 99 }\ndefault_heads',
            "method: Object contains unknown field `percentil`: did you mean 'percentile'?",
        ),
        ("default_heads", 'method = { method = "minmx" }\ndefault_heads', "did you mean 'minmax'?"),
        ("default_heads", 'method = { method = "percentile", percentile = 9 }\ndefault_heads', "above 50 and at most"),
        (
            "width = 8",
            'width = "8"',
            "components.image_encoder.inputs.image.preprocess.width: Expected `int`, got `str`",
        ),
        ("min_cosine = 0.9", "min_cosine = 90", "budget.min_cosine: Expected `float` <= 1.0"),
        ("both = 0.7", "both = 70", "require.accuracy.both: Expected `float` <= 1.0"),
        ("samples = 9", "samples = 0", "calibration.samples: Expected `int` >= 1"),
        ("default_heads", "opset = 23\ndefault_heads", "opset: Expected `int` <= 20"),
        (":load", ".load", "model: Expected `str` matching regex"),
        ("audio = { kind", '"au dio" = { kind', "modalities.au dio: Expected `str` matching regex"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is(
    complaint: Callable[[str, str], str], old: str, new: str, said: str
) -> None:
    """With the path to it, and of a few words the nearest."""
    assert said in complaint(old, new)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('source = "audio"', 'source = "adio"', "source is 'adio': there is no such modality: did you mean 'audio'?"),
        (
            '"image_encoder.emb',
            '"image_encodr.emb',
            "there is no component 'image_encodr': did you mean 'image_encoder'?",
        ),
        ('.embedding"', '.embeding"', "'image_encoder' gives ['embedding']: did you mean 'embedding'?"),
        (
            'labels = "classes"',
            'labels = "clases"',
            "logits.labels is 'clases', which is neither in [labels] nor a text whose lines they could be: did you",
        ),
        ('["both"]', '["bothe"]', "default_heads names 'bothe': did you mean 'both'? There are both, seen"),
        ('["both"]', '["image_encoder"]', "default_heads names 'image_encoder'. There are both, seen"),
        ("both = 0.7", "bot = 0.7", "require.accuracy names 'bot': did you mean 'both'?"),
        ("[labels]", '[require.keep]\nsen = ["trt-fp16"]\n[labels]', "require.keep names 'sen': did you mean 'seen'?"),
        ('"red"', '"red\\nish"', "labels.classes has 'red\\nish': a label is one line, and not empty"),
        ('"red"', '""', "labels.classes has '': a label is one line"),
        ("classes = [", "report = [", "labels.report: the bundle has a file of its own by that name"),
        ("data.toml", "dat.toml", "there is no calibration set at dat.toml: No such file"),
        ('name = "tones"', 'name = "tones', "recipe.toml is not TOML"),
    ],
)
def test_a_name_that_refers_to_nothing_is_refused(
    complaint: Callable[[str, str], str], old: str, new: str, said: str
) -> None:
    """Before anything is imported or run."""
    assert said in complaint(old, new)


def test_variants_that_must_be_kept_must_be_made(project: Write) -> None:
    """A requirement for a variant that the recipe does not make could never hold."""
    with pytest.raises(RecipeError, match=r"require\.keep\.encoder names 'trt-fp16'.* There are x86-cpu-int8"):
        load_recipe(project(more='[require.keep]\nencoder = ["trt-fp16"]'))


def test_a_recipe_without_heads_is_refused(project: Write) -> None:
    """Nothing would come out of its bundle."""
    path = project()
    path.write_text(path.read_text().partition("[components.head]")[0])
    with pytest.raises(RecipeError, match="components has no head"):
        load_recipe(path)


def test_everything_is_read(project: Write, tones: dict[str, str]) -> None:
    """Kinds by their tags, short forms spelled out, defaults where nothing is said."""
    recipe = load_recipe(project(**tones)).recipe
    assert isinstance(recipe.components["audio_encoder"], EncoderRecipe)
    assert isinstance(recipe.components["both"], HeadRecipe)
    assert recipe.components["both"].sources()["heard"] == InputRecipe("audio_encoder.embedding")
    assert recipe.components["audio_encoder"].states[0].shape == (1, "batch", 16)
    assert (recipe.opset, recipe.targets, recipe.method) == (20, ("x86-cpu", "jetson-orin"), Percentile(99.99))
    assert (recipe.search.evaluations, recipe.search.seconds) == (24, None)
    assert recipe.heads() == ("both",)


def test_a_component_may_have_a_budget_of_its_own(project: Write) -> None:
    """It stands in place of the recipe's as a whole; and the method is one of those that calibration knows."""
    path = project(top='method = { method = "minmax" }\n[budget]\nmin_cosine = 0.5')
    path.write_text(path.read_text().replace('kind = "encoder"', 'kind = "encoder"\nbudget = { min_speedup = 2 }'))
    recipe: Recipe = load_recipe(path).recipe
    assert recipe.method == MinMax()
    assert recipe.budget_of("encoder") == Budget(min_speedup=2)
    assert recipe.budget_of("head") == Budget(min_cosine=0.5)
    assert recipe.heads() == ("head",)


def test_paths_are_from_the_files_that_name_them(
    project: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the current folder: the calibration set's from its own folder, also where the recipe is relative."""
    path = project()
    (path.parent / "sets").mkdir()
    (path.parent / "data.toml").rename(path.parent / "sets" / "data.toml")
    path.write_text(path.read_text().replace('"data.toml"', '"sets/data.toml"'))
    monkeypatch.chdir(path.parent.parent)
    folders = load_recipe(Path(path.parent.name, "recipe.toml")).python_path()
    assert folders == (str(path.parent / "code"), str(path.parent / "sets" / "code"))


def test_the_digest_is_of_both_files(project: Write) -> None:
    """A change in either gives another; equal files in another folder the same."""
    first, second = project(), project()
    second.write_bytes(first.read_bytes())
    second.with_name("data.toml").write_bytes(first.with_name("data.toml").read_bytes())
    assert load_recipe(first).sha256 == load_recipe(second).sha256
    for name in ("recipe.toml", "data.toml"):
        before = load_recipe(second).sha256
        with second.with_name(name).open("a") as stream:
            stream.write("# more\n")
        assert load_recipe(second).sha256 != before
