"""A leaky integrate-and-fire neuron with an absolute refractory period."""

from __future__ import annotations

from typing import Any
from weakref import ref

import snntorch as snn
import torch
from torch import Tensor

from snn_dfa.errors import InputError

__all__ = ["RefractoryLeaky"]

_MODES = ("integrate", "clamp")
#: So many layers that share a neuron are noticed.
_SHARED = 16


class RefractoryLeaky(snn.Leaky):
    r"""``snntorch.Leaky`` with an absolute refractory period; a drop-in for it.

    After a spike the neuron is silent for ``refractory_steps`` steps, whatever its membrane does,
    so that at least so many steps lie between two spikes. Only a spike that was emitted resets the
    membrane. The refractory counter is compared, never differentiated: blocked steps have no
    gradient through the spike.

    Args:
        beta: Decay of the membrane a step, clipped to [0, 1]; a number or a tensor [N].
        threshold: See ``snntorch.Leaky``, as for all arguments up to ``reset_delay``.
        spike_grad: Surrogate, called on mem - threshold.
        surrogate_disable: Spikes without gradient.
        init_hidden: Keep the state inside; ``forward`` then returns spikes alone.
        inhibition: Only the neuron with the highest membrane may fire, among those that are not
            refractory.
        learn_beta: Make ``beta`` a parameter.
        learn_threshold: Make ``threshold`` a parameter.
        reset_mechanism: ``"subtract"``, ``"zero"`` or ``"none"``; may be changed later.
        state_quant: Quantisation of the membrane.
        output: With ``init_hidden`` return the states, too.
        graded_spikes_factor: Size of a spike.
        learn_graded_spikes_factor: Make it a parameter.
        reset_delay: Reset the membrane one step after the spike instead of at once.
        refractory_steps: Silent steps after a spike, zero or more. With 0 this is ``Leaky``.
        refractory: What the membrane does in these steps: ``"integrate"`` goes on, ``"clamp"``
            is held at zero.
        input_gain: Factor on the input current.

    Calling it: ``neuron(input_, mem=None)`` with ``input_`` [B, ...] returns ``(spk, mem)``, both
    [B, ...], or ``spk`` alone with ``init_hidden`` and without ``output``.

    The counter is a state like the membrane, kept inside. It restarts with ``reset_mem()``,
    ``snn_dfa.reset(net)``, ``snntorch.utils.reset(net)``, when the input's shape changes, and when
    a membrane of zeros comes in that is not the one this neuron returned.

    Raises:
        ValueError: if ``refractory_steps`` or ``refractory`` is none of these.
        InputError: when it is called, if a membrane comes in that it returned before the last one,
            as of a neuron that two layers share: there is one counter.

    Source: Zhang et al. 2024, arXiv 2409.07776 (``"clamp"``).

    Example:
        >>> neuron = RefractoryLeaky(beta=0.9, refractory_steps=2, init_hidden=True)
        >>> [int(neuron(torch.full((1, 1), 5.0))) for _ in range(7)]
        [1, 0, 0, 1, 0, 0, 1]
    """

    counter: Tensor

    def __init__(
        self,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        spike_grad: Any = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: Any = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
        refractory_steps: int = 0,
        refractory: str = "integrate",
        input_gain: float = 1.0,
    ) -> None:
        if not isinstance(refractory_steps, int) or refractory_steps < 0:
            raise ValueError(
                f"refractory_steps: expected a whole number, zero or more, got {refractory_steps!r}"
            )
        if refractory not in _MODES:
            raise ValueError(f"refractory: expected one of {list(_MODES)}, got {refractory!r}")
        super().__init__(
            beta,
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            learn_beta,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
            graded_spikes_factor,
            learn_graded_spikes_factor,
            reset_delay,
        )
        self.refractory_steps = refractory_steps
        self.refractory = refractory
        self.input_gain = input_gain
        self.register_buffer("counter", torch.zeros(0, dtype=torch.int32), persistent=False)
        # Leaky binds its reset once, in the instance; here the method below looks it up.
        del self.state_function
        # The last membrane, so that no other tensor has its place in memory; no state of its own.
        self._last_mem: tuple[Tensor, ...] = ()
        self._returned: tuple[ref[Tensor], ...] = ()

    @classmethod
    def from_time_constants(
        cls,
        tau: float = 20.0,
        dt: float = 0.25,
        t_ref: float = 1.0,
        threshold: float | Tensor = 0.1,
        **options: Any,
    ) -> RefractoryLeaky:
        r"""Return the neuron of a simulation with step ``dt``, all times in milliseconds.

        :math:`v \leftarrow (1 - dt/\tau) v + (dt/\tau) I`, a spike where v exceeds the threshold,
        and v set to zero in the step of the spike. The refractory period of round(t_ref / dt)
        steps begins with the step of the spike: two spikes are at least that many steps apart,
        and the neuron's greatest rate is 1 / t_ref. ``refractory_steps``, which counts the silent
        steps, is therefore one less.

        Args:
            tau: Membrane time constant in ms.
            dt: Step in ms, at most ``tau``.
            t_ref: Refractory period in ms.
            threshold: In units of the membrane.
            **options: Other arguments of :class:`RefractoryLeaky`.

        Raises:
            ValueError: if a time constant is out of range.

        Example:
            >>> neuron = RefractoryLeaky.from_time_constants(init_hidden=True)
            >>> [int(neuron(torch.full((1, 1), 50.0))) for _ in range(6)]
            [1, 0, 0, 0, 1, 0]
        """
        if not 0 < dt <= tau:
            raise ValueError(f"dt: expected a step in (0, tau={tau!r}], got {dt!r}")
        if t_ref < 0:
            raise ValueError(f"t_ref: expected zero or more, got {t_ref!r}")
        settings: dict[str, Any] = {
            "beta": 1.0 - dt / tau,
            "input_gain": dt / tau,
            "reset_mechanism": "zero",
            "reset_delay": False,
            "refractory_steps": max(round(t_ref / dt) - 1, 0),
        }
        return cls(threshold=threshold, **{**settings, **options})

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """Advance one step; shapes and return values are those of ``snntorch.Leaky``."""
        if self.input_gain != 1.0:
            input_ = self.input_gain * input_
        if self.refractory_steps:
            self._restart_if_new(input_, self.mem if mem is None else mem)
        returned = super().forward(input_, mem)
        if self.refractory_steps:
            self._last_mem = (self.mem.detach(),)
            self._returned = (*self._returned[1 - _SHARED :], ref(self.mem))
        return returned

    def reset_mem(self) -> Tensor:
        """Clear membrane and counter; return the membrane."""
        self.counter = torch.zeros_like(self.counter)
        return super().reset_mem()

    def _restart_if_new(self, input_: Tensor, mem: Tensor) -> None:
        """Start the counter anew where the membrane that comes in begins a new sequence."""
        goes_on = any(last.data_ptr() == mem.data_ptr() for last in self._last_mem)
        if not goes_on and any(earlier() is mem for earlier in self._returned):
            raise InputError(
                "RefractoryLeaky: expected the membrane that this neuron returned last, or a new "
                "one, got one that it returned earlier, and its refractory counter is of the last "
                "one; give each layer a neuron of its own, and to begin a sequence with an earlier "
                "membrane, call reset(net) and hand in mem.clone()"
            )
        if self.counter.shape != input_.shape or mem.shape != input_.shape:
            self.counter = torch.zeros_like(input_, dtype=torch.int32)
            return
        if not goes_on and not mem.any():
            self.counter = torch.zeros_like(self.counter)

    # Leaky.forward asks mem_reset for the reset signal, the state function for the membrane, and
    # fire or fire_inhibition for the spikes, in this order: the refractory period is put there.

    def mem_reset(self, mem: Tensor) -> Tensor:
        """Return the detached reset signal: with a refractory period, of emitted spikes only."""
        reset = super().mem_reset(mem)
        if not self.refractory_steps:
            return reset
        if not self.reset_delay:
            return torch.zeros_like(reset)  # it took place in the step of the spike
        return reset * (self.counter == self.refractory_steps)

    def state_function(self, input_: Tensor) -> Tensor:
        """Return the membrane of this step, by the reset mechanism that is set now."""
        if self.reset_mechanism == "subtract":
            mem = self._base_sub(input_)
        elif self.reset_mechanism == "zero":
            mem = self._base_zero(input_)
        else:
            mem = self._base_int(input_)
        if self.refractory_steps and self.refractory == "clamp":
            mem = mem.masked_fill(self.counter > 0, 0.0)
        return mem

    def fire(self, mem: Tensor) -> Tensor:
        """Return the spikes of the neurons that are not refractory, and count."""
        spk = super().fire(mem)
        return self._block(spk) if self.refractory_steps else spk

    def fire_inhibition(self, batch_size: int, mem: Tensor) -> Tensor:
        """Return the spike of the highest membrane that is not refractory, and count."""
        if not self.refractory_steps:
            return super().fire_inhibition(batch_size, mem)
        free = mem.masked_fill(self.counter > 0, -torch.inf)
        return self._block(super().fire_inhibition(batch_size, free))

    def _block(self, spk: Tensor) -> Tensor:
        spk = spk * (self.counter == 0)
        waiting = (self.counter - 1).clamp(min=0)
        self.counter = torch.where(spk.detach() > 0, self.refractory_steps, waiting)
        return spk

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._reset_mechanism = list(self.reset_dict)[int(self.reset_mechanism_val)]

    def __getstate__(self) -> dict[str, Any]:
        # In a copy a membrane of zeros starts anew.
        return {**self.__dict__, "_last_mem": (), "_returned": ()}
