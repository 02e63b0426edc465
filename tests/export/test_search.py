"""The search for a mix of precisions: that it finds what is to blame, keeps its bounds, and repeats itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given as assume
from hypothesis import strategies as st
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.calibration import MinMax
from edge_mbm.export import Silent, quantize, recover
from edge_mbm.export import search as search_module
from edge_mbm.export.calibrate import calibrate
from edge_mbm.export.chain import GraphRunner
from edge_mbm.export.decide import decide
from edge_mbm.export.draft import Candidate, Draft, Searched, given
from edge_mbm.export.measure import measure
from edge_mbm.export.recipe import Budget, LoadedRecipe, Search
from edge_mbm.export.search import search
from edge_mbm.export.sensitivity import groups_of, layer_errors
from edge_mbm.spec import SpeedFigures
from edge_mbm.training.distill import DistillOptions

Load: TypeAlias = Callable[..., LoadedRecipe]
VARIANT = ("encoder", "x86-cpu-int8")

# The first of six layers has an output three thousand times the others', which the second does not look at: in eight
# bits nothing is left of what it does look at.
WIDTH, LAYERS, LOUD = 16, 6, 3000.0
CODE = f"""
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 if i == 0 else {WIDTH}, {WIDTH}) for i in range({LAYERS}))
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.copy_(torch.randn_like(layer.weight) / layer.in_features**0.5)
            self.layers[0].weight[0] *= {LOUD}
            self.layers[1].weight[:, 0] = 0

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder()
        self.head = nn.Linear({WIDTH}, 2)


def recordings(split):
    rng = np.random.default_rng(sum(split.encode()))
    for index in range(40):
        yield Record(f"{{split}}-{{index}}", {{"imu": rng.normal(0, 1, 4).astype(np.float32)}}, index % 2)
"""
# The same with the two layers to blame narrow: next to none of the arithmetic is theirs.
NARROW = CODE.replace(
    f"nn.Linear(4 if i == 0 else {WIDTH}, {WIDTH}) for i in range({LAYERS})",
    f"nn.Linear(4 if i < 2 else {WIDTH}, 4 if i == 0 else {WIDTH}) for i in range({LAYERS})",
)
DATA = """
recordings = "{module}:recordings"
python_path = ["code"]
calibration = {{ split = "calibration", samples = 40 }}
heldout = {{ split = "heldout", samples = 20 }}
golden = {{ split = "golden", samples = 1 }}
"""


def dense(module: Any, inputs: str, outputs: str) -> bytes:
    """The graph of linear layers with ReLUs between, written by hand: tracing takes seconds."""
    nodes, constants, value = [], [], inputs
    layers = list(module.layers) if hasattr(module, "layers") else [module]
    for index, layer in enumerate(layers):
        names = [f"weight{index}", f"bias{index}"]
        constants += [
            numpy_helper.from_array(tensor.detach().numpy(), name)
            for tensor, name in zip((layer.weight, layer.bias), names, strict=True)
        ]
        last = index == len(layers) - 1
        made = outputs if last else f"sum{index}"
        nodes.append(helper.make_node("Gemm", [value, *names], [made], f"layer{index}", transB=1))
        value = made if last else f"active{index}"
        if not last:
            nodes.append(helper.make_node("Relu", [made], [value], f"relu{index}"))
    edges = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in ((inputs, layers[0].in_features), (outputs, layers[-1].out_features))
    ]
    graph = helper.make_graph(nodes, "dense", edges[:1], edges[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def calibrated(loaded: Load, prepare: Callable[[LoadedRecipe], Draft]) -> Draft:
    """A draft up to the search, but for tracing: the graphs are written by hand."""
    return calibrate_by_hand(prepare(loaded(add=CODE, data=DATA)))


@pytest.fixture(scope="module")
def narrow(loaded: Load, prepare: Callable[[LoadedRecipe], Draft]) -> Draft:
    """The same, where what is to blame computes least."""
    return calibrate_by_hand(prepare(loaded(add=NARROW, data=DATA)))


def calibrate_by_hand(draft: Draft) -> Draft:
    fp32 = {
        "encoder": dense(draft.origin.module("encoder"), "x", "embedding"),
        "head": dense(draft.origin.module("head"), "embedding", "logits"),
    }
    draft = calibrate(replace(draft, fp32=fp32, exporters=dict.fromkeys(fp32, "torch.export")), Silent())
    return replace(draft, graphs={(name, "fp32"): graph for name, graph in fp32.items()})


@pytest.fixture(autouse=True)
def _one_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plainest there is: others would make the loud layer harmless, and there would be nothing to search for."""
    plain = quantize.Preset("plain", method=MinMax())
    monkeypatch.setattr(quantize, "PRESETS", {"plain": plain})
    monkeypatch.setattr(quantize, "presets_for", lambda graph, form: (plain,))


