"""Recipes: what to export, from which model, measured on which recordings, within which budgets.

A recipe is a TOML file; a calibration set is another that it points to, so that several recipes can share the same
recordings. Both are typed; a key that is not known is refused, with the one that was probably meant.
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
import tomllib
from msgspec import Meta, Struct

from edge_mbm.calibration import CalibrationMethod, Percentile
from edge_mbm.errors import RecipeError
from edge_mbm.export.recording_sources.tables import RecordingSource
from edge_mbm.export.targets import Kind, target, variants_for
from edge_mbm.spec import (
    Count,
    Dim,
    DType,
    Gate,
    Modality,
    Name,
    Nanoseconds,
    Preprocess,
    RawSteps,
    Task,
    TextModality,
    Utterances,
    Window,
)

__all__ = [
    "RESERVED_ASSETS",
    "Budget",
    "CalibrationSet",
    "ComponentRecipe",
    "DecoderRecipe",
    "DetectorRecipe",
    "EncoderRecipe",
    "HeadRecipe",
    "HuggingFaceModel",
    "InputRecipe",
    "KerasModel",
    "ModelSource",
    "Normalize",
    "OnnxModel",
    "Recipe",
    "Require",
    "Search",
    "Split",
    "StateRecipe",
    "TimmModel",
    "VariantKey",
    "load_recipe",
]

Factory: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
VariantKey: TypeAlias = Literal["x86-cpu-int8", "arm-cpu-int8", "trt-fp16", "trt-int8"]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
RESERVED_ASSETS = ("calibration_samples", "report", "report_data")
"""Names that every bundle uses itself."""
PositiveInt: TypeAlias = Annotated[int, Meta(ge=1)]
T = TypeVar("T")


class Normalize(Struct, frozen=True, kw_only=True):
    """``(value - mean) / std``, in the graph; of an image by channel, in 0..255 as the ``image`` steps give it."""

    mean: tuple[float, ...] = (0.0,)
    """One value, or one for each channel."""
    std: tuple[float, ...] = (1.0,)


class TimmModel(Struct, frozen=True, kw_only=True, tag="timm", tag_field="from"):
    """An architecture of the timm library, with weights from a file.

    An image of the ``image`` steps (uint8, NHWC) is normalized and transposed in the graph; a float input is taken
    as it is. ``options = { num_classes = 0 }`` makes it give its pooled features.
    """

    name: str
    weights: str | None = None
    """A ``.safetensors`` or ``.pth`` state dict, from the recipe's folder; None leaves the random initial ones."""
    options: dict[str, bool | int | float | str] = {}
    """Keyword arguments of ``timm.create_model``."""
    normalize: Normalize | None = None
    """None: as the architecture's weights were trained."""


class HuggingFaceModel(Struct, frozen=True, kw_only=True, tag="huggingface", tag_field="from"):
    """A directory as ``save_pretrained`` writes it, with its weights in safetensors.

    What each part takes and gives, in order:

    - ``vision``: an image of the ``image`` steps, or float32[batch, 3, H, W] -> the projected embedding
    - ``text``: int64[batch, length] ids, optionally their mask -> the projected embedding; of a list of prompts,
      int64[batch, lines, length], one for each
    - ``similarity``: an image's embedding and those of the prompts -> a logit for each prompt, with CLIP's temperature
    - ``encoder``: Whisper's: float32[batch, samples] at 16 kHz, or its log-mel [batch, mels, frames] -> hidden states
    - ``decoder``: Whisper's: ids, the encoder's hidden states -> logits, without a cache
    - ``memory``: of an image captioner (VisionEncoderDecoder) or Whisper: an image of the ``image`` steps, or sound as
      for ``encoder`` -> keys and values that the decoder's layers look at, computed once for a text
    - ``writer``: its decoder's step, for a ``decoder`` component: token, place, ``memory``, cache -> scores, next cache
    - ``auto``: ids and optionally their mask and segments, or an image, or what else the model's main input is ->
      logits where the model has a classifier, else hidden states, or what ``pooling`` makes of them
    """

    path: str
    """From the recipe's folder."""
    part: Literal["auto", "vision", "text", "similarity", "encoder", "decoder", "memory", "writer"] = "auto"
    """Which tower of a model that has several, or what joins two towers."""
    pooling: Literal["none", "mean", "first"] = "none"
    """Of hidden states over the positions that the mask leaves: their mean, or the first (BERT's CLS)."""
    normalize: Normalize | None = None
    """Of images; None: as the directory's ``preprocessor_config.json`` says."""


