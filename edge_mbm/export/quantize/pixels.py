"""A picture's bytes straight into the first convolution: they are 8 bits wide already.

An encoder that takes uint8 scales and shifts it before it convolves: ``(pixel / 255 - mean) / deviation``. Rounding
that to 8 bits once more costs accuracy, and the arithmetic costs as much time as many a convolution. Both go away when
the scale moves into the weights and the shift into the bias. What stays is one whole number to subtract, the zero-point
of the bytes: near the middle of the pictures, or the rounding of the weights would move every output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_mbm.export.graph import strip

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

__all__ = ["absorb_pixels", "pass_bytes"]

# Of x op constant, as (scale, shift) -> (scale, shift).
_ARITHMETIC: Mapping[str, Callable[[Any, Any, Any], tuple[Any, Any]]] = {
    "Mul": lambda scale, shift, by: (scale * by, shift * by),
    "Div": lambda scale, shift, by: (scale / by, shift / by),
    "Add": lambda scale, shift, by: (scale, shift + by),
    "Sub": lambda scale, shift, by: (scale, shift - by),
}


@dataclass(frozen=True)
class _Normalization:
    """uint8 graph input -> Cast -> arithmetic with constants -> Conv; a Transpose may stand before or after the Cast.

    Args:
        image: the graph's input.
        transposed: whether it has its channels last.
        dead: the nodes between, which no one else reads.
        scale: per channel.
        shift: per channel.
    """

    image: str
    transposed: bool
    dead: tuple[NodeProto, ...]
    scale: Vector
    shift: Vector

    @property
    def grey(self) -> Vector:
        """The byte, not rounded, that becomes zero: one per channel."""
        return -self.shift / self.scale

    @property
    def middle(self) -> int:
        """The zero-point of the bytes: one for all channels."""
        return round(float(self.grey.mean()))


def absorb_pixels(graph: bytes) -> tuple[bytes, dict[str, tuple[float, float]]]:
    """Let the first convolution take a picture's bytes.

    What the convolution pads with is zero after the normalization, so the picture gets a border of the colour that
    becomes zero, to the nearest byte; but for that the function stays the same.

    Args:
        graph: fp32, folded.

    Returns:
        The float graph, in which the convolution reads bytes less a whole number, and the range of what it reads. An
        unchanged graph and no ranges where there is no such beginning.
    """
    model = onnx.load_model_from_string(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    ranges = {}
    for conv in [node for node in model.graph.node if node.op_type == "Conv"]:
        found = _normalization(model, conv, weights)
        if found is not None:
            ranges[_rewrite(model, conv, found, weights)] = (0.0 - found.middle, 255.0 - found.middle)
    return (strip(model), ranges) if ranges else (graph, {})


def pass_bytes(model: ModelProto) -> None:
    """Where bytes less a whole number are quantized back to the same bytes, leave out all three steps, in place."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {value: node for node in model.graph.node for value in node.output}
    for quantize in [node for node in model.graph.node if node.op_type == "QuantizeLinear"]:
        subtract = makers.get(quantize.input[0])
        cast = makers.get(subtract.input[0]) if subtract is not None and subtract.op_type == "Sub" else None
        if subtract is None or cast is None or cast.op_type != "Cast" or not _is_bytes(model, cast.input[0]):
            continue
        scale, zero = (constants[name] for name in quantize.input[1:3])
        middle = constants.get(subtract.input[1])
        # Signed codes are the bytes less 128; a kernel takes either.
        if middle is not None and scale == 1 and int(zero) - np.iinfo(zero.dtype).min == middle:
            _bypass(model, quantize, [cast, subtract], np.array(middle, np.uint8))


# --- finding ---------------------------------------------------------------------------------------------------------


def _normalization(model: ModelProto, conv: NodeProto, weights: Mapping[str, TensorProto]) -> _Normalization | None:
    """What stands before a convolution, if it is a picture's normalization."""
    makers = {value: node for node in model.graph.node for value in node.output}
    pictures = {value.name: value for value in model.graph.input if _is_picture(value)}
    chain: list[NodeProto] = []
    value = conv.input[0]
    while value not in pictures and value in makers and _is_alone(model, value):
        node = makers[value]
        if not (node.op_type in ("Cast", "Transpose") or _is_arithmetic(node, weights)):
            return None
        chain.append(node)
        value = node.input[0]
    kinds = [node.op_type for node in chain]
    if (
        value not in pictures
        or kinds.count("Cast") != 1
        or kinds.count("Transpose") > 1
        or conv.input[1] not in weights
    ):
        return None
    return _affine(chain, value, conv, pictures[value], weights)


