"""The manifest, typed: modalities, tensors, components, variants and their evidence.

Everything here is a frozen record that msgspec reads from and writes to JSON. ``Manifest.check`` holds the rules
that types cannot: references resolve, the graph of components has no cycle, numbers are finite. A field that this
version does not know is ignored on reading, so a newer minor version opens; a newer *major* version does not
(``COMPATIBILITY.md``).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from edge_mbm.errors import BundleVersionError, ManifestError

__all__ = [
    "FORMAT_VERSION",
    "Asset",
    "AudioModality",
    "CalibrationRecord",
    "Classification",
    "Component",
    "CropSteps",
    "Decision",
    "Decoder",
    "Detector",
    "Embedding",
    "Encoder",
    "ErrorFigures",
    "FileEntry",
    "Gate",
    "GoldenSample",
    "Head",
    "ImageModality",
    "ImageSteps",
    "Input",
    "LogMelSteps",
    "Manifest",
    "Modality",
    "Output",
    "ParserCheck",
    "Preprocess",
    "Present",
    "Provenance",
    "RawSteps",
    "Regions",
    "Regression",
    "Saliency",
    "SensorModality",
    "Sequence",
    "SilenceGate",
    "SpeedFigures",
    "State",
    "Task",
    "TensorSpec",
    "TextModality",
    "Timing",
    "TokenSteps",
    "Tokens",
    "UnchangedGate",
    "Utterances",
    "Variant",
    "VideoModality",
    "Window",
    "decode_manifest",
    "encode_manifest",
    "json_schema",
    "safe_path",
    "tensor_given",
]

FORMAT_VERSION = "1.0"

# "$(?!\n)": Python's "$" alone also matches before a last line break; the pair means the end in every dialect.
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$(?!\n)")]
VariantName: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$(?!\n)")]
Path: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]
Sha256: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
PositiveInt: TypeAlias = Annotated[int, Meta(ge=1)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Nanoseconds: TypeAlias = Annotated[int, Meta(ge=0)]
DType: TypeAlias = Literal["bool", "uint8", "int8", "int32", "int64", "float16", "float32"]
Dim: TypeAlias = int | str
"""A fixed size, or the name of a dimension that may vary ("batch")."""


class Record(Struct, frozen=True, omit_defaults=True):
    """Base of every manifest record: immutable, defaults left out of the JSON."""

    # Each record repeats frozen (type checkers do not inherit it) and kw_only (msgspec does not).


# --- tensors ---------------------------------------------------------------------------------------------------------


class TensorSpec(Record, frozen=True, kw_only=True):
    """One named tensor at the edge of a graph.

    ``layout`` names the axes ("NHWC", "NTC", "ND"); ``unit`` says what a value is ("rgb 0..255", "log mel power").
    """

    dtype: DType
    shape: Annotated[tuple[Dim, ...], Meta(max_length=8)]
    layout: str | None = None
    unit: str | None = None

    def resolve(self, batch: int = 1) -> tuple[int, ...]:
        """The shape with every named dimension set to ``batch``: what a device binds its buffers to."""
        return tuple(dim if isinstance(dim, int) else batch for dim in self.shape)


# --- modalities: what a sensor gives ---------------------------------------------------------------------------------


class ImageModality(Record, frozen=True, kw_only=True, tag="image", tag_field="kind"):
    """Single frames: uint8[H, W, 3], RGB, any size. The newest matters; an old one is dropped."""


class VideoModality(Record, frozen=True, kw_only=True, tag="video", tag_field="kind"):
    """Frames used several at a time: uint8[H, W, 3], RGB, at ``rate`` frames a second."""

    rate: Annotated[float, Meta(gt=0)]


class AudioModality(Record, frozen=True, kw_only=True, tag="audio", tag_field="kind"):
    """A mono waveform, float32 at full scale +-1. Every sample matters: none is dropped without being counted."""

    sample_rate: PositiveInt


class TextModality(Record, frozen=True, kw_only=True, tag="text", tag_field="kind"):
    """A prompt or transcript: str. The latest stays valid until the next; see ``Manifest.latched``."""


class SensorModality(Record, frozen=True, kw_only=True, tag="sensor", tag_field="kind"):
    """A vector from any other sensor (IMU, weather): float32 of ``shape``. The newest matters."""

    shape: tuple[PositiveInt, ...]
    unit: str | None = None


Modality: TypeAlias = ImageModality | VideoModality | AudioModality | TextModality | SensorModality


# --- preprocessing: host-side steps between a modality and a graph's input -------------------------------------------


class ImageSteps(Record, frozen=True, kw_only=True, tag="image", tag_field="steps"):
    """Frame to uint8[1, height, width, channels]; scaling to float happens in the graph."""

    height: PositiveInt
    width: PositiveInt
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"


class CropSteps(Record, frozen=True, kw_only=True, tag="crop", tag_field="steps"):
    """A region of a frame to uint8[1, height, width, channels], once for each region that a detector found.

    It keeps its shape: turned, scaled and moved, with black where the frame has ended.
    """

    height: PositiveInt
    width: PositiveInt
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    margin: Annotated[float, Meta(ge=0, le=4)] = 0.0
    """What is added on each side of the region, as a share of its size."""
    landmarks: Annotated[tuple[tuple[float, float], ...], Meta(max_length=128)] = ()
    """Where in the crop each of the region's landmarks belongs, x and y from 0 to 1: the least squares fit of them
    says how it is turned and scaled (Umeyama 1991, doi:10.1109/34.88573). Without any, the region is upright, in the
    middle, as large as fits."""


class LogMelSteps(Record, frozen=True, kw_only=True, tag="log_mel", tag_field="steps"):
    """Waveform window to float32[1, frames, n_mels]; ``preprocess.LogMel`` gives each field's meaning."""

    sample_rate: PositiveInt
    window_length: PositiveInt
    hop_length: PositiveInt
    n_fft: PositiveInt
    n_mels: PositiveInt
    f_min: Annotated[float, Meta(ge=0)] = 0.0
    f_max: Annotated[float, Meta(gt=0)] | None = None
    floor: Annotated[float, Meta(gt=0)] = 1e-6


