"""A short fine-tune of a model against its own float self, computing as it will in 8 bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edge_mbm.errors import InputError

__all__ = ["DistillOptions", "distill", "fake_quantized"]

_WEIGHTED = {torch.conv1d, torch.conv2d, nn.functional.linear}
_SUMS = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.add_, torch.Tensor.__iadd__}
_SAMPLES = 1 << 18
"""Of a tensor's values, enough for a quantile."""


@dataclass(frozen=True)
class DistillOptions:
    """How to tune.

    Args:
        steps: batches to learn from; the learning rate falls to 0 along a half cosine.
        learning_rate: how far a weight may go in a step, as a share of its tensor's root mean square.
        observe: batches of which the activations' ranges are taken first.
        percentile: the central percent of an activation's values that its range holds.
        seed: of torch's random numbers while tuning.
    """

    steps: int = 150
    learning_rate: float = 1e-4
    observe: int = 4
    percentile: float = 99.999
    seed: int = 0


def distill(
    module: nn.Module,
    batches: Callable[[], Iterable[tuple[Tensor, ...]]],
    options: DistillOptions,
    on_step: Callable[[int, int], None],
) -> nn.Module:
    """Tune weights so that, once rounded, they give what the float module gave: no labels are needed.

    In each step weights are rounded to 8 bits per output channel, inputs of convolutions and matrix products, and of
    sums of two activations, to 8 bits per tensor; gradients pass the rounding as if it were not there (Bengio et al.
    2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877). Normalization stays as in evaluation, so that scales
    per output channel are those of the merged weights. The loss is the squared distance of each output to the float
    module's, over that output's variance.

    Args:
        module: in evaluation mode or not; it is left alone. All tensors that it returns are learnt from.
        batches: starts anew at each call; each batch is the module's positional inputs.
        options: see ``DistillOptions``.
        on_step: called after each step with its number from 1 and the number of steps.

    Returns:
        A float module of the same kind with tuned weights, in evaluation mode.

    Raises:
        InputError: there are too few batches, or the module has nothing to round.
        FloatingPointError: the loss is not finite.
    """
    teacher = copy.deepcopy(module).eval().requires_grad_(requires_grad=False)
    student = copy.deepcopy(module).eval()
    optimizer, schedule = _optimizer(student, options)
    ranges = _observed(teacher, _first(batches, options.observe, "observe"), options.percentile)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        for step, batch in enumerate(_first(batches, options.steps, "learn from"), 1):
            with torch.no_grad():
                wanted = _tensors(teacher(*batch))
            with _Rounding(ranges):
                found = _tensors(student(*batch))
            loss = torch.stack([_distance(*pair) for pair in zip(found, wanted, strict=True)]).sum()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} at step {step}: lower the learning rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            on_step(step, options.steps)
    return student.requires_grad_(requires_grad=False)


def fake_quantized(module: nn.Module, observe: Sequence[tuple[Tensor, ...]], percentile: float = 99.999) -> nn.Module:
    """A module that computes as ``distill`` sees it, to look at what 8 bits do without writing a graph.

    Args:
        module: float, in evaluation mode.
        observe: inputs that ranges are taken of.
        percentile: as in ``DistillOptions``.
    """
    return _FakeQuantized(module, _observed(module, observe, percentile))


class _FakeQuantized(nn.Module):
    def __init__(self, module: nn.Module, ranges: list[tuple[float, float]]) -> None:
        super().__init__()
        self.module, self._ranges = module, ranges

    def forward(self, *inputs: Tensor) -> Any:
        with _Rounding(self._ranges):
            return self.module(*inputs)


class _Sites(TorchFunctionMode):
    """Every activation that is rounded in 8 bits, in the order in which ``forward`` comes to them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WEIGHTED and len(args) >= 2:
            return func(self.activation(args[0]), self.weight(args[1]), *args[2:], **kwargs)
        if func in _SUMS and _is_sum_of_activations(args):
            return func(self.activation(args[0]), self.activation(args[1]), *args[2:], **kwargs)
        return func(*args, **kwargs)

    def activation(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def weight(self, value: Tensor) -> Tensor:
        return value


class _Observing(_Sites):
    def __init__(self, percentile: float) -> None:
        super().__init__()
        self._tail = (100 - percentile) / 200
        self.ranges: list[tuple[float, float]] = []

    def activation(self, value: Tensor) -> Tensor:
        flat = value.detach().float().flatten()
        low, high = torch.quantile(flat[:: 1 + flat.numel() // _SAMPLES], torch.tensor([self._tail, 1 - self._tail]))
        self.ranges.append((min(low.item(), 0.0), max(high.item(), 0.0)))
        return value


class _Rounding(_Sites):
    """Weights and activations rounded, for one forward pass."""

    def __init__(self, ranges: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self._ranges = iter(ranges)

    def activation(self, value: Tensor) -> Tensor:
        low, high = next(self._ranges, (0.0, 0.0))
        step = (high - low) / 255
        if step == 0:
            return value
        zero = round(-low / step)
        inside = value.clamp(-zero * step, (255 - zero) * step)
        return inside + ((inside / step).round() * step - inside).detach()

    def weight(self, value: Tensor) -> Tensor:
        largest = value.detach().abs().flatten(1).amax(1).clamp_min(torch.finfo(value.dtype).tiny)
        step = (largest / 127).reshape(-1, *[1] * (value.ndim - 1))
        return value + ((value / step).round() * step - value).detach()


def _is_sum_of_activations(args: tuple[Any, ...]) -> bool:
    """Not a bias, not a constant: two tensors of one shape with a batch."""
    if len(args) < 2 or not all(isinstance(value, Tensor) and value.is_floating_point() for value in args[:2]):
        return False
    left, right = args[:2]
    return left.shape == right.shape and left.ndim > 1 and not any(isinstance(v, nn.Parameter) for v in (left, right))


def _observed(module: nn.Module, batches: Iterable[tuple[Tensor, ...]], percentile: float) -> list[tuple[float, float]]:
    """Of each site, the widest range over the batches."""
    ranges: list[tuple[float, float]] = []
    for batch in batches:
        with torch.no_grad(), _Observing(percentile) as seen:
            module(*batch)
        if ranges and len(ranges) != len(seen.ranges):
            raise InputError("the module computes other layers for other inputs: it cannot be distilled")
        before = ranges or seen.ranges
        ranges = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(before, seen.ranges, strict=True)]
    if not ranges:
        raise InputError("the module has no convolution or matrix product to round, or there were no batches")
    return ranges


def _optimizer(
    student: nn.Module, options: DistillOptions
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Each parameter at a rate of its own: Adam's steps have the size of the rate, and weights are of all sizes."""
    groups = [
        {"params": [parameter], "lr": options.learning_rate * float(parameter.detach().square().mean().sqrt() + 1e-8)}
        for parameter in student.requires_grad_(requires_grad=True).parameters()
    ]
    if not groups:
        raise InputError("the module has no weights to tune")
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)


def _first(
    batches: Callable[[], Iterable[tuple[Tensor, ...]]], count: int, purpose: str
) -> Iterator[tuple[Tensor, ...]]:
    supply = iter(batches())
    for number in range(count):
        batch = next(supply, None)
        if batch is None:
            raise InputError(
                f"there are {number} batches to {purpose}, {count} are needed: give more, or lower the steps"
            )
        yield batch


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().mean() / wanted.var().clamp_min(1e-12)


def _tensors(outputs: Any) -> list[Tensor]:
    """All floating tensors of what a module returns."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for part in parts for tensor in _tensors(part)]
