"""What is broadcast to the hidden layers: functions of the error at the output, and nothing else.

A rule takes the error e = dL/d(output), any shape, and returns the signal that the feedback
matrices project, of the same shape. ``None`` in place of a rule means that nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from torch import Tensor

__all__ = ["RULES", "Rule", "error"]

Rule: TypeAlias = Callable[[Tensor], Tensor]


def error(e: Tensor) -> Tensor:
    """Broadcast the error itself: direct feedback alignment.

    Source: Nøkland 2016, arXiv 1609.01596, eq. 9.

    Example:
        >>> import torch
        >>> error(torch.tensor([0.5, -0.5]))
        tensor([ 0.5000, -0.5000])
    """
    return e


#: Name to rule. ``shallow`` sends nothing: only the output block learns, the floor under every
#: other rule.
RULES: Mapping[str, Rule | None] = MappingProxyType({"error": error, "shallow": None})