class TokenSteps(Record, frozen=True, kw_only=True, tag="tokens", tag_field="steps"):
    """Text to int64[1, max_length], or int64[1, lines, max_length], with the tokenizer in ``asset``.

    How text is normalised and split, what is added to it, and with what and on which side it is padded and cut, the
    tokenizer's file says (``preprocess.TextPreprocessor``); a manifest that said it too could contradict it.
    """

    asset: Name
    """A ``tokenizer.json``, or a vocabulary with one word a line."""
    max_length: Annotated[int, Meta(ge=1, le=65536)]
    gives: Literal["ids", "mask", "segments"] = "ids"
    """Token ids; 1 where a token is and 0 where padding is; or which of two joined texts a token is of."""
    lines: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Above 1 the text is a list of prompts: so many of its lines at most, each a row of its own; empty lines do not
    count, and rows without a line are padding. With 1 the text is one, line breaks and all."""


class RawSteps(Record, frozen=True, kw_only=True, tag="raw", tag_field="steps"):
    """The data as it comes, with a leading batch axis."""


Preprocess: TypeAlias = ImageSteps | CropSteps | LogMelSteps | TokenSteps | RawSteps


# --- tasks: what an output means -------------------------------------------------------------------------------------


class Classification(Record, frozen=True, kw_only=True, tag="classification", tag_field="task"):
    """One score per class."""

    labels: Name
    """The asset with one label a line, in order; or a text modality, for prompts that are classes: its lines, as they
    were when the text was encoded that the scores are about."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """What turns the graph's numbers into scores; "none" when the graph already gives scores."""


class Embedding(Record, frozen=True, kw_only=True, tag="embedding", tag_field="task"):
    """A vector; ``normalized`` when its L2 norm is 1."""

    normalized: bool = False


class Sequence(Record, frozen=True, kw_only=True, tag="sequence", tag_field="task"):
    """One embedding or distribution per time step; of a window of video, per frame of it; of regions, per region."""


class Regions(Record, frozen=True, kw_only=True, tag="regions", tag_field="task"):
    """Boxes with scores: of a detector, its candidates; of a head, those of the frame, as it read them."""

    landmarks: Count = 0


class Saliency(Record, frozen=True, kw_only=True, tag="saliency", tag_field="task"):
    """One importance per frame of a window, or per pixel."""


class Tokens(Record, frozen=True, kw_only=True, tag="tokens", tag_field="task"):
    """Token ids or their logits, read with ``tokenizer``."""

    tokenizer: Name


class Regression(Record, frozen=True, kw_only=True, tag="regression", tag_field="task"):
    """Quantities in ``unit``."""

    unit: str | None = None


Task: TypeAlias = Classification | Embedding | Sequence | Regions | Saliency | Tokens | Regression


# --- components ------------------------------------------------------------------------------------------------------


class Input(Record, frozen=True, kw_only=True):
    """A graph input and where its data comes from.

    ``source`` is a modality ("image") or another component's output ("image_encoder.embedding").
    """

    source: str
    tensor: TensorSpec
    preprocess: Preprocess = field(default_factory=RawSteps)


class Output(Record, frozen=True, kw_only=True):
    """A graph output and what it means."""

    tensor: TensorSpec
    task: Task


class State(Record, frozen=True, kw_only=True):
    """A tensor carried from one call to the next: output ``output`` becomes input ``input``; it starts as zeros."""

    input: Name
    output: Name
    tensor: TensorSpec


class Window(Record, frozen=True, kw_only=True):
    """The span of a stream that one call sees, in samples (audio) or frames (video), and the step to the next."""

    length: PositiveInt
    hop: PositiveInt
    margin: Count = 0
    """Of video: frames on either side that only give context; what comes out counts for those between them."""
    padding: Literal["none", "repeat"] = "none"
    """Of video: "repeat" repeats a stream's first frame ``margin`` times before it, and its last one after it, until
    each frame has been between the margins; "none" leaves out what does not fill a window."""


class UnchangedGate(Record, frozen=True, kw_only=True, tag="unchanged", tag_field="kind"):
    """Skip a frame that looks like the last one that was encoded: that one's output stands."""

    threshold: Annotated[float, Meta(ge=0, le=255)]
    """Mean absolute difference of pixel values, 0..255, over a coarse grid, up to which nothing has changed."""
    max_ns: Annotated[int, Meta(ge=1)]
    """An output older than this does not stand any longer, whatever the frame looks like."""


class SilenceGate(Record, frozen=True, kw_only=True, tag="silence", tag_field="kind"):
    """Skip a window of sound that is quiet: the last output stands, and a carried state stays as it is."""

    threshold_db: Annotated[float, Meta(le=0)]
    """RMS in dB below full scale, up to which a window is silent."""
    max_ns: Annotated[int, Meta(ge=1)]
    """As for ``UnchangedGate``."""


Gate: TypeAlias = UnchangedGate | SilenceGate
"""What lets an encoder skip work. Skipped items are counted in the results."""


class Utterances(Record, frozen=True, kw_only=True):
    """Cuts a stream of sound where speech begins and ends, told by another encoder of the same sound.

    The encoder's window is then the longest utterance, with silence after a shorter one; its hop is the step from one
    look at an unfinished utterance to the next. An utterance that fills the window ends there.
    """

    source: str
    """An encoder's output of one number, the probability of speech in its window: "voice.speech"."""
    threshold: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """Speech begins at this probability, and ends where it stays below it, less a tenth, for ``silence_ns``."""
    silence_ns: Nanoseconds = 500_000_000
    speech_ns: Nanoseconds = 100_000_000
    """Shorter ones are no speech: a click, a cough."""
    padding_ns: Nanoseconds = 200_000_000
    """Of sound before the first moment of speech, which a detector hears late."""
    partials: bool = True
    """Whether an unfinished utterance is looked at."""


class Present(Record, frozen=True, kw_only=True):
    """The mask input of a head: float32[batch, len(order)], 1 where that modality is there, else 0."""

    input: Name
    order: tuple[Name, ...]


