"""An ONNX model as rules look at it: who makes a value, who takes it, what is constant, of which dtype it is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["Use", "View", "attribute", "label"]


class Use(NamedTuple):
    """A node that takes a value, and as which of its inputs."""

    node: NodeProto
    place: int


class View:
    """A model for reading.

    Nodes inside of If, Loop and Scan are seen with the others; a value's name is unique over all of them, as ONNX
    wants it.

    Args:
        model: as it came; types are inferred here where they can be.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = _inferred(model)
        self.graphs = tuple(_graphs(self.model.graph))
        self.nodes = tuple(node for graph in self.graphs for node in graph.node)

    @classmethod
    def read(cls, graph: bytes) -> View:
        """The view of a serialized model."""
        return cls(onnx.load_model_from_string(graph))

    @property
    def opset(self) -> int:
        """The version of the standard operators; 0 where the model names none."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)

    @cached_property
    def tensors(self) -> Mapping[str, TensorProto]:
        """Every constant by its value's name: initializers and Constant nodes."""
        found = {tensor.name: tensor for graph in self.graphs for tensor in graph.initializer}
        for node in self.nodes:
            tensor = attribute(node, "value") if node.op_type == "Constant" else None
            if tensor is not None:
                found[node.output[0]] = tensor
        return found

    @cached_property
    def producers(self) -> Mapping[str, NodeProto]:
        """Value -> the node that makes it."""
        return {value: node for node in self.nodes for value in node.output if value}

    @cached_property
    def uses(self) -> Mapping[str, tuple[Use, ...]]:
        """Value -> the nodes that take it."""
        found: dict[str, list[Use]] = defaultdict(list)
        for node in self.nodes:
            for place, value in enumerate(node.input):
                found[value].append(Use(node, place))
        return {value: tuple(uses) for value, uses in found.items()}

    @cached_property
    def dtypes(self) -> Mapping[str, str]:
        """Value -> dtype, where it is known."""
        found = {name: dtype_name(tensor.data_type) for name, tensor in self.tensors.items()}
        for graph in self.graphs:
            for value in (*graph.input, *graph.output, *graph.value_info):
                if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
                    found[value.name] = dtype_name(value.type.tensor_type.elem_type)
        return found

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Value -> number of its elements, a free size counted as 1, where the shape is known."""
        return {
            value.name: math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
            for graph in self.graphs
            for value in (*graph.input, *graph.output, *graph.value_info)
            if value.type.tensor_type.HasField("shape")
        }

    def constant(self, name: str) -> NDArray[Any] | None:
        """A constant's values; None for a value that is computed, or lies in another file."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return np.asarray(numpy_helper.to_array(tensor))

    def is_constant(self, name: str) -> bool:
        """Whether a value is a constant, or a dequantized one."""
        node = self.producers.get(name)
        if node is not None and node.op_type == "DequantizeLinear":
            return node.input[0] in self.tensors
        return name in self.tensors

    def of(self, *op_types: str) -> Iterator[NodeProto]:
        """The nodes of some types."""
        return (node for node in self.nodes if node.op_type in op_types)

    def made_by(self, value: str, *op_types: str) -> NodeProto | None:
        """The node that makes a value, if it is of one of these types."""
        node = self.producers.get(value)
        return node if node is not None and node.op_type in op_types else None


def label(node: NodeProto) -> str:
    """What to call a node: its name, or what it makes."""
    return node.name or f"{node.op_type} -> {node.output[0]}"


def attribute(node: NodeProto, name: str) -> Any:
    """An attribute's value; None where the node has none of that name."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), None)


def dtype_name(code: int) -> str:
    """ONNX's code of a dtype as numpy and ml_dtypes name it: 1 -> "float32", 17 -> "float8e4m3fn"."""
    name: str = TensorProto.DataType.Name(code).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


# --- inside ----------------------------------------------------------------------------------------------------------


def _inferred(model: ModelProto) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # noqa: BLE001 - what it stumbles over is for check_graph; the rules see what is written
        return model


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for entry in node.attribute:
            for inner in (entry.g, *entry.graphs):
                if inner.node:
                    yield from _graphs(inner)
