"""An error that is the same at all steps but for a factor, which is not multiplied out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ["InSteps"]


class InSteps(Tensor):
    r"""One tensor [B, \*S] for all steps, times a factor for each: [T, B, \*S] or [T * B, \*S].

    A scan reads the one tensor and the factors, so that a gradient of all steps is never written
    down. All that calculates with this one calculates with the product. It is for scans alone: a
    change in place is lost, and it has no memory that NumPy could read.

    Args:
        once: [B, \*S].
        factors: [T].

    Example:
        >>> error = InSteps.of(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 0.0]))
        >>> error.shape, (error + 1).tolist()
        (torch.Size([2, 1, 2]), [[[4.0, 7.0]], [[1.0, 1.0]]])
    """

    once: Tensor
    factors: Tensor

    @classmethod
    def of(cls, once: Tensor, factors: Tensor, shape: torch.Size | None = None) -> InSteps:
        """Return it, with steps as a dimension of their own unless ``shape`` is another one."""
        shape = torch.Size([len(factors), *once.shape]) if shape is None else shape
        made: InSteps = Tensor._make_wrapper_subclass(
            cls, shape, dtype=once.dtype, device=once.device
        )
        made.once, made.factors = once, factors
        return made

    def product(self) -> Tensor:
        """Return what it stands for."""
        by = self.factors.view(-1, *(1,) * self.once.dim())
        return (by * self.once).reshape(self.shape)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # its stub names no class
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Change the parts alone where the shape alone changes, and multiply for all else."""
        change = _CHANGES.get(func)
        found = None if change is None else change(*args)
        if found is not None:
            return found
        args, kwargs = tree_map_only(InSteps, InSteps.product, (args, kwargs or {}))
        return func(*args, **kwargs)


def _detached(error: InSteps) -> InSteps:
    return InSteps.of(error.once, error.factors, error.shape)


def _viewed(error: InSteps, sizes: list[int]) -> InSteps | None:
    """Return a view where its first dimensions are steps and samples, side by side or as one."""
    steps, batch = len(error.factors), len(error.once)
    if list(sizes[:2]) == [steps, batch]:
        sample = sizes[2:]
    elif list(sizes[:1]) == [steps * batch]:
        sample = sizes[1:]
    else:
        return None
    once = error.once.reshape(batch, *sample)
    shape = torch.Size([*sizes[: len(sizes) - len(sample)], *once.shape[1:]])
    return InSteps.of(once, error.factors, shape)


def _permuted(error: InSteps, dims: list[int]) -> InSteps | None:
    """Return that with the dimensions of a sample in another order."""
    before = error.dim() - error.once.dim()  # 1 where steps have a dimension of their own
    dims = [dim % error.dim() for dim in dims]
    if dims[: 1 + before] != [0, 1][: 1 + before]:
        return None
    once = error.once.permute([0, *(dim - before for dim in dims[1 + before :])])
    return InSteps.of(once, error.factors, torch.Size([error.shape[dim] for dim in dims]))


_CHANGES: dict[Any, Callable[..., InSteps | None]] = {
    torch.ops.aten.detach.default: _detached,
    torch.ops.aten.view.default: _viewed,
    torch.ops.aten.permute.default: _permuted,
}