class ErrorFigures(Record, frozen=True, kw_only=True):
    """How far a variant is from the framework it came from, on samples that calibration never saw."""

    samples: Count
    cosine: float
    """Lowest mean cosine similarity over the outputs."""
    sqnr_db: float
    """Lowest signal to quantization-noise ratio over the outputs, dB; capped at 120 so that it is always finite."""
    max_abs: float
    agreement: float | None = None
    """Share of samples with the same label as the reference; heads only, or through the fused heads for encoders."""
    accuracy: float | None = None
    """Accuracy against the truth of the fused result with this variant in place, over the labelled recordings."""
    fed_sqnr_db: dict[str, float] = {}
    """SQNR of what it feeds, "component.output" -> dB, with this variant alone in place: heads amplify errors."""


class SpeedFigures(Record, frozen=True, kw_only=True):
    """Time of one call at batch 1, measured side by side with fp32 in one process."""

    host: str
    """CPU model, engine and version, threads: a figure means nothing elsewhere."""
    median_us: float
    iqr_us: float
    speedup: float
    """fp32's median over this one's."""


class Decision(Record, frozen=True, kw_only=True):
    """Whether a variant ships, and why, in a sentence with the figures."""

    kept: bool
    reason: str


class ParserCheck(Record, frozen=True, kw_only=True):
    """Whether a target's own parser and builder took a graph, on the workstation."""

    where: Annotated[str, Meta(max_length=200)]
    """Which parser and builder, of which version, for which hardware."""
    accepted: bool
    problem: Annotated[str, Meta(max_length=2000)] = ""


class Variant(Record, frozen=True, kw_only=True):
    """One precision of one component's graph for one kind of target, with the evidence for its decision.

    ``graph`` is absent when the variant was tried and not kept. ``error`` or ``speed`` is absent when unmeasured;
    the decision then says so.
    """

    target: Literal["any", "x86-cpu", "arm-cpu", "tensorrt"]
    precision: Literal["fp32", "fp16", "int8"]
    decision: Decision
    opset: PositiveInt
    graph: Path | None = None
    error: ErrorFigures | None = None
    speed: SpeedFigures | None = None
    made_by: Annotated[str, Meta(max_length=500)] = ""
    """Quantizer or converter, its version and settings, and what it left in float."""
    parsed: tuple[ParserCheck, ...] = ()
    """By which parsers it was tried; what they accept says nothing of speed."""


class _Component(Record, frozen=True, kw_only=True):
    inputs: dict[Name, Input]
    outputs: dict[Name, Output]
    variants: dict[VariantName, Variant]
    states: tuple[State, ...] = ()

    def graph_inputs(self) -> dict[str, TensorSpec]:
        """Every tensor that the graph takes, by name, in the order of the model's arguments: inputs, then states."""
        tensors = {key: value.tensor for key, value in self.inputs.items()}
        return tensors | {state.input: state.tensor for state in self.states}

    def graph_outputs(self) -> dict[str, TensorSpec]:
        """Every tensor that the graph gives, by name: outputs, then next states."""
        tensors = {key: value.tensor for key, value in self.outputs.items()}
        return tensors | {state.output: state.tensor for state in self.states}


class Encoder(_Component, frozen=True, kw_only=True, tag="encoder", tag_field="kind"):
    """Modality, or another component's output, to embedding or tokens.

    One that reads a detector through ``CropSteps`` runs once for each region. Those who read it get its outputs for all
    of them, with zeros after the last: see ``tensor_given``.
    """

    window: Window | None = None
    """For streams (audio, video): without it each item is encoded by itself."""
    gate: Gate | None = None
    """What lets it skip items; None runs it on every one."""
    utterances: Utterances | None = None
    """For sound: it gets what was said from its beginning to its end, in place of sliding windows."""
    max_gap_ns: Annotated[int, Meta(ge=1)] | None = None
    """Of frames or vectors: with more than this between two that it encodes, its carried states start from zeros, as a
    sound's do when samples are lost. None: they go on for ever."""

    @property
    def reads_crops(self) -> bool:
        """Whether it reads a detector's regions one by one."""
        return any(isinstance(value.preprocess, CropSteps) for value in self.inputs.values())


class Head(_Component, frozen=True, kw_only=True, tag="head", tag_field="kind"):
    """Embeddings to a task output, once for every sample of its pivot modality."""

    pivot: Name
    """The modality whose capture time is the result's."""
    deadline_ns: Nanoseconds
    """How long after the pivot's time the others are waited for."""
    tolerance_ns: dict[Name, Nanoseconds] = {}
    """Per other modality: the greatest age, against the pivot, at which it still counts as present.

    A text may be left out: see ``Manifest.latched``.
    """
    present: Present | None = None
    """Without it no modality may be missing, and a pivot that lacks one gives no result."""

    def graph_inputs(self) -> dict[str, TensorSpec]:
        """As for every component, then the present mask."""
        tensors = _Component.graph_inputs(self)
        if self.present is not None:
            tensors[self.present.input] = TensorSpec(dtype="float32", shape=("batch", len(self.present.order)))
        return tensors

    def timing(self) -> Timing:
        """When it gives results, and without what."""
        labels = tuple(o.task.labels for o in self.outputs.values() if isinstance(o.task, Classification))
        return Timing(
            pivot=self.pivot,
            deadline_ns=self.deadline_ns,
            tolerance_ns=self.tolerance_ns,
            present=self.present,
            labels=labels,
        )


class Detector(_Component, frozen=True, kw_only=True, tag="detector", tag_field="kind"):
    """Image to regions, which feed an encoder crop by crop.

    Its graph reads an image, or the maps that an encoder makes of one, and gives candidates, float32[batch, n, 5 + 2 *
    landmarks]: x0, y0, x1, y1, score, then x and y of each landmark, in pixels of what the image steps give. Those that
    count are chosen outside of the graph (``preprocess.find_regions``), and are in pixels of the frame.
    """

    max_regions: PositiveInt
    score_threshold: Annotated[float, Meta(gt=0)] = 0.5
    """Less sure ones do not count; above 0, the score of the rows that are left over."""
    iou_threshold: Annotated[float, Meta(gt=0, le=1)] = 0.3
    """Of two that overlap by this share of what they cover together, the surer one counts."""


