"""How samples pass the layers: what a linear network of factors cannot know.

A neuron's gate says what the neuron makes of a small change of its current. A maximum takes some
pixels, and a normalisation scales. A product of two layers' values, as of queries and keys or of a
gate and what it lets through, is linear in each of the two where the other one is given. All are
kept in the forward pass, as means over the steps, and none is a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Backward",
    "BatchNorm",
    "Derivative",
    "Named",
    "Taken",
    "Way",
    "Ways",
    "course_of",
    "index_of",
    "layer_of",
    "normalised",
    "on_average",
    "product",
    "scaled",
    "sizes_of",
    "softmax",
    "value_name",
]

#: By name: a stand-in's values [M, ...], by :func:`value_name`, or the factors.
Named: TypeAlias = Mapping[str, Tensor]


#: Between a layer and the number of its value; no name of a module has an empty part.
_NUMBER = ".."


def value_name(layer: str, index: int) -> str:
    """Return the name of a value that a layer hands out; of its spikes it is that of the layer.

    Example:
        >>> value_name("lif1", 0), value_name("lif1", 1)
        ('lif1', 'lif1..1')
    """
    return f"{layer}{_NUMBER}{index}" if index else layer


def layer_of(value: str) -> str:
    """Return the layer of a value that :func:`value_name` has named."""
    return value.partition(_NUMBER)[0]


def index_of(value: str) -> int:
    """Return which of its layer's values one is that :func:`value_name` has named."""
    return int(value.partition(_NUMBER)[2] or 0)


@dataclass(frozen=True)
class Taken:
    """Which pixels a maximum was of, for each sample.

    Args:
        sample: [channels, *S] of one sample that came in.
        steps: Of each step [M, channels, windows], the pixel's number in its channel.
    """

    sample: tuple[int, ...]
    steps: Sequence[Tensor]

    def spread(self, error: Tensor) -> Tensor:
        """Return errors of windows [M, channels, *] at the pixels, as a mean over the steps."""
        error = (error / len(self.steps)).flatten(2)
        out = error.new_zeros(*error.shape[:2], math.prod(self.sample[1:]))
        for at in self.steps:
            out.scatter_add_(2, at, error)
        return out.reshape(len(error), *self.sample)

    def mean(self) -> Tensor:
        """Return of each pixel the share of samples and steps in which it was the largest."""
        first = self.steps[0]
        ones = torch.ones(first.shape, device=first.device)
        return self.spread(ones).mean(0, keepdim=True)


@dataclass(frozen=True)
class Derivative:
    """A function's derivative for each sample.

    Args:
        back: From errors of the function [M, ...] and what is kept to those of all that it is a
            function of; linear in the errors.
        kept: [M or 1, ...] each.
    """

    back: Callable[..., tuple[Tensor, ...]]
    kept: tuple[Tensor, ...]

    def send(self, error: Tensor) -> tuple[Tensor, ...]:
        """Return what errors [M, ...] become before the function."""
        return self.back(error, *(t.to(error.dtype) for t in self.kept))

    def mean(self) -> Derivative:
        """Return that at the mean over samples of what is kept."""
        return Derivative(self.back, tuple(t.mean(0, keepdim=True) for t in self.kept))


