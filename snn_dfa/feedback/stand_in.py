"""What stands in for the functions between two layers, made of learned factors.

Between two layers lie weights, pooling, normalisation, sums. The stand-in has a factor of the same
shape in place of each weight, a mean in place of maximum pooling, and nothing in place of what acts
on each number alone: neurons, normalisation, dropout. So it is linear; ``jacobians.py`` puts it
together for all layers.

:class:`~snn_dfa.feedback.sample_ways.Ways` says how each sample has passed the network. With them
the stand-in is linear, too, and another one for each sample.

Rows [M] come first and in order. What follows them may have any shape, and is read as the next
function needs it: so a view of the program is none here. All values are zero: ``way_back.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional

from snn_dfa.feedback.cells import Cell
from snn_dfa.feedback.sample_ways import Backward, Derivative, Taken, layer_of, value_name
from snn_dfa.feedback.way_back import Value, added, joined, linear, through

__all__ = [
    "Inflow",
    "Known",
    "Values",
    "average",
    "concatenate",
    "convolve",
    "gain",
    "local",
    "mean",
    "multiply",
    "nothing",
    "pool",
    "reduce",
    "source",
    "stack",
    "total",
    "weigh",
]

#: Values of layers, by :func:`value_name`.
Values: TypeAlias = Mapping[str, Value]
#: Factors, and what of :attr:`Ways.local` is known.
Known: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Inflow:
    """What comes into a layer, as a linear function of other layers' values.

    Args:
        apply: From values [M, ...] of layers, and factors, among which are the numbers of
            :attr:`Ways.local`, to what comes in, [M, ...].
        values: The values that it takes, by :func:`value_name`.
        weights: The layers with weights whose factors it takes, in order.
        terms: Of a sum the parts, each with what it is multiplied by.
        steps: The dimension in which the program has set steps side by side, if it has: the inflow
            is that of one of them.
        needs: Names of the functions in :attr:`Ways.local` that pass nothing where these are not
            known.
        lost: Of functions that pass nothing since they are not known, the first one's name, and the
            layers whose values come by such functions alone.
        cell: Of a gated cell, whose input weights have made the inflow: several numbers for each of
            the cell's own.
    """

    apply: Callable[[Values, Known], Value]
    values: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    terms: tuple[tuple[Inflow, float], ...] = ()
    steps: int | None = None
    needs: tuple[str, ...] = ()
    lost: tuple[str, tuple[str, ...]] | None = None
    cell: Cell | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The layers whose values it takes."""
        return tuple(dict.fromkeys(map(layer_of, self.values)))

    @property
    def takes(self) -> frozenset[str]:
        """The values and the weights that it takes."""
        return frozenset((*self.values, *self.weights))

    def made(self, apply: Callable[[Values, Known], Value]) -> Inflow:
        """Return another function of the same values and factors."""
        return Inflow(apply, self.values, self.weights, needs=self.needs)

    def then(self, shape: Sequence[int], function: Callable[[Tensor], Tensor]) -> Inflow:
        """Return the inflow, each row in a shape, after one more function of tensors."""
        return self.made(lambda v, f: through(function, self.apply(v, f).reshape(-1, *shape)))

    def through(self, weight: str, function: Callable[[Value, Tensor], Value]) -> Inflow:
        """Return the inflow after a function of it and of a factor."""
        made = self.made(lambda v, f: function(self.apply(v, f), f[weight]))
        return replace(made, weights=(*self.weights, weight))


def source(layer: str, index: int = 0) -> Inflow:
    """Return a value of a layer: its spikes, or one of its states."""
    name = value_name(layer, index)
    # What an output hands back is one value, whichever it is.
    return Inflow(lambda values, _: values[name if name in values else layer], (name,))


def nothing(sample: Sequence[int]) -> Inflow:
    """Return what passes nothing, of a sample's shape."""

    def apply(values: Values, _: Known) -> Value:
        one = next(iter(values.values()))
        return Value(one.like, (len(one), *sample))

    return Inflow(apply)


def total(parts: Sequence[Inflow]) -> Inflow:
    """Return the sum of inflows; one that comes many times, as of many steps, is taken once."""
    found: dict[int, tuple[Inflow, float]] = {}
    for part in parts:
        for each, number in part.terms or ((part, 1.0),):
            found[id(each)] = each, found.get(id(each), (each, 0.0))[1] + number
    return _combined(tuple(found.values()), parts[0].steps)


