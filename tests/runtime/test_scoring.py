"""Right and wrong answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.errors import InputError
from edge_mbm.runtime import ClassificationOutput, EmbeddingOutput, Result
from edge_mbm.runtime.result import TaskOutput
from edge_mbm.runtime.scoring import Scorer, Segment, Tally, Truth, read_truth

MS = 1_000_000


def segment(start: float, label: str, *spoiled: str) -> Segment:
    """One second long, asked for in its second half."""
    return Segment(
        start=start, end=start + 1, label=label, answer_from=start + 0.5, answer_to=start + 1, spoiled=spoiled
    )


def result(label: str, head: str = "fused", output: TaskOutput | None = None) -> Result:
    return Result(
        head=head,
        seq=0,
        t_capture=0,
        age=0,
        outputs={"logits": output or ClassificationOutput(label, 1.0, 0, np.ones(1, np.float32), (label,))},
        missing=(),
        spread=0,
        dropped=0,
        stage_ns={},
        provider="x",
    )


def scored(segments: list[Segment], *answers: tuple[int, str], until: int | None = None) -> Tally:
    """Of one head that gave these labels at these media times, ms."""
    scorer = Scorer(Truth(segments=tuple(segments)))
    for t, label in answers:
        scorer.add(result(label), t * MS)
    return scorer.scores(until)["fused"].all


def tally(*numbers: int) -> Tally:
    segments, segments_right, unanswered, results, results_right = numbers
    return Tally(
        segments=segments,
        segments_right=segments_right,
        unanswered=unanswered,
        results=results,
        results_right=results_right,
    )


def test_only_what_is_asked_for_counts() -> None:
    """From ``answer_from`` on, and before ``answer_to``; nobody can know earlier, and later may mean the next."""
    answers = [(499, "two"), (500, "one"), (999, "one"), (1000, "two"), (1200, "two"), (5000, "two")]
    assert scored([segment(0, "one")], *answers) == tally(1, 1, 0, 2, 2)


def test_the_most_frequent_label_decides_and_of_equals_the_earliest() -> None:
    """Two against one is right; one against one is what came first."""
    assert scored([segment(0, "a")], (500, "b"), (600, "a"), (700, "a")) == tally(1, 1, 0, 3, 2)
    assert scored([segment(0, "a")], (500, "a"), (600, "b")) == tally(1, 1, 0, 2, 1)
    assert scored([segment(0, "a")], (500, "b"), (600, "a")) == tally(1, 0, 0, 2, 1)


def test_a_segment_without_an_answer_is_not_right() -> None:
    """A model that is too slow to say anything gets no credit."""
    assert scored([segment(0, "a"), segment(1, "b")], (500, "a")) == tally(2, 1, 1, 1, 1)


def test_what_was_not_played_is_not_held_against_anybody() -> None:
    """A run that was broken off at 1.6 s was asked twice."""
    segments = [segment(k, "a") for k in range(5)]
    assert scored(segments, (500, "a"), (1600, "a"), until=1600 * MS) == tally(2, 2, 0, 2, 2)
    assert scored(segments, (500, "a"), until=-1) == tally(0, 0, 0, 0, 0)


def test_heads_and_spoils_are_told_apart() -> None:
    """Each head by itself; clean segments, then those whose image, audio or both were spoiled."""
    segments = [segment(0, "a"), segment(1, "a", "image"), segment(2, "a", "audio"), segment(3, "a", "image", "audio")]
    scorer = Scorer(Truth(segments=tuple(segments)))
    for k in range(4):
        scorer.add(result("a", "fused"), (1000 * k + 600) * MS)
        scorer.add(result("a" if k in (0, 2) else "b", "image_only"), (1000 * k + 600) * MS)
    scores = scorer.scores()
    right = {head: {n: t.segments_right for n, t in score.by_spoiled.items()} for head, score in scores.items()}
    assert right == {
        "fused": {"clean": 1, "audio": 1, "image": 1, "image+audio": 1},
        "image_only": {"clean": 1, "audio": 1, "image": 0, "image+audio": 0},
    }
    assert next(iter(scores["fused"].by_spoiled)) == "clean"
    assert scores["image_only"].all.segments_right == 2


def test_a_head_without_labels_is_left_out() -> None:
    """An embedding is neither right nor wrong."""
    scorer = Scorer(Truth(segments=(segment(0, "a"),)))
    scorer.add(result("", output=EmbeddingOutput(np.ones(3, np.float32))), 600 * MS)
    assert scorer.scores() == {}


@given(st.lists(st.tuples(st.integers(0, 4000), st.sampled_from("abc")), max_size=60))
def test_counts_are_those_of_a_list(answers: list[tuple[int, str]]) -> None:
    """Whatever comes in whatever order: the same as keeping all results and counting at the end."""
    segments = [segment(0, "a"), segment(1, "b"), segment(2, "c")]
    asked = [(s, [x for t, x in answers if s.answer_from <= t / 1000 < s.answer_to]) for s in segments]
    found = scored(segments, *answers, (9000, "a"))
    assert found.results == sum(len(labels) for _, labels in asked)
    assert found.results_right == sum(labels.count(s.label) for s, labels in asked)
    assert found.segments_right == sum(bool(x) and max(x, key=x.count) == s.label for s, x in asked)


def test_memory_is_the_truths_not_the_runs() -> None:
    """A hundred thousand results leave as much behind as a hundred."""

    def kept(count: int) -> int:
        scorer = Scorer(Truth(segments=(segment(0, "a"),)))
        for k in range(count):
            scorer.add(result("ab"[k % 2]), 600 * MS)
        return sum(sys.getsizeof(found) + len(found) for found in scorer._counts["fused"])

    assert kept(20_000) == kept(100)


# --- the file --------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, *segments: dict[str, Any] | str) -> Path:
    path = tmp_path / "truth.json"
    body = ", ".join(s if isinstance(s, str) else json.dumps(s) for s in segments)
    path.write_text(f'{{"made by": "a newer version", "segments": [{body}]}}')
    return path


WHOLE = {"start": 0, "end": 1, "label": "a", "answer_from": 0.5, "answer_to": 1, "spoiled": ["image"], "note": 1}


def test_a_truth_file_is_read_in_the_order_of_time(tmp_path: Path) -> None:
    """Unknown keys are ignored, and ``spoiled`` may be left out."""
    later = {"start": 1, "end": 2.5, "label": "b", "answer_from": 1.0, "answer_to": 2}
    truth = read_truth(written(tmp_path, later, WHOLE))
    assert [(s.label, s.spoiled) for s in truth.segments] == [("a", ("image",)), ("b", ())]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": -0.1}, r"segments\[0\] has start = -0.1"),
        ({"end": 0}, r"segments\[0\] has start = 0.0 and end = 0.0"),
        ({"answer_from": 2}, r"answer_from = 2.0 and answer_to = 1.0"),
        ({"answer_to": 0.5}, r"answer_from before answer_to"),
        ({"label": 7}, r"Expected `str`, got `int` - at `\$.segments\[0\].label`"),
        ({"start": None}, r"\$.segments\[0\].start"),
        ({"spoiled": "image"}, r"\$.segments\[0\].spoiled"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """With its place, and what is expected."""
    with pytest.raises(InputError, match=message):
        read_truth(written(tmp_path, WHOLE | change))


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_numbers_must_be_finite(tmp_path: Path, number: str) -> None:
    """JSON has no NaN, and what reads as infinity is none."""
    with pytest.raises(InputError):
        read_truth(written(tmp_path, json.dumps(WHOLE).replace("0.5", number)))


def test_answers_may_not_overlap(tmp_path: Path) -> None:
    """A result can be asked for one label only."""
    with pytest.raises(InputError, match=r"'a' and 'b' overlap at 0\.9 s"):
        read_truth(written(tmp_path, WHOLE, WHOLE | {"label": "b", "answer_from": 0.9, "answer_to": 3}))


def test_no_file_no_json(tmp_path: Path) -> None:
    """Each says which file."""
    with pytest.raises(InputError, match=r"nowhere.json cannot be read: No such file"):
        read_truth(tmp_path / "nowhere.json")
    for content in (b"", b"[]", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(InputError, match=r"bad.json is not a truth file"):
            read_truth(tmp_path / "bad.json")
