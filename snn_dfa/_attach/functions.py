"""The autograd functions: tensors in, tensors out; they know of no module and no snnTorch."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from snn_dfa._attach.hooks import eager
from snn_dfa.errors import BackwardError, DFAError

__all__ = [
    "AtCurrent",
    "Bridge",
    "CurrentCredit",
    "Deliver",
    "Detour",
    "Emit",
    "Entrance",
    "Gather",
    "Guard",
    "Port",
    "Relink",
    "Replay",
    "Stale",
    "Traced",
    "added",
    "first_order",
    "in_backward",
    "is_transformed",
    "second_time",
    "will_pass",
]

#: From the error at the spikes and the current of the same steps to the gradient at that current.
AtCurrent: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def in_backward() -> bool:
    """Return whether autograd is running: a forward pass is then one that checkpointing repeats."""
    return torch._C._current_graph_task_id() != -1


def is_transformed() -> bool:
    """Return whether a transform of ``torch.func`` is at work, or forward-mode differentiation."""
    stack = torch._C._functorch.peek_interpreter_stack()
    return stack is not None or forward_ad._current_level >= 0


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients, where ``None`` is none."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def will_pass(node: Any) -> bool:
    """Return whether the pass of autograd that is going on runs a node."""
    return torch._C._will_engine_execute_node(node)


def second_time() -> BackwardError:
    """Return the error of a graph that a backward pass has gone through already."""
    return BackwardError(
        "backward: the gradient needs a part of the graph that an earlier backward pass has used "
        "up. Four programs do this. A state of the last batch goes on in this one: call "
        "snn_dfa.reset(net) before each batch, or detach the states. The program calls backward() "
        "after each time step: attach DFA(net, credit='online'). The loss reads a value between "
        "two layers that the network does not return: return the value. The program calls "
        "backward() twice: call backward(retain_graph=True) first"
    )


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Raise an error for a second derivative, which would leave out what e B depends on."""

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise _no_second_order()
        return backward(ctx, *grads)

    return checked


def _no_second_order() -> DFAError:
    return DFAError(
        "create_graph=True: an error that is sent back directly has no derivative; take "
        "second derivatives in `with dfa.paused():`, where the gradient is that of "
        "back-propagation"
    )


# -- where layers begin and end --------------------------------------------------------------------


