"""Weights rounded and biases moved so that what a layer gives stays what it was, layer by layer, on real data.

To the nearest step is not the best way to round: a layer's inputs are correlated (neighbouring pixels most of all), so
errors of weights that see alike values can be made to cancel each other (optimal brain compression, Frantar and
Alistarh 2022, arXiv:2208.11580; GPTQ, Frantar et al. 2023, arXiv:2210.17323). What is left on average is taken out of
the bias (Nagel et al. 2019, arXiv:1906.04721). Each layer is looked at behind the layers before it as they are by then,
and before it is rounded it learns to make up for what those have lost (after Li et al. 2025, arXiv:2504.02692).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_mbm.errors import ExportError
from edge_mbm.export.chain import Arrays
from edge_mbm.export.graph import first_line, strip

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

__all__ = ["fit_layers"]

_DAMPING = 0.01
"""Of the mean variance, added to every input's: what the calls hardly show must not be trusted."""
_DOUBT = 0.5
"""The same, times inputs per sample: few samples show inputs alike that are not."""
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Shares of the mean variance, to choose from."""
_HALVES = "even", "odd"
_POSITIONS = 256
"""Of a picture's, taken from each call for the inputs' covariance; means are over all."""


@dataclass(frozen=True)
class _Layer:
    """A weighted node, with its weights as groups of rows: float64[groups, rows, inputs].

    Args:
        node: Conv, Gemm or MatMul of the quantized graph.
        original: the float graph's.
        settings: the node's attributes.
        shape: of the weights.
    """

    node: NodeProto
    original: NodeProto
    settings: Mapping[str, Any]
    shape: tuple[int, ...]

    @property
    def groups(self) -> int:
        """How many groups of channels are mixed apart from each other."""
        return int(self.settings.get("group", 1))

    @property
    def is_conv(self) -> bool:
        """Whether it slides over pictures."""
        return self.node.op_type == "Conv"

    def rows(self, weights: NDArray[Any]) -> Matrix:
        """Weights as groups of rows."""
        if self.is_conv:
            flat = weights.reshape(self.groups, self.shape[0] // self.groups, -1)
        else:
            flat = (weights if self._is_row_major else weights.T)[None]
        return np.asarray(flat, np.float64)

    def shaped(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The reverse of ``rows``."""
        if self.is_conv:
            return np.asarray(rows.reshape(self.shape))
        return np.asarray(rows[0] if self._is_row_major else rows[0].T)

    def scales(self, scale: NDArray[Any]) -> Matrix:
        """Weight scales, one per output, as float64[groups, rows]."""
        count = self.shape[0] if self.is_conv or self._is_row_major else self.shape[1]
        every: Matrix = np.broadcast_to(np.asarray(scale, np.float64), (count,)).reshape(self.groups, -1)
        return every

    @property
    def _is_row_major(self) -> bool:
        return bool(self.settings.get("transB", 0))


