"""A decoder at work: from an embedding to text, one token at a time, by the likeliest one or by beam search.

The graph computes one step (``spec.Decoder``): the last token and its place in, the next token's scores out. What it
has seen so far is in states of fixed size, so that nothing grows with a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_mbm.errors import EngineError, InputError
from edge_mbm.preprocess import Detokenizer
from edge_mbm.runtime.component import ComponentRunner
from edge_mbm.runtime.engine import Engine
from edge_mbm.runtime.result import TextOutput
from edge_mbm.spec import Decoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GREEDY", "DecodeOptions", "DecoderRunner", "Piece"]


@dataclass(frozen=True)
class DecodeOptions:
    """How decoders choose tokens.

    Args:
        beams: hypotheses that are followed; 1 takes the likeliest token at each step (greedy).
        max_tokens: of one text, besides those it begins with; None for as many as the decoder can.
    """

    beams: int = 1
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a number out of range."""
        if not 1 <= self.beams <= 64 or (self.max_tokens is not None and self.max_tokens < 1):
            raise InputError("beams is from 1 to 64, max_tokens at least 1")


GREEDY = DecodeOptions()


class Piece(NamedTuple):
    """What one token adds to a text."""

    text: str
    """May be empty, where a letter is made of several tokens."""
    token: int
    log_probability: float


