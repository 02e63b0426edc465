"""Components that are ONNX graphs already: run as they came, repaired to become a bundle's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from onnx import ModelProto, helper

from edge_mbm.errors import RecipeError, TraceError
from edge_mbm.export.origins.component import input_names, output_names
from edge_mbm.export.origins.onnx_file import read_onnx
from edge_mbm.export.origins.onnx_inputs import adapter
from edge_mbm.export.origins.onnx_repair import BATCHES, Edge, Original, Repaired, Trial, is_quantized, repair
from edge_mbm.export.origins.onnx_session import open_session, run_session
from edge_mbm.export.recipe import ComponentRecipe, OnnxModel
from edge_mbm.export.speed import probe
from edge_mbm.spec import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GraphOrigin", "OnnxFile", "load_onnx"]


def load_onnx(source: OnnxModel, folder: Path, where: str, opset: int) -> OnnxFile:
    """Read a graph.

    Args:
        source: as the recipe says.
        folder: of the recipe.
        where: the recipe's key, for messages.
        opset: of the bundle's graphs.

    Raises:
        RecipeError: see ``read_onnx``.
    """
    return OnnxFile(read_onnx(folder / source.path, where), source, where, opset)


@dataclass(frozen=True)
class OnnxFile:
    """A graph, of which the one component is the whole."""

    model: ModelProto
    source: OnnxModel
    where: str
    opset: int

    def component(self, name: str, recipe: ComponentRecipe) -> GraphOrigin:
        """The whole graph as the recipe names its inputs and outputs.

        Raises:
            RecipeError: it has other inputs or outputs than the recipe.
        """
        return GraphOrigin(self, name, recipe)

    def sha256(self) -> str:
        """See ``Model``; of the whole graph with its data."""
        return hashlib.sha256(self.model.SerializeToString(deterministic=True)).hexdigest()


class GraphOrigin:
    """A component that is an ONNX graph.

    The original is run one sample at a time, its declared sizes ignored but nothing else changed: what is repaired is
    held against that, here with random values and later with recordings.

    Args:
        file: the graph.
        name: the component's.
        recipe: says what its inputs and outputs are called.

    Raises:
        RecipeError: it has other inputs or outputs.
    """

    def __init__(self, file: OnnxFile, name: str, recipe: ComponentRecipe) -> None:
        self._file, self._name = file, name
        graph, where = file.model.graph, file.where
        weights = {tensor.name for tensor in graph.initializer}
        self._declared = {value.name: value for value in graph.input if value.name not in weights}
        self._constants = _constants(file.source, self._declared, where)
        fed = [key for key in self._declared if key not in self._constants]
        axes = {state.input: _axis(state.shape, f"components.{name}.states.{state.input}") for state in recipe.states}
        axes |= {state.output: axes[state.input] for state in recipe.states}
        given, made = input_names(recipe), output_names(recipe)
        inputs = _matched(given, fed, f"{where}: the graph's inputs", every=True)
        outputs = _matched(made, [value.name for value in graph.output], f"{where}: the graph's outputs", every=False)
        self._inputs = [Edge(key, inputs[key], axes.get(key, 0)) for key in given]
        self._outputs = [Edge(key, outputs[key], axes.get(key, 0)) for key in made]
        self._states = {state.input for state in recipe.states}
        self._original: Original | None = None
        self._repaired: Repaired | None = None

    @property
    def channels_last(self) -> bool:
        """See ``ComponentOrigin``; as its image input, known after the first run."""
        edges = self._original.inputs if self._original else ()
        layouts = {edge.adapt.layout for edge in edges if edge.adapt is not None}
        return "NHWC" in layouts or self._file.source.layout == "NHWC"

    @property
    def quantized(self) -> bool:
        """Whether it computes with integers already, so that nothing is to be quantized once more."""
        return is_quantized(self._file.model)

    @property
    def repaired(self) -> Repaired:
        """The graph for a bundle, known after the first run."""
        assert self._repaired is not None
        return self._repaired

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See ``ComponentOrigin``; the first call finds out how the inputs are to be adapted, and repairs the graph.

        Raises:
            RecipeError: the graph does not take such inputs.
            TraceError: it cannot be repaired.
        """
        if self._original is None:
            original = self._adapted(inputs)
            self._probe(original, inputs)
            self._original = original
        outputs = self._run(self._original, inputs)
        for key, value in outputs.items():
            if value.dtype.name not in get_args(DType):
                raise RecipeError(
                    f"'{self._name}.{key}' is {value.dtype}, a bundle's tensors are {', '.join(get_args(DType))}"
                )
        if self._repaired is None:
            self._repaired = self._repair(self._original, inputs)
        return outputs

    def _adapted(self, inputs: Mapping[str, NDArray[Any]]) -> Original:
        edges = [edge if edge.key in self._states else self._edge(edge, inputs[edge.key]) for edge in self._inputs]
        return Original(self._file.model, self._constants, edges, self._outputs, self._name)

    def _edge(self, edge: Edge, value: NDArray[Any]) -> Edge:
        where = f"components.{self._name}, {self._file.where}"
        return replace(edge, adapt=adapter(value, self._declared[edge.graph], self._file.source, edge.key, where))

    def _run(self, original: Original, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One sample after the other."""
        adapted, axes = original.adapted(inputs), {edge.graph: edge.axis for edge in original.inputs}
        count = {value.shape[axes[key]] for key, value in adapted.items()}
        if len(count) != 1:
            raise RecipeError(f"'{self._name}' was given {sorted(count)} samples in its several inputs")
        calls = [self._call({k: np.take(v, [i], axes[k]) for k, v in adapted.items()}) for i in range(*count)]
        return {
            edge.key: np.concatenate([call[edge.graph] for call in calls], axis=edge.axis) for edge in original.outputs
        }

    def _probe(self, original: Original, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Once in another process: there are graphs that end the one they are loaded in."""
        adapted = original.adapted(inputs)
        sample = {edge.graph: np.take(adapted[edge.graph], [0], edge.axis) for edge in original.inputs}
        feeds = {**sample, **self._constants}
        if fault := probe({self._name: self._freed}, feeds, extended=[self._name]).faults[self._name]:
            given = {key: f"{value.dtype}{list(value.shape)}" for key, value in feeds.items()}
            raise RecipeError(f"components.{self._name}, {self._file.where}: given {given}, the graph {fault}")

    def _call(self, sample: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            values = run_session(self._session, {**sample, **self._constants}, self._name)
        except TraceError as error:
            raise RecipeError(f"components.{self._name}, {self._file.where}: {error}") from error
        return dict(zip((value.name for value in self._file.model.graph.output), values, strict=True))

    @cached_property
    def _session(self) -> Any:
        return open_session(self._freed, self._name)

    @cached_property
    def _freed(self) -> bytes:
        """The original without its declared sizes, which may be false."""
        model = ModelProto()
        model.CopyFrom(self._file.model)
        for value in (*(v for v in model.graph.input if v.name in self._declared), *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
        del model.graph.value_info[:]
        return bytes(model.SerializeToString())

    def _repair(self, original: Original, inputs: Mapping[str, NDArray[Any]]) -> Repaired:
        sizes = BATCHES if self._file.source.batch == "auto" else (1,)
        trials = {}
        for size in sizes:
            sample = {e.key: _noise(inputs[e.key], e.axis, size) for e in original.inputs}
            trials[size] = Trial(sample, self._run(original, sample))
        return repair(original, trials, self._file.opset)


def _noise(like: NDArray[Any], axis: int, size: int) -> NDArray[Any]:
    """Samples of very different loudness, so that one which leans on another is found out."""
    shape = [size if index == axis else length for index, length in enumerate(like.shape)]
    rng = np.random.default_rng(size)
    if like.dtype.kind != "f":
        return rng.integers(0, 256 if like.dtype == np.uint8 else 2, shape).astype(like.dtype)
    loudness = np.resize([1.0, 1e-3, 10.0, 0.0, 0.1], size).reshape([-1 if i == axis else 1 for i in range(like.ndim)])
    return np.asarray(rng.normal(0, 1, shape) * loudness, like.dtype)


def _constants(source: OnnxModel, declared: Mapping[str, Any], where: str) -> dict[str, NDArray[Any]]:
    made = {}
    for key, value in source.constants.items():
        if key not in declared:
            raise RecipeError(f"{where}.constants names '{key}'; the graph's inputs are {list(declared)}")
        tensor = declared[key].type.tensor_type
        shape = [dim.dim_value or 1 for dim in tensor.shape.dim]
        made[key] = np.full(shape, value, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return made


def _axis(shape: Sequence[int | str], where: str) -> int:
    if "batch" not in shape:
        raise RecipeError(f"{where}.shape is {list(shape)}: say where the batch goes, by 'batch'")
    return shape.index("batch")


def _matched(wanted: Sequence[str], found: Sequence[str], where: str, *, every: bool) -> dict[str, str]:
    """The recipe's name -> the graph's: by name if all are the graph's, else by order."""
    if set(wanted) <= set(found) and (not every or len(wanted) == len(found)):
        return {key: key for key in wanted}
    if len(wanted) == len(found):
        return dict(zip(wanted, found, strict=True))
    raise RecipeError(
        f"{where} are {list(found)}, the recipe names {list(wanted)}: name as many, or what never changes in constants"
    )
