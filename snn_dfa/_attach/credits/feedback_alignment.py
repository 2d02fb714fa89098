"""Feedback alignment: errors from layer to layer, through fixed matrices instead of transposes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snn_dfa._attach import messages
from snn_dfa._attach.between.paths import Paths
from snn_dfa._attach.core import Core
from snn_dfa._attach.credits.functions import Detour
from snn_dfa._attach.credits.uses import uses_of
from snn_dfa._attach.forward import Around
from snn_dfa._attach.hooks import eager
from snn_dfa._attach.network_forward import NetworkForward
from snn_dfa._attach.tensors import Lent, tensors_in
from snn_dfa._attach.weights import (
    added_parameters,
    check_weights,
    gradient_at_input,
    gradient_at_weight,
    synapses,
    within_layers,
)
from snn_dfa._distributed import States
from snn_dfa.errors import AttachError, FeedbackError
from snn_dfa.feedback.base import FeedbackWeights, Shapes

__all__ = ["AlignedForward", "Alignment", "OwnWeights", "check", "check_feedback"]


def check(net: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose transposes are replaced, by name.

    Raises:
        AttachError: if there is none, or weights of a kind that is not known.
    """
    check_weights(net, "rule='fa'", "another rule")
    known, within = synapses(net), within_layers(net)
    for name, module in net.named_modules():
        if any(map(is_lazy, module.parameters(recurse=False))):
            raise AttachError(
                f"rule='fa': expected weights with a shape, got the lazy layer {name!r}; call the "
                f"network once, as with torch.no_grad(), before DFA(net, rule='fa')"
            )
        own = [p for p in module.parameters(recurse=False) if p.dim() > 1]
        if not own or module in within or type(module) is nn.Embedding:
            continue
        is_torchs = type(module).__module__.startswith("torch.")
        if is_torchs or not all(p.requires_grad for p in own):
            raise AttachError(
                f"rule='fa': expected weights in nn.Linear or in convolutions, got layer "
                f"{name!r} of type {type(module).__name__}; use another rule"
            )
    if not known:
        raise AttachError(
            "rule='fa': expected weights in nn.Linear or in convolutions, found none; use another "
            "rule"
        )
    return dict(known)


def check_feedback(feedback: type[FeedbackWeights], name: str) -> None:
    """Check that feedback of a type can have the shape of a weight.

    Args:
        feedback: The type.
        name: Its name.

    Raises:
        FeedbackError: if it cannot.
    """
    if not feedback.for_weights:
        raise FeedbackError(
            f"feedback: expected for rule='fa' a kind that has the shape of weights, got {name!r}; "
            f"use 'gaussian'"
        )


class OwnWeights(Paths):
    """The weight of each layer with weights, for feedback that stands for that alone."""

    def names(self, name: str, path: Shapes) -> list[str]:
        """Return the layer's own name."""
        return [name]

    def inflows(self) -> None:
        """Return nothing: each matrix is that of its own layer, and no product."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """No outputs: nothing is sent from them."""
        return ()


class Alignment:
    """Each input of a module with weights is cut, and gets its error by a detour.

    The detour is the module's own backward pass, with the feedback in place of its weight.

    Args:
        weights: The modules by name.
        core: The attachment.
        whole: Whether the network is to be called as a whole, so that what it returns is looked at.
    """

    def __init__(self, weights: dict[str, nn.Module], core: Core, *, whole: bool) -> None:
        self._core, self._whole = core, whole
        self._inputs: dict[str, Tensor] = {}
        self._around = [
            Around(m, core, partial(self._before, name), partial(self._after, name, m))
            for name, m in weights.items()
        ]

    def remove(self) -> None:
        """Take everything off."""
        for each in self._around:
            each.remove()
        self._inputs.clear()

    def _before(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._inputs.pop(name, None)
        if not self._core.active or not torch.is_grad_enabled():
            return None
        if self._whole and not self._core.now.whole:
            raise AttachError(
                f"rule='fa': layer {name!r} is called outside of a call of the network, and the "
                f"network has a parameter that is no weight of a layer; call the network"
            )
        x = args[0] if args else kwargs["input"]
        self._inputs[name] = x
        kwargs = {k: v for k, v in kwargs.items() if k != "input"}
        return (x.detach(), *args[1:]), kwargs

    def _after(self, name: str, module: Any, output: Tensor) -> Tensor | None:
        x = self._inputs.pop(name, None)
        if x is None:
            return None
        if not x.requires_grad:
            return Detour.apply(None, output, x)
        self._core.feedback.require({name: tuple(module.weight.shape)})

        def back(error: Tensor, x: Tensor) -> Tensor:
            feedback = self._core.feedback
            if feedback.accumulates:
                feedback.accumulate_gradient(name, gradient_at_weight(module, x, error))
            matrix = feedback.matrix(name, error)
            at_input = gradient_at_input(module, x, matrix, error).to(x.dtype)
            feedback.notify(name, at_input)
            return at_input

        return Detour.apply(back, output, x)


class AlignedForward(NetworkForward):
    """In place of the network's ``forward``: nothing is cut, and what comes out is looked at.

    Args:
        net: The network.
        core: The attachment.
        states: Sees that no membrane is one of another process.
        weights: The modules whose weights have feedback, by name.
    """

    def __init__(
        self, net: nn.Module, core: Core, states: States, weights: dict[str, nn.Module]
    ) -> None:
        super().__init__(net, core, states)
        self._weights = weights
        self._since = 0  # the number of the pass's first node

    def _come_in(self, args: Any, kwargs: Any) -> Lent:
        self._since = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        return Lent(lambda t: t, args, kwargs)

    @eager
    def _hand_out(self, result: Any, lent: Lent) -> Any:
        """See that every weight is used by its layer alone, and other parameters are added."""
        known = set(self._weights.values())
        new = [name for name, module in synapses(self.module).items() if module not in known]
        if new:
            raise messages.changed([], new)
        own = {
            id(p): name for name, m in self._weights.items() for p in m.parameters() if p.dim() > 1
        }
        added = added_parameters(self.module)
        names = {id(store[key]): name for store, key, name, _ in added}
        rest = {id(store[key]) for store, key, _, may_rest in added if may_rest}
        made = [*tensors_in(result), *lent.written()]
        uses = uses_of(made, names.keys(), self._since)
        if found := uses.leaves & own.keys():
            raise messages.functional_weight(min(own[each] for each in found))
        if wrong := (names.keys() - uses.added - rest) | uses.multiplied:
            raise messages.multiplied(min(names[each] for each in wrong))
        return result
