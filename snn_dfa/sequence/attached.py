"""What a form over time has to know of an attached rule: whether one is at work on the loop."""

from __future__ import annotations

from torch import nn

from snn_dfa.errors import AttachError

__all__ = ["Attached", "see_that_none_is_at_work"]


class Attached:
    """What stands in place of a module's ``forward`` while a rule is attached to the module."""

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
