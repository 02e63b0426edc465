"""A training loop: batches in, a trained model out, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from edge_mbm.errors import InputError

__all__ = ["FitOptions", "fit"]

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class FitOptions:
    """How to train.

    Args:
        steps: batches to take; the learning rate rises over the first tenth and then falls to 0 (Smith and Topin 2018).
        learning_rate: the highest.
        weight_decay: of AdamW (Loshchilov and Hutter 2019).
        clip_norm: gradients are scaled down to this norm, which recurrent encoders need (Pascanu et al. 2013).
        seed: of torch's random numbers during training, such as those of dropout layers.
    """

    steps: int
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    seed: int = 0


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[Batch], Tensor],
    options: FitOptions,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train a model in place; it is left in evaluation mode. The caller's random state is left alone.

    Args:
        model: whose parameters are trained.
        batches: at least ``options.steps`` of them; no more are drawn.
        loss: of a batch, a scalar to minimise.
        options: see ``FitOptions``.
        progress: called after each step with its number from 1 and its loss.

    Raises:
        FloatingPointError: the loss is not finite.
        InputError: there are fewer batches than steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.steps, pct_start=0.1
    )
    supply = iter(batches)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        for step in range(1, options.steps + 1):
            value = loss(_next(supply, step, options.steps))
            _update(model, value, optimizer, options.clip_norm, step)
            schedule.step()
            if progress is not None:
                progress(step, value.item())
    model.eval()


def _update(model: nn.Module, value: Tensor, optimizer: torch.optim.Optimizer, clip_norm: float, step: int) -> None:
    if not torch.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value.item()} at step {step}: lower the learning rate, or check the data"
        )
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()


def _next(supply: Iterable[Batch], step: int, steps: int) -> Batch:
    for batch in supply:
        return batch
    raise InputError(f"training takes {steps} batches, but they ended before step {step}")