@dataclass(frozen=True)
class Backward:
    """A function's derivative for each sample, as autograd has it.

    Of other errors than one for each sample, each takes the way of one of the samples.

    Args:
        batch: How many samples there are.
        calls: Of each call of the function the number of its steps, and from errors of its steps
            and samples [T * B, ...] to those of all that it is a function of.
    """

    batch: int
    calls: Sequence[tuple[int, Callable[[Tensor], Sequence[Tensor]]]]

    def send(self, error: Tensor) -> tuple[Tensor, ...]:
        """Return what errors [M, ...] become before the function, as a mean over its steps."""
        rows = len(error)
        error = error.flatten(1)
        if rows % self.batch:
            error = torch.cat([error, error.new_zeros(-rows % self.batch, error.shape[1])])
        groups = [self._sent(group) for group in torch.split(error, self.batch)]
        return tuple(torch.cat(each)[:rows] for each in zip(*groups, strict=True))

    def _sent(self, error: Tensor) -> list[Tensor]:
        total: list[Tensor] = []
        for steps, back in self.calls:
            found = back(error.expand(steps, *error.shape).flatten(0, 1))
            sent = [e.reshape(steps, self.batch, -1).sum(0) for e in found]
            total = [a + b for a, b in zip(total, sent, strict=True)] if total else sent
        count = sum(steps for steps, _ in self.calls)
        return [e / count for e in total]

    def mean(self) -> Backward:
        """Return that of one of the calls."""
        return Backward(self.batch, [self.calls[len(self.calls) // 2]])


def scaled(dims: Sequence[list[int]], error: Tensor, *gains: Tensor) -> tuple[Tensor, ...]:
    """Send errors back through a function of each number alone.

    Args:
        dims: Of each value the dimensions, counted from the last, along which it was repeated.
        error: [M, ...].
        gains: The derivative at each value, [M or 1, *S].
    """
    error = error.reshape(len(error), *gains[0].shape[1:])
    sent = (error * gain for gain in gains)
    return tuple(e.sum(d, keepdim=True) if d else e for e, d in zip(sent, dims, strict=True))


def product(sides: str, error: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Send errors back through a product of matrices.

    Args:
        sides: ``"l"``, ``"r"`` or ``"lr"``: which of the two are functions of layers.
        error: [M, ...].
        others: For each of them the other one, [M or 1, ..., rows, columns].
    """
    sent = []
    for side, other in zip(sides, others, strict=True):
        last = (-1, other.shape[-1]) if side == "l" else (other.shape[-2], -1)
        e = error.reshape(len(error), *other.shape[1:-2], *last)
        sent.append(e @ other.mT if side == "l" else other.mT @ e)
    return tuple(sent)


def softmax(dim: int, error: Tensor, shares: Tensor) -> tuple[Tensor]:
    """Send errors back through a softmax along a dimension, counted from the last."""
    error = error.reshape(len(error), *shares.shape[1:]) * shares
    return (error - shares * error.sum(dim, keepdim=True),)


def normalised(error: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> tuple[Tensor]:
    """Send errors back through a normalisation of groups of a sample's numbers.

    Args:
        error: [M, ...].
        x: Normalised numbers [M or 1, groups, N].
        scale: One over the standard deviation of each group, [M or 1, groups, 1].
        weight: What each number is multiplied by afterwards, [M or 1, groups or 1, N].
    """
    error = error.reshape(len(error), *x.shape[1:]) * weight
    away = x * (error * x).mean(-1, keepdim=True)
    return (scale * (error - error.mean(-1, keepdim=True) - away),)


@dataclass(frozen=True)
class BatchNorm:
    """A batch normalisation.

    Args:
        gains: What it multiplies by, [channels].
        of_batch: Whether it takes the batch's own mean away, so that a common part of the batch's
            errors changes nothing before it.
    """

    gains: Tensor
    of_batch: bool

    def send(self, error: Tensor) -> Tensor:
        """Return what errors [M, channels, *S] become before it."""
        gains = self.gains.reshape(-1, *(1,) * (error.dim() - 2))
        if not self.of_batch:
            return error * gains
        return (error - error.mean([0, *range(2, error.dim())], keepdim=True)).mul_(gains)

    def mean(self) -> BatchNorm:
        """Return that of other errors than the batch's."""
        return replace(self, of_batch=False)


def on_average(gates: Tensor) -> Tensor:
    r"""Return each neuron's mean gate, times the sample's mean size beside that of all samples.

    Args:
        gates: [M, \*S].

    Example:
        >>> on_average(torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]]))
        tensor([[2.6667, 1.3333, 0.0000],
                [1.3333, 0.6667, 0.0000]])
    """
    # In the order in which a sample lies in memory: with channels last it is many times as fast.
    order = sorted(range(1, gates.dim()), key=gates.stride, reverse=True)
    ordered = gates.permute(0, *order)
    rows = ordered.reshape(len(gates), -1)
    sizes = rows.mean(1, keepdim=True).abs()
    usual = rows.mean(0) * (sizes / sizes.mean().clamp_min(1e-30))
    return usual.view(ordered.shape).permute(0, *(1 + order.index(d) for d in sorted(order)))


def sizes_of(errors: Tensor) -> Tensor:
    """Return the sum of the sizes of each step's errors [T, ...] as [T]."""
    dtype = torch.promote_types(errors.dtype, torch.float32)
    dims = tuple(range(1, errors.dim()))
    return torch.linalg.vector_norm(errors, 1, dim=dims, dtype=dtype)


def course_of(sizes: Tensor) -> Tensor:
    """Return the sizes of all steps [T] beside their mean; zeros where all are zero.

    Example:
        >>> course_of(torch.tensor([3.0, 2.0, 1.0]))
        tensor([1.5000, 1.0000, 0.5000])
    """
    return sizes / sizes.mean().clamp_min(torch.finfo(sizes.dtype).tiny)


#: How samples have passed one function.
Way: TypeAlias = Tensor | Taken | BatchNorm | Derivative | Backward


@dataclass(frozen=True)
class Ways:
    """How samples have passed a network, as means over its steps; M samples, or 1 for all.

    Args:
        gates: Value of a layer to [M, *S]: what the value, summed over the steps, gains by a change
            of the layer's current.
        local: By layer and number. A pooling's pixels; of all samples together [1, channels, *S],
            the share of steps in which a pixel was the largest of its window. A batch
            normalisation. The derivative of another function.
        steps: Value of a gated cell to its gates at each step.
        courses: Layer, or output, to how large the errors at its current are at each step, [T] with
            mean 1 or 0: of a layer with gates they are as large as these.
    """

    gates: Named = field(default_factory=dict)
    local: Mapping[str, Way] = field(default_factory=dict)
    courses: Named = field(default_factory=dict)
    steps: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    def into(self, layers: Container[str]) -> Ways:
        """Return those into some layers alone, without courses."""
        return Ways(
            {name: gate for name, gate in self.gates.items() if layer_of(name) in layers},
            {key: each for key, each in self.local.items() if key.rpartition(" ")[0] in layers},
        )

    def mixed(self, share: float) -> Ways:
        """Return gates that are, but for a share, what neuron and sample have on average."""
        gates = {
            value: gate if value in self.steps else on_average(gate).lerp_(gate, share)
            for value, gate in self.gates.items()
        }
        return replace(self, gates=gates)

    def mean(self) -> Ways:
        """Return the means over samples, without courses."""
        return Ways(
            {name: gate.mean(0, keepdim=True) for name, gate in self.gates.items()},
            {k: t if isinstance(t, Tensor) else t.mean() for k, t in self.local.items()},
        )
