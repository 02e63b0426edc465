"""Figures against their definitions, computed another way or known beforehand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.errors import RecipeError
from edge_mbm.export.figures import accuracy, agreement, error_figures, labels_of
from edge_mbm.export.metric import Metric


def column(*rows: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"h.y": np.array([row], np.float32)} for row in rows]


def test_equal_outputs_have_no_error() -> None:
    """And a finite ratio: a manifest's numbers must be."""
    same = column([1, 2], [0, 0], [-3, 4])
    figures = error_figures(same, same, ["h.y"], ["h.y"], [1, 0, 1])
    assert (figures.samples, figures.cosine, figures.sqnr_db, figures.max_abs) == (3, 1.0, 120.0, 0.0)
    assert (figures.agreement, figures.accuracy) == (1.0, 1.0)


def test_known_errors() -> None:
    """A right angle, a ratio of one to a hundred in power, a difference of three."""
    assert error_figures(column([1, 0]), column([0, 1]), ["h.y"], [], []).cosine == pytest.approx(0.0)
    tenth = error_figures(column([10, 0], [0, 10]), column([11, 0], [0, 9]), ["h.y"], [], [])
    assert tenth.sqnr_db == pytest.approx(20.0)
    assert tenth.cosine == pytest.approx(1.0)
    assert tenth.max_abs == pytest.approx(1.0)
    assert (tenth.agreement, tenth.accuracy) == (None, None)
    assert error_figures(column([1, 0], [1, 0]), column([1, 0], [0, 1]), ["h.y"], [], []).cosine == pytest.approx(0.5)


def test_one_number_has_no_direction_of_its_own() -> None:
    """Two probabilities always point the same way; over all recordings they need not."""
    figures = error_figures(column([0.9], [0.0], [0.9]), column([0.1], [0.9], [0.0]), ["h.y"], [], [])
    assert figures.cosine == pytest.approx(0.09 / (0.9 * 2**0.5 * 0.82**0.5))


def test_zero_is_like_zero_and_like_nothing_else() -> None:
    """A cosine has no meaning there, and must not be NaN."""
    assert error_figures(column([0, 0]), column([0, 0]), ["h.y"], [], []).cosine == 1.0
    assert error_figures(column([0, 0]), column([0, 1]), ["h.y"], [], []).cosine == 0.0
    assert error_figures(column([1, 1]), column([0, 0]), ["h.y"], [], []).cosine == 0.0
    assert error_figures(column([0, 0]), column([0, 1]), ["h.y"], [], []).sqnr_db == -120.0


def test_the_worst_output_and_the_worst_head_count() -> None:
    """Of several."""
    good, bad = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    reference = [{"a.x": good, "h.y": good, "i.y": good}] * 2
    got = [{"a.x": good, "h.y": good, "i.y": bad}] * 2
    figures = error_figures(reference, got, ["a.x", "i.y"], ["h.y", "i.y"], [0, 0])
    assert (figures.cosine, figures.agreement, figures.accuracy) == (0.0, 0.0, 0.0)


def test_recordings_that_lack_an_output_are_left_out() -> None:
    """They say nothing of it; what is left keeps its own truth."""
    reference = [*column([9, 0]), {}, *column([0, 9], [9, 0])]
    got = [*column([9, 0]), {}, *column([0, 9], [0, 9])]
    figures = error_figures(reference, got, ["h.y"], ["h.y"], [0, 0, 1, 1])
    assert figures.samples == 3
    assert figures.agreement == pytest.approx(2 / 3)
    assert figures.accuracy == 1.0


def test_recordings_without_a_label_count_for_agreement_alone() -> None:
    """Accuracy, and what stands in its place, are over those whose label is known."""
    rows = column([9, 0], [9, 0], [0, 9])
    assert error_figures(rows, rows, ["h.y"], ["h.y"], [0, None, 0]).accuracy == 0.5
    seen: list[int] = []

    def metric(got: Any, labels: Any) -> float:
        seen.extend(labels)
        return len(got) / 3

    assert error_figures(rows, rows, ["h.y"], ["h.y"], [None, 4, None], metrics={"h": metric}).accuracy == 1 / 3
    assert seen == [4]
    assert error_figures(rows, rows, ["h.y"], ["h.y"], [None] * 3).accuracy is None