class DecoderRunner(ComponentRunner):
    """Feeds a decoder's engine, step by step.

    Args:
        name: the component's.
        component: a decoder that goes token by token.
        engine: loaded with one of its variants.
        assets: name -> bytes of the files that it needs, its tokenizer among them.
        options: see ``DecodeOptions``.
    """

    def __init__(
        self, name: str, component: Decoder, engine: Engine, assets: Mapping[str, bytes], options: DecodeOptions
    ) -> None:
        super().__init__(name, component, engine, assets)
        self._decoder = component
        self._options = options
        self._words = Detokenizer(assets[component.tokenizer])
        [self._scores] = component.outputs
        self._never = np.array(component.suppress, np.int64)
        self._not_first = np.array([*component.suppress, *component.suppress_first], np.int64)
        room = component.max_tokens - len(component.start)
        self._most = room if options.max_tokens is None else min(room, options.max_tokens)
        self._infer = f"infer.{name}"

    def compute(self, sources: Mapping[str, Any], stages: dict[str, int]) -> dict[str, Any]:
        """The text, as ``{output: TextOutput}``; ``stages`` receives the time of all steps together, ns."""
        started = perf_counter_ns()
        if self._options.beams > 1:
            text = self._search(sources)
        else:
            pieces = list(self._greedy(sources))
            text = self._text([p.token for p in pieces], sum(p.log_probability for p in pieces))
        stages[self._infer] = perf_counter_ns() - started
        return {self._scores: text}

    def pieces(self, sources: Mapping[str, Any]) -> Iterator[Piece]:
        """The text as it comes, greedily; whoever stops asking ends it."""
        told, tokens = "", list[int]()
        for piece in self._greedy(sources):
            if piece.token != self._decoder.end:
                tokens.append(piece.token)
            text = self._words.partial(tokens)
            yield piece._replace(text=text[len(told) :])
            told = text

    # --- the likeliest token at each step ----------------------------------------------------------------------------

    def _greedy(self, sources: Mapping[str, Any]) -> Iterator[Piece]:
        """The tokens up to the end or the budget, the ending one among them."""
        scores = self._begin(sources)
        for count in range(self._most):
            probabilities = self._log_probabilities(scores, count)
            token = int(probabilities.argmax())
            yield Piece("", token, float(probabilities[token]))
            if token == self._decoder.end or count + 1 == self._most:
                return
            scores = self._step(token, len(self._decoder.start) + count)

    # --- beam search -------------------------------------------------------------------------------------------------

    def _search(self, sources: Mapping[str, Any]) -> TextOutput:
        """The best of several hypotheses by mean log probability; each has its own copy of the states."""
        scores = self._begin(sources)
        going = [_Hypothesis((), 0.0, scores, self._states())]
        ended: list[_Hypothesis] = []
        for count in range(self._most):
            going = self._extended(going, count, ended)
            if len(ended) >= self._options.beams or not going:
                break
            if count + 1 < self._most:
                going = [self._advanced(hypothesis, count) for hypothesis in going]
        best = max(ended or going, key=_Hypothesis.mean)
        return self._text(best.tokens, best.total)

    def _extended(self, going: list[_Hypothesis], count: int, ended: list[_Hypothesis]) -> list[_Hypothesis]:
        """Each hypothesis with its likeliest next tokens; of all of them the best."""
        longer = []
        for old in going:
            probabilities = self._log_probabilities(old.scores, count)
            for token in np.argpartition(-probabilities, 2 * self._options.beams)[: 2 * self._options.beams]:
                total = old.total + float(probabilities[token])
                longer.append(old._replace(tokens=(*old.tokens, int(token)), total=total))
        longer.sort(key=lambda hypothesis: -hypothesis.total)
        kept: list[_Hypothesis] = []
        for hypothesis in longer:
            if len(kept) == self._options.beams:
                break
            (ended if hypothesis.tokens[-1] == self._decoder.end else kept).append(hypothesis)
        return kept

    def _advanced(self, hypothesis: _Hypothesis, count: int) -> _Hypothesis:
        for key, value in hypothesis.states.items():
            np.copyto(self.engine.inputs[key], value)
        scores = self._step(hypothesis.tokens[-1], len(self._decoder.start) + count)
        return hypothesis._replace(scores=scores, states=self._states())

    def _states(self) -> dict[str, NDArray[Any]]:
        return {state.input: self.engine.inputs[state.input].copy() for state in self._decoder.states}

    # --- one step ----------------------------------------------------------------------------------------------------

    def _begin(self, sources: Mapping[str, Any]) -> NDArray[np.float32]:
        """What is decoded is written once; then the tokens that every text begins with."""
        self.reset()
        for key, value in self._decoder.inputs.items():
            np.copyto(self.engine.inputs[key], sources[value.source])
        for place, token in enumerate(self._decoder.start):
            scores = self._step(token, place)
        return scores

    def _step(self, token: int, place: int) -> NDArray[np.float32]:
        """The scores of what comes after a token, float32[tokens]."""
        self.engine.inputs[self._decoder.token][...] = token
        self.engine.inputs[self._decoder.position][...] = place
        outputs = self.engine.run({})
        for state in self._decoder.states:
            np.copyto(self.engine.inputs[state.input], outputs[state.output])
        scores: NDArray[np.float32] = outputs[self._scores][0].astype(np.float32)
        return scores

    def _log_probabilities(self, scores: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """Of the next token, those that must not come left out.

        Raises:
            EngineError: a score is not finite.
        """
        if not np.isfinite(scores).all():
            raise EngineError(
                f"the scores of '{self.name}' are not finite after {count} tokens: its input is out of the range it "
                "was made for, or the variant overflows (try --variant fp32)"
            )
        allowed = scores.copy()
        allowed[self._never if count else self._not_first] = -np.inf
        top = allowed.max()
        known: NDArray[np.float32] = allowed - (top + np.log(np.exp(allowed - top).sum()))
        return known

    def _text(self, tokens: tuple[int, ...] | list[int], total: float) -> TextOutput:
        written = tuple(token for token in tokens if token != self._decoder.end)
        return TextOutput(
            text=self._words(written),
            tokens=written,
            score=total / max(1, len(tokens)),
            is_complete=len(written) < len(tokens),
        )


class _Hypothesis(NamedTuple):
    tokens: tuple[int, ...]
    total: float
    """Log probability of all of them."""
    scores: NDArray[np.float32]
    """Of what comes next."""
    states: Mapping[str, NDArray[Any]]

    def mean(self) -> float:
        """Log probability a token: what makes texts of different lengths comparable."""
        return self.total / len(self.tokens)