def _affine(
    chain: list[NodeProto], image: str, conv: NodeProto, picture: Any, weights: Mapping[str, TensorProto]
) -> _Normalization | None:
    """The chain as one scale and shift per channel; None where it is something else."""
    transposes = [node for node in chain if node.op_type == "Transpose"]
    if any(list(node.attribute[0].ints) != [0, 3, 1, 2] for node in transposes):
        return None
    channels = picture.type.tensor_type.shape.dim[3 if transposes else 1].dim_value
    scale, shift, last = np.ones(channels), np.zeros(channels), bool(transposes)
    for node in reversed(chain):
        if node.op_type == "Transpose":
            last = False
        elif node.op_type in _ARITHMETIC:
            by = _per_channel(numpy_helper.to_array(weights[node.input[1]]), channels, last=last)
            if by is None:
                return None
            scale, shift = _ARITHMETIC[node.op_type](scale, shift, by)
    settings = {attribute.name: attribute for attribute in conv.attribute}
    plain = "auto_pad" not in settings or settings["auto_pad"].s == b"NOTSET"
    grey = -shift / scale if scale.all() else np.full(channels, -1.0)
    fits = bool((np.rint(grey) >= 0).all() and (np.rint(grey) <= 255).all())
    groups = settings["group"].i if "group" in settings else 1
    if not (plain and fits and groups == 1 and len(weights[conv.input[1]].dims) == 4):
        return None
    return _Normalization(image, bool(transposes), tuple(chain), scale, shift)


def _per_channel(constant: NDArray[Any], channels: int, *, last: bool) -> Vector | None:
    """A constant that is broadcast over a picture, as one value per channel."""
    shape = (1, 1, 1, channels) if last else (1, channels, 1, 1)
    if constant.ndim > 4:
        return None
    padded = constant.reshape((1,) * (4 - constant.ndim) + constant.shape)
    if any(size not in (1, whole) for size, whole in zip(padded.shape, shape, strict=True)):
        return None
    return np.broadcast_to(padded, shape).reshape(-1).astype(np.float64)


def _is_picture(value: Any) -> bool:
    tensor = value.type.tensor_type
    sizes = tensor.shape.dim
    return tensor.elem_type == TensorProto.UINT8 and len(sizes) == 4 and all(size.dim_value > 0 for size in sizes[1:])


