"""Values that are zero, and their way back: errors go through linear functions without a graph.

A linear function at zero is zero. So of a value its shape and its way back are all that there is.
Autograd could send the errors, too, but one of its nodes costs as much as a small layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Value", "added", "errors_at", "joined", "linear", "through"]


class Value:
    r"""A value [M, \*S] that is zero.

    Args:
        like: A number of the errors' type, on their device.
        shape: Of the value.
        back: From an error at the value to those at the values that it is a function of: one for
            each, or one for all.
        below: These values.
        wanted: Whether errors at the value are asked for.

    Example:
        >>> x = Value(torch.zeros(()), (2, 3), wanted=True)
        >>> y = added(x, linear(lambda e: 2 * e, x.shape, x))
        >>> errors_at(y, torch.ones(2, 3), [x])
        [tensor([[3., 3., 3.],
                [3., 3., 3.]])]
    """

    __slots__ = ("back", "below", "leads", "like", "shape")

    def __init__(
        self,
        like: Tensor,
        shape: Sequence[int],
        back: Callable[[Tensor], Any] | None = None,
        below: Sequence[Value] = (),
        *,
        wanted: bool = False,
    ) -> None:
        self.like, self.shape, self.back = like, tuple(shape), back
        #: Whether it leads to values that are asked for.
        self.leads: bool = wanted or any([value.leads for value in below])
        self.below = below if self.leads else ()

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *sizes: int) -> Value:
        """Return the value in another shape; one size may be -1."""
        numbers = math.prod(self.shape)
        known = math.prod(size for size in sizes if size >= 0)
        shape = tuple(numbers // max(known, 1) if size < 0 else size for size in sizes)
        if math.prod(shape) != numbers:
            raise RuntimeError(f"shape {list(sizes)} is none of {list(self.shape)}")
        if shape == self.shape:
            return self
        return linear(lambda error: error.reshape(self.shape), shape, self)

    def _fitted(self, error: Tensor) -> Tensor:
        """Return an error in the value's shape and type, as autograd would have it.

        Raises:
            RuntimeError: if it has another shape.
        """
        if error.shape != self.shape:
            error = error.sum_to_size(self.shape)
        return error if error.dtype == self.like.dtype else error.to(self.like.dtype)


def linear(back: Callable[[Tensor], Any], shape: Sequence[int], *values: Value) -> Value:
    """Return a linear function of values, from its way back and its shape."""
    return Value(values[0].like, shape, back, values)


def added(*values: Value) -> Value:
    """Return the sum of values of one shape."""
    return linear(lambda error: error, values[0].shape, *values)


def joined(*values: Value) -> Value:
    """Return values side by side along their second dimension."""
    sizes = [value.shape[1] for value in values]
    shape = (values[0].shape[0], sum(sizes), *values[0].shape[2:])
    return linear(lambda error: torch.split(error, sizes, 1), shape, *values)


def through(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    """Return a linear function of a value that is given as one of tensors."""
    with torch.enable_grad():
        x = value.like.expand(value.shape).requires_grad_()
        out = function(x)
    return linear(lambda error: torch.autograd.grad(out, x, error)[0], out.shape, value)


def errors_at(end: Value, error: Tensor, wanted: Sequence[Value]) -> list[Tensor | None]:
    """Return the errors at some values for an error at another one; ``None`` where none comes.

    Args:
        end: The other one.
        error: At it.
        wanted: Values that are functions of none.
    """
    found = {end: error}
    for value in reversed(_in_order(end)):
        if value.back is None or not value.below or value not in found:
            continue
        sent = value.back(found.pop(value))
        each = sent if isinstance(sent, tuple) else (sent,) * len(value.below)
        for below, part in zip(value.below, each, strict=True):
            if below.leads:
                part = below._fitted(part)
                found[below] = found[below] + part if below in found else part
    return [found.get(value) for value in wanted]


def _in_order(end: Value) -> list[Value]:
    """Return a value and all that it is a function of, each after what it is a function of."""
    order, begun, todo = dict[Value, None](), set[Value](), [end]
    while todo:
        value = todo[-1]
        if value in order or value in begun:
            order.setdefault(todo.pop())
            continue
        begun.add(value)
        todo += [below for below in value.below if below not in begun]
    return list(order)
