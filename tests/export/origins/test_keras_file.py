"""Keras files: stretches of a model against Keras itself, and what is not loaded."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from edge_mbm.errors import RecipeError
from edge_mbm.export.origins.keras_file import load_keras
from edge_mbm.export.recipe import EncoderRecipe, HeadRecipe, InputRecipe, KerasModel, Normalize
from edge_mbm.spec import Embedding

pytestmark = pytest.mark.needs("keras")

Agrees: TypeAlias = Callable[..., None]
RECIPE = """
model = { from = "keras", path = "both.keras", normalize = { std = [255.0] } }
[labels]
classes = ["yes"]
[modalities]
image = { kind = "image" }
text = { kind = "text" }
[tokenizers]
vocabulary = "vocabulary.txt"

[components.seen]
kind = "encoder"
module = "image_pool"
outputs = { embedding = { task = "embedding" } }
inputs = { image = { source = "image", preprocess = { steps = "image", height = 24, width = 24 } } }

[components.read]
kind = "encoder"
module = "text_pool"
outputs = { embedding = { task = "embedding" } }
inputs = { text = { source = "text", preprocess = { steps = "tokens", asset = "vocabulary", max_length = 9 } } }

[components.both]
kind = "head"
module = ""
inputs = { image_pool = "seen.embedding", text_pool = "read.embedding" }
outputs = { score = { task = "classification", labels = "classes", activation = "none" } }
pivot = "image"
tolerance_ns = { text = 1_000_000_000 }
deadline_ns = 0

[components.convolved]
kind = "encoder"
model = { from = "keras", path = "convolved.keras" }
module = ""
outputs = { embedding = { task = "embedding" } }
inputs = { image = { source = "image", preprocess = { steps = "image", height = 24, width = 24 } } }

