"""The equations of the scanned neurons, as data that every implementation reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snn_dfa.surrogate import Surrogate

__all__ = [
    "NOTHING",
    "REST",
    "Beside",
    "Dynamics",
    "States",
    "margin_dtype",
    "one_step_if_constant",
]


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

    All are [B, N]: membranes and synaptic currents in their own dtype, and for refractory neurons
    the silent steps that are left, in int32. ``syns`` and ``inhs`` are [T, B, N].
    """

    mem: Tensor | None = None
    wait: Tensor | None = None
    last_mem: Tensor | None = None
    last_wait: Tensor | None = None
    syn: Tensor | None = None
    inh: Tensor | None = None
    last_syn: Tensor | None = None
    last_inh: Tensor | None = None
    syns: Tensor | None = None
    inhs: Tensor | None = None


#: From rest, and the last states are not wanted.
REST = States()


class Beside(NamedTuple):
    """What a backward pass reads and writes beside spikes, membranes and current; ``None``: none.

    It reads the first membranes ``mem`` [B, N], gradients at the synaptic currents, and, of neurons
    that learn, the series of their states, all [T, B, N]; and ``factors`` [T], by which gradients
    at the spikes of each step are multiplied. It writes sums over steps [B, N]: the gradients at
    the first states and at each neuron's constants; and ``sizes`` [T], how large the gradients at
    the currents of each step are together.
    """

    mem: Tensor | None = None
    at_syns: Tensor | None = None
    at_inhs: Tensor | None = None
    mems: Tensor | None = None
    syns: Tensor | None = None
    syn: Tensor | None = None
    at_mem: Tensor | None = None
    at_syn: Tensor | None = None
    at_inh: Tensor | None = None
    at_beta: Tensor | None = None
    at_threshold: Tensor | None = None
    at_alpha: Tensor | None = None
    factors: Tensor | None = None
    sizes: Tensor | None = None

    @property
    def sums(self) -> tuple[Tensor | None, ...]:
        """What is written, [B, N] each."""
        constants = self.at_beta, self.at_threshold, self.at_alpha
        return self.at_mem, self.at_syn, self.at_inh, *constants


#: From rest; nothing learns but what gives the current.
NOTHING = Beside()


@dataclass(frozen=True, eq=False)
class Dynamics:
    r"""A spiking neuron with a threshold above zero, whose states change linearly between spikes.

    With :math:`r_t` the reset that a step begins with, 1 where :math:`m_{t-1} > \theta`,
    elementwise:

    .. math::
        u_t &= \beta\, m_{t-1} + i_t - r_t \theta & \text{(subtract)} \\
        u_t &= \beta\, (1 - r_t)\, m_{t-1} + i_t  & \text{(zero)} \\
        u_t &= (1 - r_t) (\beta\, m_{t-1} + i_t)   & \text{(clear)} \\
        u_t &= \beta\, m_{t-1} + i_t              & \text{(none)}

    :math:`i_t = g I_t`, or with ``alpha`` the synaptic current
    :math:`i_t = \alpha i_{t-1} + g I_t`.
    In a refractory step u is 0 (``clamp``) or goes on. The spike is :math:`s_t = H(u_t - \theta)`,
    0 in a refractory step. :math:`m_t = u_t`, or with ``immediate_reset`` the membrane after its
    reset by :math:`s_t - r_t`, so that none is reset twice; :math:`r_t` is 0 then, but for
    subtraction without a refractory period, which may leave a membrane above the threshold.

    With ``tau`` there are two synaptic currents, one of each sign, and the membrane is their sum:

    .. math::
        e_t = \alpha\, e_{t-1} + g I_t, \quad h_t = \beta\, h_{t-1} - g I_t, \quad
        u_t = \tau (e_t + h_t)

    Then a reset multiplies e, h and u by :math:`1 - r_t` (``zero``); or it takes
    :math:`\theta` from e, sets h to 0 and adds :math:`h_{t-1}` to u (``subtract``).

    Args:
        beta: Decay a step, [] or [N], in [0, 1].
        threshold: theta, [] or [N], above zero.
        surrogate: Gives the spike's derivative.
        gain: g, a factor on the current.
        reset: ``"subtract"``, ``"zero"``, ``"clear"`` or ``"none"``.
        immediate_reset: Reset in the step of the spike instead of one later.
        refractory_steps: Silent steps after a spike.
        clamp: Hold the membrane at zero in these.
        alpha: Decay of the synaptic current a step, [] or [N], where there is one.
        tau: Factor on the sum of two synaptic currents, [] or [N], where there are two.
    """

    beta: Tensor
    threshold: Tensor
    surrogate: Surrogate
    gain: float = 1.0
    reset: str = "subtract"
    immediate_reset: bool = False
    refractory_steps: int = 0
    clamp: bool = False
    alpha: Tensor | None = None
    tau: Tensor | None = None

    @property
    def resets_late(self) -> bool:
        """Whether a step may begin with a reset."""
        again = self.reset == "subtract" and not self.refractory_steps
        return not self.immediate_reset or again

    @property
    def currents(self) -> int:
        """How many synaptic currents are states."""
        return 0 if self.alpha is None else 1 if self.tau is None else 2

    @property
    def is_leaky(self) -> bool:
        """Whether the membrane is the only state, and one reset at most acts on it in a step."""
        again = self.immediate_reset and self.resets_late
        return not self.currents and self.reset != "clear" and not again
