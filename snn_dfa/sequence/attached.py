"""What a form over time has to know of an attached rule: whether one is at work on the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from snn_dfa.errors import AttachError

__all__ = ["Attached", "has_hooks", "see_that_no_hook_is_left_out", "see_that_none_is_at_work"]


class Attached:
    """What stands in place of a module's ``forward`` while a rule is attached to the module."""

    #: What it stands for.
    plain: Callable[..., Any]

    @property
    def at_work(self) -> bool:
        """Whether a call would learn by the rule."""
        raise NotImplementedError


def see_that_none_is_at_work(module: nn.Module) -> None:
    """See that a module whose ``forward`` is passed over is not attached.

    Args:
        module: A neuron that scans, or the network that a form was made of.

    Raises:
        AttachError: if a rule is at work on it: the form would learn by back-propagation.
    """
    stands = vars(module).get("forward")
    if isinstance(stands, Attached) and stands.at_work:
        raise AttachError(
            f"over_time: DFA is attached to a {type(module).__name__} of the plain network. The "
            f"form over time does not call it, and would learn by back-propagation. Attach DFA to "
            f"the form that runs: dfa.remove(), then DFA(over_time(net)). Make the form of a part "
            f"of a network before DFA(net). To evaluate only, use torch.no_grad() or dfa.paused()"
        )


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks of others that may change what goes in or out.

    Those of ``torch.nn.utils`` make the module's weight, and those of this library look.
    """
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    known = ("torch.nn.utils.", "snn_dfa.")
    return any(not str(getattr(hook, "__module__", "")).startswith(known) for hook in hooks)


def see_that_no_hook_is_left_out(module: nn.Module) -> None:
    """See that a module which is passed over has no hooks, which would not run.

    Args:
        module: A neuron that scans, or the network that a form was made of.

    Raises:
        AttachError: if it has.
    """
    if has_hooks(module):
        raise AttachError(
            f"over_time: a {type(module).__name__} has a forward hook, and the form over time does "
            f"not call it; expected none. Place the hook on the layer of the form, which gets "
            f"whole sequences [T, B, ...], or leave over_time out, and loop over time"
        )