class Decoder(_Component, frozen=True, kw_only=True, tag="decoder", tag_field="kind"):
    """Embedding to text, token by token or by CTC.

    An autoregressive one has a graph that computes one step: it takes the last token and its place, int64[batch, 1]
    each, besides what its ``inputs`` say, carries its cache in ``states``, and gives the next token's scores,
    float32[batch, tokens]. Those who read its output get the text.
    """

    algorithm: Literal["autoregressive", "ctc"]
    tokenizer: Name
    max_tokens: PositiveInt
    """Of one text, those it begins with among them: what its cache holds."""
    token: Name = "token"  # noqa: S105 - not a password
    position: Name = "position"
    """The graph's inputs for the last token and its place, counted from 0."""
    start: Annotated[tuple[Count, ...], Meta(max_length=64)] = ()
    """Tokens that every text begins with; they are not part of it, and need no scores."""
    end: Count = 0
    """The token that ends a text."""
    suppress: tuple[Count, ...] = ()
    """Tokens that never come."""
    suppress_first: tuple[Count, ...] = ()
    """Tokens that do not come first, such as the end."""

    def graph_inputs(self) -> dict[str, TensorSpec]:
        """The token and its place, where it goes token by token; then as for every component."""
        if self.algorithm == "ctc":
            return _Component.graph_inputs(self)
        step = TensorSpec(dtype="int64", shape=("batch", 1), layout="NT")
        return {self.token: step, self.position: step} | _Component.graph_inputs(self)


Component: TypeAlias = Encoder | Head | Detector | Decoder


def tensor_given(components: Mapping[str, Component], source: str) -> TensorSpec:
    """What those get who read an output.

    It is what the graph gives, but of a detector ``max_regions`` rows, and as many of an encoder of its regions.

    Args:
        components: by name.
        source: "component.output", which is there.
    """
    name, _, output = source.partition(".")
    component = components[name]
    tensor = component.outputs[output].tensor
    if isinstance(component, Detector):
        return replace(tensor, shape=(tensor.shape[0], component.max_regions, *tensor.shape[2:]))
    if not isinstance(component, Encoder) or not component.reads_crops:
        return tensor
    detector = components[next(iter(component.inputs.values())).source.partition(".")[0]]
    if not isinstance(detector, Detector):
        return tensor  # a rule of the manifest is broken; it has the words for that
    layout = None if tensor.layout is None else f"{tensor.layout[0]}R{tensor.layout[1:]}"
    return replace(tensor, shape=(tensor.shape[0], detector.max_regions, *tensor.shape[1:]), layout=layout)


class Timing(Record, frozen=True, kw_only=True):
    """When a component that gives results does so: a head's own words, and for others, with each item they read."""

    pivot: Name
    deadline_ns: Nanoseconds = 0
    tolerance_ns: dict[Name, Nanoseconds] = {}
    present: Present | None = None
    labels: tuple[Name, ...] = ()
    """What names its classes: texts among them are needed, whatever may be missing."""

    def needs(self, modalities: Collection[str]) -> tuple[str, ...]:
        """Of the modalities that it depends on, those without which it gives no result.

        All of them without a present mask; with one, the texts whose lines are its labels.
        """
        return tuple(name for name in modalities if self.present is None or name in self.labels)


# --- the rest of the bundle ------------------------------------------------------------------------------------------


class Asset(Record, frozen=True, kw_only=True):
    """A file that components refer to by name."""

    kind: Literal["labels", "tokenizer", "report", "other"]
    path: Path


class FileEntry(Record, frozen=True, kw_only=True):
    """Size and digest of one file; ``manifest.json`` itself is not listed."""

    sha256: Sha256
    size: Count


class GoldenSample(Record, frozen=True, kw_only=True):
    """Real input and the reference's output, kept to be replayed on the device.

    Inputs are modality -> ``.npy`` as a source would push it, or UTF-8 text; outputs are "component.output" -> ``.npy``
    float32, computed by the framework the model came from.
    """

    id: str
    inputs: dict[Name, Path]
    outputs: dict[str, Path]


class CalibrationRecord(Record, frozen=True, kw_only=True):
    """What the ranges were taken from."""

    samples: Count
    data_sha256: Sha256
    method: str
    description: str = ""


class Provenance(Record, frozen=True, kw_only=True):
    """What made this bundle. No clock and no host name: the same inputs give the same bytes."""

    recipe_sha256: Sha256
    model_sha256: Sha256
    versions: dict[str, str]
    calibration: CalibrationRecord | None = None


