"""The gradients of linear layers' weights: each gets one sum for all steps of a sequence."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from snn_dfa._attach.functions import first_order
from snn_dfa._attach.graph import LEAF, PORT
from snn_dfa.errors import BackwardError
from snn_dfa.sequence import spike_sum

__all__ = ["Current", "Made", "Notes", "changed_in_place", "made_of", "settle", "weights_of"]

_ADDMM: Any = type(torch.nn.functional.linear(
    torch.ones(1, 1), torch.ones(1, 1, requires_grad=True), torch.ones(1)).grad_fn)  # fmt: skip
_MM: Any = type(torch.nn.functional.linear(
    torch.ones(1, 1), torch.ones(1, 1, requires_grad=True)).grad_fn)  # fmt: skip
_TRANSPOSE: Any = type(torch.ones(1, 1, requires_grad=True).t().grad_fn)
#: Numbers of the inputs and errors that are put side by side for one product.
_ROOM = 1 << 20
#: Numbers of the errors at one weight that are noted before their sum is taken.
_NOTED = 1 << 22


#: Gives the notes of the pass that is going on; ``None`` where a pass takes its gradients itself.
Book: TypeAlias = "Callable[[], Notes | None]"


class Made(NamedTuple):
    """What a linear layer made a current [B, N] of: x [B, F], weight [N, F], bias [N] or none."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    seen: weakref.ref[Tensor]  # the current itself, as long as the program keeps it
    version: int  # of x, when the layer read it
    book: Book  # gives the notes of the pass that is going on


def made_of(
    value: Tensor, layer: str, mine: Callable[[Any], bool], known: Container[int], book: Book
) -> tuple[Made, Any] | None:
    """Return what a value was made of, and the port that its input came through, if any.

    Args:
        value: What comes into a layer.
        layer: Its name.
        mine: Whether a port belongs to this network.
        known: The parameters of the network by identity.
        book: Gives the notes of the pass that is going on.

    Returns:
        ``None`` where the value is no plain product of a weight of the network with data or with
        what another layer has returned, or where something looks at its gradient.
    """
    node: Any = value.grad_fn
    kind = type(node)
    if kind is _ADDMM:
        (bias_node, _), (source, _), (turned, _) = node.next_functions
        if type(bias_node) is not LEAF or node._saved_alpha != 1 or node._saved_beta != 1:
            return None
        raw, kept = node._raw_saved_mat1, "_saved_mat1"
    elif kind is _MM:
        (source, _), (turned, _) = node.next_functions
        bias_node, raw, kept = None, node._raw_saved_self, "_saved_self"
    else:
        return None
    if source is not None and not (type(source) is PORT and mine(source)):
        return None
    if source is not None and source.call.layer in (layer, None):
        return None
    if type(turned) is not _TRANSPOSE or getattr(raw, "unpack_hook", None) is not None:
        return None
    leaf = turned.next_functions[0][0]
    if type(leaf) is not LEAF or value._backward_hooks or value.retains_grad:
        return None
    weight, bias = leaf.variable, None if bias_node is None else bias_node.variable
    if id(weight) not in known:
        return None
    if bias is not None and (id(bias) not in known or bias.shape != weight.shape[:1]):
        return None
    x = _kept(node, kept)
    seen = weakref.ref(value)
    return None if x is None else (Made(x, weight, bias, seen, x._version, book), source)


def _kept(node: Any, name: str) -> Tensor | None:
    """Return what a node keeps; ``None`` of what is sparse, and of what was changed in place."""
    try:
        kept = getattr(node, name)
    except RuntimeError:  # autograd says so in the backward pass
        return None
    return kept if kept.layout is torch.strided else None