@pytest.fixture(autouse=True)
def _steady_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The more is quantized the faster: such small layers' own times are noise, which would choose among mixes."""

    def speed_of(draft: Draft, name: str, variant: str, graph: bytes) -> dict[str, SpeedFigures]:
        kinds = [node.op_type for node in onnx.load_model_from_string(graph).graph.node]
        return {variant: speed(1 + kinds.count("QuantizeLinear"))}

    monkeypatch.setattr(search_module, "speed_of", speed_of)


def asked(draft: Draft, least_db: float, bound: Search | None = None) -> Draft:
    """With a budget of SQNR alone, since all of these are slower than float."""
    budget = Budget(min_cosine=-1, min_agreement=0, max_accuracy_drop=1, min_sqnr_db=least_db, min_speedup=0.001)
    recipe = structs.replace(draft.loaded.recipe, budget=budget, search=bound or Search())
    return replace(draft, loaded=structs.replace(draft.loaded, recipe=recipe))


def found(draft: Draft) -> Searched:
    return given(search(draft, Silent()).search)[VARIANT]


# --- what it finds ---------------------------------------------------------------------------------------------------


def test_a_preset_that_keeps_the_budget_is_taken_at_once(calibrated: Draft) -> None:
    """One graph is made, and nothing is asked about groups."""
    searched = found(asked(calibrated, -50.0))
    assert searched.chosen == searched.candidates[0]
    assert (searched.evaluations, searched.groups, searched.chosen.reverted) == (1, (), ())


def test_what_is_to_blame_goes_back_to_float(calibrated: Draft) -> None:
    """The preset misses by far; with the loud layer in float the rest stays quantized, and the budget holds, as an
    independent look at the graph confirms."""
    after = search(asked(calibrated, 25.0), Silent())
    searched = given(after.search)[VARIANT]
    whole, chosen = searched.candidates[0], searched.chosen
    assert whole.error is not None
    assert whole.error.sqnr_db < 10.0
    assert whole.faults == (f"SQNR {whole.error.sqnr_db:.1f} dB, budget 25.0 dB",)
    assert chosen is not None
    assert chosen.faults == ()
    assert chosen.reverted in {("layer0",), ("layer1",)}
    assert min(searched.groups, key=lambda g: g.sqnr_db).group in {"layer0", "layer1"}
    graph = given(after.graphs)[VARIANT]
    kinds = [node.op_type for node in onnx.load_model_from_string(graph).graph.node]
    assert kinds.count("QuantizeLinear") >= LAYERS - 2
    runner, model = GraphRunner(graph, "encoder"), calibrated.origin
    x = np.random.default_rng(9).normal(0, 1, (200, 4)).astype(np.float32)
    want, got = model.run("encoder", {"x": x})["embedding"], runner({"x": x})["embedding"]
    assert 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()) >= 24.0
    assert f"in float32: {', '.join(chosen.float_nodes)}" in after.made_by[VARIANT]


def test_no_group_is_in_float_for_nothing(calibrated: Draft) -> None:
    """Each one of the chosen mix was tried without, and missed the budget."""
    searched = found(asked(calibrated, 25.0))
    chosen = searched.chosen
    assert chosen is not None
    tried = {frozenset(c.reverted): c for c in searched.candidates}
    for group in chosen.reverted:
        less = frozenset(chosen.reverted) - {group}
        assert tried[less].faults, f"{group} need not be in float"