class KerasModel(Struct, frozen=True, kw_only=True, tag="keras", tag_field="from"):
    """A ``.keras`` file of Keras 3.

    A component's ``module`` names the layer where it ends ("": the model's own end). The keys of its ``inputs`` name
    the layers whose outputs it begins with, input layers among them.
    """

    path: str
    """From the recipe's folder."""
    normalize: Normalize = Normalize()
    """Of uint8 images; unless told otherwise the model sees 0..255, as its own Rescaling layer would want it."""


class OnnxModel(Struct, frozen=True, kw_only=True, tag="onnx", tag_field="from"):
    """A graph made elsewhere, repaired where it can be; a component's ``module`` is "".

    Inputs and outputs go by name where all names are the graph's, else by order.
    """

    path: str
    """From the recipe's folder; external data only beside it."""
    constants: dict[str, bool | int | float] = {}
    """Inputs of the graph that never change, such as a sample rate."""
    normalize: dict[Name, Normalize] = {}
    """By the recipe's input; a uint8 image goes in as 0..255 without it."""
    layout: Literal["auto", "NCHW", "NHWC"] = "auto"
    """Of the graph's image input, where its declared shape does not tell."""
    batch: Literal["auto", "one"] = "auto"
    """``one``: never more than one sample a call, which is what a device does anyway."""


ModelSource: TypeAlias = TimmModel | HuggingFaceModel | KerasModel | OnnxModel
"""A model that needs no Python code of the user's."""


class Search(Struct, frozen=True, kw_only=True):
    """How much the search for a mix of precisions may take, for each component and target; again after a fine-tune."""

    evaluations: PositiveInt = 24
    """Graphs that are made and looked at."""
    seconds: Annotated[float, Meta(gt=0)] | None = None
    """Of wall time as well. With it, what is found depends on how fast the machine is, so that two exports may differ;
    None: only ``evaluations`` bounds it, and the same export gives the same bundle."""


class InputRecipe(Struct, frozen=True):
    """Where a graph input comes from: a modality, or another component's output, and the steps between."""

    source: str
    preprocess: Preprocess = RawSteps()


class StateRecipe(Struct, frozen=True):
    """A tensor carried between calls; ``shape`` has "batch" where the batch goes."""

    input: Name
    output: Name
    shape: tuple[Dim, ...]
    dtype: DType = "float32"


class Budget(Struct, frozen=True):
    """What a variant must keep of the original, on recordings that calibration never saw."""

    min_cosine: Annotated[float, Meta(ge=-1, le=1)] = 0.99
    """Lowest mean cosine similarity of an output."""
    min_agreement: Share = 0.98
    """Share of recordings on which the heads still give the same label."""
    max_accuracy_drop: Share = 0.01
    """How much of the heads' accuracy may go, where the recordings are labelled."""
    min_sqnr_db: float | None = None
    """Lowest ratio of an output to its error."""
    min_speedup: Annotated[float, Meta(gt=0)] = 1.05
    """A quantized variant that is not this much faster than fp32 is not worth its error."""


