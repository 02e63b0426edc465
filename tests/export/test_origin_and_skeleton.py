"""The model as torch runs it, and what is known of its components before anything is traced."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch

from edge_mbm.errors import RecipeError
from edge_mbm.export.origin import Origin
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.skeleton import make_skeleton

Load: TypeAlias = Callable[..., LoadedRecipe]


def skeleton(recipe: LoadedRecipe) -> object:
    return make_skeleton(recipe.recipe, Origin(recipe))


def test_shapes_are_found_out(loaded: Load, tones: dict[str, str]) -> None:
    """From steps, windows and one run of the model; batch is the only size that is free."""
    recipe = loaded(**tones)
    components = make_skeleton(recipe.recipe, Origin(recipe))
    edges = {
        name: {key: (spec.dtype, spec.shape) for key, spec in (c.graph_inputs() | c.graph_outputs()).items()}
        for name, c in components.items()
    }
    assert edges == {
        "image_encoder": {"image": ("uint8", ("batch", 8, 8, 3)), "embedding": ("float32", ("batch", 8))},
        "audio_encoder": {
            "features": ("float32", ("batch", 7, 8)),
            "state": ("float32", (1, "batch", 16)),
            "embedding": ("float32", ("batch", 8)),
            "next_state": ("float32", (1, "batch", 16)),
        },
        "both": {
            "seen": ("float32", ("batch", 8)),
            "heard": ("float32", ("batch", 8)),
            "present": ("float32", ("batch", 2)),
            "logits": ("float32", ("batch", 3)),
        },
        "seen": {"embedding": ("float32", ("batch", 8)), "logits": ("float32", ("batch", 3))},
    }


def test_components_come_in_running_order(loaded: Load) -> None:
    """Whatever the recipe's: what feeds comes before what it feeds."""
    recipe = loaded()
    names = list(recipe.recipe.components)
    from msgspec.structs import replace

    swapped = replace(recipe.recipe, components={n: recipe.recipe.components[n] for n in reversed(names)})
    assert list(make_skeleton(swapped, Origin(recipe))) == ["encoder", "head"]


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (
            "def load(): raise OSError('no weights')",
            r"model = '.*:load' raised OSError: no weights \(.*project_\w+\.py",
        ),
        ("def load(): return {}", "gave dict, not a torch.nn.Module"),
        ("def load(extra): pass", "raised TypeError"),
        ("load = 3", "raised TypeError"),
        ("def load(): return nn.Linear(4, 2)", "components.encoder.module is 'encoder'; the model has"),
        ("Encoder.forward = lambda self, x: [x]*2", r"forward of 'encoder' returns 2 tensors; the recipe names \['emb"),
        ("Encoder.forward = lambda self, x: 'text'", r"forward of 'encoder' returns \['str'\]: it must return tensors"),
        ("Encoder.forward = lambda self, x: self.layer(x).double()", "'encoder.embedding' is float64, .*: cast it"),
        ("Encoder.forward = lambda self, x: self.layer(x).bfloat16()", "'encoder.embedding' is bfloat16"),
        ("Encoder.forward = lambda self, x: self.layer(x).sum()", r"is float32\[\] for a batch of 2: batch goes first"),
        ("Encoder.forward = lambda self, x: self.layer(x).T", r"is float32\[6, 2\] for a batch of 2"),
        (
            "Encoder.forward = lambda self, x: self.layer(x)[:, :5]",
            r"'head' raised RuntimeError on .*embedding.*\[2, 5\]",
        ),
        ("Model.__init__ = lambda self: nn.Module.__init__(self)", r"module is 'encoder'; the model has \[\]"),
    ],
)
def test_a_model_that_is_not_as_the_recipe_says_is_refused(loaded: Load, add: str, said: str) -> None:
    """With the component and what was found; before anything is traced."""
    with pytest.raises(RecipeError, match=said):
        skeleton(loaded(add=add))