def test_what_costs_nothing_goes_back_first(narrow: Draft) -> None:
    """Where what is to blame computes next to nothing it is the first mix that is tried, and no other is."""
    searched = found(asked(narrow, 25.0))
    assert len(searched.candidates) == 2
    assert searched.chosen == searched.candidates[1]
    assert searched.chosen.faults == ()
    assert set(searched.chosen.reverted) <= {"layer0", "layer1"}
    shares = {effect.group: effect.share for effect in searched.groups}
    assert sum(shares[group] for group in searched.chosen.reverted) <= 0.06


def test_the_layer_that_broke_is_named(calibrated: Draft) -> None:
    """Of the plain preset's graph: first bad is what the loud layer feeds, not what lies before; a ReLU that went into
    the quantization stands for the layer before it."""
    searched = found(asked(calibrated, -50.0))
    bad = searched.first_bad_layer()
    assert bad is not None
    assert bad.node in {"layer1", "relu1"}
    assert searched.layers[0].node in {"layer0", "relu0"}
    assert searched.layers[-1].sqnr_db == pytest.approx(searched.candidates[0].sqnr_db, abs=8)


def test_equal_graphs_have_no_bad_layer(calibrated: Draft) -> None:
    """Every tensor is there, at the highest ratio that is told."""
    graph = given(calibrated.calibrated).graphs["encoder"]
    calls = given(calibrated.calibrated).calls["encoder"]
    layers = layer_errors(graph, graph, calls, "encoder", rescaled=False)
    assert {layer.sqnr_db for layer in layers} == {120.0}
    assert len(layers) == 2 * LAYERS - 1