class _ComponentRecipe(Struct, frozen=True, kw_only=True):
    module: str = ""
    """Path of the submodule inside the model ("encoders.image"); "" is the model itself."""
    inputs: dict[Name, InputRecipe | str]
    """In the order of ``forward``'s arguments; after them come the states, then the present mask."""
    outputs: dict[Name, Task]
    """In the order of what ``forward`` returns; after them come the next states."""
    states: tuple[StateRecipe, ...] = ()
    model: Factory | ModelSource | None = None
    """Instead of the recipe's."""
    budget: Budget | None = None
    """Instead of the recipe's."""
    recover: Literal["distill"] | None = None
    """What to do where no mix of precisions is within budget: a short fine-tune against the float model."""

    def sources(self) -> dict[str, InputRecipe]:
        """The inputs, the short form (only a source) spelled out."""
        return {k: InputRecipe(v) if isinstance(v, str) else v for k, v in self.inputs.items()}


class EncoderRecipe(_ComponentRecipe, frozen=True, kw_only=True, tag="encoder", tag_field="kind"):
    """One modality to an embedding."""

    window: Window | None = None
    gate: Gate | None = None
    max_gap_ns: Annotated[int, Meta(ge=1)] | None = None
    """Of frames or vectors: a longer hole between two starts carried states from zeros."""
    utterances: Utterances | None = None


class _AnsweringRecipe(_ComponentRecipe, frozen=True, kw_only=True):
    metric: Factory | None = None
    """``(outputs, labels) -> float``, higher is better, in place of accuracy: ``outputs`` maps a name to
    float32[recordings, ...], a decoder's to str[recordings]; ``labels`` is what the recordings have."""


class DetectorRecipe(_AnsweringRecipe, frozen=True, kw_only=True, tag="detector", tag_field="kind"):
    """An image, or maps made of one, to regions: see ``spec.Detector`` for what the module gives.

    A ``metric`` gets float32[recordings, max_regions, 5 + 2 * landmarks], in pixels of the frames.
    """

    max_regions: PositiveInt
    score_threshold: Annotated[float, Meta(gt=0)] = 0.5
    iou_threshold: Annotated[float, Meta(gt=0, le=1)] = 0.3


class DecoderRecipe(_AnsweringRecipe, frozen=True, kw_only=True, tag="decoder", tag_field="kind"):
    """Embeddings to text, token by token: see ``spec.Decoder`` for what the module computes, one step at a time.

    ``forward`` takes the token, its place, the ``inputs``, then the states; it returns scores, then the next states.
    """

    tokenizer: Name
    """One of the recipe's ``tokenizers``."""
    max_tokens: PositiveInt
    start: tuple[Count, ...]
    end: Count
    suppress: tuple[Count, ...] = ()
    suppress_first: tuple[Count, ...] = ()


class HeadRecipe(_AnsweringRecipe, frozen=True, kw_only=True, tag="head", tag_field="kind"):
    """Embeddings to a task output."""

    pivot: Name
    deadline_ns: Nanoseconds
    tolerance_ns: dict[Name, Nanoseconds] = {}
    present: tuple[Name, ...] = ()
    """Modalities in the order of the mask's columns; empty if the head has no mask."""


ComponentRecipe: TypeAlias = EncoderRecipe | DetectorRecipe | DecoderRecipe | HeadRecipe


class Require(Struct, frozen=True):
    """What must hold, or there is no bundle."""

    accuracy: dict[Name, Share] = {}
    """Head -> the least accuracy with what this machine would run."""
    keep: dict[Name, tuple[VariantKey, ...]] = {}
    """Component -> variants that must be within their budget."""


class Split(Struct, frozen=True):
    """Recordings for one purpose: ``recordings(split)`` of the factory, at most ``samples`` of them."""

    split: str
    samples: PositiveInt


class CalibrationSet(Struct, frozen=True):
    """A calibration-set manifest (``calibration/*.toml``): which recordings calibrate, measure and prove a bundle.

    ``recordings`` names a function that takes a split's name and gives records with an ``id``, ``inputs`` (modality ->
    array, as a source would push them) and a ``label``, which may be None; or it is a table that says where files with
    recordings are: ``{ from = "mcap" | "video" | "folder" | "arrays", path = ... }``.
    """

    recordings: Factory | RecordingSource
    calibration: Split
    """Ranges are taken from these, and from nothing else."""
    heldout: Split
    """Every error, agreement and accuracy is measured on these."""
    golden: Split
    """These travel in the bundle, to be replayed on the device."""
    description: str = ""
    python_path: tuple[str, ...] = ()


