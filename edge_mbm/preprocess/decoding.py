"""From a decoder's scores to tokens: the likeliest at each step, or a beam search. The same code on both sides.

Whoever computes the steps, a device's engine or the model itself, is a ``Stepper``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from edge_mbm.errors import EngineError
from edge_mbm.spec import Decoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Decoding", "Scored", "Stepper"]


class Stepper(Protocol):
    """Computes one step of a decoder, and carries what it has seen of one text.

    A protocol because a device's engine, a framework's module and an ONNX graph take turns behind it.
    """

    def step(self, token: int, place: int) -> NDArray[np.float32]:
        """The scores of what comes after a token at a place, float32[tokens], to keep."""
        ...

    def save(self) -> Any:
        """What has been seen so far, to go back to."""
        ...

    def restore(self, saved: Any) -> None:
        """Go back; what was saved may be restored again."""
        ...


class Scored(NamedTuple):
    """A token that was chosen."""

    token: int
    log_probability: float


class Decoding:
    """Chooses tokens as a decoder's manifest entry says.

    Args:
        decoder: what texts begin and end with, and which tokens never come.
        name: the component's, for messages.
        max_tokens: of one text besides those it begins with; None for as many as the decoder can.
    """

    def __init__(self, decoder: Decoder, name: str, max_tokens: int | None = None) -> None:
        room = decoder.max_tokens - len(decoder.start)
        self.most = room if max_tokens is None else min(room, max_tokens)
        """Tokens of one text, the ending one among them."""
        self._decoder = decoder
        self._name = name
        self._never = np.array(decoder.suppress, np.int64)
        self._not_first = np.array([*decoder.suppress, *decoder.suppress_first], np.int64)

    def greedy(self, stepper: Stepper) -> Iterator[Scored]:
        """The likeliest token at each step, up to the end or the budget; the ending one is among them.

        Raises:
            EngineError: a score is not finite.
        """
        scores = self._begin(stepper)
        for count in range(self.most):
            known = self._log_probabilities(scores, count)
            token = int(known.argmax())
            yield Scored(token, float(known[token]))
            if token == self._decoder.end or count + 1 == self.most:
                return
            scores = stepper.step(token, len(self._decoder.start) + count)

    def search(self, stepper: Stepper, beams: int) -> list[Scored]:
        """The best of several hypotheses by mean log probability of a token.

        It goes on until as many have ended as are followed, and none that goes on is better so far.

        Raises:
            EngineError: a score is not finite.
        """
        scores = self._begin(stepper)
        going = [_Hypothesis((), scores, stepper.save())]
        ended: list[_Hypothesis] = []
        for count in range(self.most):
            going = self._extended(going, beams, count, ended)
            if not going or count + 1 == self.most or _is_decided(going, ended, beams):
                break
            going = [self._advanced(stepper, hypothesis, count) for hypothesis in going]
        return list(max(ended or going, key=_Hypothesis.mean).chosen)

    def written(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Those that are part of the text: all but the ending one."""
        return tuple(token for token in tokens if token != self._decoder.end)

    def _begin(self, stepper: Stepper) -> NDArray[np.float32]:
        for place, token in enumerate(self._decoder.start):
            scores = stepper.step(token, place)
        return scores

    def _extended(
        self, going: Sequence[_Hypothesis], beams: int, count: int, ended: list[_Hypothesis]
    ) -> list[_Hypothesis]:
        """The best hypotheses that are one token longer; those of the best that end with it go to ``ended``."""
        longer = []
        for old in going:
            known = self._log_probabilities(old.scores, count)
            wide = min(2 * beams, len(known))  # enough, even if half of them end here
            best = (Scored(int(token), float(known[token])) for token in np.argpartition(-known, wide - 1)[:wide])
            longer += [old._replace(chosen=(*old.chosen, scored)) for scored in best]
        longer.sort(key=lambda hypothesis: -hypothesis.total())
        ended += [hypothesis for hypothesis in longer[:beams] if self._has_ended(hypothesis)]
        return [hypothesis for hypothesis in longer if not self._has_ended(hypothesis)][:beams]

    def _has_ended(self, hypothesis: _Hypothesis) -> bool:
        return hypothesis.chosen[-1].token == self._decoder.end

    def _advanced(self, stepper: Stepper, hypothesis: _Hypothesis, count: int) -> _Hypothesis:
        stepper.restore(hypothesis.seen)
        scores = stepper.step(hypothesis.chosen[-1].token, len(self._decoder.start) + count)
        return hypothesis._replace(scores=scores, seen=stepper.save())

    def _log_probabilities(self, scores: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """Of the next token, those that must not come left out."""
        if not np.isfinite(scores).all():
            raise EngineError(
                f"the scores of '{self._name}' are not finite after {count} tokens: its input is out of the range it "
                "was made for, or the variant overflows (try --variant fp32)"
            )
        allowed = scores.copy()
        allowed[self._never if count else self._not_first] = -np.inf
        top = allowed.max()
        known: NDArray[np.float32] = allowed - (top + np.log(np.exp(allowed - top).sum()))
        return known


class _Hypothesis(NamedTuple):
    chosen: tuple[Scored, ...]
    scores: NDArray[np.float32]
    """Of what comes next."""
    seen: Any
    """As ``Stepper.save`` gave it."""

    def total(self) -> float:
        """Log probability of all of it."""
        return sum(scored.log_probability for scored in self.chosen)

    def mean(self) -> float:
        """Of one token: what makes texts of different lengths comparable."""
        return self.total() / len(self.chosen)


def _is_decided(going: Sequence[_Hypothesis], ended: Sequence[_Hypothesis], beams: int) -> bool:
    return len(ended) >= beams and max(map(_Hypothesis.mean, ended)) >= max(map(_Hypothesis.mean, going))
