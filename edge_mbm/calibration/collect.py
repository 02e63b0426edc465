"""A float ONNX graph with every activation in sight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edge_mbm.calibration.mask import masked_tensors, unmasked
from edge_mbm.calibration.ranges import TensorRanges
from edge_mbm.errors import CalibrationError, MissingDependencyError

try:
    import onnx
    import onnxruntime as ort
except ImportError as absent:
    raise MissingDependencyError(absent.name or "onnx", "calibration", "pip install 'edge-mbm[export]'") from None

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Collector", "observable"]

_REMEDY = (
    "The float model itself overflows there: compare that layer's input in the framework. An attention mask may be "
    "-inf where it is a constant of the graph that is added, or chosen by Where"
)
_SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def observable(graph: bytes) -> tuple[bytes, tuple[str, ...]]:
    """A model whose every activation is a graph output.

    Activations are the float32 inputs of the graph and the float32 outputs of its nodes. What is computed from
    constants alone is none; neither is what lies inside a branch or loop body, or a tensor whose type shape inference
    does not know (a node of a foreign domain): those have no range.

    Args:
        graph: a serialized ONNX model, weights inside.

    Returns:
        The model, its own outputs first and in their order, and the names of the activations in the graph's order.

    Raises:
        CalibrationError: the bytes are not a valid ONNX model.
    """
    try:
        model = onnx.load_model_from_string(graph)
        floats = _float_tensors(onnx.shape_inference.infer_shapes(model).graph)
    except Exception as error:
        raise CalibrationError(f"not an ONNX model whose types can be inferred: {_first_line(error)}") from error
    names = tuple(dict.fromkeys(name for name in _activations(model.graph) if name in floats))
    present = {output.name for output in model.graph.output}
    # Without shapes: those of the inference need not be the ones that the engine finds.
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in present
    )
    return model.SerializeToString(), names


class Collector:
    """One component, run on ONNX Runtime with every activation counted into histograms.

    One thread and no graph optimization, so that what is seen are the graph's own tensors, the same in every run.
    Memory does not depend on the number of runs.

    An attention mask's constant of -inf (or float32's least, as some exporters write it) is no activation: where it is
    added or chosen, tensors are counted without it, down to their softmax. Any other infinity is an overflow.

    Args:
        graph: the float ONNX model, weights inside.
        name: the component's name, for messages.

    Raises:
        CalibrationError: the graph does not load.
    """

    def __init__(self, graph: bytes, name: str) -> None:
        self._name = name
        self._ranges = TensorRanges()
        try:
            model, self._tensors = observable(graph)
            self._session = _session(model)
        except Exception as error:
            raise self._failed("load", error, "export it again") from error
        self._masked = masked_tensors(onnx.load_model_from_string(graph).graph)
        self._fetched = [output.name for output in self._session.get_outputs()]
        self._outputs = [output.name for output in onnx.load_model_from_string(graph).graph.output]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the activations, in the graph's order."""
        return self._tensors

    @property
    def ranges(self) -> TensorRanges:
        """What was collected so far."""
        return self._ranges

    def run(self, inputs: Mapping[str, NDArray[Any]], *, where: str) -> dict[str, NDArray[Any]]:
        """Run the graph once and count every activation.

        Args:
            inputs: name -> array, of the graph's own dtypes and shapes.
            where: what the inputs are, for messages ("recording calibration-0007").

        Returns:
            The graph's own outputs, so that the caller can carry states.

        Raises:
            CalibrationError: ONNX Runtime refused the inputs, or an activation is NaN or infinite; nothing is counted
                then.
        """
        try:
            values = dict(zip(self._fetched, self._session.run(None, dict(inputs)), strict=True))
        except Exception as error:
            raise self._failed(f"run {where}", error, "give each input of the graph in its dtype and shape") from error
        try:
            self._ranges.update({name: self._counted(name, values[name]) for name in self._tensors}, where=where)
        except CalibrationError as error:
            raise CalibrationError(f"component '{self._name}', {error}. {_REMEDY}") from error
        return {output: values[output] for output in self._outputs}

    def _counted(self, tensor: str, array: NDArray[Any]) -> NDArray[Any]:
        return unmasked(array) if tensor in self._masked else array

    def _failed(self, what: str, error: Exception, remedy: str) -> CalibrationError:
        cause = _first_line(error).rstrip(". ")
        return CalibrationError(f"component '{self._name}' could not {what}: {cause}. To mend it: {remedy}.")


def _session(model: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Without its fallback: ONNX Runtime would print the error, and try again with other providers.
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _float_tensors(graph: onnx.GraphProto) -> set[str]:
    values = (*graph.input, *graph.output, *graph.value_info)
    return {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}


def _activations(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that depend on the inputs, in the graph's order (which is topological)."""
    constant = {tensor.name for tensor in graph.initializer}
    constant.update(tensor.values.name for tensor in graph.sparse_initializer)
    # Before IR version 4 every initializer was listed among the inputs as well.
    yield from (value.name for value in graph.input if value.name not in constant)
    for node in graph.node:
        if _is_constant(node, constant):
            constant.update(node.output)
        else:
            yield from filter(None, node.output)


def _is_constant(node: onnx.NodeProto, constant: set[str]) -> bool:
    """Whether all that a node gives is known beforehand; the body of a branch or loop may read anything."""
    if node.op_type == "Constant":
        return True
    has_body = any(attribute.type in _SUBGRAPHS for attribute in node.attribute)
    return bool(node.input) and not has_body and all(name in constant for name in filter(None, node.input))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
