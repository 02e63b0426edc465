"""From a recipe to the manifest's components, their tensors' shapes found out, not typed in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from msgspec.structs import replace

from edge_mbm.errors import ManifestError, RecipeError
from edge_mbm.export.origin import Origin
from edge_mbm.export.recipe import (
    ComponentRecipe,
    DecoderRecipe,
    DetectorRecipe,
    EncoderRecipe,
    HeadRecipe,
    InputRecipe,
    Recipe,
    StateRecipe,
)
from edge_mbm.spec import (
    Asset,
    AudioModality,
    Classification,
    CropSteps,
    Decision,
    Decoder,
    Detector,
    Encoder,
    FileEntry,
    Head,
    ImageSteps,
    Input,
    LogMelSteps,
    Manifest,
    Modality,
    Output,
    Preprocess,
    Present,
    RawSteps,
    SensorModality,
    State,
    TensorSpec,
    TextModality,
    TokenSteps,
    Variant,
    VideoModality,
    Window,
    tensor_given,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Skeleton", "make_skeleton", "running_order"]

Skeleton: TypeAlias = Encoder | Detector | Decoder | Head
"""A component whose variants are not there yet."""

_BATCH = 2  # not 1, which exporters take for a constant
_LAYOUTS = {2: "ND", 3: "NTD", 4: "NCHW"}


def make_skeleton(recipe: Recipe, origin: Origin) -> dict[str, Skeleton]:
    """Every component with its inputs, outputs and states, in running order.

    Raises:
        RecipeError: components form a cycle, a modality or its steps are not supported, an output has no batch or not
            one value per label, or a rule of the manifest is broken: all that can be known before anything is traced.
    """
    made: dict[str, Skeleton] = {}
    for name in running_order(recipe):
        made[name] = _component(recipe, name, origin, made)
        for key, output in made[name].outputs.items():
            _check_labels(recipe, f"{name}.{key}", output)
    try:
        _manifest(recipe, made).check()
    except ManifestError as error:
        raise RecipeError(str(error)) from error
    return made


def _manifest(recipe: Recipe, made: Mapping[str, Skeleton]) -> Manifest:
    """The manifest to come, its graphs and labels still empty."""
    assets = {name: Asset(kind="labels", path=f"{name}.txt") for name in recipe.labels}
    assets |= {name: Asset(kind="tokenizer", path=f"tokenizers/{name}") for name in recipe.tokenizers}
    nothing = FileEntry(sha256="0" * 64, size=0)
    variant = Variant(
        target="any", precision="fp32", opset=recipe.opset, graph="graph", decision=Decision(kept=True, reason="-")
    )
    return Manifest(
        name=recipe.name,
        modalities=recipe.modalities,
        components={name: replace(made[name], variants={"fp32": variant}) for name in made},
        default_heads=recipe.default_heads,
        assets=assets,
        files=dict.fromkeys(["graph", *(asset.path for asset in assets.values())], nothing),
    )


def running_order(recipe: Recipe) -> tuple[str, ...]:
    """Component names, each after those that feed it.

    Raises:
        RecipeError: there is a cycle.
    """
    done: dict[str, None] = {}
    waiting = dict(recipe.components)
    while waiting:
        ready = [name for name, component in waiting.items() if _upstream(component) <= done.keys()]
        if not ready:
            raise RecipeError(f"components {sorted(waiting)} feed each other in a cycle")
        for name in ready:
            done[name] = None
            del waiting[name]
    return tuple(done)


def _component(recipe: Recipe, name: str, origin: Origin, made: Mapping[str, Skeleton]) -> Skeleton:
    component = recipe.components[name]
    inputs = {
        key: Input(
            source=v.source,
            tensor=_input_tensor(recipe, f"{name}.inputs.{key}", component, v, made),
            preprocess=v.preprocess,
        )
        for key, v in component.sources().items()
    }
    states = tuple(_state(state) for state in component.states)
    bare = _assemble(component, inputs, {}, states)
    zeros = {key: np.zeros(spec.resolve(_BATCH), spec.dtype) for key, spec in bare.graph_inputs().items()}
    given = origin.run(name, zeros)
    outputs = {
        key: Output(tensor=_output_tensor(f"{name}.{key}", given[key], last=origin.channels_last(name)), task=task)
        for key, task in component.outputs.items()
    }
    for state in states:
        _check_state(name, state, given[state.output])
    made_of = _assemble(component, inputs, outputs, states)
    return made_of if origin.batch_free(name) else _one_at_a_time(made_of, name)


def _one_at_a_time(component: Skeleton, name: str) -> Skeleton:
    """With a batch of 1 wherever it was free."""
    if isinstance(component, Head) and component.present is not None:
        raise RecipeError(
            f"components.{name} has a present mask, whose batch is free, and a graph that takes one sample at a time"
        )
    edges = {
        field: {key: replace(value, tensor=_fixed(value.tensor)) for key, value in getattr(component, field).items()}
        for field in ("inputs", "outputs")
    }
    states = tuple(replace(state, tensor=_fixed(state.tensor)) for state in component.states)
    return replace(component, **edges, states=states)


def _fixed(tensor: TensorSpec) -> TensorSpec:
    return replace(tensor, shape=tensor.resolve(1))


def _freed(tensor: TensorSpec) -> TensorSpec:
    """Of a component that takes one sample at a time: those it feeds need not."""
    return replace(tensor, shape=("batch", *tensor.shape[1:]))


_KINDS: dict[type, Any] = {EncoderRecipe: Encoder, DetectorRecipe: Detector, DecoderRecipe: Decoder, HeadRecipe: Head}


def _assemble(
    component: ComponentRecipe, inputs: dict[str, Input], outputs: dict[str, Output], states: tuple[State, ...]
) -> Skeleton:
    """What recipe and manifest call by the same name is the same."""
    kind = _KINDS[type(component)]
    fields = {key: getattr(component, key) for key in kind.__struct_fields__ if hasattr(component, key)}
    fields |= {"inputs": inputs, "outputs": outputs, "states": states, "variants": {}}
    if isinstance(component, HeadRecipe):
        fields["present"] = Present(input="present", order=component.present) if component.present else None
    if isinstance(component, DecoderRecipe):
        fields["algorithm"] = "autoregressive"
    made: Skeleton = kind(**fields)
    return made


def _input_tensor(
    recipe: Recipe, where: str, component: ComponentRecipe, value: InputRecipe, made: Mapping[str, Skeleton]
) -> TensorSpec:
    upstream, dot, _ = value.source.partition(".")
    steps = value.preprocess
    if isinstance(steps, TokenSteps) and (dot or isinstance(recipe.modalities[upstream], TextModality)):
        unit = {"ids": "token ids", "mask": "1 for tokens, 0 for padding", "segments": "segment ids"}[steps.gives]
        rows, layout = ((), "NT") if steps.lines == 1 else ((steps.lines,), "NLT")
        return TensorSpec(dtype="int64", shape=("batch", *rows, steps.max_length), layout=layout, unit=unit)
    if isinstance(steps, CropSteps):
        channels = 1 if steps.color == "gray" else 3
        shape = ("batch", steps.height, steps.width, channels)
        return TensorSpec(dtype="uint8", shape=shape, layout="NHWC", unit=f"{steps.color} 0..255")
    if dot:
        return _freed(tensor_given(made, value.source))
    return _modality_tensor(recipe.modalities[upstream], steps, component, where)


def _modality_tensor(modality: Modality, steps: Preprocess, component: ComponentRecipe, where: str) -> TensorSpec:
    window = component.window if isinstance(component, EncoderRecipe) else None
    if isinstance(steps, ImageSteps):
        channels = 1 if steps.color == "gray" else 3
        frame, unit = (steps.height, steps.width, channels), f"{steps.color} 0..255"
        if isinstance(modality, VideoModality):
            return TensorSpec(dtype="uint8", shape=("batch", _length(window), *frame), layout="NTHWC", unit=unit)
        return TensorSpec(dtype="uint8", shape=("batch", *frame), layout="NHWC", unit=unit)
    if isinstance(steps, LogMelSteps) and window is not None:
        frames = 1 + (window.length - steps.window_length) // steps.hop_length
        if frames < 1:
            raise RecipeError(
                f"components.{where} has log-mel windows of {steps.window_length} samples, the component's window has "
                f"only {window.length}"
            )
        return TensorSpec(dtype="float32", shape=("batch", frames, steps.n_mels), layout="NTC", unit="log mel power")
    if isinstance(steps, RawSteps) and isinstance(modality, AudioModality) and window is not None:
        return TensorSpec(dtype="float32", shape=("batch", window.length), layout="NT", unit="full scale +-1")
    if isinstance(steps, RawSteps) and isinstance(modality, SensorModality):
        return TensorSpec(dtype="float32", shape=("batch", *modality.shape), unit=modality.unit)
    raise RecipeError(
        f"components.{where} takes {type(modality).__name__} with {type(steps).__name__}"
        f"{'' if window else ' and no window'}: this edge-mbm exports images, and video with a window, through "
        "'image' steps, audio with a window through 'log_mel' or 'raw', text through 'tokens', and sensors as they come"
    )


def _length(window: Window | None) -> int:
    return 1 if window is None else window.length  # the manifest's check asks for one


def _check_labels(recipe: Recipe, where: str, output: Output) -> None:
    if isinstance(output.task, Classification) and output.task.labels in recipe.labels:
        labels, classes = len(recipe.labels[output.task.labels]), math.prod(output.tensor.resolve()[1:])
        if labels != classes:
            raise RecipeError(f"'{where}' gives {classes} values, labels.{output.task.labels} has {labels} names")


def _output_tensor(where: str, value: NDArray[Any], *, last: bool) -> TensorSpec:
    if value.ndim < 1 or value.shape[0] != _BATCH:
        raise RecipeError(f"'{where}' is {value.dtype}{list(value.shape)} for a batch of {_BATCH}: batch goes first")
    shape = ("batch", *value.shape[1:])
    layout = "NHWC" if last and value.ndim == 4 else _LAYOUTS.get(value.ndim)
    return TensorSpec(dtype=str(value.dtype), shape=shape, layout=layout)  # type: ignore[arg-type]


def _state(state: StateRecipe) -> State:
    return State(input=state.input, output=state.output, tensor=TensorSpec(dtype=state.dtype, shape=state.shape))


def _check_state(name: str, state: State, value: NDArray[Any]) -> None:
    if value.shape != state.tensor.resolve(_BATCH) or str(value.dtype) != state.tensor.dtype:
        raise RecipeError(
            f"state '{state.output}' of '{name}' is {value.dtype}{list(value.shape)} for a batch of {_BATCH}, "
            f"the recipe says {state.tensor.dtype}{list(state.tensor.shape)}"
        )


def _upstream(component: ComponentRecipe) -> set[str]:
    sources = [value.source for value in component.sources().values()]
    if isinstance(component, EncoderRecipe) and component.utterances is not None:
        sources.append(component.utterances.source)
    return {source.partition(".")[0] for source in sources if "." in source}