class Recipe(Struct, frozen=True, kw_only=True):
    """``export/*.toml``."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    model: Factory | ModelSource | None = None
    """A function without arguments that returns the trained ``torch.nn.Module``, or a table that says where a model is.

    None where every component has its own.
    """
    calibration_set: str
    """Path of the calibration-set manifest, from the recipe's folder."""
    modalities: dict[Name, Modality]
    components: dict[Name, ComponentRecipe]
    description: str = ""
    python_path: tuple[str, ...] = ()
    """Folders to import ``model`` from, from the recipe's folder."""
    labels: dict[Name, tuple[str, ...]] = {}
    default_heads: tuple[Name, ...] = ()
    tokenizers: dict[Name, str] = {}
    """Asset -> a ``tokenizer.json`` or a vocabulary with one word a line, from the recipe's folder."""
    targets: tuple[str, ...] = ("x86-cpu", "jetson-orin")
    """Machines to make variants for, of ``targets.toml``; fp32 is always there."""
    search: Search = Search()
    method: CalibrationMethod = Percentile()
    budget: Budget = Budget()
    require: Require = Require()
    opset: Annotated[int, Meta(ge=18, le=20)] = 20
    """20 is the newest that ONNX Runtime's CPU kernels and TensorRT both take whole."""
    trace_timeout_s: Annotated[float, Meta(gt=0)] = 600

    def budget_of(self, component: str) -> Budget:
        """A component's own budget, or the recipe's."""
        return self.components[component].budget or self.budget

    def heads(self) -> tuple[str, ...]:
        """Names of the components whose results a session gives by default: see ``Manifest.default_results``."""
        read = {value.source.partition(".")[0] for c in self.components.values() for value in c.sources().values()}
        return self.default_heads or tuple(name for name in self.answering() if name not in read)

    def answering(self) -> tuple[str, ...]:
        """Names of the components that can give results."""
        return tuple(name for name, c in self.components.items() if not isinstance(c, EncoderRecipe))


class LoadedRecipe(Struct, frozen=True):
    """A recipe, its calibration set, and where they were."""

    path: Path
    recipe: Recipe
    data: CalibrationSet
    sha256: str
    """Of both files, and of the targets that were added."""

    def python_path(self) -> tuple[str, ...]:
        """Folders to import model and recordings from, absolute."""
        recipe_folder = self.path.parent
        data_folder = (recipe_folder / self.recipe.calibration_set).parent
        wanted = [(recipe_folder, p) for p in self.recipe.python_path] + [
            (data_folder, p) for p in self.data.python_path
        ]
        return tuple(dict.fromkeys(str((folder / entry).resolve()) for folder, entry in wanted))


