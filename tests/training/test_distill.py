"""Tuning against the float self: the rounded net comes nearer to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from edge_mbm.errors import InputError
from edge_mbm.training.distill import DistillOptions, distill, fake_quantized


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU6())
        self.mix = nn.Conv2d(12, 12, 1)
        self.last = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.first(x)
        pooled = (features + self.mix(self.deep(features))).mean((2, 3))
        return pooled, self.last(pooled)


def batches(seed: int) -> Iterator[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield (nn.functional.interpolate(torch.randn(16, 3, 4, 4, generator=generator), scale_factor=3.0),)


@pytest.fixture(scope="module")
def net() -> Net:
    """Outlying weights leave the others a few steps of 8 bits, so rounding hurts."""
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.first[0].weight[:, 0, 0, 0] *= 40
        net.deep[0].weight[:, 0, 0, 0] *= 40
    return net


def error(float_net: nn.Module, tuned: nn.Module) -> float:
    """Of the last output, once rounded, on inputs that were not learnt from; relative."""
    supply = batches(1)
    rounded = fake_quantized(tuned, [next(supply) for _ in range(2)])
    [x] = next(supply)
    with torch.no_grad():
        wanted, got = float_net(x)[1], rounded(x)[1]
    return float((got - wanted).square().sum() / wanted.square().sum())


def test_distilling_brings_the_rounded_net_nearer(net: Net) -> None:
    """By a twentieth at least, on other inputs; the float module itself is left alone, and progress is told."""
    before = {key: value.clone() for key, value in net.state_dict().items()}
    steps: list[tuple[int, int]] = []
    tuned = distill(
        net, lambda: batches(2), DistillOptions(steps=60, learning_rate=1e-3), lambda *step: steps.append(step)
    )
    assert error(net, tuned) < error(net, net) * 0.95
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert steps == [(number, 60) for number in range(1, 61)]


def test_distilling_again_gives_the_same(net: Net) -> None:
    """Same data, same weights, and the caller's random numbers go on as if nothing had been."""
    state = torch.get_rng_state()
    first, second = (distill(net, lambda: batches(2), DistillOptions(steps=3), lambda *_: None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_normalization_is_not_retrained(net: Net) -> None:
    """Its running statistics stay, since what is exported has them merged into the weights."""
    tuned = distill(net, lambda: batches(2), DistillOptions(steps=3), lambda *_: None)
    for key, value in tuned.named_buffers():
        assert torch.equal(value, net.get_buffer(key))


def test_too_few_batches_and_nothing_to_round(net: Net) -> None:
    """Both are said, with what to change."""
    supply = batches(0)
    two = [next(supply), next(supply)]
    with pytest.raises(InputError, match="there are 2 batches to learn from, 5 are needed"):
        distill(net, lambda: two, DistillOptions(steps=5, observe=1), lambda *_: None)
    with pytest.raises(InputError, match="no convolution or matrix product"):
        distill(nn.PReLU(), lambda: batches(0), DistillOptions(steps=1), lambda *_: None)
