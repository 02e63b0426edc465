"""Prompts scored by their cosine with a picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_mbm.models import EachLine, Similarity


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), stretch=st.floats(1e-3, 1e3))
def test_it_is_the_cosine_times_the_scale(seed: int, stretch: float) -> None:
    """Against numpy, pair by pair; how long the vectors are does not matter."""
    rng = np.random.default_rng(seed)
    seen, said = rng.normal(size=(3, 8)), rng.normal(size=(3, 5, 8))
    head = Similarity(scale=20.0, bias=-3.0)
    with torch.inference_mode():
        given_ = head(torch.tensor(seen * stretch, dtype=torch.float32), torch.tensor(said, dtype=torch.float32))
    for row in range(3):
        for line in range(5):
            cosine = seen[row] @ said[row, line] / np.linalg.norm(seen[row]) / np.linalg.norm(said[row, line])
            assert float(given_[row, line]) == pytest.approx(20 * cosine - 3, abs=1e-4)


def test_a_row_without_a_prompt_is_finite() -> None:
    """Zeros have no direction: they score the bias."""
    assert Similarity(scale=5.0, bias=0.5)(torch.ones(1, 4), torch.zeros(1, 2, 4)).tolist() == [[0.5, 0.5]]


def test_the_temperature_is_clips() -> None:
    """Unless told otherwise 0.07, kept as its logarithm, and learnt."""
    head = Similarity()
    assert head.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    head(torch.ones(1, 2), torch.eye(2)[None]).sum().backward()
    assert head.log_scale.grad is not None


class Sum(nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.stack([(ids * mask).sum(1), ids[:, 0]], 1).float()


def test_each_line_is_a_text_of_its_own() -> None:
    """The rows go through the encoder as a batch, and come back where they were."""
    ids = torch.arange(24).reshape(2, 3, 4)
    mask = (ids % 2 == 0).long()
    got = EachLine(Sum())(ids, mask)
    assert got.shape == (2, 3, 2)
    assert torch.equal(got[1, 2], Sum()(ids[1, 2:3], mask[1, 2:3])[0])