@dataclass
class _Moments:
    """What a layer meets over some calls, and what it lacks of what it was to meet.

    Args:
        layer: whose.
        centre: a mean about which products lose no digits, float64[groups, inputs]; None gathers no products.
        calls: how many were counted.
        samples: positions of them that products were taken over.
        sums: of each call's means, float64[groups, inputs] and float64[groups, inputs, inputs].
    """

    layer: _Layer
    centre: Matrix | None
    calls: int = 0
    samples: int = 0
    sums: dict[str, Matrix] = field(default_factory=dict)

    def add(self, values: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
        """Count one call: the layer's input, and its input in the float graph."""
        self.calls += 1
        self._add("mean", _means(self.layer, values))
        self._add("wanted", _means(self.layer, wanted))
        if self.centre is None:
            return
        shape = (*self.centre.shape, -1)
        seen, lacking = _sampled(self.layer, values).reshape(shape), _sampled(self.layer, wanted).reshape(shape)
        lacking = lacking - seen
        seen = seen - self.centre[..., None].astype(np.float32)
        count = seen.shape[-1]
        self.samples += count
        self._add("seen", seen.mean(axis=2, dtype=np.float64))
        self._add("lacking", lacking.mean(axis=2, dtype=np.float64))
        self._add("seen seen", seen @ seen.transpose(0, 2, 1) / count)
        self._add("lacking seen", lacking @ seen.transpose(0, 2, 1) / count)

    def __add__(self, other: _Moments) -> _Moments:
        sums = {key: value + other.sums[key] for key, value in self.sums.items()}
        return _Moments(self.layer, self.centre, self.calls + other.calls, self.samples + other.samples, sums)

    def mean(self, key: str) -> Matrix:
        """Over the calls, of "mean" (all positions of the input), "wanted" (the float graph's), and of products."""
        return np.asarray(self.sums[key] / self.calls)

    @property
    def damping(self) -> float:
        """How little the products are to be trusted, as a share of the mean variance."""
        return max(_DAMPING, float(_DOUBT * self.mean("seen").shape[-1] / self.samples))

    @property
    def covariance(self) -> Matrix:
        """Of the inputs of each group, over the sampled positions."""
        seen = self.mean("seen")
        return np.asarray(self.mean("seen seen") - seen[:, :, None] * seen[:, None, :])

    @property
    def lost(self) -> Matrix:
        """Covariance of what the inputs lack with what they are."""
        return np.asarray(self.mean("lacking seen") - self.mean("lacking")[:, :, None] * self.mean("seen")[:, None, :])

    def _add(self, key: str, value: NDArray[Any]) -> None:
        self.sums[key] = self.sums.get(key, 0.0) + np.asarray(value, np.float64)


def fit_layers(quantized: bytes, graph: bytes, calls: Sequence[Arrays], name: str, *, rounding: bool) -> bytes:
    """Move the biases of a quantized graph, and round its weights anew, so that each layer's output stays.

    Args:
        quantized: with weights behind DequantizeLinear; its nodes have the names that they have in ``graph``.
        graph: the float graph that it was made from.
        calls: real calls, all of the graph's inputs by name.
        name: the component's, for messages.
        rounding: whether weights are rounded anew too; without it biases move only.

    Returns:
        The same graph with other int8 weights and biases; scales stay.

    Raises:
        ExportError: there are no calls, or a graph does not run on them.
    """
    if not calls:
        raise ExportError(f"'{name}' cannot be fitted without calls: give calibration recordings that reach it")
    model, original = onnx.load_model_from_string(quantized), onnx.load_model_from_string(graph)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in original.graph.initializer}
    makers = _makers(model)
    layers = list(_layers(model, original, constants, floats, makers))
    try:
        walk = _Walk(model, [layer.node.input[0] for layer in layers], makers, calls)
        wanted = _Walk(original, [layer.original.input[0] for layer in layers], _makers(original), calls)
        for layer in layers:
            halves = _halves(layer, zip(walk.advance(), wanted.advance(), strict=True), products=rounding)
            _fit(layer, halves, constants=constants, floats=floats, makers=makers, rounding=rounding)
    except Exception as error:  # ONNX Runtime's exceptions share no base
        raise ExportError(f"the layers of '{name}' could not be fitted: {first_line(error)}") from error
    return strip(model)


# --- one layer -------------------------------------------------------------------------------------------------------


def _fit(
    layer: _Layer,
    halves: Sequence[_Moments],
    *,
    constants: Mapping[str, TensorProto],
    floats: Mapping[str, NDArray[Any]],
    makers: Mapping[str, NodeProto],
    rounding: bool,
) -> None:
    seen = functools.reduce(operator.add, halves)
    codes, scale, _ = (constants[key] for key in makers[layer.node.input[1]].input)
    weights = layer.rows(floats[layer.original.input[1]])
    scales = layer.scales(numpy_helper.to_array(scale))
    levels = layer.rows(numpy_helper.to_array(codes))
    if rounding:
        levels = _rounded(_compensated(weights, halves), scales, seen.covariance, seen.damping)
        _replace(codes, layer.shaped(levels).astype(np.int8))
    if len(layer.node.input) > 2:
        missing = np.einsum("grk,gk->gr", weights, seen.mean("wanted")) - np.einsum(
            "grk,gk->gr", levels * scales[..., None], seen.mean("mean")
        )
        bias = floats[layer.original.input[2]] + missing.reshape(-1)
        _set_bias(layer.node.input[2], bias, constants, makers)


def _compensated(weights: Matrix, halves: Sequence[_Moments]) -> Matrix:
    """Weights that make of the layer's inputs, as they are by now, most nearly what the float ones made of theirs.

    How far to go is found out from the calls themselves: what half of them teach must hold on the other half.
    """
    if len(halves) < len(_HALVES):
        return weights
    gains = [
        sum(_gain(weights, _compensation(weights, half, ridge), other) for half, other in (halves, halves[::-1]))
        for ridge in _RIDGES
    ]
    best = int(np.argmax(gains))
    if gains[best] <= 0:
        return weights
    return weights + _compensation(weights, functools.reduce(operator.add, halves), _RIDGES[best])


def _compensation(weights: Matrix, seen: _Moments, ridge: float) -> Matrix:
    """Ridge regression of what the outputs lack upon the inputs."""
    factor = np.linalg.solve(_damped(seen.covariance, ridge), seen.lost.transpose(0, 2, 1))
    return np.asarray(weights @ factor.transpose(0, 2, 1))