def test_labels_are_the_largest_of_all_values() -> None:
    """Whatever the shape after the batch."""
    assert labels_of([{"h.y": np.array([[[1.0], [5.0], [2.0]]])}], "h.y").tolist() == [1]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20))
def test_shares_are_counts(rows: list[tuple[int, int, int]]) -> None:
    """Agreement and accuracy are what counting one by one gives."""
    one_hot = np.eye(3).tolist()
    reference, got = column(*(one_hot[r] for r, _, _ in rows)), column(*(one_hot[g] for _, g, _ in rows))
    truth = [t for _, _, t in rows]
    assert agreement(reference, got, "h.y") == pytest.approx(sum(r == g for r, g, _ in rows) / len(rows))
    assert accuracy(got, "h.y", truth) == pytest.approx(sum(g == t for _, g, t in rows) / len(rows))


@given(
    st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3),
)
def test_figures_are_finite(rows: list[list[float]], shift: list[float]) -> None:
    """Whatever the outputs are, as long as they are."""
    moved = [[a + b for a, b in zip(row, shift, strict=True)] for row in rows]
    figures = error_figures(column(*rows), column(*moved), ["h.y"], ["h.y"], [0] * len(rows))
    assert all(math.isfinite(v) for v in (figures.cosine, figures.sqnr_db, figures.max_abs))
    assert -1.000001 <= figures.cosine <= 1.000001
    assert -120 <= figures.sqnr_db <= 120


# --- a metric of the recipe's own ------------------------------------------------------------------------------------


def spread(outputs: dict[str, np.ndarray], labels: list[str]) -> float:
    """Of the labels' and values' shapes nothing is assumed: the share of recordings where the sign says the word."""
    assert outputs["y"].dtype == np.float32
    assert len(outputs["y"]) == len(labels)
    return float(
        np.mean([(value[0] > 0) == (label == "up") for value, label in zip(outputs["y"], labels, strict=True)])
    )


def test_a_metric_stands_in_place_of_accuracy() -> None:
    """It is given the head's outputs by their own names, and labels as they are, words too; agreement is as ever."""
    metric = Metric("h", ("y",), "m:spread", spread)
    got = column([1, 0], [-1, 5], [2, 0], [-3, 0])
    labels = ["up", "down", "up", "up"]
    figures = error_figures(got, got, ["h.y"], ["h.y"], labels, metrics={"h": metric})
    assert (figures.accuracy, figures.agreement) == (0.75, 1.0)
    assert error_figures(got, got, ["h.y"], ["h.y"], [], metrics={"h": metric}).accuracy is None


def test_words_without_a_metric_give_no_accuracy() -> None:
    """A class has a number; a word could be anything."""
    got = column([1, 0], [0, 1])
    assert error_figures(got, got, ["h.y"], ["h.y"], ["up", "down"]).accuracy is None


def test_a_metric_sees_the_recordings_that_have_its_head() -> None:
    """With their labels, and no others."""
    seen: list[tuple[int, list[int | str]]] = []
    metric = Metric("h", ("y",), "m:f", lambda outputs, labels: seen.append((len(outputs["y"]), labels)) or 1.0)
    metric([*column([1, 0]), {"other.z": np.zeros((1, 1))}, *column([0, 1])], [4, 5, 6])
    assert seen == [(2, [4, 6])]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda outputs, labels: float("nan"), "metric = 'm:f' gave nan: it must be a finite number"),
        (lambda outputs, labels: outputs["z"], r"metric = 'm:f' raised KeyError on \{'y': \[1, 2\]\} and 1 labels"),
        (lambda outputs, labels: "good", "metric = 'm:f' raised ValueError"),
    ],
)
def test_a_metric_that_fails_is_the_recipes_fault(function: Any, said: str) -> None:
    """Named as the recipe names it, with what it was given."""
    with pytest.raises(RecipeError, match=said):
        Metric("h", ("y",), "m:f", function)(column([1, 0]), [0])