[components.features]
kind = "encoder"
model = { from = "keras", path = "convolved.keras" }
module = "norm"
outputs = { map = { task = "embedding" } }
inputs = { image = { source = "image", preprocess = { steps = "image", height = 24, width = 24 } } }
"""


@pytest.fixture(scope="module")
def keras() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        import keras

        keras.utils.set_random_seed(0)
        yield keras


def both(keras: Any) -> Any:
    """The classic of an image and a text."""
    layers = keras.layers
    image = keras.Input((24, 24, 3), name="image")
    text = keras.Input((9,), dtype="int32", name="text")
    seen = layers.GlobalAveragePooling2D(name="image_pool")(image)
    read = layers.GlobalAveragePooling1D(name="text_pool")(layers.Embedding(10000, 128, name="words")(text))
    joined = layers.Concatenate(name="joined")([seen, read])
    return keras.Model([image, text], layers.Dense(1, activation="sigmoid", name="score")(joined))


def convolved(keras: Any) -> Any:
    layers = keras.layers
    image = keras.Input((24, 24, 3), name="image")
    hidden = layers.Conv2D(8, 3, strides=2, padding="same")(layers.Rescaling(1 / 127.5, offset=-1)(image))
    norm = layers.BatchNormalization(
        name="norm", moving_mean_initializer="random_normal", gamma_initializer="random_normal"
    )
    return keras.Model(image, layers.Dense(6)(layers.GlobalAveragePooling2D()(layers.ReLU()(norm(hidden)))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, keras: Any) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    both(keras).save(folder / "both.keras")
    convolved(keras).save(folder / "convolved.keras")
    (folder / "vocabulary.txt").write_text("[PAD]\n[UNK]\nyes\n")
    return folder


@pytest.fixture(scope="module")
def made(strangers: Callable[..., Any], folder: Path) -> tuple[Any, dict[str, bytes]]:
    made = strangers(folder, RECIPE)
    return made, made.traced()


@pytest.fixture(scope="module")
def graphs(made: tuple[Any, dict[str, bytes]]) -> dict[str, bytes]:
    return made[1]


def images(batch: int) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(batch).integers(0, 256, (batch, 24, 24, 3), np.uint8)}


def test_an_image_and_a_text_model_is_cut_at_its_layers(graphs: dict[str, bytes], folder: Path, keras: Any) -> None:
    """Two encoders and a head in turn give what the whole model gives of images scaled by 1/255."""
    from edge_mbm.export.chain import GraphRunner

    model, run = keras.models.load_model(folder / "both.keras"), {n: GraphRunner(g, n) for n, g in graphs.items()}
    for batch in (1, 2, 5):
        image = images(batch)["image"]
        text = np.random.default_rng(batch).integers(0, 10000, (batch, 9))
        seen, read = run["seen"]({"image": image})["embedding"], run["read"]({"text": text})["embedding"]
        score = run["both"]({"image_pool": seen, "text_pool": read})["score"]
        want = model.predict([image / np.float32(255), text], verbose=0)
        np.testing.assert_allclose(score, want, atol=1e-5)


def test_convolutions_and_batch_norm_are_kept(
    graphs: dict[str, bytes], folder: Path, keras: Any, agrees: Agrees
) -> None:
    """Of a model with its own Rescaling, which sees 0..255."""
    model = keras.models.load_model(folder / "convolved.keras")
    agrees(graphs["convolved"], lambda given: model.predict(given["image"].astype(np.float32), verbose=0), images)


def test_channels_are_last_and_said_to_be(made: tuple[Any, dict[str, bytes]]) -> None:
    """A map of features leaves as Keras has it."""
    [output] = made[0].components["features"].outputs.values()
    assert (output.tensor.shape, output.tensor.layout) == (("batch", 12, 12, 8), "NHWC")


def test_the_digest_is_of_the_weights(folder: Path) -> None:
    """Not of the file, whose bytes differ each time that it is saved."""
    model = load_keras(KerasModel(path="both.keras"), folder, "model")
    again = folder / "again.keras"
    model.model.save(again)
    assert load_keras(KerasModel(path="again.keras"), folder, "model").sha256() == model.sha256()
    model.model.get_layer("score").bias.assign([1.0])
    assert load_keras(KerasModel(path="again.keras"), folder, "model").sha256() != model.sha256()


# --- what is refused -------------------------------------------------------------------------------------------------


def component(module: str, *inputs: str) -> EncoderRecipe:
    return EncoderRecipe(
        module=module, inputs={key: InputRecipe("image") for key in inputs}, outputs={"y": Embedding()}
    )


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (component("image_pol", "image"), "module names the layer 'image_pol': did you mean 'image_pool'"),
        (component("image_pool", "imag"), "inputs.imag names the layer 'imag': did you mean 'image'"),
        (component("score", "image"), "'score' of model does not follow from its inputs .'image'. alone"),
    ],
)
def test_a_layer_that_is_not_there_is_told(folder: Path, recipe: EncoderRecipe, said: str) -> None:
    """With the nearest that is; so is an end that needs more than it is given."""
    with pytest.raises(RecipeError, match=said):
        load_keras(KerasModel(path="both.keras"), folder, "model").component("seen", recipe)


def test_a_custom_layer_is_refused_by_name(keras: Any, tmp_path: Path) -> None:
    """With what to do instead; the class is never looked for, though it could be imported."""

    @keras.saving.register_keras_serializable(package="mine", name="Doubled")
    class Doubled(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return 2 * x

    image = keras.Input((4,), name="image")
    keras.Model(image, keras.layers.Dense(2)(Doubled(name="twice")(image))).save(tmp_path / "own.keras")
    with pytest.raises(RecipeError, match=r"layer 'twice' of .*own\.keras is a .*Doubled.*Python factory"):
        load_keras(KerasModel(path="own.keras"), tmp_path, "model")


def test_a_lambda_is_refused_by_name(keras: Any, tmp_path: Path) -> None:
    """It carries code."""
    image = keras.Input((4,), name="image")
    twice = keras.layers.Lambda(lambda x: 2 * x, name="twice", output_shape=(4,))
    keras.Model(image, twice(image)).save(tmp_path / "own.keras")
    with pytest.raises(RecipeError, match=r"layer 'twice' of .* is a Lambda"):
        load_keras(KerasModel(path="own.keras"), tmp_path, "model")


def test_a_function_of_another_module_is_refused(folder: Path, tmp_path: Path) -> None:
    """As an activation, an initializer or wherever a configuration names one."""
    with zipfile.ZipFile(folder / "both.keras") as old, zipfile.ZipFile(tmp_path / "evil.keras", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                evil = b'"activation": {"module": "os", "class_name": "function", "config": "system"}'
                assert b'"activation": "sigmoid"' in data
                data = data.replace(b'"activation": "sigmoid"', evil)
            new.writestr(name, data)
    with pytest.raises(RecipeError, match=r"layer 'score' of .* is a os\.function"):
        load_keras(KerasModel(path="evil.keras"), tmp_path, "model")


def test_what_is_no_keras_file_is_refused(tmp_path: Path) -> None:
    """Such as weights alone, or an older format."""
    (tmp_path / "old.keras").write_bytes(b"\x89HDF")
    with pytest.raises(RecipeError, match=r"is no file as Keras 3's model\.save"):
        load_keras(KerasModel(path="old.keras"), tmp_path, "model")
    with pytest.raises(RecipeError, match="is no file as Keras 3"):
        load_keras(KerasModel(path="nowhere.keras", normalize=Normalize()), tmp_path, "model")


def test_another_backend_is_refused(folder: Path, keras: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers are no torch modules."""
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RecipeError, match="Keras runs on jax here: set KERAS_BACKEND=torch"):
        load_keras(KerasModel(path="both.keras"), folder, "model")


def test_a_head_begins_where_encoders_end(folder: Path) -> None:
    """At layers in the middle of the model."""
    head = HeadRecipe(
        module="score",
        inputs={"image_pool": "seen.embedding", "text_pool": "read.embedding"},
        outputs={"score": Embedding()},
        pivot="image",
        deadline_ns=0,
    )
    origin = load_keras(KerasModel(path="both.keras"), folder, "model").component("both", head)
    given = {"image_pool": np.zeros((2, 3), np.float32), "text_pool": np.zeros((2, 128), np.float32)}
    np.testing.assert_allclose(origin.run(given)["score"], [[0.5], [0.5]])
    assert os.environ["KERAS_BACKEND"] == "torch"
