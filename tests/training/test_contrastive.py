"""The contrastive loss: against a direct computation, and learning what it is for."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_mbm.errors import InputError
from edge_mbm.models import Similarity
from edge_mbm.training import FitOptions, contrastive_loss, fit
from edge_mbm.training.contrastive import MAX_LOG_SCALE


def pairs(count: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, count, width)).astype(np.float32)
    return torch.from_numpy(first), torch.from_numpy(second)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 9), seed=st.integers(0, 1000), log_scale=st.floats(-1, 4), groups=st.integers(1, 9))
def test_it_is_the_mean_of_both_directions(count: int, seed: int, log_scale: float, groups: int) -> None:
    """Summed up in float64 from the definition, with and without rows that belong together."""
    first, second = pairs(count, 5, seed)
    classes = np.random.default_rng(seed).integers(groups, size=count)
    for labels in (np.arange(count), classes):
        a, b = (x.numpy().astype(np.float64) for x in (first, second))
        cosines = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)[None]
        likeness, total = np.exp(np.exp(log_scale) * cosines), 0.0
        for table in (likeness, likeness.T):
            for row in range(count):
                own = [column for column in range(count) if labels[column] == labels[row]]
                chances = [table[row, column] / table[row].sum() for column in own]
                total -= sum(math.log(chance) for chance in chances) / len(own)
        got = contrastive_loss(first, second, torch.tensor(log_scale), torch.from_numpy(labels))
        assert float(got) == pytest.approx(total / (2 * count), rel=1e-3, abs=1e-4)
    alone = contrastive_loss(first, second, torch.tensor(log_scale))
    assert float(alone) == pytest.approx(
        float(contrastive_loss(first, second, torch.tensor(log_scale), torch.arange(count))), abs=1e-6
    )


def test_where_nothing_is_told_apart_it_is_the_logarithm_of_the_batch() -> None:
    """All alike: every pair is as likely as every other."""
    same = torch.ones(8, 3)
    assert float(contrastive_loss(same, same, torch.tensor(2.0))) == pytest.approx(math.log(8))


def test_the_temperature_stays_within_clips_bound() -> None:
    """A scale of above 100 counts as 100."""
    first, second = pairs(6, 4, 0)
    bound, beyond = (contrastive_loss(first, second, torch.tensor(x)) for x in (MAX_LOG_SCALE, 50.0))
    assert float(beyond) == float(bound)


@pytest.mark.parametrize(
    ("first", "second"), [((1, 4), (1, 4)), ((3, 4), (2, 4)), ((3, 4), (3, 5)), ((3, 4, 2), (3, 4, 2))]
)
def test_what_are_no_pairs_is_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """With both shapes."""
    with pytest.raises(InputError, match="two batches of embeddings"):
        contrastive_loss(torch.zeros(first), torch.zeros(second), torch.tensor(1.0))


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen, self.said = nn.Linear(12, 6, bias=False), nn.Linear(9, 6, bias=False)
        self.head = Similarity()


def test_pairs_that_were_never_seen_are_matched_after_training() -> None:
    """Two views of the same things: from a chance of 1 in 64 to nearly all, and the temperature has been learnt."""
    rng = np.random.default_rng(0)
    mix_seen, mix_said = rng.normal(size=(5, 12)), rng.normal(size=(5, 9))

    def views(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        things = rng.normal(size=(count, 5))
        return tuple(torch.from_numpy((things @ mix).astype(np.float32)) for mix in (mix_seen, mix_said))  # type: ignore[return-value]

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield views(64)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Towers()
    test = views(64)

    def recall() -> float:
        with torch.inference_mode():
            logits = model.head(model.seen(test[0]), model.said(test[1]).expand(64, 64, 6))
        return float((logits.argmax(1) == torch.arange(64)).float().mean())

    before = recall()
    fit(
        model,
        batches(),
        lambda batch: contrastive_loss(model.seen(batch[0]), model.said(batch[1]), model.head.log_scale),
        FitOptions(steps=200, learning_rate=1e-2),
    )
    assert before < 0.15
    assert recall() > 0.9
    assert model.head.log_scale.item() != pytest.approx(math.log(1 / 0.07))