def test_channels_that_were_scaled_are_compared_after_scaling(calibrated: Draft) -> None:
    """Weights moved between layers change what lies between, and no error is seen in that."""
    graph = given(calibrated.calibrated).graphs["encoder"]
    model = onnx.load_model_from_string(graph)
    scale = np.linspace(0.5, 2, WIDTH).astype(np.float32)
    factors = {"weight0": scale[:, None], "bias0": scale, "weight1": 1 / scale[None, :]}
    for tensor in model.graph.initializer:
        if tensor.name in factors:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factors[tensor.name], tensor.name))
    calls, moved = given(calibrated.calibrated).calls["encoder"], model.SerializeToString()
    plain = layer_errors(graph, moved, calls, "encoder", rescaled=False)
    fitted = layer_errors(graph, moved, calls[:1] * 8, "encoder", rescaled=True)
    assert plain[0].sqnr_db < 20.0
    assert min(layer.sqnr_db for layer in fitted) > 80.0


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 5, 9])
def test_it_makes_no_more_graphs_than_it_may(calibrated: Draft, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where they are made; and it says that it ended for that."""
    made, original = [], quantize.quantize
    monkeypatch.setattr(quantize, "quantize", lambda *given: made.append(1) or original(*given))
    searched = found(asked(calibrated, 70.0, Search(evaluations=most)))
    assert searched.evaluations <= most
    assert len(made) <= most + 1  # and once for the graph that is taken
    assert searched.chosen is not None
    if most <= 2:
        assert f" {most} graphs ([search] evaluations)" in searched.ended


def test_no_time_is_no_search(calibrated: Draft) -> None:
    """With the reason, in place of a variant."""
    draft = search(asked(calibrated, 25.0, Search(seconds=1e-9)), Silent())
    assert VARIANT not in given(draft.graphs)
    assert "its time was up ([search] seconds)" in draft.faults[VARIANT]


def test_a_budget_out_of_reach_says_by_how_much(calibrated: Draft) -> None:
    """The best that was found, its figure beside what was asked for, in the decision."""
    draft = decide(measure(search(asked(calibrated, 100.0), Silent()), Silent()), Silent())
    decision = given(draft.decisions)[VARIANT]
    searched = given(draft.search)[VARIANT]
    assert searched.chosen is not None
    best = max(c.error.sqnr_db for c in searched.candidates if c.error is not None)
    assert not decision.kept
    assert decision.reason.startswith(f"SQNR {best:.1f} dB, budget 100.0 dB; the best of ")


def test_what_is_too_slow_whole_is_not_mixed(calibrated: Draft) -> None:
    """With parts in float it would be slower still."""
    draft = asked(calibrated, 25.0)
    budget = structs.replace(draft.loaded.recipe.budget, min_speedup=1000.0)
    recipe = structs.replace(draft.loaded.recipe, budget=budget)
    searched = found(replace(draft, loaded=structs.replace(draft.loaded, recipe=recipe)))
    assert (searched.evaluations, searched.groups) == (1, ())
    assert searched.chosen is not None
    assert "asked for 1000.00x" in searched.chosen.faults[-1]


# --- the same again --------------------------------------------------------------------------------------------------


def test_what_was_found_out_is_not_found_out_again(calibrated: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second search makes no graph, and comes to the same."""
    draft = asked(calibrated, 25.0)
    first = search(draft, Silent())

    def never(*_: object) -> bytes:
        raise AssertionError("it was made again")

    monkeypatch.setattr(quantize, "quantize", never)
    second = search(draft, Silent())
    assert (second.search, second.graphs, second.made_by) == (first.search, first.graphs, first.made_by)


def test_without_a_cache_it_comes_to_the_same(
    calibrated: Draft, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs and figures, byte for byte, where timings come out the same."""
    monkeypatch.setattr(search_module, "speed_of", lambda draft, name, variant, graph: {variant: speed(1.0)})
    draft = asked(calibrated, 25.0)
    first = search(draft, Silent())
    (tmp_path / "file").write_text("where the cache would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    second = search(draft, Silent())
    assert (second.graphs, second.search) == (first.graphs, first.search)


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3, 6, 20])
def test_groups_are_a_partition(calibrated: Draft, most: int) -> None:
    """Every node once, in running order, each with a weighted one; never more of them than asked for, and the
    arithmetic is the layers', counted by hand."""
    graph = given(calibrated.calibrated).graphs["encoder"]
    groups = groups_of(graph, most)
    assert len(groups) == min(most, LAYERS)
    names = [node.name for node in onnx.load_model_from_string(graph).graph.node]
    assert [node for group in groups for node in group.nodes] == names
    assert sum(group.macs for group in groups) == 4 * WIDTH + (LAYERS - 1) * WIDTH**2
    assert all(any(node.startswith("layer") for node in group.nodes) for group in groups)


@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_sums_are_a_group_of_their_own(most: int) -> None:
    """Additions of two activations come last, together; one of a constant stays with its layer; where there is one
    group only it has all."""
    weights = [numpy_helper.from_array(np.zeros((4, 4), np.float32), f"w{index}") for index in range(3)]
    bias = numpy_helper.from_array(np.zeros(4, np.float32), "b")
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "first"),
        helper.make_node("Add", ["a", "b"], ["c"], "bias"),
        helper.make_node("MatMul", ["c", "w1"], ["d"], "second"),
        helper.make_node("Add", ["c", "d"], ["e"], "sum1"),
        helper.make_node("MatMul", ["e", "w2"], ["f"], "third"),
        helper.make_node("Add", ["e", "f"], ["y"], "sum2"),
    ]
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", edges[:1], edges[1:], [*weights, bias])
    groups = groups_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString(), most)
    assert len(groups) == min(most, 4)
    assert sorted(node for group in groups for node in group.nodes) == sorted(node.name for node in nodes)
    assert [group.sums for group in groups] == [False] * (len(groups) - 1) + [most > 1]
    if most > 1:
        assert (groups[-1].nodes, groups[-1].macs) == (("sum1", "sum2"), 0)