def _gain(weights: Matrix, added: Matrix, seen: _Moments) -> float:
    """By how much weights that are added lessen the outputs' squared error on some calls."""
    return float((2 * added * (weights @ seen.lost) - added * (added @ seen.covariance)).sum())


def _damped(covariance: Matrix, share: float) -> Matrix:
    damping = share * np.einsum("gkk->gk", covariance).mean(axis=1) + 1e-12
    return np.asarray(covariance + damping[:, None, None] * np.eye(covariance.shape[-1]))


def _rounded(weights: Matrix, scales: Matrix, covariance: Matrix, share: float) -> Matrix:
    """Whole levels; each weight's error is passed on to those not rounded yet, by how alike their inputs are."""
    inputs = covariance.shape[-1]
    variance = np.einsum("gkk->gk", covariance)
    damped = _damped(covariance, share)
    # The liveliest first: what comes later can make up for less.
    order = np.argsort(-variance, axis=1, kind="stable")
    damped = np.take_along_axis(np.take_along_axis(damped, order[:, :, None], 1), order[:, None, :], 2)
    # Upper factor of the inverse: row k is what rounding input k does to the later ones.
    factor = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    left = np.take_along_axis(weights, order[:, None, :], 2)
    levels = np.empty_like(left)
    for k in range(inputs):
        levels[:, :, k] = np.clip(np.rint(left[:, :, k] / scales), -127, 127)
        error = (left[:, :, k] - levels[:, :, k] * scales) / factor[:, k, k, None]
        left[:, :, k + 1 :] -= error[:, :, None] * factor[:, None, k, k + 1 :]
    back = np.argsort(order, axis=1)
    return np.take_along_axis(levels, back[:, None, :], 2)


def _set_bias(name: str, bias: Matrix, constants: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]) -> None:
    """As float, or in steps of its int32 scale."""
    if name in constants:
        _replace(constants[name], bias.astype(np.float32))
        return
    codes, scale = (constants[key] for key in makers[name].input[:2])
    steps = np.rint(bias / numpy_helper.to_array(scale).astype(np.float64))
    limits = np.iinfo(np.int32)
    _replace(codes, np.clip(steps, limits.min, limits.max).astype(np.int32))


def _replace(tensor: TensorProto, array: NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


# --- what a layer sees -----------------------------------------------------------------------------------------------


def _halves(
    layer: _Layer, pairs: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]], *, products: bool
) -> list[_Moments]:
    """The calls' moments, of every other call each; one alone where there is one call."""
    halves: list[_Moments] = []
    for number, (value, wanted) in enumerate(pairs):
        if number < len(_HALVES):
            centre = halves[0].centre if halves else _means(layer, value)
            halves.append(_Moments(layer, centre if products else None))
        halves[number % len(_HALVES)].add(value, wanted)
    return halves


def _means(layer: _Layer, values: NDArray[np.float32]) -> Matrix:
    """What each weight meets on average: float64[groups, inputs]."""
    return _window_mean(layer, values).astype(np.float64).reshape(layer.groups, -1)


