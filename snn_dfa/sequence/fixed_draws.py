"""Constants in place of random numbers, so that a network and its form draw the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DrawsError", "FixedDraws"]

#: What operations give that draw each number for itself; of a mask, that all is kept.
_CONSTANTS = {
    "bernoulli": 1.0, "bernoulli_": 1.0, "rand": 0.7, "rand_like": 0.7, "uniform_": 0.7,
    "randn": 0.7, "randn_like": 0.7, "normal": 0.7, "normal_": 0.7, "normal_functional": 0.7,
    "exponential_": 0.7, "log_normal_": 0.7, "cauchy_": 0.7, "poisson": 1.0, "geometric_": 1.0,
}  # fmt: skip


class DrawsError(Exception):
    """The network draws numbers that have no constants, or normalises a batch, in training."""


class FixedDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives constants in place of random numbers. A dropout keeps all.

    Raises:
        DrawsError: in an operation that draws in another way.

    Example:
        >>> with FixedDraws():
        ...     torch.nn.functional.dropout(torch.ones(2), 0.5), torch.rand(2)
        (tensor([2., 2.]), tensor([0.7000, 0.7000]))
    """

    #: Whether there were any.
    drew = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _draws(func, args, kwargs):
            return func(*args, **kwargs)
        self.drew = True
        name = func.overloadpacket.__name__
        if name == "native_dropout":
            return _kept(*args)
        result = func(*args, **kwargs)
        if name == "randperm":  # no order that a mixture of samples would not show in
            return result.copy_(torch.arange(len(result), device=result.device).flip(0))
        if name not in _CONSTANTS:
            raise DrawsError
        return result.fill_(_CONSTANTS[name])


def _draws(func: Any, args: Sequence[Any], kwargs: Any) -> bool:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    # Attention draws where it drops, and ``native_dropout`` in training.
    return ("dropout_p" not in names or bool(given.get("dropout_p"))) and given.get("train", True)


def _kept(x: Tensor, p: float, train: Any) -> tuple[Tensor, Tensor]:
    """Return what torch's fused dropout gives where it keeps all."""
    return x * (1 / (1 - p) if p < 1 else 0.0), torch.ones_like(x, dtype=torch.bool)
