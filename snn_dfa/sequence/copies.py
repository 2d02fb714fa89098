"""Copies of a network, on which the library tries things."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa.state import reset

__all__ = ["copy_of"]


def copy_of(net: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode and at rest.

    Args:
        net: The network.

    Example:
        >>> copy_of(nn.Linear(2, 3)).training
        False
    """
    memo: dict[int, Any] = {}
    for module in net.modules():
        for store in (module._buffers, vars(module)):
            for value in store.values():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    memo[id(value)] = value.detach().clone()
    twin = copy.deepcopy(net, memo).eval()
    for m in twin.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is None:
            # Without running statistics it takes those of what it sees, in evaluation, too.
            like = next(net.parameters())
            m.running_mean = torch.zeros(m.num_features, dtype=like.dtype, device=like.device)
            m.running_var = torch.ones_like(m.running_mean)
    reset(twin)
    return twin