class Manifest(Record, frozen=True, kw_only=True, omit_defaults=False):
    """``manifest.json``: everything a device needs to know, and nothing it must execute."""

    format: Literal["edge-mbm"] = "edge-mbm"
    format_version: Annotated[str, Meta(pattern=r"^[0-9]{1,4}\.[0-9]{1,4}$(?!\n)")] = FORMAT_VERSION
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str = ""
    modalities: dict[Name, Modality]
    components: Annotated[dict[Name, Component], Meta(max_length=1024)]
    default_heads: tuple[Name, ...] = ()
    """Of ``results``: what a session runs unless told otherwise; empty means all that nothing else reads."""
    assets: dict[Name, Asset] = {}
    golden: tuple[GoldenSample, ...] = ()
    files: dict[Path, FileEntry]
    provenance: Provenance | None = None

    def heads(self) -> dict[str, Head]:
        """The heads, in the manifest's order."""
        return {name: c for name, c in self.components.items() if isinstance(c, Head)}

    def results(self) -> dict[str, Timing]:
        """The components that can give results, heads, detectors and decoders, in the manifest's order, and when."""
        return {
            name: c.timing() if isinstance(c, Head) else Timing(pivot=self.modalities_of(name)[0])
            for name, c in self.components.items()
            if not isinstance(c, Encoder)
        }

    def default_results(self) -> tuple[str, ...]:
        """What a session runs unless told otherwise."""
        read = {value.source.partition(".")[0] for c in self.components.values() for value in c.inputs.values()}
        return self.default_heads or tuple(name for name in self.results() if name not in read)

    def picture_of(self, component: str) -> tuple[str, ImageSteps] | None:
        """The image modality, and the steps, of whose pixels a detector's candidates are; None if it reads no image."""
        for value in self.components[component].inputs.values():
            if isinstance(value.preprocess, ImageSteps):
                return value.source, value.preprocess
        above = [name for name in self.upstream_of(component) if name in self.components]
        return next((found for name in above if (found := self.picture_of(name)) is not None), None)

    def upstream_of(self, component: str) -> set[str]:
        """What must run before a component: those that it reads, and the one that tells it where speech is."""
        return _upstream(self.components[component])

    def order(self) -> tuple[str, ...]:
        """Component names such that each comes after those it takes input from; ties keep the manifest's order.

        Raises:
            ManifestError: the components form a cycle.
        """
        sorter = TopologicalSorter({name: _upstream(c) for name, c in self.components.items()})
        try:
            return tuple(sorter.static_order())
        except CycleError as error:
            cycle = " -> ".join(reversed(error.args[1]))
            raise ManifestError(
                f"components form a cycle: {cycle}. A component may only use earlier outputs."
            ) from None

    def modalities_of(self, component: str) -> tuple[str, ...]:
        """Modalities that a component depends on, directly or through others, in the manifest's order."""
        found: set[str] = set()
        seen: set[str] = set()
        pending = [component]
        while pending:
            current = pending.pop()
            if current in seen:
                continue
            seen.add(current)
            sources = {value.source for value in self.components[current].inputs.values()}
            found |= sources & self.modalities.keys()
            pending += [source.partition(".")[0] for source in sources - self.modalities.keys()]
        return tuple(name for name in self.modalities if name in found)

    def latched(self, head: str) -> tuple[str, ...]:
        """Texts that a head takes as they last were: it waits for no newer one, and however old, the last one counts.

        All that it depends on, but for its pivot and those whose age its ``tolerance_ns`` limits.
        """
        timing = self.results()[head]
        timed = {timing.pivot, *timing.tolerance_ns}
        return tuple(
            name
            for name in self.modalities_of(head)
            if isinstance(self.modalities[name], TextModality) and name not in timed
        )

    def lines(self, modality: str) -> int:
        """Of how many lines at most a text counts as a list of prompts; 1 if it is one text, line breaks and all."""
        inputs = [value for component in self.components.values() for value in component.inputs.values()]
        steps = (value.preprocess for value in inputs if value.source == modality)
        return max((step.lines for step in steps if isinstance(step, TokenSteps)), default=1)

    def is_prompted(self, task: Task) -> bool:
        """Whether a task is a classification whose labels are the lines of a text."""
        return isinstance(task, Classification) and task.labels in self.modalities

    def check(self) -> None:
        """Apply every rule that the types do not carry.

        Raises:
            ManifestError: names the component and field, and what is expected.
        """
        for problem in _problems(self):
            raise ManifestError(problem)


def decode_manifest(data: bytes) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        BundleVersionError: the format's major version is not ours.
        ManifestError: not JSON, wrong types (with the path to the value), or a rule of ``Manifest.check`` broken.
    """
    try:
        header = _HEADER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"manifest.json is not an edge-mbm manifest: {error}") from error
    major = FORMAT_VERSION.partition(".")[0]
    if header.format_version.partition(".")[0] != major:
        raise BundleVersionError(
            f"the bundle has format version {header.format_version}; this edge-mbm reads {major}.x. "
            "Install an edge-mbm that knows it, or export the bundle again."
        )
    try:
        manifest = _MANIFEST.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"manifest.json: {error}") from error
    manifest.check()
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON: indented, one newline at the end, keys in declaration order. Equal manifests, equal bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of ``manifest.json``, made from these types.

    The file ``manifest.schema.json`` is this; made anew it is::

        python -c "import json, edge_mbm.spec as s; print(json.dumps(s.json_schema(), indent=2))"
    """
    schema = msgspec.json.schema(Manifest)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*")


def safe_path(path: str) -> bool:
    """Whether a bundle may hold this path: relative, ``/`` between plain names, no leading dot, so no ``..``."""
    return len(path) <= 255 and _PATH.fullmatch(path) is not None


class _Header(Struct):
    format: Literal["edge-mbm"]
    format_version: Annotated[str, Meta(pattern=r"^[0-9]{1,4}\.[0-9]{1,4}$(?!\n)")]


# Made once, here: msgspec's first look at a type is not safe from two threads at a time.
_HEADER = msgspec.json.Decoder(_Header)
_MANIFEST = msgspec.json.Decoder(Manifest)


# --- rules -----------------------------------------------------------------------------------------------------------


def _upstream(component: Component) -> set[str]:
    """What must have run before it: what it reads, and what tells it where speech is."""
    sources = [value.source for value in component.inputs.values()]
    if isinstance(component, Encoder) and component.utterances is not None:
        sources.append(component.utterances.source)
    return {source.partition(".")[0] for source in sources if "." in source}


def _problems(manifest: Manifest) -> Iterator[str]:
    """Every broken rule, in words; the first is what the user sees."""
    yield from _number_problems(msgspec.to_builtins(manifest), "manifest")
    if not manifest.modalities:
        yield "modalities is empty: a bundle needs at least one input modality"
    yield from _listing_problems(manifest)
    manifest.order()
    # All sources first: what comes after follows them from component to component.
    yield from _feeding_problems(manifest)
    for name, component in manifest.components.items():
        yield from _component_problems(manifest, name, component)
    for name in manifest.default_heads:
        if name not in manifest.components or isinstance(manifest.components[name], Encoder):
            known = [key for key, component in manifest.components.items() if not isinstance(component, Encoder)]
            yield f"default_heads names '{name}', which gives no results; those that do are {sorted(known)}"
    for name in manifest.modalities:
        yield from _lines_problems(manifest, name)
    for name, asset in manifest.assets.items():
        yield from _file_problems(manifest, asset.path, f"assets.{name}.path")
    for sample in manifest.golden:
        yield from _golden_problems(manifest, sample)


def _listing_problems(manifest: Manifest) -> Iterator[str]:
    for path in manifest.files:
        if not safe_path(path):
            yield f"files lists '{path}': paths are relative, with plain names between '/' and no leading dots"
        if path.lower() == "manifest.json":
            yield f"files lists '{path}': a manifest cannot hold its own digest"
        folders = (path[:end] for end, letter in enumerate(path) if letter == "/")
        if folder := next((folder for folder in folders if folder in manifest.files), None):
            yield f"files lists '{path}' and '{folder}': one name cannot be a file and a folder"


def _number_problems(value: object, where: str) -> Iterator[str]:
    # JSON has no NaN, but 1e999 reads as infinity.
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where} is {value}: numbers must be finite"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _number_problems(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _number_problems(item, f"{where}[{index}]")


