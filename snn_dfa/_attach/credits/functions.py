"""The autograd functions of credits: what a layer's own graph is replaced by, tensors alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor
from torch.autograd import Function

from snn_dfa._attach.functions import first_order
from snn_dfa._attach.steps.products import changed_in_place

__all__ = ["AtCurrent", "CurrentCredit", "Detour", "Traced"]

#: From the error at the spikes and the current of the same steps to the gradient at that current.
AtCurrent: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class CurrentCredit(Function):
    """The spikes as a function of this step's input current alone, with a given slope.

    ``CurrentCredit.apply(credit, current, spikes, *states)`` returns spikes and states, which must
    have no graph, with this one.
    Backward: ``credit(gradient at the spikes, current)``, plus the gradients at the states, whose
    derivative with respect to the current of the same step is taken as 1.

    Source: Zhang et al. 2024, arXiv 2409.07776 (augmented DFA).
    """

    @staticmethod
    def forward(
        ctx: Any, credit: AtCurrent, current: Tensor, *outputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.credit = credit
        ctx.save_for_backward(current)
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(*outputs)  # nothing is written, but so nothing is copied
        return outputs

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        try:
            (current,) = ctx.saved_tensors
        except RuntimeError as error:
            if "inplace operation" in str(error):
                raise changed_in_place() from error
            raise
        at_spikes, *at_states = grads
        parts = [g for g in at_states if g is not None]
        if at_spikes is not None:
            parts.append(ctx.credit(at_spikes, current))
        total = sum(parts[1:], parts[0]) if parts else None
        if total is not None:
            total = total.to(current.dtype)
        return (None, total, *(None for _ in grads))


class Detour(Function):
    """Identity on an output; backward also sends ``back(error, x)`` to x, which it did not see.

    ``Detour.apply(back, output, x)`` returns the output, made of x cut from its graph. With
    ``back=None`` nothing is sent; the node says that a layer used its own weight.

    Source: Lillicrap et al. 2016, Nat. Commun. 7, 13276 (feedback alignment).
    """

    @staticmethod
    def forward(
        ctx: Any, back: Callable[[Tensor, Tensor], Tensor] | None, output: Tensor, x: Tensor
    ) -> Tensor:
        ctx.back = back
        ctx.save_for_backward(*[x] * (back is not None))
        return output.clone()  # a program may change it in place, as it may not a view

    @staticmethod
    @first_order
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        sent = ctx.back(error, *ctx.saved_tensors) if ctx.back is not None else None
        return None, error, sent


class Traced(Function):
    """An output as a function of weight, bias and input with gradients of its own.

    ``Traced.apply(gradients, output, weight, bias, x)`` returns the output, which must have no
    graph; backward: ``gradients(error, whether x wants one)``, at weight, bias and x.
    """

    @staticmethod
    def forward(
        ctx: Any, gradients: Callable[[Tensor, bool], tuple[Tensor | None, ...]], output: Tensor,
        *_: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.gradients = gradients
        ctx.mark_dirty(output)  # nothing is written, but so it is no view, and nothing is copied
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        return (None, None, *ctx.gradients(error, ctx.needs_input_grad[4]))
