"""The equations of the scanned neurons, as data that every implementation reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snn_dfa.surrogate import Surrogate

__all__ = ["REST", "Dynamics", "States", "margin_dtype", "one_step_if_constant"]


def one_step_if_constant(sequence: Tensor) -> Tensor:
    """Return [1, B, N] of a sequence [T, B, N] expanded over time, any other as it is."""
    constant = sequence.shape[0] > 1 and sequence.stride(0) == 0
    return sequence[:1] if constant else sequence


def margin_dtype(current: torch.dtype, membrane: torch.dtype) -> torch.dtype:
    """Return how margins (membrane minus threshold) are kept between the passes.

    Where the current has the eight bits of a bfloat16, its slope need not be known better; the
    sign, which is the spike, is exact. A float16 would lose the sign of what is nearly zero.
    """
    return current if current == torch.bfloat16 else membrane


class States(NamedTuple):
    """What a scan begins with, and where it writes what it ends with; ``None``: rest, nowhere.

    All are [B, N]: membranes in their own dtype, and for refractory neurons the silent steps that
    are left, in int32.
    """

    mem: Tensor | None = None
    wait: Tensor | None = None
    last_mem: Tensor | None = None
    last_wait: Tensor | None = None


#: From rest, and the last states are not wanted.
REST = States()


@dataclass(frozen=True, eq=False)
class Dynamics:
    r"""A leaky neuron with a threshold above zero.

    With :math:`r_t` the spike of the step before (0 with ``immediate_reset``), elementwise:

    .. math::
        u_t &= \beta\, m_{t-1} + g\, I_t - r_t \theta & \text{(subtract)} \\
        u_t &= \beta\, (1 - r_t)\, m_{t-1} + g\, I_t  & \text{(zero)} \\
        u_t &= \beta\, m_{t-1} + g\, I_t              & \text{(none)}

    In a refractory step u is 0 (``clamp``) or goes on. The spike is :math:`s_t = H(u_t - \theta)`,
    0 in a refractory step. :math:`m_t = u_t`, or with ``immediate_reset`` the membrane after its
    reset by :math:`s_t`.

    Args:
        beta: Decay a step, [] or [N], in [0, 1].
        threshold: theta, [] or [N], above zero.
        surrogate: Gives the spike's derivative.
        gain: g, a factor on the current.
        reset: ``"subtract"``, ``"zero"`` or ``"none"``.
        immediate_reset: Reset in the step of the spike instead of one later.
        refractory_steps: Silent steps after a spike.
        clamp: Hold the membrane at zero in these.
    """

    beta: Tensor
    threshold: Tensor
    surrogate: Surrogate
    gain: float = 1.0
    reset: str = "subtract"
    immediate_reset: bool = False
    refractory_steps: int = 0
    clamp: bool = False