def test_what_forward_raises_is_told_with_the_line(loaded: Load) -> None:
    """With the component, the shapes it was given, and the place in the user's code."""
    recipe = loaded(
        add="""
        def forward(self, x):
            return self.layer(x.reshape(-1, 5))  # HERE

        Encoder.forward = forward
        """
    )
    with pytest.raises(RecipeError) as caught:
        skeleton(recipe)
    [file] = Path(recipe.python_path()[0]).glob("*.py")
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if "HERE" in text)
    assert "'encoder' raised RuntimeError on {'x': 'float32[2, 4]'}: shape '[-1, 5]' is invalid" in str(caught.value)
    assert str(caught.value).endswith(f"({file}:{line})")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('["low", "high"]', '["low", "middle", "high"]', "'head.logits' gives 2 values, labels.classes has 3 names"),
        ('pivot = "imu"', 'pivot = "ium"', "components.head.pivot is 'ium'"),
        ("deadline_ns = 0", 'deadline_ns = 0\npresent = ["imu", "smell"]', "'head' raised TypeError"),
        ("deadline_ns = 0", "deadline_ns = 0\ntolerance_ns = {{ smell = 1 }}", "tolerance_ns names 'smell'"),
        ('inputs = {{ embedding = "encoder.embedding" }}', 'inputs = {{ embedding = "imu" }}', "raised RuntimeError"),
        (
            '{{ embedding = "encoder.embedding" }}',
            '{{ logits = "encoder.embedding" }}',
            "the tensor name 'logits' twice",
        ),
        ('kind = "sensor", shape = [4]', 'kind = "image"', "takes ImageModality with RawSteps and no window"),
        (
            'kind = "sensor", shape = [4]',
            'kind = "audio", sample_rate = 8000',
            "takes AudioModality with RawSteps and no",
        ),
    ],
)
def test_what_the_manifest_would_refuse_is_refused_now(
    loaded: Load, sensor: dict[str, str], old: str, new: str, said: str
) -> None:
    """As the recipe's fault, and not as the bundle's after minutes of work."""
    assert old in sensor["recipe"]
    with pytest.raises(RecipeError, match=said):
        skeleton(loaded(recipe=sensor["recipe"].replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("length = 800", "length = 199", "log-mel windows of 200 samples, the component's window has only 199"),
        ('present = ["image", "audio"]', 'present = ["image"]', "present.order is .'image'., but it depends on"),
        ("window_length = 200", "window_length = 300", "n_fft is 256, shorter than the window of 300"),
        ("sample_rate = 8000\n", "sample_rate = 16000\n", "expects 16000 Hz, but 'audio' has 8000 Hz"),
        ("tolerance_ns = {{ audio = 100_000_000 }}", "", "tolerance_ns lacks 'audio': say how old it may be"),
        ('"batch", 16]', '"batch", 15]', "'audio_encoder' raised RuntimeError"),
        ('[1, "batch", 16]', '["batch", 1, 16]', "'audio_encoder' raised RuntimeError"),
        ('source = "image"\n', 'source = "audio"\n', "preprocess is ImageSteps, which does not take AudioModality"),
        ('heard = "audio_encoder', 'heard = "both', "feed each other in a cycle"),
    ],
)
def test_streams_that_do_not_fit_are_refused_now(
    loaded: Load, tones: dict[str, str], old: str, new: str, said: str
) -> None:
    """Windows, rates, states, tolerances: with the component, and what would fit."""
    assert old in tones["recipe"]
    recipe = tones["recipe"].replace(old, new)
    if "both.embedding" in recipe:
        recipe = recipe.replace("both.embedding", "both.logits")
    with pytest.raises(RecipeError, match=said):
        skeleton(loaded(code=tones["code"], recipe=recipe))


def test_arrays_are_out_of_the_models_reach(loaded: Load) -> None:
    """A forward that works in place, or gives the same buffer each time, changes neither inputs nor former outputs."""
    recipe = loaded(
        add="""
        def forward(self, x):
            self.kept = x.mul_(2).repeat(1, 2)[:, :6] if not hasattr(self, "kept") else self.kept.add_(1)
            return self.kept

        Encoder.forward = forward
        """
    )
    origin = Origin(recipe)
    x = np.ones((1, 4), np.float32)
    first = origin.run("encoder", {"x": x})["embedding"]
    second = origin.run("encoder", {"x": x})["embedding"]
    assert (x == 1).all()
    assert (first == 2).all()
    assert (second == 3).all()


def test_the_model_is_in_evaluation_mode(loaded: Load) -> None:
    """Dropout would make every figure a matter of chance."""
    recipe = loaded(add="Encoder.forward = lambda self, x: nn.functional.dropout(self.layer(x), 0.5, self.training)")
    origin, x = Origin(recipe), np.ones((1, 4), np.float32)
    assert np.array_equal(origin.run("encoder", {"x": x})["embedding"], origin.run("encoder", {"x": x})["embedding"])
    assert not any(parameter.requires_grad for parameter in origin.model.parameters())


def test_the_digest_is_of_every_value_of_the_model(loaded: Load) -> None:
    """Of buffers that are not saved too, and of names; what else a module puts into its state does not disturb."""
    extra = """
    class Odd(Encoder):
        def __init__(self):
            super().__init__()
            self.register_buffer("fleeting", torch.tensor(VALUE), persistent=False)

        def get_extra_state(self):
            return {"not": "a tensor"}

    Encoder = Odd
    """
    digests = [Origin(loaded(add=extra.replace("VALUE", value))).sha256() for value in ("1.0", "1.0", "2.0", "1")]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_the_digest_is_sha256_of_the_values(loaded: Load) -> None:
    """Computed here anew from what torch saves, by another way."""
    origin, digest = Origin(loaded()), hashlib.sha256()
    for name, tensor in sorted(origin.model.state_dict().items()):
        assert tensor.dtype is torch.float32
        digest.update(f"{name} torch.float32 {list(tensor.shape)}\n".encode() + tensor.numpy().astype("<f4").tobytes())
    assert origin.sha256() == digest.hexdigest()
