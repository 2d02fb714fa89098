"""Kolen and Pollack's rule for direct feedback: a matrix for each hidden layer learns."""

from __future__ import annotations

from dataclasses import dataclass

from snn_dfa.feedback.learning import Learned, Options

__all__ = ["KolenPollack", "KolenPollackFeedback"]


@dataclass(frozen=True)
class KolenPollack(Options):
    r"""Feedback matrices that learn from what meets at them, without seeing a forward weight.

    B follows AdamW on the sum over time and batch of the outer products of broadcast signal and the
    layer's own spikes: the gradient that a weight from this layer straight to the output would
    have. Where a weight and its feedback get the same updates and both decay, they become alike,
    whatever they were; in the last hidden layer this is what happens here.

    They become alike as far as both get the same updates: give the weights the optimiser of B,
    AdamW, and B their rate and decay; where their rate changes, set ``dfa.feedback_lr``.

    An update is made when the next forward pass begins, one for each backward pass; or, after
    ``dfa.follow(optimizer)``, with each step of the weights' optimiser.
    Under a ``GradScaler`` B learns from the scaled error; AdamW's step does not depend on a factor
    that stays, and for some steps after the scale has changed it is off by less than that factor.

    Args:
        lr: Learning rate of AdamW.
        weight_decay: Of AdamW: at each update B loses the share ``lr * weight_decay``.
        initial: Factor on the standard deviation of the first B, beside ``scale``.
        over_ranks: Where ``torch.distributed`` was started with several processes, B follows the
            mean over them, as the weights do in ``DistributedDataParallel``, and stays the same in
            each; every process then has to make the same passes. ``False``: each has its own B.

    Sources: Kolen and Pollack 1994, "Backpropagation without weight transport"; Akrout et al.
    2019, arXiv 1904.05391; for direct feedback Webster et al. 2020, "Learning the connections in
    direct feedback alignment".

    Raises:
        FeedbackError: if a number is out of its range.

    Example:
        >>> import snntorch as snn
        >>> from torch import nn
        >>> from snn_dfa import DFA
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True),
        ...     nn.Linear(8, 2), snn.Leaky(beta=0.9, init_hidden=True),
        ... )
        >>> dfa = DFA(net, feedback=KolenPollack(lr=1e-2))
    """

    initial: float = 0.01
    over_ranks: bool = True


class KolenPollackFeedback(Learned):
    """Matrices that follow the correlation of the broadcast signal and the layer's spikes."""

    options = KolenPollack

    @property
    def accumulates(self) -> bool:
        """True: the gradients are made in the backward pass."""
        return True
