"""The training loop and modality dropout."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_mbm.errors import InputError
from edge_mbm.training import FitOptions, fit, modality_dropout

WEIGHTS = torch.tensor([[2.0, -1.0]])


def batches(count: int) -> list[Tensor]:
    return list(torch.randn(count, 16, 2, generator=torch.Generator().manual_seed(3)))


def trained(seed: int = 0, steps: int = 20) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(9)
    model = nn.Sequential(nn.Dropout(0.3), nn.Linear(2, 1))
    losses: list[float] = []
    options = FitOptions(steps=steps, learning_rate=0.05, seed=seed)
    fit(
        model,
        batches(steps),
        lambda x: (model(x) - x @ WEIGHTS.T).square().mean(),
        options,
        lambda _, x: losses.append(x),
    )
    return model, losses


def test_fit_finds_known_weights() -> None:
    """On a linear problem without noise, the loop finds the weights that made the data."""
    model = nn.Linear(2, 1)
    options = FitOptions(steps=400, learning_rate=0.05, weight_decay=0.0)
    fit(model, batches(400), lambda x: (model(x) - x @ WEIGHTS.T).square().mean(), options)
    torch.testing.assert_close(model.weight, nn.Parameter(WEIGHTS), atol=0.02, rtol=0.0)


def test_the_same_seed_gives_the_same_model() -> None:
    """Weights and losses repeat bit for bit, dropout layers included; another seed gives others."""
    first, losses = trained()
    again, losses_again = trained()
    _, losses_other = trained(seed=1)
    assert losses == losses_again != losses_other
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_callers_random_numbers_are_left_alone() -> None:
    """Training does not move torch's global generator."""
    torch.manual_seed(9)
    nn.Linear(2, 1)
    expected = torch.rand(3)
    trained()
    assert torch.equal(torch.rand(3), expected)


def test_no_more_batches_are_drawn_than_steps() -> None:
    """An endless supply is fine, and nothing is taken from it in vain."""
    supply = iter(batches(10))
    model = nn.Linear(2, 1)
    fit(model, supply, lambda x: model(x).square().mean(), FitOptions(steps=4))
    assert len(list(supply)) == 6
    assert not model.training


def test_too_few_batches_is_an_error() -> None:
    """Training that ends early would leave the learning rate high, so it is said, with the step."""
    model = nn.Linear(2, 1)
    with pytest.raises(InputError, match="takes 5 batches, but they ended before step 4"):
        fit(model, batches(3), lambda x: model(x).square().mean(), FitOptions(steps=5))


def test_a_loss_that_is_not_finite_stops_training() -> None:
    """The weights from before the bad step are kept, and the error names the step."""
    model = nn.Linear(2, 1)
    data = itertools.chain(batches(2), [torch.full((16, 2), float("nan"))])
    with pytest.raises(FloatingPointError, match="nan at step 3"):
        fit(model, data, lambda x: model(x).square().mean(), FitOptions(steps=3))
    assert torch.isfinite(model.weight).all()


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 5), st.floats(0, 1), st.integers(0, 2**31))
def test_dropout_never_drops_all(batch: int, modalities: int, probability: float, seed: int) -> None:
    """Each row keeps a modality, whatever the probability; the masks are 0 and 1 and repeat with the seed."""
    masks = modality_dropout(batch, modalities, probability, torch.Generator().manual_seed(seed))
    assert masks.shape == (batch, modalities)
    assert (masks.sum(1) >= 1).all()
    assert set(masks.flatten().tolist()) <= {0.0, 1.0}
    assert torch.equal(masks, modality_dropout(batch, modalities, probability, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(("probability", "modalities"), [(0.0, 2), (0.3, 2), (1.0, 2), (0.4, 4)])
def test_dropout_has_its_probability(probability: float, modalities: int) -> None:
    """Each modality stays as often as one sure place among all, and chance for the rest, make it."""
    masks = modality_dropout(20000, modalities, probability, torch.Generator().manual_seed(0))
    expected = 1 - probability * (1 - 1 / modalities)
    torch.testing.assert_close(masks.mean(0), torch.full((modalities,), expected), atol=0.015, rtol=0.0)