def _combined(terms: tuple[tuple[Inflow, float], ...], steps: int | None) -> Inflow:
    def apply(values: Values, factors: Known) -> Value:
        first, *others = (_times(each.apply(values, factors), number) for each, number in terms)
        return added(first, *(other.reshape(*first.shape) for other in others))

    def _times(value: Value, number: float) -> Value:
        return value if number == 1 else linear(lambda e: e * number, value.shape, value)

    return replace(_joined([each for each, _ in terms], apply), terms=terms, steps=steps)


def stack(parts: Sequence[Inflow], dim: int) -> Inflow:
    """Return the inflow of one of many steps that are set side by side in a new dimension."""
    return replace(multiply(total(parts), 1 / len(parts)), steps=dim)


def reduce(x: Inflow, number: float = 1.0) -> Inflow:
    """Return the mean of the steps that :func:`stack` has set side by side, times a number."""
    return replace(multiply(x, number), steps=None)


def concatenate(parts: Sequence[Inflow | None], shapes: Sequence[tuple[int, ...]]) -> Inflow:
    """Return inflows side by side.

    Args:
        parts: ``None`` for one that no layer flows into.
        shapes: Of each, from the dimension on along which they are joined.
    """
    there = [part for part in parts if part is not None]

    def apply(values: Values, factors: Known) -> Value:
        made = [
            None if part is None else part.apply(values, factors).reshape(-1, *shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        one = next(m for m in made if m is not None)
        return joined(
            *(
                Value(one.like, (len(one), *shape)) if m is None else m
                for m, shape in zip(made, shapes, strict=True)
            )
        )

    return _joined(there, apply)


def _joined(parts: Sequence[Inflow], apply: Callable[[Values, Known], Value]) -> Inflow:
    """Return a function of all that some inflows are functions of."""
    return Inflow(
        apply,
        tuple(dict.fromkeys(v for part in parts for v in part.values)),
        tuple(dict.fromkeys(w for part in parts for w in part.weights)),
        needs=tuple(dict.fromkeys(n for part in parts for n in part.needs)),
    )


def multiply(x: Inflow, number: float) -> Inflow:
    """Return an inflow times a number."""
    terms = tuple((each, number * n) for each, n in x.terms or ((x, 1.0),))
    return _combined(terms, x.steps)


def weigh(x: Inflow, weight: str) -> Inflow:
    """Return an inflow through a factor [N_out, N_in] in place of a dense layer's weight."""

    def weighed(value: Value, v: Tensor) -> Value:
        value = value.reshape(-1, v.shape[1])
        return linear(lambda error: error @ v, (len(value), len(v)), value)

    return x.through(weight, weighed)


def convolve(x: Inflow, weight: str, shape: tuple[int, ...], options: Sequence[Any]) -> Inflow:
    """Return an inflow through a factor in place of a convolution's weight.

    Args:
        x: The inflow.
        weight: Name of the layer.
        shape: [channels, *S] of one sample that comes in.
        options: Stride, padding, dilation, whether it is transposed, output padding, groups.
    """
    convolution = torch.ops.aten.convolution
    stride, padding, dilation, transposed, _, groups = options

    def convolved(value: Value, v: Tensor) -> Value:
        value = value.reshape(-1, *shape)
        sizes = _sizes(shape[1:], v.shape[2:], options)
        # Where a stride passes over the last pixels, they get nothing.
        rest = [0] * len(sizes)
        if not transposed:
            back_of = (stride, padding, dilation, True, rest, groups)
            least = _sizes(sizes, v.shape[2:], back_of)
            rest = [n - m for n, m in zip(shape[1:], least, strict=True)]
        back = (stride, padding, dilation, not transposed, rest, groups)
        channels = v.shape[1] * groups if transposed else len(v)
        laid = _channels_last(v)

        def sent(error: Tensor) -> Tensor:
            return cast("Tensor", convolution(_channels_last(error), laid, None, *back))

        return linear(sent, (len(value), channels, *sizes), value)

    return x.through(weight, convolved)


def _sizes(sizes: Sequence[int], kernel: Sequence[int], options: Sequence[Any]) -> list[int]:
    """Return the size of each dimension after a convolution."""
    stride, padding, dilation, transposed, rest, _ = options
    found = []
    for n, k, s, p, d, r in zip(sizes, kernel, stride, padding, dilation, rest, strict=True):
        wide = d * (k - 1) + 1
        found.append((n - 1) * s - 2 * p + wide + r if transposed else (n + 2 * p - wide) // s + 1)
    return found


def _channels_last(x: Tensor) -> Tensor:
    """Return images as the processor convolves them fastest."""
    if x.dim() != 4 or x.device.type != "cpu" or x.dtype != torch.float32:
        return x
    return x.contiguous(memory_format=torch.channels_last)


def pool(
    x: Inflow,
    shape: tuple[int, ...],
    kernel: Sequence[int],
    options: Sequence[Any],
    windows: Sequence[int],
    name: str = "",
    *,
    apart: bool = False,
) -> Inflow:
    """Return means over windows; of a maximum whose ways are known, the sums of what was taken.

    Args:
        x: The inflow.
        shape: [channels, *S] of one sample that comes in.
        kernel: Size of a window, in two or three dimensions.
        options: Stride, padding and whether the size is rounded up.
        windows: How many there are in each dimension.
        name: Of its ways.
        apart: Whether no pixel is in two windows.
    """
    function: Any = (functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 2]

    def apply(values: Values, factors: Known) -> Value:
        value, taken = x.apply(values, factors).reshape(-1, *shape), factors.get(name)
        whole = (len(value), shape[0], *windows)
        if isinstance(taken, Taken) and taken.sample == shape:
            return linear(taken.spread, whole, value)
        if apart and isinstance(taken, Tensor) and taken.shape[1:] == shape:
            return linear(lambda error: _spread(error, kernel, shape) * taken, whole, value)
        return through(lambda x: function(x, tuple(kernel), *options), value)

    return x.made(apply)


def _spread(error: Tensor, kernel: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Return the error of each window at all its pixels [M, channels, *S]; zero at others."""
    size = [n * k for n, k in zip(error.shape[2:], kernel, strict=True)]
    error = functional.interpolate(error, size)
    rest = [n - s for n, s in zip(shape[1:], size, strict=True)]  # below zero: half a window
    return functional.pad(error, [r for n in reversed(rest) for r in (0, n)])


def gain(x: Inflow, channel: int, name: str) -> Inflow:
    """Return an inflow through a normalisation of each channel, where that is known.

    Args:
        x: The inflow.
        channel: Number of numbers of a sample in one channel.
        name: Of its ways.
    """

    def apply(values: Values, factors: Known) -> Value:
        value, known = x.apply(values, factors), factors.get(name)
        rows = len(next(iter(values.values())))
        if known is None or math.prod(value.shape) != rows * channel * len(known.gains):
            return value

        def back(error: Tensor) -> Tensor:
            shape, whole = error.shape, (rows, len(known.gains))
            if shape[:2] != whole:  # else as it lies in memory
                error = error.reshape(*whole, -1)
            return cast("Tensor", known.send(error)).reshape(shape)

        return linear(back, value.shape, value)

    return x.made(apply)


def local(
    parts: Sequence[Inflow], sizes: Sequence[int], size: int, name: str, *, needed: bool
) -> Inflow:
    """Return a function whose derivative differs from sample to sample.

    Args:
        parts: The inflows that it is a function of.
        sizes: How many numbers each has, of as many samples as all have.
        size: How many numbers the function has.
        name: Of its :class:`~snn_dfa.feedback.sample_ways.Derivative`.
        needed: Whether nothing passes where that is not known, and not its one part as it is.
    """

    def apply(values: Values, factors: Known) -> Value:
        made, known = [part.apply(values, factors) for part in parts], factors.get(name)
        rows = len(next(iter(values.values())))
        shape = rows, math.prod(made[0].shape) // rows * size // sizes[0]
        if isinstance(known, Derivative | Backward):

            def back(error: Tensor) -> tuple[Tensor, ...]:
                sent = known.send(error)
                return tuple(e.reshape(m.shape) for e, m in zip(sent, made, strict=True))

            return linear(back, shape, *made)
        return Value(made[0].like, shape) if needed else made[0]

    made = _joined(parts, apply)
    return replace(made, needs=(*made.needs, name)) if needed else made


def average(x: Inflow, shape: tuple[int, ...], size: Sequence[int], name: str = "") -> Inflow:
    """Return means over as many windows as ``size`` says; maxima as :func:`pool` does."""
    function: Any = (functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d)[len(size) - 2]

    def apply(values: Values, factors: Known) -> Value:
        value, taken = x.apply(values, factors).reshape(-1, *shape), factors.get(name)
        if isinstance(taken, Taken) and taken.sample == shape:
            return linear(taken.spread, (len(value), shape[0], *size), value)
        return through(lambda x: function(x, tuple(size)), value)

    return x.made(apply)


def mean(x: Inflow, shape: tuple[int, ...], dims: Sequence[int]) -> Inflow:
    """Return means over some dimensions, counted from the last one, of values of a shape."""
    return x.then(shape, lambda value: value.mean(tuple(dims)))
