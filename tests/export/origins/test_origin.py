"""Several models in one recipe, torch's and strangers', up to the proof of their graphs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.errors import ParityError, RecipeError
from edge_mbm.export import Silent, prove
from edge_mbm.export.chain import GraphRunner
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.origin import Origin
from edge_mbm.export.recipe import LoadedRecipe, load_recipe

Load: TypeAlias = Callable[..., LoadedRecipe]
Prepare: TypeAlias = Callable[[LoadedRecipe], Draft]

ENCODER = 'kind = "encoder"\nmodule = "encoder"\n'
FOREIGN = 'kind = "encoder"\nmodule = ""\nmodel = {{ from = "onnx", path = "stranger.onnx"MORE }}\n'
WEIGHTS = np.random.default_rng(0).normal(0, 1, (4, 6)).astype(np.float32)


def stranger(folder: Path, *nodes: onnx.NodeProto) -> None:
    """float32[1, 4] to float32[1, 6]; what is between a product and the output is as the nodes say."""
    nodes = nodes or (helper.make_node("Relu", ["h"], ["out"]),)
    weights = [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(np.float32(100), "high")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["in.0", "w"], ["h"]), *nodes],
        "stranger",
        [helper.make_tensor_value_info("in.0", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 6])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    (folder / "stranger.onnx").write_bytes(model.SerializeToString())


@pytest.fixture
def foreign(loaded: Load, sensor: dict[str, str]) -> Callable[..., LoadedRecipe]:
    """The sensor project, its encoder an ONNX graph."""

    def load(*nodes: onnx.NodeProto, more: str = "", **named: Any) -> LoadedRecipe:
        assert ENCODER in sensor["recipe"]
        recipe = loaded(recipe=sensor["recipe"].replace(ENCODER, FOREIGN.replace("MORE", more)), **named)
        stranger(recipe.path.parent, *nodes)
        return recipe

    return load


def test_a_foreign_graph_is_imported_and_proven(foreign: Callable[..., LoadedRecipe], prepare: Prepare) -> None:
    """The head is traced; what both give together is what numpy and torch give."""
    recipe = foreign()
    draft = prove.trace_and_prove(prepare(recipe), Silent())
    assert given(draft.exporters) == {"encoder": prove.IMPORTED, "head": "torch.export"}
    x = np.random.default_rng(1).normal(0, 1, (3, 4)).astype(np.float32)
    graphs = {name: GraphRunner(graph, name) for name, graph in given(draft.fp32).items()}
    embedding = graphs["encoder"]({"x": x})["embedding"]
    np.testing.assert_allclose(embedding, np.maximum(x @ WEIGHTS, 0), atol=1e-5)
    logits = graphs["head"]({"embedding": embedding})["logits"]
    np.testing.assert_allclose(logits, draft.origin.run("head", {"embedding": embedding})["logits"], atol=1e-5)


def test_one_sample_at_a_time_ends_where_the_graph_does(foreign: Callable[..., LoadedRecipe], prepare: Prepare) -> None:
    """Its own batch is fixed in the manifest; that of the head which it feeds stays free."""
    draft = prepare(foreign(helper.make_node("ReduceMax", ["h"], ["m"]), helper.make_node("Div", ["h", "m"], ["out"])))
    encoder, head = (given(draft.components)[name] for name in ("encoder", "head"))
    assert encoder.graph_inputs()["x"].shape == (1, 4)
    assert encoder.graph_outputs()["embedding"].shape == (1, 6)
    assert head.graph_inputs()["embedding"].shape == ("batch", 6)
    graphs = given(prove.trace_and_prove(draft, Silent()).fp32)
    assert onnx.load_model_from_string(graphs["encoder"]).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


MEETING = (
    helper.make_node("ReduceMax", ["h"], ["m"]),
    helper.make_node("Greater", ["m", "high"], ["loud"]),
    helper.make_node("Neg", ["h"], ["n"]),
    helper.make_node("Where", ["loud", "n", "h"], ["out"]),
)
LOUD = """
def recordings(split):
    rng = np.random.default_rng(sum(split.encode()))
    for index in range(8):
        sample = 1000 * (index % 2) + rng.normal(0, 1, 4)
        yield Record(f"{split}-{index}", {"imu": sample.astype(np.float32)}, index % 2)
