"""A step of ``snn.Leaky`` as one node of the graph: the same values to the bit, with less to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import snntorch as snn
import torch
from torch import Tensor
from torch.autograd import Function

from snn_dfa._attach.functions import first_order
from snn_dfa.surrogate import Surrogate, recognise

__all__ = ["Step"]

#: How a reset changes the membrane, by the function that snnTorch chooses for it.
_RESETS: dict[Any, str] = {
    snn.Leaky._base_sub: "subtract",
    snn.Leaky._base_zero: "zero",
    snn.Leaky._base_int: "none",
}
#: What else a ``snn.Leaky`` computes with; where an instance has its own, it is left alone.
_METHODS = frozenset({"fire", "mem_reset", "_base_state_function"})
_CONSTANTS = ("beta", "threshold", "graded_spikes_factor")


class _Step(Function):
    """Spikes and membrane of one step, as functions of the current and of the last membrane.

    ``_Step.apply(current, mem, beta, threshold, graded, reset, surrogate, dtype of spikes)``
    returns spikes, membrane and resets. Backward: with u the new membrane, dL/dcurrent is
    dL/du + dL/dspk * slope(u - threshold) * graded, and dL/dmem is beta * dL/dcurrent, without
    what a reset to zero has taken out. The reset has no derivative, as in snnTorch.
    """

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, mem: Tensor, beta: Tensor, threshold: Tensor,
        graded: Tensor, reset: str, surrogate: Surrogate, dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        late = (mem > threshold).to(dtype)
        new = beta * ((1 - late) * mem if reset == "zero" else mem)
        new += current
        if reset == "subtract":
            new -= late * threshold
        margin = new - threshold
        ctx.save_for_backward(margin, *[late] * (reset == "zero"))
        ctx.beta, ctx.graded, ctx.surrogate = beta, graded, surrogate
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(late)
        return (margin > 0).to(dtype) * graded, new, late

    @staticmethod
    @first_order
    def backward(ctx: Any, at_spikes: Tensor | None, at_mem: Tensor | None, _: Any) -> Any:
        margin, *late = ctx.saved_tensors
        total, before = at_mem, None
        if at_spikes is not None:
            total = ctx.surrogate.derivative(margin) * (at_spikes * ctx.graded)
            total = total if at_mem is None else total + at_mem
        if total is not None and ctx.needs_input_grad[1]:
            before = ctx.beta * total
            before = before * (1 - late[0]) if late else before
        return total, before, *[None] * 6


class Step:
    """Computes steps of a ``snn.Leaky``, with the results and states of its ``forward``.

    Args:
        neuron: The module.
    """

    def __init__(self, neuron: Any) -> None:
        self._neuron = neuron
        self._known: tuple[Any, Surrogate | None] = (None, None)

    def inputs(self, args: Sequence[Any]) -> list[Any] | None:
        """Return current, membrane, and what else :meth:`compute` takes, as things are now.

        Args:
            args: What the module is called with.

        Returns:
            ``None`` where only ``forward`` knows what to do: learnt constants, other surrogates,
            membranes that are quantised or inhibited, mixed dtypes.
        """
        neuron, buffers = self._neuron, self._neuron._buffers
        given = len(args) == 2 and not neuron.init_hidden
        if not given and len(args) != 1:
            return None
        current, mem = args[0], args[1] if given else buffers.get("mem")
        surrogate, reset = self._surrogate(), self._reset()
        if surrogate is None or reset is None or not type(current) is type(mem) is Tensor:
            return None
        if mem.shape != current.shape:
            mem = torch.zeros_like(current)
        constants = [buffers.get(name) for name in _CONSTANTS]
        if not _are_alike(current, mem, constants):
            return None
        constants[0] = constants[0].clamp(0, 1)
        dtype = current.dtype if surrogate is neuron.spike_grad else torch.float32
        return [current, mem, *constants, reset, surrogate, dtype]

    def compute(self, inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Return spikes and membrane."""
        spk, mem, vars(self._neuron)["reset"] = _Step.apply(*inputs)
        return spk, mem

    def result(self, spk: Tensor, mem: Tensor) -> Any:
        """Leave the membrane in the module, and return what its ``forward`` returns."""
        neuron = self._neuron
        neuron._buffers["mem"] = mem
        return spk if self.hides_membrane else (spk, mem)

    @property
    def hides_membrane(self) -> bool:
        """Whether ``forward`` returns the spikes alone."""
        return self._neuron.init_hidden and not self._neuron.output

    def _surrogate(self) -> Surrogate | None:
        now = self._neuron.spike_grad
        if self._known[0] is not now:
            known = recognise(now)
            spikes = known is not None and type(known).__call__ is Surrogate.__call__
            self._known = now, known if spikes else None
        return self._known[1]

    def _reset(self) -> str | None:
        """Return the kind of reset; ``None`` where the step is none that is known."""
        neuron = self._neuron
        known = not (neuron.state_quant or neuron.inhibition or _METHODS & vars(neuron).keys())
        state = getattr(neuron.state_function, "__func__", None)
        return _RESETS.get(state) if known and neuron.reset_delay else None


def _are_alike(current: Tensor, mem: Tensor, constants: Sequence[Any]) -> bool:
    """Return whether all are of one dtype, on one device, and the constants are constant."""
    dtype, device = current.dtype, current.device
    for t in constants:
        if type(t) is not Tensor or t.requires_grad or t.dtype != dtype or t.device != device:
            return False
    return mem.dtype == dtype and mem.device == device
