"""Which variants ship: each against its budget, all together against the heads', the whole against [require]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.errors import BudgetError, ExportError
from edge_mbm.export import Silent
from edge_mbm.export.decide import chosen_variants, decide, judge, within
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.measure import measure
from edge_mbm.export.recipe import Budget, LoadedRecipe, Require
from edge_mbm.spec import ErrorFigures, SpeedFigures

Load: TypeAlias = Callable[..., LoadedRecipe]

GOOD = ErrorFigures(samples=100, cosine=0.999, sqnr_db=40.0, max_abs=0.1, agreement=0.99, accuracy=0.9)
FAST = SpeedFigures(host="here", median_us=10.0, iqr_us=1.0, speedup=2.0)
BUDGET = Budget(min_cosine=0.99, min_agreement=0.98, max_accuracy_drop=0.01, min_sqnr_db=10.0, min_speedup=1.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cosine": 0.9899}, "cosine 0.9899, budget 0.9900"),
        ({"sqnr_db": 9.94}, "SQNR 9.9 dB, budget 10.0 dB"),
        ({"agreement": 0.97}, "agreement 0.970, budget 0.980"),
        ({"accuracy": 0.88}, "accuracy falls by 0.020 to 0.880, budget 0.010"),
    ],
)
def test_what_breaks_the_budget_is_not_kept(change: dict[str, float], said: str) -> None:
    """The reason has the figure and what was asked for."""
    decision = judge(BUDGET, structs.replace(GOOD, **change), GOOD, FAST)
    assert not decision.kept
    assert decision.reason == said


def test_what_is_not_worth_it_is_not_kept() -> None:
    """However small its error; all reasons are told, not the first."""
    slow = structs.replace(FAST, speedup=1.04)
    assert judge(BUDGET, GOOD, GOOD, slow).reason == "not worth it: 1.04x of fp32, asked for 1.05x"
    both = judge(BUDGET, structs.replace(GOOD, cosine=0.5), GOOD, slow)
    assert both.reason == "cosine 0.5000, budget 0.9900; not worth it: 1.04x of fp32, asked for 1.05x"


def test_what_is_within_is_kept() -> None:
    """With the figures; what cannot be timed here is kept for its accuracy, and that is said."""
    assert judge(BUDGET, GOOD, GOOD, FAST).kept
    assert judge(BUDGET, GOOD, GOOD, FAST).reason == (
        "within budget (cosine 0.9990, SQNR 40.0 dB, agreement 0.990); 2.00x of fp32"
    )
    elsewhere = judge(BUDGET, structs.replace(GOOD, agreement=None, accuracy=None), GOOD, None)
    assert elsewhere.kept
    assert (
        elsewhere.reason == "within budget (cosine 0.9990, SQNR 40.0 dB); speed unmeasured until compiled on the device"
    )


def test_the_edge_of_a_budget_is_within() -> None:
    """A drop of exactly the budget too, though shares of recordings are no exact numbers; a gain is no drop."""
    edge = structs.replace(GOOD, cosine=0.99, agreement=0.98, accuracy=0.9 - 0.01)
    assert list(within(BUDGET, edge, GOOD)) == []
    assert list(within(BUDGET, structs.replace(GOOD, accuracy=1.0), GOOD)) == []
    assert judge(BUDGET, GOOD, GOOD, structs.replace(FAST, speedup=1.05)).kept


# --- together --------------------------------------------------------------------------------------------------------

# Two encoders whose sum decides; and one with a head of its own, which has nothing to do with them.
CODE = """
def recordings(split):
    for index in range(8):
        x = np.array([0.25, 0, 0.25, 0] if index % 2 else [0, 0.25, 0, 0.25], np.float32)
        yield Record(f"{split}-{index}", {"imu": x + np.float32(0.001 * index)}, 1 - index % 2)