def _component_problems(manifest: Manifest, name: str, component: Component) -> Iterator[str]:
    where = f"components.{name}"
    if not component.inputs or not component.outputs:
        yield f"{where} needs at least one input and one output"
    yield from _joining_problems(manifest, component, where)
    for key, value in component.inputs.items():
        yield from _steps_problems(manifest, value, f"{where}.inputs.{key}")
        yield from _shape_problems(value.tensor, f"{where}.inputs.{key}.tensor")
    for key, output in component.outputs.items():
        yield from _shape_problems(output.tensor, f"{where}.outputs.{key}.tensor")
        yield from _task_problems(manifest, output.task, f"{where}.outputs.{key}.task")
        yield from _prompt_problems(manifest, name, output, f"{where}.outputs.{key}")
        yield from _regions_problems(output, f"{where}.outputs.{key}")
    for state in component.states:
        yield from _shape_problems(state.tensor, f"{where}.states.{state.input}.tensor")
    yield from _tensor_name_problems(component, where)
    yield from _variant_problems(manifest, component, where)
    if isinstance(component, Head):
        yield from _head_problems(manifest, name, component)
    elif isinstance(component, Encoder):
        yield from _window_problems(manifest, component, where)
    elif isinstance(component, Decoder):
        yield from _decoder_problems(manifest, component, where)
    else:
        yield from _detector_problems(manifest, name, component, where)


def _source_problems(manifest: Manifest, value: Input, where: str) -> Iterator[str]:
    if "." not in value.source:
        if value.source not in manifest.modalities:
            yield f"{where}.source is '{value.source}', not one of the modalities {sorted(manifest.modalities)}"
        return
    upstream, _, output = value.source.partition(".")
    if upstream not in manifest.components:
        yield f"{where}.source is '{value.source}', but there is no component '{upstream}'"
        return
    produced = manifest.components[upstream].outputs
    if output not in produced:
        yield f"{where}.source is '{value.source}', but '{upstream}' gives {sorted(produced)}"
    elif isinstance(manifest.components[upstream], Decoder):
        if not isinstance(value.preprocess, TokenSteps):
            yield f"{where}.preprocess is {type(value.preprocess).__name__}, but '{value.source}' is text: TokenSteps"
    elif not isinstance(value.preprocess, CropSteps) and not _compatible(
        given := tensor_given(manifest.components, value.source), value.tensor
    ):
        yield (
            f"{where} is {_show(value.tensor)}, but '{value.source}' gives {_show(given)}: shape and dtype must match"
        )


def _feeding_problems(manifest: Manifest) -> Iterator[str]:
    for name, component in manifest.components.items():
        yield from _crop_problems(manifest, component, f"components.{name}")
    for name, component in manifest.components.items():
        for key, value in component.inputs.items():
            yield from _source_problems(manifest, value, f"components.{name}.inputs.{key}")


def _crop_problems(manifest: Manifest, component: Component, where: str) -> Iterator[str]:
    crops = {key: v.preprocess for key, v in component.inputs.items() if isinstance(v.preprocess, CropSteps)}
    if not crops:
        return
    if not isinstance(component, Encoder):
        yield f"{where} reads crops: only an encoder takes a detector's regions one by one"
    elif component.states or component.window or len(crops) < len(component.inputs):
        yield f"{where} reads crops, and with them nothing else, no window and no state: regions have no order in time"
    for key, steps in crops.items():
        name, _, output = component.inputs[key].source.partition(".")
        detector = manifest.components.get(name)
        task = detector.outputs[output].task if isinstance(detector, Detector) and output in detector.outputs else None
        if not isinstance(task, Regions):
            yield f"{where}.inputs.{key} takes crops of '{component.inputs[key].source}', which is no detector's output"
        elif steps.landmarks and (steps.margin or len(steps.landmarks) != task.landmarks):
            yield (
                f"{where}.inputs.{key}.preprocess places {len(steps.landmarks)} landmarks and has a margin of "
                f"{steps.margin}: the detector gives {task.landmarks} landmarks, and with them there is no margin"
            )
        elif len(set(steps.landmarks)) == 1:
            yield f"{where}.inputs.{key}.preprocess places all landmarks on one point: they must say a size"


def _joining_problems(manifest: Manifest, component: Component, where: str) -> Iterator[str]:
    """Only heads join what is of different times, and nothing comes after a head."""
    for key, value in component.inputs.items():
        upstream, dot, _ = value.source.partition(".")
        if dot and isinstance(manifest.components.get(upstream), Head):
            yield (
                f"{where}.inputs.{key}.source is '{value.source}', a head's output: results come out of heads, and "
                "nothing comes after. Let this component read what that head reads"
            )
    sources = {value.source.partition(".")[0] for value in component.inputs.values()}
    if not isinstance(component, Head) and len(sources) > 1:
        yield (
            f"{where} reads {sorted(sources)}: {_ARTICLE[type(component)]} has any number of inputs, but of one "
            "modality or one component, such as the ids and the mask of one text. Make it a head, which joins several, "
            "or one for each"
        )


_ARTICLE: dict[type, str] = {Encoder: "an encoder", Detector: "a detector", Decoder: "a decoder"}


_STEPS_FOR: dict[type, tuple[type, ...]] = {
    ImageSteps: (ImageModality, VideoModality),
    LogMelSteps: (AudioModality,),
    TokenSteps: (TextModality,),
}


def _steps_problems(manifest: Manifest, value: Input, where: str) -> Iterator[str]:
    steps, modality = value.preprocess, manifest.modalities.get(value.source)
    fitting = _STEPS_FOR.get(type(steps))
    if modality is not None and fitting is not None and not isinstance(modality, fitting):
        yield f"{where}.preprocess is {type(steps).__name__}, which does not take {type(modality).__name__}"
    if isinstance(modality, TextModality) and not isinstance(steps, TokenSteps):
        yield f"{where}.preprocess is {type(steps).__name__}, but '{value.source}' is text: it needs TokenSteps"
    if isinstance(steps, TokenSteps):
        yield from _asset_problems(manifest, steps.asset, f"{where}.preprocess.asset")
    if isinstance(steps, LogMelSteps):
        yield from _log_mel_problems(steps, f"{where}.preprocess")