class Notes:
    """The errors at currents that have come in one backward pass, by the weight.

    Args:
        keep: Whether gradients are made of them, and layers' own graphs are not merely asked.
    """

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self._steps: dict[tuple[int, int], list[tuple[Made, Tensor]]] = {}
        self._noted: dict[tuple[int, int], int] = {}  # how many numbers
        self._found: dict[int, Tensor] = {}  # by identity of a weight or bias

    def take(self, made: Made, error: Tensor) -> None:
        """Note the error [B, N] at a current."""
        if not self.keep:
            return
        key = id(made.weight), id(made.bias)
        self._steps.setdefault(key, []).append((made, error))
        self._noted[key] = self._noted.get(key, 0) + error.numel()
        if self._noted[key] > _NOTED:  # of a long sequence, whose errors would fill the memory
            self._sum(key)

    def gradients(self) -> dict[int, Tensor]:
        """Return the gradients of weights and biases, by identity, and forget the errors."""
        while self._steps:
            self._sum(next(iter(self._steps)))
        return self._found

    def _sum(self, key: tuple[int, int]) -> None:
        steps = self._steps.pop(key)
        del self._noted[key]
        made, error = steps[0]
        with _as_they_are(error.device.type):
            found = _summed(steps)
        for leaf, grad in zip((made.weight, made.bias), found, strict=True):
            if leaf is not None:
                known = self._found.get(id(leaf))
                self._found[id(leaf)] = grad if known is None else known + grad


def _as_they_are(device: str) -> AbstractContextManager[Any]:
    """Return what lets products keep their type where a backward pass is called in autocast."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def changed_in_place() -> BackwardError:
    """Return the error of an input or a state that is not as the layer has read it."""
    return BackwardError(
        "backward: the input or the state of a layer was changed in place after the layer "
        "had read it, and its gradient needs the values from before; change a copy"
    )


def settle(made: Made | None, error: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Note an error at a current; where no pass takes notes, return what weight and bias learn.

    Raises:
        BackwardError: if the program wants to see the gradient at the current, which has no graph,
            or has changed the input in place.
    """
    if made is None or error is None:
        return None, None
    if made.x._version != made.version:
        raise changed_in_place()
    current = made.seen()
    if current is not None and (current._backward_hooks or current.retains_grad):
        raise BackwardError(
            "backward: a current, the result of a linear layer, has a hook or retain_grad() that "
            "was placed after its spiking layer was called, and no graph any more; place it before"
        )
    notes = made.book()
    if notes is not None:
        notes.take(made, error)
        return None, None
    return error.t() @ made.x, None if made.bias is None else error.sum(0)


def weights_of(made: Made | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the weight and the bias that learn by an error at a current."""
    return (None, None) if made is None else (made.weight, made.bias)


class Current(Function):
    """A current, as a function of weight and bias whose gradients are taken later.

    ``Current.apply([value], made, see, weight, bias)`` returns the value, [B, N]. Backward:
    ``see(grad)``, if there is one, before the gradient is noted. It may raise an error.
    """

    @staticmethod
    def forward(
        ctx: Any, value: list[Tensor], made: Made, see: Callable[[Tensor], None] | None,
        *_: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.made, ctx.see = made, see
        return value[0].detach()

    @staticmethod
    @first_order
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.see is not None:
            ctx.see(error)
        if not any(ctx.needs_input_grad):
            return (None,) * 5
        return None, None, None, *settle(ctx.made, error)


def _summed(steps: Sequence[tuple[Made, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the gradients at weight and bias of some steps."""
    at_weight = at_bias = None
    for x, error in _side_by_side(_by_input(steps)):
        bias = error.sum(0)
        at_bias = bias if at_bias is None else at_bias.add_(bias)
        part = spike_sum(error, x)
        if at_weight is None:
            at_weight = error.t() @ x if part is None else part
        elif part is None:
            at_weight.addmm_(error.t(), x)
        else:
            at_weight += part
    assert at_weight is not None
    assert at_bias is not None
    return at_weight, at_bias


def _by_input(steps: Sequence[tuple[Made, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return inputs and errors; of steps with one input, such as a constant current, the sum."""
    found: dict[Any, tuple[Tensor, Tensor]] = {}
    for (x, *_), error in steps:
        key = (x.data_ptr(), x.shape, x.stride())
        known = found.get(key)
        found[key] = x, error if known is None else known[1] + error
    return list(found.values())


def _side_by_side(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return inputs and errors of so many steps in one that the copies stay small."""
    x, error = pairs[0]
    count = max(1, _ROOM // max(1, x.numel() + error.numel()))
    groups = [pairs[i : i + count] for i in range(0, len(pairs), count)]
    return [
        (torch.cat([x for x, _ in group]), torch.cat([error for _, error in group]))
        if len(group) > 1
        else group[0]
        for group in groups
    ]