def load_recipe(path: Path, targets: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe and the calibration set that it names.

    Args:
        path: the recipe.
        targets: machines to make variants for, besides the recipe's own.

    Raises:
        RecipeError: a file is missing or no TOML, a key is unknown, a value is wrong, or a name refers to nothing.
    """
    text = _read(path, "recipe")
    recipe = _parse(text, Recipe, path)
    data_path = path.parent / recipe.calibration_set
    data_text = _read(data_path, "calibration set")
    data = _parse(data_text, CalibrationSet, data_path)
    more = [name for name in dict.fromkeys(targets) if name not in recipe.targets]
    recipe = msgspec.structs.replace(recipe, targets=(*recipe.targets, *more))
    for problem in _problems(recipe):
        raise RecipeError(f"{path}: {problem}")
    given = b"\0".join((text, data_text, *(name.encode() for name in more)))
    return LoadedRecipe(path, recipe, data, hashlib.sha256(given).hexdigest())


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"there is no {what} at {path}: {error.strerror}") from error


def _parse(text: bytes, kind: type[T], path: Path) -> T:
    try:
        raw = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error
    try:
        value = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {_explained(error, raw, kind)}") from error
    for problem in _unknown_keys(raw, value, ""):
        raise RecipeError(f"{path}: {problem}")
    return value


# --- unknown keys ----------------------------------------------------------------------------------------------------


def _unknown_keys(raw: object, value: object, where: str) -> Iterator[str]:
    """Keys that no record has a field for; msgspec ignores them, since the manifest's records must."""
    if isinstance(value, Struct) and isinstance(raw, dict):
        config = value.__struct_config__
        fields = [f.encode_name for f in msgspec.structs.fields(value)]
        known = [*fields, *([config.tag_field] if config.tag_field else [])]
        for key in raw:
            if key not in known:
                yield f"unknown key '{where}{key}'{_nearest(key, known) or '.'} Known here: {', '.join(sorted(known))}"
        for field in msgspec.structs.fields(value):
            yield from _unknown_keys(raw.get(field.encode_name), getattr(value, field.name), f"{where}{field.name}.")
    elif isinstance(value, dict) and isinstance(raw, dict):
        for key, item in value.items():
            yield from _unknown_keys(raw.get(key), item, f"{where}{key}.")
    elif isinstance(value, tuple) and isinstance(raw, list):
        for index, (item, given) in enumerate(zip(value, raw, strict=False)):
            yield from _unknown_keys(given, item, f"{where}{index}.")


def _explained(error: msgspec.ValidationError, raw: Any, kind: Any) -> str:
    """The validation's message with the whole path in place of ``[...]``, and with the word that was probably meant."""
    what, _, where = str(error).partition(" - at `")
    place, path = raw, list[Any]()
    steps = re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", where)
    # Of a key that is itself wrong it says "key in TABLE".
    for key, index in [*steps, ("", "...")] if where.startswith("key` in ") else steps:
        step = key or (_culprit(str(error), raw, kind, path) if index == "..." else int(index))
        try:
            place = place[step]
        except (KeyError, IndexError, TypeError):
            break
        path.append(step)
    return f"{'.'.join(map(str, path))}{': ' if path else ''}{what}{_meant(what, place, kind)}"


def _culprit(message: str, raw: Any, kind: Any, path: Sequence[Any]) -> str:
    """The key of the table at ``path`` whose value is at fault: msgspec does not tell the keys of free tables."""
    table = functools.reduce(operator.getitem, path, raw)
    keys = list(table) if isinstance(table, dict) else []
    return next((key for key in keys if _complaint(_without(raw, path, key), kind) != message), keys[0] if keys else "")


def _complaint(raw: Any, kind: Any) -> str:
    try:
        msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _without(raw: Any, path: Sequence[Any], key: str) -> Any:
    """A copy that lacks one key of the table at ``path``."""
    copied = copy.deepcopy(raw)
    del functools.reduce(operator.getitem, path, copied)[key]
    return copied


def _meant(what: str, place: Any, kind: Any) -> str:
    """The word that was probably meant: by a misspelled required key, an unknown one, or one of a few values."""
    given = list(place) if isinstance(place, dict) else []
    if found := re.search(r"missing required field `(\w+)`", what):
        near = difflib.get_close_matches(found[1], given, 1, 0.6)
        return f": did you mean '{found[1]}' by '{near[0]}'?" if near else ""
    schema = str(msgspec.json.schema(kind))
    if found := re.search(r"unknown field `(\w+)`", what):
        return _nearest(found[1], re.findall(r"'(\w+)': \{", schema))
    if found := re.search(r"[Ii]nvalid (?:enum )?value '([^']*)'", what):
        lists = re.findall(r"'enum': \[([^]]*)\]", schema)
        return _nearest(found[1], re.findall(r"'([^']+)'", " ".join(lists)))
    return ""


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f": did you mean '{near[0]}'?" if near else ""


# --- references ------------------------------------------------------------------------------------------------------


def _problems(recipe: Recipe) -> Iterator[str]:
    heads = list(recipe.answering())
    if not heads:
        yield "components has no head and no decoder, so nothing would come out of the bundle"
    for name in recipe.targets:
        try:
            target(name)
        except RecipeError as error:
            yield f"targets: {error}"
    yield from _label_problems(recipe)
    for name, component in recipe.components.items():
        yield from _model_problems(recipe, name, component)
        yield from _source_problems(recipe, name, component)
        yield from _task_problems(recipe, name, component)
    yield from _name_problems(recipe.default_heads, heads, "default_heads")
    yield from _name_problems(recipe.require.accuracy, heads, "require.accuracy")
    yield from _name_problems(recipe.require.keep, list(recipe.components), "require.keep")
    for name, variants in recipe.require.keep.items():
        kind = _kind(recipe.components[name]) if name in recipe.components else "encoder"
        yield from _name_problems(variants, list(variants_for(recipe.targets, kind)), f"require.keep.{name}")


def _kind(component: ComponentRecipe) -> Kind:
    kind: Kind = component.__struct_config__.tag  # type: ignore[assignment] # as the tags above say
    return kind


def _label_problems(recipe: Recipe) -> Iterator[str]:
    for name, labels in recipe.labels.items():
        if name in RESERVED_ASSETS:
            yield f"labels.{name}: the bundle has a file of its own by that name: take another"
        for label in labels:
            if label.splitlines() != [label]:
                yield f"labels.{name} has {label!r}: a label is one line, and not empty"


def _model_problems(recipe: Recipe, name: str, component: ComponentRecipe) -> Iterator[str]:
    source = component.model or recipe.model
    if source is None:
        yield f"components.{name} has no model: give the recipe one for all its components, or each its own"
    if isinstance(source, OnnxModel) and component.module:
        yield f"components.{name}.module is '{component.module}': of an ONNX graph only the whole is taken, module = ''"
    if isinstance(source, OnnxModel) and component.recover is not None:
        yield f"components.{name}.recover: an ONNX graph cannot be trained on, only a torch model can"


def _source_problems(recipe: Recipe, name: str, component: ComponentRecipe) -> Iterator[str]:
    for key, value in component.sources().items():
        upstream, dot, output = value.source.partition(".")
        where = f"components.{name}.inputs.{key}.source is '{value.source}'"
        if not dot and upstream not in recipe.modalities:
            yield f"{where}: there is no such modality{_nearest(upstream, list(recipe.modalities))}"
        if dot and upstream not in recipe.components:
            yield f"{where}: there is no component '{upstream}'{_nearest(upstream, list(recipe.components))}"
        elif dot and output not in recipe.components[upstream].outputs:
            outputs = list(recipe.components[upstream].outputs)
            yield f"{where}: '{upstream}' gives {outputs}{_nearest(output, outputs)}"


def _task_problems(recipe: Recipe, name: str, component: ComponentRecipe) -> Iterator[str]:
    for key, task in component.outputs.items():
        labels = getattr(task, "labels", None)
        texts = [name for name, modality in recipe.modalities.items() if isinstance(modality, TextModality)]
        if labels is not None and labels not in [*recipe.labels, *texts]:
            where, near = f"components.{name}.outputs.{key}.labels", _nearest(labels, [*recipe.labels, *texts])
            yield f"{where} is '{labels}', which is neither in [labels] nor a text whose lines they could be{near}"
    if isinstance(component, DecoderRecipe) and component.tokenizer not in recipe.tokenizers:
        known = list(recipe.tokenizers)
        where = f"components.{name}.tokenizer is '{component.tokenizer}'"
        yield f"{where}, which is not in [tokenizers]{_nearest(component.tokenizer, known)}"


def _name_problems(names: tuple[str, ...] | Mapping[str, object], known: list[str], where: str) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{where} names '{name}'{_nearest(name, known) or '.'} There are {', '.join(known) or 'none'}"
