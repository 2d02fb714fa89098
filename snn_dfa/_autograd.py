"""The autograd functions: tensors in, tensors out; they know of no module and no snnTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snn_dfa.errors import DFAError

__all__ = ["AtCurrent", "CurrentCredit", "Detour", "Gate", "Join", "Traced", "in_backward"]

#: From the error at the spikes and the current of the same steps to the gradient at that current.
AtCurrent: TypeAlias = Callable[[Tensor, Tensor], Tensor]
#: From the errors at the outputs, and the joined tensors where they were kept, to the gradients
#: at these.
Broadcast: TypeAlias = Callable[
    [Sequence[Tensor | None], Sequence[Tensor]], Sequence[Tensor | None] | None
]


def _first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse a second derivative, which would leave out all that the errors sent depend on."""
    once = torch.autograd.function.once_differentiable(backward)

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise DFAError(
                "create_graph=True: an error that is sent back directly has no derivative; take "
                "second derivatives of back-propagation, in `with dfa.paused():`"
            )
        return once(ctx, *grads)

    return checked


def in_backward() -> bool:
    """Whether this is called from within a backward pass, as activation checkpointing calls."""
    # Not documented, in all versions from 2.4 on.
    return bool(torch._C._current_graph_task_id() != -1)


class Gate(torch.autograd.Function):
    """Identity; backward lets nothing through but where ``is_open()`` says so.

    ``Gate.apply(is_open, t)`` returns a tensor of its own, so that neither a module that works in
    place nor a loss on ``t`` meets the gate.
    """

    @staticmethod
    def forward(ctx: Any, is_open: Callable[[], bool], t: Tensor) -> Tensor:
        ctx.is_open = is_open
        return t.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        return None, grad if ctx.is_open() else None


class Join(torch.autograd.Function):
    """Identity on the outputs; backward hands their error on to the tensors joined to them.

    ``Join.apply(broadcast, keep, n, *outputs, *joined)`` returns the n outputs. In the backward
    pass ``broadcast`` gets their errors, and the joined tensors where ``keep`` says so, and returns
    a gradient for each joined tensor, or ``None`` for nothing to any of them.
    """

    @staticmethod
    def forward(
        ctx: Any, broadcast: Broadcast, keep: bool, n: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.broadcast = broadcast
        if keep:
            ctx.save_for_backward(*tensors[n:])
        ctx.joined = len(tensors) - n
        ctx.set_materialize_grads(False)
        # Clones: a view that comes out of a function of several outputs forbids in-place use.
        return tuple(t.clone() for t in tensors[:n])

    @staticmethod
    @_first_order
    def backward(ctx: Any, *errors: Tensor | None) -> tuple[Any, ...]:
        sent = ctx.broadcast(errors, ctx.saved_tensors)
        return (None, None, None, *errors, *((None,) * ctx.joined if sent is None else sent))


class CurrentCredit(torch.autograd.Function):
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
    @_first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        (current,) = ctx.saved_tensors
        at_spikes, *at_states = grads
        parts = [g for g in at_states if g is not None]
        if at_spikes is not None:
            parts.append(ctx.credit(at_spikes, current))
        total = sum(parts[1:], parts[0]) if parts else None
        if total is not None:
            total = total.to(current.dtype)
        return (None, total, *(None for _ in grads))


class Detour(torch.autograd.Function):
    """Identity on an output; backward also sends ``back(error, x)`` to x, which it did not see.

    ``Detour.apply(back, output, x)`` returns the output, made of x cut from its graph.

    Source: Lillicrap et al. 2016, Nat. Commun. 7, 13276 (feedback alignment).
    """

    @staticmethod
    def forward(
        ctx: Any, back: Callable[[Tensor, Tensor], Tensor], output: Tensor, x: Tensor
    ) -> Tensor:
        ctx.back = back
        ctx.save_for_backward(x)
        return output.view_as(output)

    @staticmethod
    @_first_order
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        return None, error, ctx.back(error, x)


class Traced(torch.autograd.Function):
    """An output without its graph, as a function of weight and bias with gradients of its own.

    ``Traced.apply(gradients, output, weight, bias)`` returns the output; backward:
    ``gradients(error)``, at weight and bias.
    """

    @staticmethod
    def forward(
        ctx: Any, gradients: Callable[[Tensor], tuple[Tensor, Tensor | None]], output: Tensor,
        *_: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.gradients = gradients
        return output.view_as(output)

    @staticmethod
    @_first_order
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        return (None, None, *ctx.gradients(error))
