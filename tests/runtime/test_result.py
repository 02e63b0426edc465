"""What a head's numbers mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_mbm.errors import EngineError
from edge_mbm.runtime import ClassificationOutput, EmbeddingOutput, RegressionOutput, TaskOutput
from edge_mbm.runtime.result import interpret
from edge_mbm.spec import Classification, Embedding, Output, Regression, Task, TensorSpec

LABELS = ("a", "b", "c")


def meaning(task: Task, values: object) -> TaskOutput:
    array = np.asarray(values)[None]
    return interpret(Output(tensor=TensorSpec(dtype="float32", shape=array.shape), task=task), array, LABELS, "'x.y'")


def classes(activation: str, values: object) -> ClassificationOutput:
    result = meaning(Classification(labels="labels", activation=activation), values)  # type: ignore[arg-type]
    assert isinstance(result, ClassificationOutput)
    return result


def test_softmax_is_the_textbooks() -> None:
    """exp(x) over its sum, in Python's floats; the best label, its score and index agree."""
    got = classes("softmax", [1.0, 3.0, 2.0])
    total = sum(math.exp(v) for v in (1, 3, 2))
    np.testing.assert_allclose(got.scores, [math.exp(v) / total for v in (1, 3, 2)], rtol=1e-6)
    assert (got.label, got.index, got.score) == ("b", 1, pytest.approx(math.exp(3) / total))


def test_sigmoid_is_the_textbooks() -> None:
    """1 / (1 + exp(-x)) for each class by itself."""
    values = [-3.0, 0.0, 2.5]
    np.testing.assert_allclose(classes("sigmoid", values).scores, [1 / (1 + math.exp(-v)) for v in values], rtol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_large_numbers_do_not_overflow(activation: str) -> None:
    """The greatest floats give 0 and 1, without a warning."""
    with np.errstate(all="raise", under="ignore"):
        got = classes(activation, np.array([3e38, -3e38, -3e38], np.float32))
    np.testing.assert_array_equal(got.scores, [1, 0, 0])


def test_scores_are_kept_where_the_graph_gives_them() -> None:
    """Activation "none" changes nothing."""
    np.testing.assert_array_equal(classes("none", np.array([0.25, 0.5, 0.125], np.float32)).scores, [0.25, 0.5, 0.125])


def test_top_is_sorted_and_stable() -> None:
    """Best first; equals keep the labels' order; more than there are is all there are."""
    got = classes("none", [0.2, 0.5, 0.5])
    assert [label for label, _ in got.top(2)] == ["b", "c"]
    assert [label for label, _ in got.top(9)] == ["b", "c", "a"]


def test_labels_must_fit() -> None:
    """Fewer labels than classes is said, not cut off."""
    with pytest.raises(EngineError, match=r"'x\.y' has 4 classes and 3 labels"):
        classes("softmax", [1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("task", [Classification(labels="labels"), Embedding(), Regression()])
def test_numbers_that_are_not_finite_are_an_error(task: Task, value: float) -> None:
    """An overflow is said by the output's name; it is never an answer."""
    with pytest.raises(EngineError, match=r"'x\.y' is not finite"):
        meaning(task, [1.0, value, 2.0])


def test_other_tasks_are_handed_out_as_they_are() -> None:
    """A vector, or quantities with their unit; as copies, for the engine uses its buffer again."""
    buffer = np.array([[1.0, 2.0]], np.float32)
    spec = TensorSpec(dtype="float32", shape=("batch", 2))
    vector = interpret(Output(tensor=spec, task=Embedding()), buffer, (), "x")
    meters = interpret(Output(tensor=spec, task=Regression(unit="m")), buffer, (), "x")
    buffer[...] = 0
    assert isinstance(vector, EmbeddingOutput)
    assert isinstance(meters, RegressionOutput)
    assert vector.as_json() == {"vector": [1.0, 2.0]}
    assert meters.as_json() == {"values": [1.0, 2.0], "unit": "m"}