def _lines_problems(manifest: Manifest, modality: str) -> Iterator[str]:
    for name, component in manifest.components.items():
        for key, value in component.inputs.items():
            steps, lines = value.preprocess, manifest.lines(modality)
            if value.source == modality and isinstance(steps, TokenSteps) and steps.lines != lines:
                yield (
                    f"components.{name}.inputs.{key}.preprocess.lines is {steps.lines}, but '{modality}' is taken as "
                    f"{lines} lines elsewhere: the same for every input of a text"
                )


def _log_mel_problems(steps: LogMelSteps, where: str) -> Iterator[str]:
    if steps.n_fft < steps.window_length:
        yield f"{where}.n_fft is {steps.n_fft}, shorter than the window of {steps.window_length} samples"
    highest = steps.sample_rate / 2 if steps.f_max is None else steps.f_max
    if not steps.f_min < highest <= steps.sample_rate / 2:
        yield f"{where} has filters from {steps.f_min} to {highest} Hz: they must rise, up to half the sample rate"
    if steps.n_fft > 1 << 20 or steps.n_mels > 1 << 12:
        yield f"{where} has {steps.n_mels} filters over an FFT of {steps.n_fft}: at most 4096 over 1048576"


def _compatible(produced: TensorSpec, consumed: TensorSpec) -> bool:
    if produced.dtype != consumed.dtype or len(produced.shape) != len(consumed.shape):
        return False
    return all(
        a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(produced.shape, consumed.shape, strict=True)
    )


def _show(tensor: TensorSpec) -> str:
    return f"{tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _shape_problems(tensor: TensorSpec, where: str) -> Iterator[str]:
    for dim in tensor.shape:
        if isinstance(dim, int) and not 1 <= dim <= 2**31:
            yield f"{where}.shape has the dimension {dim}: use a positive size, or a name where it may vary"
    if math.prod(tensor.resolve()) > 2**31:
        yield f"{where}.shape {list(tensor.shape)} has more than 2^31 elements"


def _regions_problems(output: Output, where: str) -> Iterator[str]:
    task, shape = output.task, output.tensor.shape
    if isinstance(task, Regions) and (len(shape) != 3 or shape[2] != 5 + 2 * task.landmarks):
        yield f"{where} is {_show(output.tensor)}: regions are float32[batch, n, 5 + 2 * landmarks]"


def _detector_problems(manifest: Manifest, name: str, detector: Detector, where: str) -> Iterator[str]:
    if len(detector.outputs) != 1:
        yield f"{where} has the outputs {sorted(detector.outputs)}: a detector gives one, its regions"
    for key, output in detector.outputs.items():
        if not isinstance(output.task, Regions):
            yield f"{where}.outputs.{key} is a {type(output.task).__name__} task: a detector gives regions"
    picture = manifest.picture_of(name)
    if picture is None:
        yield f"{where} reads no image, and nothing that was made of one"
    elif isinstance(manifest.modalities.get(picture[0]), VideoModality):
        yield f"{where} reads '{picture[0]}', frames of a video: a detector takes single ones, of an 'image' modality"


def _decoder_problems(manifest: Manifest, decoder: Decoder, where: str) -> Iterator[str]:
    yield from _asset_problems(manifest, decoder.tokenizer, f"{where}.tokenizer")
    outputs = [output.tensor.resolve() for output in decoder.outputs.values()]
    if len(outputs) != 1:
        yield f"{where} has the outputs {sorted(decoder.outputs)}: a decoder gives one, the scores of its tokens"
    if any("." not in value.source for value in decoder.inputs.values()):
        yield f"{where} reads a modality directly: a decoder takes what an encoder gives"
    if decoder.algorithm == "autoregressive" and len(decoder.start) >= decoder.max_tokens:
        yield f"{where} begins with {len(decoder.start)} tokens and may have {decoder.max_tokens}: no room for a text"
    if decoder.algorithm == "autoregressive" and not decoder.start:
        yield f"{where}.start is empty: the first step needs a token to begin with"
    named = max(decoder.end, *decoder.suppress, *decoder.suppress_first, 0)
    for shape in outputs:
        if decoder.algorithm == "autoregressive" and (len(shape) != 2 or named >= shape[1]):
            yield f"{where} gives {list(shape)}, but names token {named}: scores are [batch, tokens]"


def _task_problems(manifest: Manifest, task: Task, where: str) -> Iterator[str]:
    if isinstance(task, Classification) and task.labels not in manifest.modalities:
        yield from _asset_problems(manifest, task.labels, f"{where}.labels")
    elif isinstance(task, Tokens):
        yield from _asset_problems(manifest, task.tokenizer, f"{where}.tokenizer")


def _prompt_problems(manifest: Manifest, name: str, output: Output, where: str) -> Iterator[str]:
    """Labels that are a text's lines: the scores depend on that text, and there is one for each line."""
    task = output.task
    if not isinstance(task, Classification) or not manifest.is_prompted(task):
        return
    if task.labels in manifest.assets:
        yield f"{where}.task.labels is '{task.labels}', an asset and a modality: give one of them another name"
    if not isinstance(manifest.modalities[task.labels], TextModality):
        yield f"{where}.task.labels is '{task.labels}', which is no text: labels are an asset's lines, or a text's"
    elif not isinstance(manifest.components[name], Head) or task.labels not in manifest.modalities_of(name):
        yield f"{where}.task.labels are the lines of '{task.labels}', which only a head that depends on it can score"
    elif math.prod(output.tensor.resolve()[1:]) != manifest.lines(task.labels):
        yield (
            f"{where} is {_show(output.tensor)}, but '{task.labels}' has {manifest.lines(task.labels)} lines: "
            "a score for each"
        )


def _asset_problems(manifest: Manifest, name: str, where: str) -> Iterator[str]:
    if name not in manifest.assets:
        yield f"{where} names the asset '{name}', which is not among {sorted(manifest.assets)}"


def _tensor_name_problems(component: Component, where: str) -> Iterator[str]:
    names = [*component.inputs, *component.outputs]
    names += [tensor for state in component.states for tensor in (state.input, state.output)]
    if isinstance(component, Head) and component.present:
        names.append(component.present.input)
    if isinstance(component, Decoder) and component.algorithm == "autoregressive":
        names += [component.token, component.position]
    for name in sorted(name for name, count in Counter(names).items() if count > 1):
        yield f"{where} uses the tensor name '{name}' twice: inputs, outputs and states need names of their own"


