"""Rules on graphs with fp16 in them."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from edge_mbm.export.lint.finding import Case, Problem, Rule
from edge_mbm.export.lint.view import View, label

__all__ = ["HALF", "decomposed_normalizations"]


def decomposed_normalizations(view: View) -> Iterator[NodeProto]:
    """The nodes of every normalisation that is written as Sqrt(ReduceMean(d * d) + epsilon), d * d first.

    LayerNormalization, RMSNormalization and their kin look like this where an exporter took them apart.
    """
    for root in view.of("Sqrt"):
        total = view.made_by(root.input[0], "Add")
        means = (view.made_by(value, "ReduceMean") for value in (total or root).input)
        mean = next((maker for maker in means if maker is not None), None)
        square = _square(view, mean.input[0]) if mean is not None else None
        if mean is not None and square is not None:
            after = (use.node for use in view.uses.get(root.output[0], ()))
            yield from (square, mean, *([total] if total is not None else []), root, *after)


def _decomposed_normalization(case: Case) -> Iterator[Problem]:
    """The square passes fp16's 65504 at activations of 256, and what comes out is finite and wrong."""
    for node in decomposed_normalizations(case.view):
        if (
            node.op_type in ("Pow", "Mul")
            and case.view.dtypes.get(node.input[0]) == "float16"
            and _square(case.view, node.output[0])
        ):
            yield Problem(
                label(node),
                "a normalisation in single operators, whose squares overflow in fp16",
                "export at opset 17 or later, which writes LayerNormalization as one operator, or keep these in fp32",
            )


def _square(view: View, value: str) -> NodeProto | None:
    node = view.made_by(value, "Pow", "Mul")
    if node is None:
        return None
    if node.op_type == "Mul":
        return node if node.input[0] == node.input[1] else None
    exponent = view.constant(node.input[1])
    return node if exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2 else None


def _recurrent(case: Case) -> Iterator[Problem]:
    for node in case.view.of("GRU", "LSTM", "RNN"):
        if case.view.dtypes.get(node.input[0]) == "float16" or case.view.dtypes.get(node.input[1]) == "float16":
            yield Problem(
                label(node),
                f"{node.op_type} in fp16 ends ONNX Runtime's process at full optimisation",
                "load it in a process of its own first, at extended optimisation, or keep the layer in fp32",
            )


HALF = (
    Rule("decomposed-normalization", "error", _decomposed_normalization),
    Rule("fp16-recurrent", "warning", _recurrent),
)
"""In the order in which they are checked."""