"""


def test_samples_that_meet_on_recordings_only_are_found_there(
    foreign: Callable[..., LoadedRecipe], prepare: Prepare
) -> None:
    """Noise did not show it; the message says how the recipe can fix the batch, and then it holds."""
    with pytest.raises(ParityError, match=r"at batch 2.*samples of one batch meet.*batch = 'one'"):
        prove.trace_and_prove(prepare(foreign(*MEETING, add=LOUD)), Silent())
    draft = prove.trace_and_prove(prepare(foreign(*MEETING, add=LOUD, more=', batch = "one"')), Silent())
    assert given(draft.exporters)["encoder"] == prove.IMPORTED


def test_a_graph_that_does_not_take_the_sensor_is_refused(
    loaded: Load, sensor: dict[str, str], prepare: Prepare
) -> None:
    """In the process that tries it first; with what it was given."""
    recipe = sensor["recipe"].replace(ENCODER, FOREIGN.replace("MORE", "")).replace("shape = [4]", "shape = [5]")
    project = loaded(recipe=recipe)
    stranger(project.path.parent)
    with pytest.raises(RecipeError, match=r"components\.encoder, .*given .*float32\[1, 5\].*does not load or run"):
        prepare(project)


def test_an_own_model_goes_before_the_recipes(foreign: Callable[..., LoadedRecipe]) -> None:
    """Each is loaded once, and only for the components that are asked for; a graph has no torch module."""
    recipe = foreign()
    origin = Origin(recipe)
    assert origin.graph("encoder") is not None
    assert origin.graph("head") is None
    assert origin.module("head").in_features == 6
    with pytest.raises(RecipeError, match=r"components\.encoder is an ONNX graph, which has no torch module"):
        origin.module("encoder")
    (recipe.path.parent / "stranger.onnx").unlink()
    Origin(recipe, only=["head"])
    with pytest.raises(RecipeError, match=r"components\.encoder\.model\.path: .*stranger\.onnx: No such file"):
        Origin(recipe)


def test_the_digest_of_several_models_changes_with_each(foreign: Callable[..., LoadedRecipe]) -> None:
    """With the graph's file, and with torch's weights."""
    recipe = foreign()
    first = Origin(recipe)
    assert Origin(recipe).sha256() == first.sha256()
    stranger(recipe.path.parent, helper.make_node("Neg", ["h"], ["out"]))
    assert Origin(recipe).sha256() != first.sha256()
    before = first.sha256()
    first.module("head").bias.data += 1  # type: ignore[operator,union-attr]
    assert first.sha256() != before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('model = "{module}:load"\n', "", "components.encoder has no model: give the recipe one"),
        (ENCODER, FOREIGN.replace("MORE", "").replace('module = ""', 'module = "a.b"'), "module is 'a.b': of an ONNX"),
        (ENCODER, FOREIGN.replace("MORE", "") + 'recover = "distill"\n', "encoder.recover: an ONNX graph cannot be"),
        (
            '"{module}:load"',
            '{{ from = "tim", name = "resnet18" }}',
            "model.from: Invalid value 'tim': did you mean 'timm'",
        ),
        ('"{module}:load"', '{{ from = "timm", nam = "resnet18" }}', "did you mean 'name' by 'nam'"),
        (ENCODER, FOREIGN.replace("MORE", ", layuot = 'NCHW'"), "unknown key 'components.encoder.model.layuot': did"),
    ],
)
def test_a_recipe_says_where_every_model_is(
    project: Callable[..., Path], sensor: dict[str, str], old: str, new: str, said: str
) -> None:
    """Before anything is loaded."""
    assert old in sensor["recipe"]
    with pytest.raises(RecipeError, match=re.escape(said)):
        load_recipe(project(recipe=sensor["recipe"].replace(old, new)))
