"""A run that several processes share, as torchrun starts them: each has its part of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_dfa.experiments.settings import UsageError

__all__ = [
    "all_reduce_gradients", "first_alone", "is_rank_zero", "joined", "local_slice", "ranks",
    "share_sums",
]  # fmt: skip


def ranks() -> int:
    """Return how many processes work together; one where ``torch.distributed`` was not started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _mean_over_ranks(t: Tensor) -> Tensor:
    total = t.contiguous().clone()
    dist.all_reduce(total)
    return total / ranks()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def _rank() -> int:
    """Return this process's number, before and after it has joined the others, too."""
    if ranks() > 1:
        return dist.get_rank()
    return _number("RANK", 0) if _number("WORLD_SIZE", 1) > 1 else 0


def is_rank_zero() -> bool:
    """Whether this is the process that writes files and speaks."""
    return _rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Work together with the processes that torchrun has started, where it has.

    Raises:
        UsageError: if what started them left out where to meet.
    """
    if _number("WORLD_SIZE", 1) == 1:
        yield
        return
    if torch.cuda.is_available():  # "cuda" is then another GPU for each process of a machine
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    try:
        dist.init_process_group()
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: expected the variables that torchrun sets "
            f"beside it, got others ({reason}); start with torchrun, or unset WORLD_SIZE"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first process go ahead, as where something may have to be downloaded."""
    if not is_rank_zero():
        dist.barrier()
    yield
    if is_rank_zero() and ranks() > 1:
        dist.barrier()


def local_slice() -> slice:
    """Return which samples of a batch are this process's."""
    return slice(_rank(), None, ranks())


def all_reduce_gradients(net: nn.Module) -> None:
    """Give gradients and the statistics of normalisation their means over all processes."""
    if ranks() == 1:
        return
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.grad = _mean_over_ranks(parameter.grad)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            for name in ("running_mean", "running_var"):
                setattr(module, name, _mean_over_ranks(getattr(module, name)))


def share_sums(*numbers: float, device: torch.device) -> list[float]:
    """Return the sums of numbers over all processes."""
    if ranks() == 1:
        return list(numbers)
    total: Tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
    return (_mean_over_ranks(total) * ranks()).tolist()