def _variant_problems(manifest: Manifest, component: Component, where: str) -> Iterator[str]:
    if not any(variant.graph for variant in component.variants.values()):
        yield f"{where}.variants keeps no graph, so the component cannot run"
    for key, variant in component.variants.items():
        if variant.graph is not None:
            yield from _file_problems(manifest, variant.graph, f"{where}.variants.{key}.graph")
        if (variant.graph is not None) != variant.decision.kept:
            yield f"{where}.variants.{key}: a kept variant has a graph, and one not kept has none"
        if not variant.decision.reason.strip():
            yield f"{where}.variants.{key}.decision has no reason"


def _window_problems(manifest: Manifest, component: Encoder, where: str) -> Iterator[str]:
    streams = [
        v
        for v in component.inputs.values()
        if isinstance(manifest.modalities.get(v.source), AudioModality | VideoModality)
    ]
    if streams and component.window is None:
        yield f"{where} reads a stream, so it needs a window (length and hop)"
    yield from _gate_problems(manifest, component, where)
    if component.utterances is not None:
        yield from _utterance_problems(manifest, component, component.utterances, where)
    if component.max_gap_ns is not None and not component.states:
        yield f"{where}.max_gap_ns is given, but it carries no state that could start anew"
    for value in streams:
        modality, steps = manifest.modalities[value.source], value.preprocess
        if component.window:
            yield from _span_problems(component.window, value, where)
            yield from _margin_problems(component.window, modality, where)
        if isinstance(modality, AudioModality) and isinstance(steps, LogMelSteps):
            if steps.sample_rate != modality.sample_rate:
                yield f"{where} expects {steps.sample_rate} Hz, but '{value.source}' has {modality.sample_rate} Hz"
            if component.window and component.window.length < steps.window_length:
                yield f"{where}.window.length is shorter than one log-mel window of {steps.window_length} samples"


def _gate_problems(manifest: Manifest, component: Encoder, where: str) -> Iterator[str]:
    fitting: dict[type, type] = {UnchangedGate: ImageModality, SilenceGate: AudioModality}
    for value in component.inputs.values():
        modality = manifest.modalities.get(value.source)
        if component.gate is not None and not isinstance(modality, fitting[type(component.gate)]):
            yield f"{where}.gate is {type(component.gate).__name__}, which does not watch '{value.source}'"


def _utterance_problems(manifest: Manifest, encoder: Encoder, cut: Utterances, where: str) -> Iterator[str]:
    sound = {v.source for v in encoder.inputs.values()}
    if not all(isinstance(manifest.modalities.get(source), AudioModality) for source in sound):
        yield f"{where}.utterances cuts sound, but it reads {sorted(sound)}"
        return
    name, _, output = cut.source.partition(".")
    teller = manifest.components.get(name)
    if not isinstance(teller, Encoder) or output not in teller.outputs:
        yield f"{where}.utterances.source is '{cut.source}', which no encoder gives"
    elif {v.source for v in teller.inputs.values()} != sound or teller.window is None or teller.utterances is not None:
        yield f"{where}.utterances.source is '{cut.source}', which does not listen to {sorted(sound)} all the time"
    elif math.prod(teller.outputs[output].tensor.resolve()) != 1:
        yield f"{where}.utterances.source is '{cut.source}', of more than one number: it is a probability of speech"


def _span_problems(window: Window, value: Input, where: str) -> Iterator[str]:
    """A window must give the graph as many samples, or log-mel frames, as it takes; a named size fits any."""
    steps, shape, given = value.preprocess, value.tensor.shape, window.length
    if isinstance(steps, LogMelSteps):
        given = 1 + (window.length - steps.window_length) // steps.hop_length
    if len(shape) > 1 and isinstance(shape[1], int) and shape[1] != given:
        yield f"{where}.window gives {given} samples or frames, but its input is {_show(value.tensor)}"


def _margin_problems(window: Window, modality: Modality, where: str) -> Iterator[str]:
    if window.length <= 2 * window.margin:
        yield f"{where}.window has margins of {window.margin} frames, which leave nothing of {window.length} between"
    if isinstance(modality, AudioModality) and (window.margin or window.padding != "none"):
        yield f"{where}.window has a margin or padding, which are of video; sound has neither"


def _head_problems(manifest: Manifest, name: str, head: Head) -> Iterator[str]:
    where = f"components.{name}"
    if any(value.source in manifest.modalities for value in head.inputs.values()):
        yield f"{where} reads a modality directly: a head takes encoder outputs"
        return
    if any(value.source.partition(".")[0] not in manifest.components for value in head.inputs.values()):
        return
    used = manifest.modalities_of(name)
    if head.pivot not in used:
        yield f"{where}.pivot is '{head.pivot}', which it does not depend on; it depends on {list(used)}"
    for modality in head.tolerance_ns:
        if modality not in used:
            yield f"{where}.tolerance_ns names '{modality}', which it does not depend on; it depends on {list(used)}"
    for modality in used:
        others = modality != head.pivot and not isinstance(manifest.modalities[modality], TextModality)
        if others and modality not in head.tolerance_ns:
            yield f"{where}.tolerance_ns lacks '{modality}': say how old it may be against the pivot"
    if head.present and sorted(head.present.order) != sorted(used):
        yield f"{where}.present.order is {list(head.present.order)}, but it depends on {list(used)}"


def _file_problems(manifest: Manifest, path: str, where: str) -> Iterator[str]:
    if path not in manifest.files:
        yield f"{where} is '{path}', which is not listed in files"


def _golden_problems(manifest: Manifest, sample: GoldenSample) -> Iterator[str]:
    where = f"golden '{sample.id}'"
    for modality, path in sample.inputs.items():
        if modality not in manifest.modalities:
            yield f"{where} has an input for '{modality}', which is not a modality"
        yield from _file_problems(manifest, path, where)
    for output, path in sample.outputs.items():
        component, _, tensor = output.partition(".")
        if component not in manifest.components or tensor not in manifest.components[component].outputs:
            yield f"{where} has a reference for '{output}', which no component gives"
        yield from _file_problems(manifest, path, where)
