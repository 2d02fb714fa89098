"""Kolen and Pollack's rule for direct feedback: a matrix for each hidden layer learns."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

from snn_dfa.feedback.base import unfollowed
from snn_dfa.feedback.learning import Learned, LearningOptions

__all__ = ["KolenPollack", "KolenPollackFeedback"]


@dataclass(frozen=True)
class KolenPollack(LearningOptions):
    r"""Feedback matrices that learn from the broadcast signal and the spikes of their layer.

    AdamW updates B. The gradient is the sum over time and batch of the outer products of the
    broadcast signal and the layer's spikes. A weight from this layer straight to the output would
    have this gradient. B never uses a forward weight.

    If a weight and its feedback get the same updates and both decay, they become equal. This
    happens in the last hidden layer. For equal updates, train the weights with AdamW, and give B
    their learning rate and decay. If their rate changes, set ``dfa.feedback_lr``.

    B is updated once for each backward pass, when the next forward pass begins. After
    ``dfa.follow(optimizer)`` it is updated at each step of the weights' optimiser.

    B learns from each backward pass, also from one whose gradients the program drops, as where it
    skips a batch, or asks for gradients to plot them. Call such a pass within ``dfa.paused()``.

    Under a ``GradScaler`` B learns from the scaled error. A constant factor does not change the
    steps of AdamW. For some steps after the scale has changed, the step is off by less than the
    change of the scale. With ``DFA(net, optimizer=...)`` B takes the steps of that optimiser. SGD
    has no such normalisation: with a ``GradScaler`` the steps of B are as many times too large as
    the scale, and clipping does not act on B. Use Adam, AdamW or the like, or bfloat16 without a
    scaler.

    Args:
        lr: Learning rate of AdamW.
        weight_decay: Of AdamW: each update multiplies B by ``1 - lr * weight_decay``.
        initial: Factor on the standard deviation of the first B, beside ``scale``.
        over_ranks: With several processes of ``torch.distributed``, average the gradient of B over
            them, as ``DistributedDataParallel`` does for weights. All processes then have the same
            B, and have to make the same passes. ``False``: each process has its own B.

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

    _warned = False

    @property
    def accumulates(self) -> bool:
        """True: the gradients are made in the backward pass."""
        return True

    def notify(self, name: str, error: Tensor) -> None:
        """Show the observer an error; warn once if no optimiser is followed, at a rate of ours.

        It warns as well if the one that was followed is gone.
        """
        lr, was_followed = self.feedback_optimizer.lr, self.optimizer is not unfollowed
        ours = lr == KolenPollack().lr or was_followed
        if ours and not self.has_optimizer and not self._warned:
            self._warned = True
            warnings.warn(
                f"feedback: {self.type_name!r} learns at a rate of its own "
                f"({lr:g}) and follows no optimiser; a matrix becomes equal to the weights only if "
                f"it learns at their optimiser's steps: call dfa.follow(optimizer), or write "
                f"DFA(net, optimizer=optimizer)",
                stacklevel=2,
            )
        super().notify(name, error)