class Receiver(Protocol):
    """Receives what comes back to one call of a layer."""

    def arrive(self, call: Any, grads: Sequence[Tensor | None]) -> None:
        """Take the gradients at the values that the call returned."""

    def finish(self) -> None:
        """Turn all that has arrived in this backward pass into gradients of the parameters."""

    def hand_out(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of the parameters, in order."""

    def pass_entrance(self, leaf: Tensor) -> None:
        """See that a leaf from outside gets its gradient elsewhere."""


class Port(Function):
    """The values that a call returned, in a graph that ends here.

    ``Port.apply(receiver, call, values, *tokens)`` returns the values. They share storage and
    version counter with the originals, so that in-place changes act on both. Backward: the
    gradients go to ``receiver.arrive`` and no further.

    Args:
        receiver: The receiver.
        call: The call, handed to ``arrive`` as it is.
        values: The tensors that the call returned.
        tokens: Results of :class:`Gather` and, where the loss may reach the network here, of
            :class:`Deliver`, which autograd runs after all ports, and of :class:`Entrance`.
    """

    @staticmethod
    def forward(
        ctx: Any, receiver: Receiver, call: Any, values: Sequence[Tensor], *tokens: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.receiver, ctx.call, ctx.tokens = receiver, call, len(tokens)
        ctx.set_materialize_grads(False)
        return tuple([value.detach() for value in values])

    @staticmethod
    @eager
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        if torch.is_grad_enabled():
            raise _no_second_order()
        ctx.receiver.arrive(ctx.call, grads)
        return (None,) * (3 + ctx.tokens)


class Gather(Function):
    """A token that all ports have; backward: every port that the pass reaches has been run."""

    @staticmethod
    def forward(ctx: Any, receiver: Callable[[], Receiver | None], leaf: Tensor) -> Tensor:
        ctx.receiver = receiver
        ctx.set_materialize_grads(False)
        return leaf.detach().clone()

    @staticmethod
    @eager
    def backward(ctx: Any, _: Tensor | None) -> tuple[None, None]:
        receiver = ctx.receiver()
        if receiver is not None:
            receiver.finish()
        return None, None


class Deliver(Function):
    """A token that ports of an output have; backward: hands the parameters their gradients.

    It is made before :class:`Gather`'s token, so that autograd runs it after: of the nodes that
    are ready it takes the one that was made last.
    """

    @staticmethod
    def forward(ctx: Any, receiver: Callable[[], Receiver | None], leaf: Tensor, *parameters: Tensor) -> Tensor:  # fmt: skip  # noqa: E501
        ctx.receiver, ctx.count = receiver, len(parameters)
        ctx.set_materialize_grads(False)
        return leaf.detach().clone()

    @staticmethod
    @eager
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, ...]:
        receiver = ctx.receiver()
        grads = (None,) * ctx.count if receiver is None else receiver.hand_out()
        return None, None, *grads


class Entrance(Function):
    """A token of a leaf that came into the network, so that autograd finds a way to the leaf.

    ``Entrance.apply(receiver, value, leaf)``: the value is the leaf or a view of it. No gradient
    passes: the receiver accumulates the leaf's. Backward tells the receiver, which raises an error
    where gradients are asked for at some tensors and would be missing here.
    """

    @staticmethod
    def forward(
        ctx: Any, receiver: Callable[[], Receiver | None], value: Tensor, leaf: Tensor
    ) -> Tensor:
        ctx.receiver, ctx.leaf = receiver, weakref.ref(leaf)
        ctx.set_materialize_grads(False)
        return torch.zeros((), device=value.device)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[None, None, None]:
        receiver, leaf = ctx.receiver(), ctx.leaf()
        if receiver is not None and leaf is not None:
            receiver.pass_entrance(leaf)
        return None, None, None


class Emit(Function):
    """One scalar over many tensors; backward gives each of them its own gradient.

    ``Emit.apply(grads, *tensors)``: autograd's functions check each root that they are given,
    which for the steps of a sequence costs as much as a step.
    """

    @staticmethod
    def forward(ctx: Any, grads: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.grads = grads
        return torch.zeros((), device=tensors[0].device)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.grads


class Bridge(Function):
    """A value that a program made of a layer's own earlier values, on its way back into the layer.

    ``Bridge.apply(value, at, *inputs)``: ``at`` are the tensors and edges of the value's graph
    that stand for the inputs. Backward is exact, whatever the program did, by autograd on the
    value's own graph.
    """

    @staticmethod
    def forward(ctx: Any, value: list[Tensor], at: Sequence[Any], *inputs: Tensor) -> Tensor:
        ctx.value, ctx.at = value[0], at
        return value[0].detach()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        try:
            found = torch.autograd.grad(
                ctx.value, ctx.at, grad, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            raise _explained(error) from error
        return None, None, *found


class Guard(Function):
    """Identity on a value; backward calls ``check`` first, which may raise an error."""

    @staticmethod
    def forward(ctx: Any, check: Callable[[], None], value: Tensor) -> Tensor:
        ctx.check = check
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        ctx.check()
        return None, grad


class Relink(Function):
    """A value on the graph of another tensor of its shape: ``Relink.apply([value], link)``."""

    @staticmethod
    def forward(ctx: Any, value: list[Tensor], link: Tensor) -> Tensor:
        return value[0].detach()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


class Stale(Function):
    """A state whose graph is used up: it can be used as a value; backward raises an error."""

    @staticmethod
    def forward(ctx: Any, value: list[Tensor], leaf: Tensor) -> Tensor:
        return value[0].detach()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise second_time()


class Replay(Function):
    """A value behind reentrant checkpointing, which autograd passes with all leaves or not at all.

    ``Replay.apply(later, value, leaf)``; backward: ``later(value, grad)``, which has a pass of its
    own go on from there.
    """

    @staticmethod
    def forward(
        ctx: Any, later: Callable[[Tensor, Tensor], None], value: list[Tensor], leaf: Tensor
    ) -> Tensor:
        ctx.later, ctx.value = later, value[0]
        return value[0].detach()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.later(ctx.value, grad)
        return None, None, None


def _explained(error: RuntimeError) -> RuntimeError:
    used_up = "graph a second time" in str(error) or "already been freed" in str(error)
    return second_time() if used_up else error


def gradients(
    roots: Sequence[tuple[Tensor, Tensor]], at: Sequence[Any], *, keep: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients at some tensors of values that have these gradients.

    A hook on one of the tensors is not called: it will be when the result is accumulated.

    Args:
        roots: Values and the gradients at them.
        at: Where the gradients are wanted: tensors, leaves or not, or edges of the graph.
        keep: Whether the graph can be passed once more.

    Raises:
        BackwardError: if a part of the graph has been used up.
    """
    values, grads = zip(*roots, strict=True)
    every = [t._backward_hooks for t in at if isinstance(t, Tensor)]
    hooked = [(hooks, dict(hooks)) for hooks in every if hooks]
    for hooks, _ in hooked:
        hooks.clear()
    try:
        with torch.enable_grad():
            root = Emit.apply(grads, *values)
        return torch.autograd.grad(root, at, retain_graph=keep, allow_unused=True)
    except RuntimeError as error:
        explained = _explained(error)
        if explained is error:
            raise
        raise explained from error
    finally:
        for hooks, were in hooked:
            hooks.update(were)


def accumulate(
    roots: Sequence[tuple[Tensor, Tensor]],
    *,
    at: Sequence[Tensor] | None = None,
    keep: bool = False,
) -> None:
    """Accumulate gradients at leaves, in a pass that calls their hooks.

    Args:
        roots: Values and the gradients at them.
        at: The leaves; ``None`` for all.
        keep: Whether the graph can be passed once more.
    """
    values, grads = zip(*roots, strict=True)
    with torch.enable_grad():
        root = Emit.apply(grads, *values)
    torch.autograd.backward(root, inputs=None if at is None else list(at), retain_graph=keep)


# -- what a layer's own graph is replaced by -------------------------------------------------------


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
        (current,) = ctx.saved_tensors
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
        return output.view_as(output)  # which no program can change in place: traces would miss it

    @staticmethod
    @first_order
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        return (None, None, *ctx.gradients(error, ctx.needs_input_grad[4]))