def _is_arithmetic(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    return node.op_type in _ARITHMETIC and node.input[1] in weights


def _is_alone(model: ModelProto, value: str) -> bool:
    """Whether one node alone reads a value."""
    outputs = [output.name for output in model.graph.output]
    return sum(list(node.input).count(value) for node in model.graph.node) == 1 and value not in outputs


# --- rewriting -------------------------------------------------------------------------------------------------------


def _rewrite(model: ModelProto, conv: NodeProto, found: _Normalization, weights: Mapping[str, TensorProto]) -> str:
    """Bytes, bordered, into the convolution; the name of what it then reads."""
    taken = _Names(model)
    nodes: list[NodeProto] = []
    value = _bordered(model, conv, found, nodes, taken)
    if found.transposed:
        nodes.append(helper.make_node("Transpose", [value], [taken("pixels")], taken("Transpose"), perm=[0, 3, 1, 2]))
        value = nodes[-1].output[0]
    middle = taken("middle")
    model.graph.initializer.append(numpy_helper.from_array(np.array(found.middle, np.float32), middle))
    nodes.append(helper.make_node("Cast", [value], [taken("levels")], taken("Cast"), to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Sub", [nodes[-1].output[0], middle], [taken("centred")], taken("Sub")))
    _fold_in(model, conv, found, weights, taken)
    conv.input[0] = nodes[-1].output[0]
    kept = [node for node in model.graph.node if not any(node is dead for dead in found.dead)]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])
    del model.graph.value_info[:]
    return str(nodes[-1].output[0])


def _fold_in(
    model: ModelProto, conv: NodeProto, found: _Normalization, weights: Mapping[str, TensorProto], taken: _Names
) -> None:
    """Weights and bias of their own, since others may use the old ones."""
    weight = numpy_helper.to_array(weights[conv.input[1]]).astype(np.float64)
    bias = numpy_helper.to_array(weights[conv.input[2]]).astype(np.float64) if len(conv.input) > 2 else 0.0
    moved = bias + np.einsum("oihw,i->o", weight, found.shift + found.scale * found.middle)
    scaled = weight * found.scale[:, None, None]
    arrays = {taken(f"{conv.name}_weight"): scaled, taken(f"{conv.name}_bias"): moved}
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    conv.input[1:] = list(arrays)


def _bordered(model: ModelProto, conv: NodeProto, found: _Normalization, nodes: list[NodeProto], taken: _Names) -> str:
    """The picture in a frame of what the convolution would pad with, and the convolution without its padding."""
    pads = next((attribute for attribute in conv.attribute if attribute.name == "pads"), None)
    value = found.image
    if pads is None or not any(pads.ints) or bool((found.grey == found.middle).all()):
        return value
    top, left, bottom, right = pads.ints
    pads.ints[:] = [0, 0, 0, 0]
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}[value]
    grey = np.rint(found.grey).astype(np.uint8)
    shape = [1, *sizes[1:]]
    first = 1 if found.transposed else 2
    for axis, before, after in ((first, top, bottom), (first + 1, left, right)):
        strips = [
            _strip(model, grey, shape, axis, size, found=found, nodes=nodes, taken=taken) for size in (before, after)
        ]
        parts = [part for part in (strips[0], value, strips[1]) if part]
        if len(parts) > 1:
            nodes.append(helper.make_node("Concat", parts, [taken("framed")], taken("Concat"), axis=axis))
            value = nodes[-1].output[0]
        shape[axis] += before + after
    return value


def _strip(
    model: ModelProto,
    grey: NDArray[np.uint8],
    shape: list[int],
    axis: int,
    size: int,
    *,
    found: _Normalization,
    nodes: list[NodeProto],
    taken: _Names,
) -> str:
    """One side of the frame, for every picture of the batch; empty if it has no width."""
    if size == 0:
        return ""
    sides = [size if index == axis else length for index, length in enumerate(shape)]
    colour = grey if found.transposed else grey[:, None, None]
    names = [taken(part) for part in ("side", "ones", "batch", "sides", "repeated")]
    model.graph.initializer.append(numpy_helper.from_array(np.broadcast_to(colour, sides).copy(), names[0]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.int64), names[1]))
    nodes.append(helper.make_node("Shape", [found.image], [names[2]], taken("Shape"), start=0, end=1))
    nodes.append(helper.make_node("Concat", [names[2], names[1]], [names[3]], taken("Concat"), axis=0))
    nodes.append(helper.make_node("Expand", [names[0], names[3]], [names[4]], taken("Expand")))
    return names[4]


class _Names:
    """Names that no value and no node of a graph has."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self._taken = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
        for node in graph.node:
            self._taken |= {node.name, *node.input, *node.output}

    def __call__(self, wanted: str) -> str:
        free = next(name for count in range(10**6) if (name := f"bytes_{wanted}_{count}") not in self._taken)
        self._taken.add(free)
        return free


# --- dropping --------------------------------------------------------------------------------------------------------


def _is_bytes(model: ModelProto, value: str) -> bool:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info)}
    return kinds.get(value) == TensorProto.UINT8


def _bypass(model: ModelProto, quantize: NodeProto, before: list[NodeProto], middle: NDArray[np.uint8]) -> None:
    zero = f"{quantize.output[0]}_middle"
    model.graph.initializer.append(numpy_helper.from_array(middle, zero))
    for node in model.graph.node:
        if quantize.output[0] in node.input:
            node.input[0], node.input[2] = before[0].input[0], zero
    kept = [node for node in model.graph.node if node is not quantize and all(node is not dead for dead in before)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {value for node in kept for value in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
