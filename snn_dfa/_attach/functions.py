"""The autograd functions: tensors in, tensors out; they know of no module and no snnTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.graph import get_gradient_edge

from snn_dfa._attach.hooks import eager
from snn_dfa.errors import BackwardError, DFAError

__all__ = [
    "Bridge", "Overwritten", "Port", "Relink", "Token", "accumulate", "added", "first_order",
    "give_back", "gradients", "in_backward", "is_transformed", "rebase", "second_time", "silenced",
    "will_pass",
]  # fmt: skip


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
        "up. Five programs do this. A state of the last batch goes on in this one: call "
        "snn_dfa.reset(net) before each batch, or detach the states. The program calls backward() "
        "after each time step: attach DFA(net, credit='online'). The loss reads a value between "
        "two layers that the network does not return: return the value. The loss reads what "
        "leads from an output to an input of the network that comes out again, or comes into the "
        "output itself: call backward(retain_graph=True). The program calls backward() twice: call "
        "backward(retain_graph=True) first"
    )


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Raise an error for a second derivative, which would leave out what e B depends on."""

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise DFAError(
                "create_graph=True: an error that is sent back directly has no derivative; take "
                "second derivatives in `with dfa.paused():`, where the gradient is that of "
                "back-propagation"
            )
        return backward(ctx, *grads)

    return checked


# -- where layers begin and end --------------------------------------------------------------------


class Port(Function):
    """The values that a call returned, in a graph that ends here.

    ``Port.apply(call, values, *tokens)`` returns the values. They share storage and version counter
    with the originals, so that in-place changes act on both. Backward: the gradients go to the
    call's collector and no further.

    Args:
        call: The call.
        values: The tensors that the call returned.
        tokens: Results of :class:`Token`, which autograd runs after all ports that lead to them.
    """

    @staticmethod
    def forward(ctx: Any, call: Any, values: Sequence[Tensor], *tokens: Tensor) -> Any:
        ctx.call, ctx.tokens = call, len(tokens)
        ctx.set_materialize_grads(False)
        return tuple([value.detach() for value in values])

    @staticmethod
    @eager
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        ctx.call.collector.arrive(ctx.call, grads)
        return (None,) * (2 + ctx.tokens)


class Token(Function):
    """A number that ports lead to, and that leads to some tensors.

    ``Token.apply(run, *tensors)``; backward: ``run()``, which returns the gradients of the tensors,
    or ``None`` for none of them.
    """

    @staticmethod
    def forward(
        ctx: Any, run: Callable[[], Sequence[Tensor | None] | None], *tensors: Tensor
    ) -> Tensor:
        ctx.run, ctx.count = run, len(tensors)
        ctx.set_materialize_grads(False)
        return torch.zeros((), dtype=torch.float32, device=tensors[0].device)

    @staticmethod
    @eager
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *(ctx.run() or (None,) * ctx.count)


class Bridge(Function):
    """A value that a program made of a layer's own earlier values, on its way back into the layer.

    ``Bridge.apply(value, at, *inputs)``: ``at`` are the tensors and edges of the value's graph
    that stand for the inputs. Backward is exact, whatever the program did, by autograd on the
    value's own graph, as it is now: a change in place gives the value another one.
    """

    @staticmethod
    def forward(ctx: Any, value: list[Tensor], at: Sequence[Any], *inputs: Tensor) -> Tensor:
        ctx.root, ctx.at = get_gradient_edge(value[0]), at
        return value[0].detach()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_gradients([ctx.root], [grad], ctx.at, keep=True)


class Relink(Function):
    """A value on the graph of another tensor of its shape.

    ``Relink.apply([value], link, see)``; backward: ``see(grad)``, if there is one, before the
    gradient goes on. It may raise an error.
    """

    @staticmethod
    def forward(
        ctx: Any, value: list[Tensor], link: Tensor, see: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        ctx.see = see
        return value[0].detach()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        if ctx.see is not None:
            ctx.see(grad)
        return None, grad, None


class Overwritten(Relink):
    """A value with the graph of what it was before a layer overwrote it."""


def rebase(value: Tensor, on: Tensor) -> None:
    """Give a value the graph of another one, which has its numbers and its memory.

    What reads the memory has read these numbers: so they stay the same version.
    """
    with torch.autograd._unsafe_preserve_version_counter(value):  # type: ignore[attr-defined]
        if value.grad_fn is not None and not value._is_view():
            value.detach_()  # else a backward pass would go through the old graph, too
        value.copy_(on)


def give_back(changed: Sequence[tuple[Tensor, Tensor]], ports: dict[int, Tensor]) -> None:
    """Give tensors that a call has changed in place the graphs of their ports.

    Args:
        changed: Each with what stood for it in the call.
        ports: By identity of what the call made; what stood for a tensor has that as its port then.
    """
    for old, new in changed:
        rebase(old, ports.get(id(new), new))
        ports[id(new)] = old


def _joined(roots: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return one root over many values, whose backward pass gives each of them its own gradient.

    Autograd's functions check each root that they are given, which for the steps of a sequence
    costs as much as a step.
    """
    values, grads = zip(*roots, strict=True)
    with torch.enable_grad():
        root: Tensor = Token.apply(lambda: grads, *values)
    return root


def silenced(tensors: Sequence[Any]) -> list[tuple[dict[int, Any], dict[int, Any]]]:
    """Take the hooks off tensors; return where they were, and what."""
    every = [t._backward_hooks for t in tensors if isinstance(t, Tensor)]
    found = [(hooks, dict(hooks)) for hooks in every if hooks]
    for hooks, _ in found:
        hooks.clear()
    return found


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
    return _gradients([_joined(roots)], None, at, keep=keep)


def _gradients(
    roots: Sequence[Any], grads: Sequence[Tensor] | None, at: Sequence[Any], *, keep: bool
) -> tuple[Tensor | None, ...]:
    """Return what :func:`gradients` does, by autograd's function."""
    hooked = silenced(at)
    try:
        return torch.autograd.grad(roots, at, grads, retain_graph=keep, allow_unused=True)
    except RuntimeError as error:
        if "graph a second time" in str(error) or "already been freed" in str(error):
            raise second_time() from error
        raise
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
    torch.autograd.backward(_joined(roots), inputs=at, retain_graph=keep)
