"""A decoder at work: from an embedding to text, one token at a time.

The graph computes one step (``spec.Decoder``): the last token and its place in, the next token's scores out. What it
has seen so far is in states of fixed size, so that nothing grows with a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_mbm.errors import InputError
from edge_mbm.preprocess import Decoding, Detokenizer, Scored
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
    """Feeds a decoder's engine, step by step. It is the ``Stepper`` of its own decoding.

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
        self._beams = options.beams
        self._decoding = Decoding(component, name, options.max_tokens)
        self._words = Detokenizer(assets[component.tokenizer])
        [self._output] = component.outputs
        self._stage = f"infer.{name}"

    def compute(self, sources: Mapping[str, Any], stages: dict[str, int]) -> dict[str, Any]:
        """The text, as ``{output: TextOutput}``; ``stages`` receives the time of all steps together, ns."""
        started = perf_counter_ns()
        self._read(sources)
        chosen = list(self._decoding.greedy(self)) if self._beams == 1 else self._decoding.search(self, self._beams)
        stages[self._stage] = perf_counter_ns() - started
        return {self._output: self._text(chosen)}

    def pieces(self, sources: Mapping[str, Any]) -> Iterator[Piece]:
        """The text as it comes, the likeliest token at each step; whoever stops asking ends it."""
        self._read(sources)
        told, tokens = "", list[int]()
        for scored in self._decoding.greedy(self):
            tokens.append(scored.token)
            text = self._words.partial(self._decoding.written(tokens))
            yield Piece(text[len(told) :], *scored)
            told = text

    def step(self, token: int, place: int) -> NDArray[np.float32]:
        """See ``Stepper``."""
        self.engine.inputs[self._decoder.token][...] = token
        self.engine.inputs[self._decoder.position][...] = place
        outputs = self.engine.run({})
        self._states.carry(outputs)
        scores: NDArray[np.float32] = outputs[self._output][0].astype(np.float32)
        return scores

    def save(self) -> dict[str, NDArray[Any]]:
        """See ``Stepper``."""
        return self._states.save()

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """See ``Stepper``."""
        self._states.restore(saved)

    def _read(self, sources: Mapping[str, Any]) -> None:
        """What is to be decoded is written once, and no text has begun."""
        self.reset()
        self._states.hold({key: sources[value.source] for key, value in self._decoder.inputs.items()})

    def _text(self, chosen: list[Scored]) -> TextOutput:
        tokens = self._decoding.written([scored.token for scored in chosen])
        return TextOutput(
            text=self._words(tokens),
            tokens=tokens,
            score=sum(scored.log_probability for scored in chosen) / max(1, len(chosen)),
            is_complete=len(tokens) < len(chosen),
        )
