"""The classic Keras model of an image and a text, from ``model.save("x.keras")`` to a live stream with a prompt.

The model pools a picture to three colours and a text to the mean of its words, joins them, and has one sigmoid:
so it can weigh what it sees against what it reads, and here it learns whether a picture is as bright as the words ask.
No code of its own is needed to export it: ``export/keras_classic.toml`` names its layers.

    python examples/keras_classic.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edge_mbm
from edge_mbm.runtime.sources import CallableSource, TextSource
from edge_mbm.runtime.verify import verify_bundle

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "keras_classic"  # what is made here, and not kept with the code
MODEL, WORDS, BUNDLE = FOLDER / "model.keras", FOLDER / "words.txt", FOLDER / "keras_classic.mbm"
BRIGHTNESS = {"night": 0.2, "dusk": 0.35, "shade": 0.5, "daylight": 0.65, "noon": 0.8}
"""What is asked for, in parts of white."""
PHRASES = ("brighter than {}", "is it brighter than {}?", "Brighter than the {}!", "more light than at {}")
LENGTH = 8  # words


@dataclass(frozen=True)
class Recording:
    """A picture, a text, and whether the one is as bright as the other asks."""

    id: str
    inputs: dict[str, Any]
    label: int


def picture(brightness: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A coloured slope with a few boxes and noise, whose mean is this bright: uint8[224, 224, 3]."""
    down, across = np.mgrid[-1:1:224j, -1:1:224j][..., None]
    scene = down * rng.uniform(-0.1, 0.1, 3) + across * rng.uniform(-0.1, 0.1, 3)
    for _ in range(4):
        top, left, height, width = rng.integers(16, 112, 4)
        scene[top : top + height, left : left + width] += rng.uniform(-0.1, 0.1, 3)
    scene += rng.normal(0, 0.02, scene.shape)
    levels: NDArray[np.uint8] = np.clip(255 * (scene - scene.mean() + brightness), 0, 255).astype(np.uint8)
    return levels


def recordings(split: str) -> Iterator[Recording]:
    """Pictures of any brightness with texts that ask for any, other ones for each split."""
    rng = np.random.default_rng({"training": 0, "calibration": 1, "heldout": 2, "golden": 3}[split])
    for number in range(384):
        word = str(rng.choice(list(BRIGHTNESS)))
        brightness = BRIGHTNESS[word] + rng.choice([-1, 1]) * rng.uniform(0.05, 0.25)
        text = str(rng.choice(PHRASES)).format(word)
        inputs = {"image": picture(brightness, rng), "text": text}
        yield Recording(f"{split}-{number:03d}", inputs, int(brightness > BRIGHTNESS[word]))


def accuracy(outputs: Mapping[str, NDArray[np.float32]], labels: list[int]) -> float:
    """The recipe's measure: how often the one probability is on the right side of a half."""
    return float(np.mean((outputs["probability"].reshape(-1) > 0.5) == np.array(labels)))


def save_model() -> None:
    """Build, fit and save the model as a ``.keras`` file, with its vocabulary, one word a line, beside it."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras  # noqa: PLC0415 - on the workstation only
    from keras import layers  # noqa: PLC0415

    from edge_mbm.preprocess import TextPreprocessor  # noqa: PLC0415
    from edge_mbm.spec import TokenSteps  # noqa: PLC0415

    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = [phrase.format(word) for phrase in PHRASES for word in BRIGHTNESS]
    known = sorted({word.strip("?!").lower() for text in texts for word in text.split()})
    # As TextVectorization.get_vocabulary() gives them: padding, unknown, words.
    WORDS.write_text("\n".join(["", "[UNK]", *known]) + "\n")

    keras.utils.set_random_seed(0)
    frame = keras.Input((224, 224, 3), name="frame")
    prompt = keras.Input((LENGTH,), dtype="int64", name="prompt")
    seen = layers.GlobalAveragePooling2D(name="seen")(layers.Rescaling(1 / 255, name="scaled")(frame))
    read = layers.GlobalAveragePooling1D(name="read")(layers.Embedding(10_000, 128, name="words")(prompt))
    match = layers.Dense(1, "sigmoid", name="match")(layers.Concatenate(name="both")([seen, read]))
    model = keras.Model([frame, prompt], match)

    ids = TextPreprocessor(TokenSteps(asset="words", max_length=LENGTH), WORDS.read_bytes())
    examples = list(recordings("training"))
    frames = np.stack([example.inputs["image"] for example in examples])
    tokens = np.concatenate([ids(example.inputs["text"]) for example in examples])
    model.compile(keras.optimizers.Adam(0.1), "binary_crossentropy")
    model.fit([frames, tokens], np.array([example.label for example in examples]), batch_size=32, epochs=8, verbose=0)
    model.save(MODEL)


def stream() -> None:
    """Evening falls and day breaks before a camera, while somebody changes the question."""
    rng, prompt = np.random.default_rng(9), TextSource("text")
    day = iter([*np.linspace(0.95, 0.1, 40), *np.linspace(0.1, 0.95, 40)])
    questions = {0: "brighter than dusk", 30: "brighter than NIGHT?", 50: "brighter than noon"}

    def camera() -> NDArray[np.uint8]:
        return picture(next(day, 0.95), rng)

    since, last = 0, None
    with edge_mbm.open(BUNDLE, [CallableSource("image", camera, 20.0), prompt]) as live:
        prompt.set(asked := questions[0])
        for count, result in zip(range(1, 101), live, strict=False):
            if count in questions:
                prompt.set(asked := questions[count])
                since = time.monotonic_ns()
            if result.t_capture < since:
                continue  # of before the question
            [probability] = result.output.as_json()["values"]
            answer = "yes" if probability > 0.5 else "no"
            if (asked, answer) != last:
                last = (asked, answer)
                print(f"{asked:22} {answer:4} {probability:.2f}  {result.age / 1e6:.1f} ms old")


def main() -> None:
    """Model, export, proof, stream."""
    from edge_mbm.cli.bars import ExportBars  # noqa: PLC0415 - for the workstation
    from edge_mbm.export import export_bundle  # noqa: PLC0415 - brings torch, which a device lacks

    if not MODEL.exists():
        save_model()
    with ExportBars() as bars:
        manifest = export_bundle(ROOT / "export" / "keras_classic.toml", BUNDLE, bars)
    with edge_mbm.load(BUNDLE) as bundle:
        verify_bundle(bundle).check()
    error = manifest.components["match"].variants["fp32"].error
    print(f"accuracy on pictures never seen: {error.accuracy if error else None}")
    stream()


if __name__ == "__main__":
    main()
