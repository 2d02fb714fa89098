"""What several processes on one network ask for: feedback that stays alike, states left alone."""

from __future__ import annotations

import weakref
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from snn_dfa.errors import AttachError

__all__ = ["States", "mean_over_ranks", "ranks", "runs_distributed", "whole"]


def ranks() -> int:
    """Return how many processes work together; one where ``torch.distributed`` was not started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(t: Tensor) -> Tensor:
    """Return the mean of all processes' tensors; each of them must come here, in the same order."""
    count = ranks()
    if count == 1:
        return t
    total = t.contiguous().clone()
    dist.all_reduce(total)
    return total / count


def whole(t: Any) -> Tensor:
    """Return a tensor itself; of one that processes hold in shards, all of it in each of them."""
    gathered: Tensor = t.full_tensor() if hasattr(t, "full_tensor") else t
    return gathered


def runs_distributed() -> bool:
    """Return whether the pass that begins is one of ``DistributedDataParallel``."""
    return getattr(DistributedDataParallel, "_active_ddp_module", None) is not None


def _broadcasts() -> bool:
    """Whether the pass that begins is one of a wrapper that has just copied buffers over."""
    # Not documented, in all versions from 2.4 on; without it nothing is refused.
    ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
    return ddp is not None and bool(ddp.will_sync_module_buffers())


class States:
    """Sees that no membrane goes on from that of another process's samples.

    ``DistributedDataParallel`` copies the first process's buffers to the others before each call,
    and snnTorch's membranes are buffers: with the loop over time around it, every process would go
    on from the membranes of the first one's samples.
    """

    def __init__(self) -> None:
        #: Whether several processes work together: else there is nothing to note or to check.
        self.several = ranks() > 1
        self._left: dict[str, weakref.ref[Tensor]] = {}
        self._copied: dict[str, weakref.ref[Tensor]] = {}

    def begin(self) -> None:
        """Begin a pass: what the last one left may have been written to."""
        self.several = ranks() > 1
        self._copied = dict(self._left) if self._left and _broadcasts() else {}

    def note(self, name: str, neuron: Any) -> None:
        """Remember the membrane that a call has left."""
        mem = getattr(neuron, "mem", None)
        if isinstance(mem, Tensor):
            self._left[name] = weakref.ref(mem)

    def check(self, name: str, neuron: Any) -> None:
        """Refuse the membrane that the last pass has left, where buffers were copied over since.

        Raises:
            AttachError: naming the layer and the remedy.
        """
        left = self._copied.pop(name, None)
        if left is not None and left() is neuron.mem:
            raise AttachError(
                f"layer {name!r}: goes on from its last membrane, but DistributedDataParallel has "
                f"copied that of the first process over it; put the loop over time into the "
                f"module's forward, or give DistributedDataParallel broadcast_buffers=False"
            )