def _window_mean(layer: _Layer, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each weight meets on average over all positions: float32[all inputs], in the weights' order."""
    if not layer.is_conv:
        flat: NDArray[np.float32] = values.reshape(-1, values.shape[-1]).mean(axis=0)
        return flat
    padded, strides, dilations = _padded(layer, values)
    kernel = layer.shape[2:]
    # A weight meets every stride-th row from its own on, and the same of columns: two products with zeros and ones.
    rows, columns = (
        _met(size, weights, step, gap)
        for size, weights, step, gap in zip(padded.shape[2:], kernel, strides, dilations, strict=True)
    )
    means = rows @ padded.mean(axis=0) @ columns.T
    return np.asarray(means.reshape(-1), np.float32)


def _met(size: int, weights: int, stride: int, gap: int) -> NDArray[np.float32]:
    """float32[weights, size]: which share of its positions each weight has at each row (or column)."""
    reach = (weights - 1) * gap
    positions = np.arange(0, size - reach, stride)
    met = np.zeros((weights, size), np.float32)
    for weight in range(weights):
        met[weight, positions + weight * gap] = 1 / len(positions)
    return met


def _sampled(layer: _Layer, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the weights meet on a grid of positions: float32[all inputs, positions]."""
    if not layer.is_conv:
        flat = values.reshape(-1, values.shape[-1])
        return flat[:: max(1, len(flat) // _POSITIONS)].T
    padded, strides, dilations = _padded(layer, values)
    reach = [(size - 1) * gap + 1 for size, gap in zip(layer.shape[2:], dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    view = view[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    step = max(1, int((view.shape[2] * view.shape[3] / _POSITIONS) ** 0.5))
    chosen = view[:, :, step // 2 :: step, step // 2 :: step].transpose(1, 4, 5, 0, 2, 3)
    return chosen.reshape(layer.groups * int(np.prod(layer.shape[1:])), -1)


def _padded(layer: _Layer, values: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[int], list[int]]:
    """The picture with its border of zeros; strides and dilations."""
    settings = layer.settings
    top, left, bottom, right = settings.get("pads", [0, 0, 0, 0])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right))) if top + left + bottom + right else values
    return padded, list(settings.get("strides", [1, 1])), list(settings.get("dilations", [1, 1]))


class _Walk:
    """Computes what each layer takes, one after the other, from what layers before it took.

    Args:
        model: the quantized graph; it may change between two steps, in layers that were passed.
        targets: the layers' inputs, in running order.
        makers: value -> the node that gives it.
        calls: the graph's inputs.
    """

    def __init__(
        self, model: ModelProto, targets: Sequence[str], makers: Mapping[str, NodeProto], calls: Sequence[Arrays]
    ) -> None:
        self._model, self._targets = model, list(dict.fromkeys(targets))
        self._steps = iter(targets)
        self._states: list[Arrays] = [dict(call) for call in calls]
        given = {entry.name for entry in model.graph.input}
        # Each target's nodes, and what they start from.
        self._parts: dict[str, tuple[set[str], set[str]]] = {}
        for index, target in enumerate(self._targets):
            self._parts[target] = _between(target, given | set(self._targets[:index]), makers)
        self._last = {value: index for index, part in enumerate(self._parts.values()) for value in part[1]}

    def advance(self) -> Iterator[NDArray[np.float32]]:
        """The next layer's input, call by call."""
        target = next(self._steps)
        index = self._targets.index(target)
        names, needed = self._parts[target]
        if target not in self._states[0]:
            session = _session(_part(self._model, names, needed, target))
            for state in self._states:
                [state[target]] = session.run([target], {value: state[value] for value in needed})
                for value in [v for v in state if v != target and self._last.get(v, -1) <= index]:
                    del state[value]
        yield from (state[target] for state in self._states)


# --- graphs ----------------------------------------------------------------------------------------------------------


def _makers(model: ModelProto) -> dict[str, NodeProto]:
    return {value: node for node in model.graph.node for value in node.output}


def _layers(
    model: ModelProto,
    original: ModelProto,
    constants: Mapping[str, TensorProto],
    floats: Mapping[str, NDArray[Any]],
    makers: Mapping[str, NodeProto],
) -> Iterator[_Layer]:
    """Weighted nodes with int8 weights that no one else has, in running order."""
    named = {node.name: node for node in original.graph.node}
    uses = [value for node in original.graph.node for value in node.input]
    for node in model.graph.node:
        before = makers.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in ("Conv", "Gemm", "MatMul") or before is None or before.input[0] not in constants:
            continue
        twin = named[node.name]
        weights = floats.get(twin.input[1])
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if weights is not None and uses.count(twin.input[1]) == 1 and _is_linear(node.op_type, weights.ndim, settings):
            yield _Layer(node, twin, settings, weights.shape)


def _is_linear(kind: str, dims: int, settings: Mapping[str, Any]) -> bool:
    if kind == "Conv":
        return dims == 4 and settings.get("auto_pad", b"NOTSET") == b"NOTSET"
    return (
        dims == 2 and not settings.get("transA", 0) and settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0
    )


def _between(target: str, known: set[str], makers: Mapping[str, NodeProto]) -> tuple[set[str], set[str]]:
    """The outputs of the nodes that compute a value, and which of the known values they start from."""
    nodes: set[str] = set()
    needed: set[str] = set()
    waiting = [target]
    while waiting:
        value = waiting.pop()
        if value in known:
            needed.add(value)
        elif value in makers and makers[value].output[0] not in nodes:
            nodes.add(makers[value].output[0])
            waiting.extend(makers[value].input)
    return nodes, needed


def _part(model: ModelProto, names: set[str], needed: set[str], target: str) -> ModelProto:
    """The part of a graph that computes one value from others."""
    part = ModelProto()
    part.CopyFrom(model)
    kept = [node for node in model.graph.node if node.output[0] in names]
    used = {entry for node in kept for entry in node.input}
    given = [entry for entry in model.graph.input if entry.name in needed]
    inner = sorted(needed - {entry.name for entry in given})
    _set(part.graph.node, kept)
    _set(part.graph.initializer, [tensor for tensor in model.graph.initializer if tensor.name in used])
    _set(part.graph.input, given + [helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in inner])
    _set(part.graph.output, [helper.make_tensor_value_info(target, TensorProto.FLOAT, None)])
    return part


def _set(field: Any, messages: Sequence[Any]) -> None:
    del field[:]
    field.extend(messages)


def _session(model: ModelProto) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