def test_a_convolution_counts_every_place() -> None:
    """3 x 3 kernels of 4 channels to 8, at 5 x 6 places."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 7, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 5, 6])
    weights = numpy_helper.from_array(np.zeros((8, 4, 3, 3), np.float32), "w")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], "conv")], "g", [x], [y], [weights])
    [group] = groups_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString(), 9)
    assert (group.name, group.macs) == ("conv", 8 * 4 * 9 * 30)


def speed(factor: float) -> SpeedFigures:
    return SpeedFigures(host="here", median_us=1.0, iqr_us=0.0, speedup=factor)


@assume(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 4)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    """No candidate on it is beaten in both by another; each one off it is by one on it, or equal to it."""
    candidates = [Candidate(str(i), sqnr_db=db, speed=speed(up)) for i, (db, up) in enumerate(points)]
    front = Searched(candidates, None, len(candidates)).front()

    def beats(a: Candidate, b: Candidate) -> bool:
        assert a.speed is not None
        assert b.speed is not None
        pairs = (a.sqnr_db or 0, b.sqnr_db or 0), (a.speed.speedup, b.speed.speedup)
        return all(one >= other for one, other in pairs) and any(one > other for one, other in pairs)

    assert front
    assert not any(beats(a, b) for a in candidates for b in front)
    assert all(c in front or any(not beats(c, f) and not math.isnan(f.sqnr_db or 0) for f in front) for c in candidates)
    off = [c for c in candidates if c not in front]
    assert all(
        any((f.sqnr_db or 0) >= (c.sqnr_db or 0) and given(f.speed).speedup >= given(c.speed).speedup for f in front)
        for c in off
    )


# --- a fine-tune -----------------------------------------------------------------------------------------------------


def test_a_fine_tune_is_tried_where_nothing_holds(calibrated: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the recipe offers it: the tuned module is traced, calibrated and quantized, its cost is told in the decision,
    and the next export takes its weights from the cache."""
    monkeypatch.setattr(recover, "DistillOptions", lambda: DistillOptions(steps=7))
    draft = asked(calibrated, 100.0, Search(evaluations=2))
    encoder = structs.replace(draft.loaded.recipe.components["encoder"], recover="distill")
    components = {**draft.loaded.recipe.components, "encoder": encoder}
    recipe = structs.replace(draft.loaded.recipe, components=components)
    draft = replace(draft, loaded=structs.replace(draft.loaded, recipe=recipe))
    before = draft.origin.module("encoder").layers[0].weight.clone()  # type: ignore[index,union-attr]
    after = search(draft, Silent())
    searched = given(after.search)[VARIANT]
    recovery = searched.recovery
    assert recovery is not None, searched.ended
    assert (recovery.steps, recovery.before_db) == (7, searched.candidates[0].sqnr_db)
    assert [c.tuned for c in searched.candidates] == [False, True]
    assert recovery.after_db == searched.candidates[1].sqnr_db
    assert recovery.after_db != recovery.before_db
    assert torch.equal(draft.origin.module("encoder").layers[0].weight, before)  # type: ignore[index,union-attr]
    reason = given(decide(measure(after, Silent()), Silent()).decisions)[VARIANT].reason
    assert f"a fine-tune of {recovery.seconds:.0f} s made {recovery.before_db:.1f} dB" in reason

    def never(*_: object) -> None:
        raise AssertionError("it was tuned again")

    monkeypatch.setattr(recover, "distill", never)
    assert search(draft, Silent()).search == after.search


def test_no_fine_tune_where_it_could_not_help(calibrated: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too slow stays too slow; and where the recipe does not offer it nothing is said of it."""
    draft = asked(calibrated, 100.0, Search(evaluations=2))
    assert "fine-tune" not in found(draft).ended
    encoder = structs.replace(draft.loaded.recipe.components["encoder"], recover="distill")
    budget = structs.replace(draft.loaded.recipe.budget, min_speedup=1000.0)
    components = {**draft.loaded.recipe.components, "encoder": encoder}
    recipe = structs.replace(draft.loaded.recipe, components=components, budget=budget)
    searched = found(replace(draft, loaded=structs.replace(draft.loaded, recipe=recipe)))
    assert searched.recovery is None
    assert searched.ended == "no fine-tune: it would be as slow"