class Half(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.start = start

    def forward(self, x):
        return x[:, self.start : self.start + 2] * 1


class Sum(nn.Module):
    def forward(self, a, b):
        return a + b


class Same(nn.Module):
    def forward(self, a):
        return a * 1


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.sum, self.alone = Half(0), Half(2), Half(0), Sum(), Same()
"""
PARTS = "".join(
    f"""
[components.{name}]
kind = "encoder"
module = "{name}"
inputs = {{ x = "imu" }}
outputs = {{ y = {{ task = "embedding" }} }}
{"budget = { min_cosine = -1, min_agreement = 0, max_accuracy_drop = 1, min_speedup = 0.01 }" if name == "c" else ""}
"""
    for name in "abc"
) + "".join(
    f"""
[components.{name}]
kind = "head"
module = "{name}"
inputs = {inputs}
outputs = {{ logits = {{ task = "classification", labels = "classes" }} }}
pivot = "imu"
deadline_ns = 0
{budget}
"""
    for name, inputs, budget in (
        ("sum", '{ a = "a.y", b = "b.y" }', ""),
        ("alone", '{ a = "c.y" }', "budget = { min_cosine = -1, min_agreement = 0, max_accuracy_drop = 1 }"),
    )
)
TOP = "[budget]\nmin_cosine = -1\nmin_agreement = 0.9\nmax_accuracy_drop = 1\nmin_speedup = 0.01"


def half(start: int, error: float) -> bytes:
    """The encoder's graph, with an error added to its second value."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    weights = [
        numpy_helper.from_array(np.eye(4, dtype=np.float32)[:, start : start + 2], "w"),
        numpy_helper.from_array(np.array([0, error], np.float32), "e"),
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "e"], ["y"])]
    made = helper.make_graph(nodes, "half", [x], [y], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def head(*inputs: str) -> bytes:
    edges = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in (*inputs, "logits")]
    made = helper.make_graph([helper.make_node("Sum", list(inputs), ["logits"])], "head", edges[:-1], edges[-1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def measured(loaded: Load, sensor: dict[str, str], prepare: Callable[[LoadedRecipe], Draft]) -> Draft:
    """A draft up to ``decide``: an error of .3 in ``a``, of .25 in ``b``, of 9 in ``c``, and 2, 3 and 4 times fp32's
    speed."""
    recipe = sensor["recipe"].partition("[components.encoder]")[0] + "{more}"
    project = loaded(recipe=recipe, add=CODE, top=TOP, more=PARTS)
    draft = prepare(project)
    starts = {"a": 0, "b": 2, "c": 0}
    graphs = {(name, "fp32"): half(start, 0.0) for name, start in starts.items()}
    graphs |= {("sum", "fp32"): head("a", "b"), ("alone", "fp32"): head("a")}
    errors = {"a": 0.3, "b": 0.25, "c": 9.0}
    graphs |= {(name, "x86-cpu-int8"): half(starts[name], error) for name, error in errors.items()}
    for graph in graphs.values():
        onnx.checker.check_model(graph)
    fp32 = {name: graphs[name, "fp32"] for name in given(draft.components)}
    draft = measure(replace(draft, graphs=graphs, fp32=fp32), Silent())
    ups = {"a": 2.0, "b": 3.0, "c": 4.0}
    speeds = {(name, key): structs.replace(FAST, speedup=1.0 if key == "fp32" else ups[name]) for name, key in graphs}
    return replace(draft, speeds=speeds, exporters=dict.fromkeys(given(draft.components), "torch.export"))


def required(draft: Draft, require: Require) -> Draft:
    recipe = structs.replace(draft.loaded.recipe, require=require)
    return replace(draft, loaded=structs.replace(draft.loaded, recipe=recipe))


def test_each_is_judged_by_the_heads_it_feeds(measured: Draft) -> None:
    """With the others as they were: alone, neither changes what the sum says; and an error is on its own outputs."""
    errors = given(measured.errors)
    assert errors["a", "x86-cpu-int8"].agreement == errors["b", "x86-cpu-int8"].agreement == 1.0
    assert errors["c", "x86-cpu-int8"].agreement == 0.5
    assert errors["a", "x86-cpu-int8"].max_abs == pytest.approx(0.3, rel=1e-3)
    assert errors["a", "fp32"].max_abs == pytest.approx(0.0, abs=1e-6)
    assert errors["sum", "fp32"].accuracy == 1.0


def test_variants_that_break_a_budget_together_give_way(measured: Draft) -> None:
    """The one that costs the head most, until it holds; what does not feed that head stays, whatever it costs."""
    decided = decide(measured, Silent())
    kept = {name: given(decided.decisions)[name, "x86-cpu-int8"].kept for name in "abc"}
    assert kept == {"a": False, "b": True, "c": True}
    reason = given(decided.decisions)["a", "x86-cpu-int8"].reason
    assert reason == "within budget alone, but together with the others sum: agreement 0.500, budget 0.900"
    assert chosen_variants(decided) == {
        "a": "fp32",
        "b": "x86-cpu-int8",
        "c": "x86-cpu-int8",
        "sum": "fp32",
        "alone": "fp32",
    }
    assert {f.head: (f.error.agreement, f.original.agreement) for f in given(decided.fused)} == {
        "sum": (1.0, 1.0),
        "alone": (0.5, 1.0),
    }


def test_what_could_not_be_made_is_not_kept_for_that_reason(measured: Draft) -> None:
    """And fp32 always is, with the exporter that made it."""
    faults = {("c", "x86-cpu-int8"): "there is nothing to quantize"}
    decisions = given(decide(replace(measured, faults=faults), Silent()).decisions)
    assert decisions["c", "x86-cpu-int8"].reason == "there is nothing to quantize"
    assert not decisions["c", "x86-cpu-int8"].kept
    assert decisions["a", "fp32"].kept
    assert decisions["a", "fp32"].reason == "the reference: traced with torch.export, equal to the model"


def test_a_variant_that_overflows_is_not_kept(measured: Draft) -> None:
    """No figure can be taken of what is no number, and the bundle's manifest could hold none."""
    graphs = {**given(measured.graphs), ("b", "x86-cpu-int8"): half(2, np.inf), ("a", "trt-fp16"): half(0, np.nan)}
    decided = decide(replace(measure(replace(measured, graphs=graphs), Silent()), speeds=measured.speeds), Silent())
    for name, variant, output in (("b", "x86-cpu-int8", "b.y"), ("a", "trt-fp16", "a.y")):
        assert (name, variant) not in given(decided.errors)
        assert f"NaN or infinite values in '{output}'" in decided.faults[name, variant]
    assert given(decided.decisions)["b", "x86-cpu-int8"].reason.startswith("it gives NaN or infinite values in 'b.y'")
    assert given(decided.decisions)["a", "x86-cpu-int8"].kept


def test_fp32_that_overflows_is_refused(measured: Draft) -> None:
    """Nothing could be shipped in its place."""
    fp32 = {**given(measured.fp32), "b": half(2, np.inf)}
    with pytest.raises(ExportError, match=r"fp32 on ONNX Runtime: it gives NaN or infinite values in 'b\.y'"):
        measure(replace(measured, fp32=fp32, original=None), Silent())


def test_of_equal_speeds_the_first_is_chosen(measured: Draft) -> None:
    """As the device chooses, so that what was judged together is what will run together."""
    speeds = {key: structs.replace(FAST, speedup=1.0) for key in given(measured.speeds)}
    decided = decide(replace(measured, speeds=speeds), Silent())
    assert set(chosen_variants(decided).values()) == {"fp32"}
    assert all(given(decided.decisions)[name, "x86-cpu-int8"].kept for name in "abc")


def test_what_is_required_and_holds_passes(measured: Draft) -> None:
    """Accuracy with the chosen variants in place, and variants that were kept."""
    require = Require(accuracy={"sum": 1.0, "alone": 0.5}, keep={"b": ("x86-cpu-int8",), "c": ("x86-cpu-int8",)})
    assert decide(required(measured, require), Silent()).decisions is not None


def test_what_is_required_and_does_not_hold_is_told_with_all_that_was_tried(measured: Draft) -> None:
    """Every broken requirement, then a line for each variant with its figures and what became of it."""
    require = Require(accuracy={"alone": 0.6, "sum": 0.9}, keep={"a": ("x86-cpu-int8",)})
    with pytest.raises(BudgetError) as caught:
        decide(required(measured, require), Silent())
    lines = str(caught.value).splitlines()
    assert lines[0] == "accuracy of 'alone' is 0.500, [require] asks for 0.600"
    assert lines[1].startswith("'x86-cpu-int8' of 'a' was not kept: within budget alone, but together")
    assert lines[2] == "No bundle was written. What was tried:"
    assert len(lines) == 3 + 2 * 3 + 2  # two variants of each encoder, one of each head
    [line] = [line for line in lines if line.split()[:2] == ["b", "x86-cpu-int8"]]
    assert "3.00x" in line
    assert "kept: within budget (cosine" in line


def test_an_accuracy_that_is_not_known_is_not_enough(measured: Draft) -> None:
    """Where a recording has no label there is none to hold anything against."""
    unlabelled = replace(given(measured.reference), truth=())
    errors = {key: structs.replace(e, accuracy=None) for key, e in given(measured.errors).items()}
    draft = replace(measured, reference=unlabelled, errors=errors)
    with pytest.raises(BudgetError, match="accuracy of 'sum' is unknown: no held-out recording has a label"):
        decide(required(draft, Require(accuracy={"sum": 0.1})), Silent())
