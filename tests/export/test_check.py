"""Variants held against their targets: what is refused is not kept, with the reason and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.export import Silent, check
from edge_mbm.export.decide import decide
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.trt_check import Check, Refusal
from edge_mbm.spec import ErrorFigures, SpeedFigures

KEY = ("encoder", "trt-int8")
GOOD = ErrorFigures(samples=8, cosine=1.0, sqnr_db=40.0, max_abs=0.0)
HERE = SpeedFigures(host="here", median_us=1.0, iqr_us=0.0, speedup=1.0)


def quantized(zero: int) -> bytes:
    """A product whose input is quantized with a zero-point."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 6])
    constants = {
        "scale": np.float32(0.1),
        "zero": np.int8(zero),
        "w": np.ones((4, 6), np.int8),
        "scales": np.full(6, 0.1, np.float32),
        "zeros": np.zeros(6, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["dw"], "weights", axis=1),
        helper.make_node("MatMul", ["d", "dw"], ["embedding"], "product"),
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def described(
    loaded: Callable[..., LoadedRecipe], prepare: Callable[[LoadedRecipe], Draft], sensor: dict[str, str]
) -> Draft:
    """The sensor's project, for a Jetson and a PC's GPU."""
    recipe = sensor["recipe"].replace('["x86-cpu"]', '["jetson-orin", "rtx"]')
    return prepare(loaded(recipe=recipe))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """TensorRT's parser takes everything; gives the targets that it was asked for."""
    targets: list[str] = []

    def accept(graph: bytes, target: Any, **_: object) -> Check:
        targets.append(target.name)
        return Check(f"a parser for {target.name}", checked=True, accepted=True)

    monkeypatch.setattr(check, "check_trt", accept)
    return targets


def checked(draft: Draft, graph: bytes) -> Draft:
    return check.check(replace(draft, graphs={("encoder", "fp32"): b"", KEY: graph}), Silent())


def test_what_a_target_takes_is_shown_to_its_parser(described: Draft, asked: list[str]) -> None:
    """Each of the targets that the variant is for, and its answer is kept as evidence; fp32 is nobody's business."""
    draft = checked(described, quantized(0))
    assert asked == ["jetson-orin", "rtx"]
    assert draft.faults == {}
    assert list(given(draft.checks)) == [KEY]
    assert [record.where for record in given(draft.checks)[KEY].parsed] == [
        "a parser for jetson-orin",
        "a parser for rtx",
    ]


def test_the_parser_is_not_asked_twice(described: Draft, asked: list[str]) -> None:
    """A build takes seconds; another graph is another question."""
    first, second = checked(described, quantized(0)), checked(described, quantized(0))
    assert asked == ["jetson-orin", "rtx"]
    assert first.checks == second.checks


def test_what_lint_refuses_is_not_kept(described: Draft, asked: list[str]) -> None:
    """With target, node and remedy, and without asking the parser."""
    draft = checked(described, quantized(3))
    assert asked == []
    assert draft.faults[KEY].startswith("jetson-orin would not take it: ")
    assert "To mend it: " in draft.faults[KEY]
    [*findings] = given(draft.checks)[KEY].findings
    assert {finding.target for finding in findings if finding.severity == "error"} == {"jetson-orin", "rtx"}
    assert {finding.node for finding in findings if finding.severity == "error"} <= {"quantize", "dequantize", "zero"}


def test_what_the_parser_refuses_is_not_kept(described: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its words and ours."""
    refusal = Refusal("product", "no kernel", "leave it in float")
    answer = Check("a parser", checked=True, accepted=False, problems=(refusal,))
    monkeypatch.setattr(check, "check_trt", lambda *_, **__: answer)
    draft = checked(described, quantized(0))
    assert draft.faults[KEY] == "refused by a parser: at 'product': no kernel. To mend it: leave it in float"


def test_where_there_is_no_parser_it_is_said(described: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variant is kept for its accuracy, and its reason says what was not checked."""
    absent = Check("not checked: TensorRT-RTX is not installed: pip install x", checked=False, accepted=False)
    monkeypatch.setattr(check, "check_trt", lambda *_, **__: absent)
    draft = checked(described, quantized(0))
    assert draft.faults == {}
    assert given(draft.checks)[KEY].parsed == ()
    assert given(draft.checks)[KEY].unparsed == absent.where
    names = list(given(draft.components))
    errors = {(name, "fp32"): GOOD for name in names} | {KEY: GOOD}
    others = {(n, v): "not made" for n in names for v in draft.variants(n) if (n, v) != KEY}
    speeds = {(name, "fp32"): HERE for name in names}
    draft = replace(draft, errors=errors, speeds=speeds, faults=others, exporters=dict.fromkeys(names, "torchscript"))
    decisions = given(decide(replace(draft, original=given(draft.reference).outputs), Silent()).decisions)
    assert decisions[KEY].kept
    assert decisions[KEY].reason.endswith("not checked by TensorRT's parser, which is not installed")
