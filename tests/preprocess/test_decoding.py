"""From scores to tokens, held against every text that there could be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm.errors import EngineError
from edge_mbm.preprocess import Decoding, Scored
from edge_mbm.spec import Decoder, Embedding, Input, Output, TensorSpec

END = 0


def decoder(tokens: int = 3, max_tokens: int = 4, **options: object) -> Decoder:
    chosen = {"start": (1,), "end": END} | options
    return Decoder(
        inputs={"x": Input(source="encoder.x", tensor=TensorSpec(dtype="float32", shape=("batch", 1)))},
        outputs={
            "text": Output(tensor=TensorSpec(dtype="float32", shape=("batch", tokens)), task=Embedding()),
        },
        variants={},
        algorithm="autoregressive",
        tokenizer="words",
        max_tokens=max_tokens,
        **chosen,  # type: ignore[arg-type]
    )


class Table:
    """Scores by all that came before: what has been seen is the text so far, so a mixed-up state shows."""

    def __init__(self, seed: int, tokens: int = 3, start: int = 1) -> None:
        self._seed, self._tokens, self._start = seed, tokens, start
        self.seen: tuple[int, ...] = ()

    def scores(self, seen: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([self._seed, *seen]).normal(0, 2, self._tokens).astype(np.float32)

    def step(self, token: int, place: int) -> np.ndarray:
        assert place == len(self.seen), "each token has its place"
        self.seen = (*self.seen, token)
        return self.scores(self.seen)

    def save(self) -> tuple[int, ...]:
        return self.seen

    def restore(self, saved: tuple[int, ...]) -> None:
        self.seen = saved


def log_softmax(scores: np.ndarray) -> np.ndarray:
    wide = scores.astype(np.float64)
    return wide - math.log(np.exp(wide).sum())


def all_texts(table: Table, most: int, tokens: int = 3) -> Iterator[tuple[float, list[int]]]:
    """Every text that ends in time, with its mean log probability."""
    for length in range(most):
        for words in itertools.product(range(1, tokens), repeat=length):
            seen, total = (1,), 0.0
            for token in (*words, END):
                total += log_softmax(table.scores(seen))[token]
                seen = (*seen, token)
            yield total / (length + 1), [*words, END]


def tokens_of(chosen: list[Scored]) -> list[int]:
    return [scored.token for scored in chosen]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_a_wide_search_finds_the_best_of_all_texts(seed: int) -> None:
    """With more beams than there are texts nothing is left out, so the oracle is a list of all of them."""
    found = Decoding(decoder(), "d").search(Table(seed), beams=64)
    best, text = max(all_texts(Table(seed), most=3))
    assert tokens_of(found) == text
    assert sum(scored.log_probability for scored in found) / len(found) == pytest.approx(best, abs=1e-5)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_greedy_takes_the_likeliest_token_after_what_it_took_before(seed: int) -> None:
    """Followed by hand; it ends with the end or with the budget."""
    wanted: list[int] = []
    while len(wanted) < 3 and (not wanted or wanted[-1] != END):
        wanted.append(int(Table(seed).scores((1, *wanted)).argmax()))
    assert tokens_of(list(Decoding(decoder(), "d").greedy(Table(seed)))) == wanted


def test_tokens_that_must_not_come_do_not() -> None:
    """Some never, some not first; what is left shares all of the probability."""
    decoding = Decoding(decoder(tokens=4, suppress=(3,), suppress_first=(END,)), "d")
    for seed in range(50):
        chosen = list(decoding.greedy(Table(seed, tokens=4)))
        assert 3 not in tokens_of(chosen)
        assert chosen[0].token != END
        kept = Table(seed, tokens=4).scores((1,)).astype(np.float64)[[1, 2]]
        assert chosen[0].log_probability == pytest.approx(log_softmax(kept).max(), abs=1e-5)


def test_a_text_that_never_ends_is_ended_by_the_budget() -> None:
    """The decoder's own, or a smaller one that is asked for; no step is computed beyond it."""

    class Endless(Table):
        def scores(self, seen: tuple[int, ...]) -> np.ndarray:
            return np.array([-50.0, len(seen) % 2, 0.5], np.float32)

    for asked, given_ in ((None, 99), (7, 7), (1, 1), (1000, 99)):
        table = Endless(0)
        assert len(list(Decoding(decoder(max_tokens=100), "d", asked).greedy(table))) == given_
        assert len(table.seen) == given_  # the token to begin with, and all but the last
        assert len(Decoding(decoder(max_tokens=100), "d", asked).search(Endless(0), 2)) == given_


def test_all_tokens_to_begin_with_are_seen_first() -> None:
    """Whisper has two."""
    table = Table(3)
    next(Decoding(decoder(start=(2, 1), max_tokens=9), "d").greedy(table))
    assert table.seen == (2, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_an_error(bad: float) -> None:
    """Never a text made of them."""

    class Broken(Table):
        def scores(self, seen: tuple[int, ...]) -> np.ndarray:
            return np.array([0.0, 1.0, bad if len(seen) > 1 else 0.5], np.float32)

    for decode in (lambda d: list(d.greedy(Broken(0))), lambda d: d.search(Broken(0), 2)):
        with pytest.raises(EngineError, match="'d' are not finite after 1 tokens"):
            decode(Decoding(decoder(), "d"))


def test_the_end_is_not_written() -> None:
    """What ends a text is no part of it."""
    assert Decoding(decoder(), "d").written([2, 1, END]) == (2, 1)
