"""Feedback that is learnt: the rule of Kolen and Pollack for direct feedback."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from snn_dfa._distributed import mean_over_ranks
from snn_dfa.errors import FeedbackError

__all__ = ["KolenPollack", "KolenPollackProduct", "Learner", "correlation"]


@dataclass(frozen=True)
class _Options:
    """What both kinds of feedback that learn have."""

    lr: float = 3e-3
    weight_decay: float = 0.0
    initial: float = 1.0

    @property
    def over_ranks(self) -> bool:
        """Whether gradients are averaged over processes; those of weights are it already."""
        return False

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if not self.lr > 0:
            raise FeedbackError(f"{kind}: lr: expected a number above zero, got {self.lr}")
        for name in ("weight_decay", "initial"):
            if not getattr(self, name) >= 0:
                raise FeedbackError(
                    f"{kind}: {name}: expected zero or more, got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class KolenPollack(_Options):
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


@dataclass(frozen=True)
class KolenPollackProduct(_Options):
    r"""Feedback matrices that are products of factors, one for each weight above, that learn.

    Each weight W [N_out, N_in] that leads from a hidden layer towards the output has a factor V of
    its shape, drawn at random and never told what W is. At each step of the weights' optimiser V
    follows AdamW on W's own gradient, which is what meets at the two ends of the connection. A
    layer's B is the product of the factors after it, V_L ... V_(l+1), so that one error at the
    output still goes to each layer by one matrix. Where W and V get the same updates and decay
    alike, V becomes W: every layer's B becomes the product of the weights, where with
    :class:`KolenPollack` that is so in the last hidden layer alone.

    For dense layers; ``dfa.follow(optimizer)`` has to be called before the first backward pass.
    Which weight lies between two layers is seen in the first batch, and more than one way from a
    layer on is refused. With ``rule="fa"``, for convolutions too, each factor is the B of its own
    layer. As W's gradient is taken as the optimiser had it, averaged over processes, clipped and
    unscaled where it was, nothing of that is done again.

    Args:
        lr: Learning rate of AdamW, that of the weights; where theirs changes, set
            ``dfa.feedback_lr``.
        weight_decay: Of AdamW, that of the weights.
        initial: Factor on the standard deviation of each first V, 1 / sqrt(N_in), beside ``scale``;
            with 1 the first B are of the size of ``"gaussian"`` ones.

    Sources: Kolen and Pollack 1994, "Backpropagation without weight transport"; Akrout et al.
    2019, arXiv 1904.05391, whose reciprocal weights these factors are. The product of them in
    place of a chain of errors from layer to layer is ours.

    Raises:
        FeedbackError: if a number is out of its range.

    Example:
        >>> import snntorch as snn
        >>> from torch import nn
        >>> from snn_dfa import DFA
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True),
        ...     nn.Linear(8, 6), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(6, 2),
        ... )
        >>> options = KolenPollackProduct(lr=1e-2, weight_decay=0.1)
        >>> dfa = DFA(net, output="4", feedback=options)
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
        >>> dfa.follow(optimizer)
        >>> net(torch.rand(3, 4)).sum().backward()
        >>> {name: tuple(B.shape) for name, B in dfa.feedback.items()}
        {'1': (2, 8), '3': (2, 6)}
    """


def correlation(signal: Tensor, spikes: Tensor) -> Tensor:
    r"""Sum the outer products of signal and spikes over all leading dimensions.

    Args:
        signal: [..., C], what was broadcast.
        spikes: [..., \*S], the layer's own.

    Returns:
        [C, \*S], at least in single precision. A signal that is the same at every step (stride zero
        in the first dimension) is multiplied once.

    Example:
        >>> correlation(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0, 1.0]]))
        tensor([[0., 1., 1.],
                [0., 2., 2.]])
    """
    dims, shape = signal.dim() - 1, spikes.shape[signal.dim() - 1 :]
    if dims > 1 and signal.stride(0) == 0:
        signal, spikes, dims = signal[0], spikes.sum(0), dims - 1
    dtype = torch.promote_types(signal.dtype, torch.float32)
    left = signal.reshape(-1, signal.shape[-1]).to(dtype)
    right = spikes.reshape(len(left), -1).to(dtype)
    return (left.t() @ right).reshape(-1, *shape)


class Learner:
    """Gradients gathered for each matrix, and one step of AdamW for all of them when asked.

    Args:
        options: Rate and decay; ``lr`` may be set later.

    Example:
        >>> matrices = {"lif1": torch.zeros(2, 3)}
        >>> learner = Learner(KolenPollack(lr=0.1))
        >>> learner.gather("lif1", torch.ones(2, 3))
        >>> learner.step(matrices)
        ['lif1']
        >>> matrices["lif1"][0]
        tensor([-0.1000, -0.1000, -0.1000])
    """

    def __init__(self, options: KolenPollack | KolenPollackProduct) -> None:
        self.options = options
        self.lr = options.lr
        self.over_ranks = options.over_ranks
        self._pending: dict[str, Tensor] = {}
        self._optimizers: dict[str, torch.optim.AdamW] = {}

    def gather(self, name: str, gradient: Tensor) -> None:
        """Add to what the next step of this matrix follows."""
        known = self._pending.get(name)
        self._pending[name] = gradient if known is None else known + gradient

    def step(self, matrices: dict[str, Tensor]) -> list[str]:
        """Change the matrices in place by what was gathered; return the names of those changed.

        A gradient that is not finite is dropped, as mixed precision's scaler drops its step.
        """
        changed = []
        for name, own in self._pending.items():
            gradient = mean_over_ranks(own) if self.over_ranks else own
            if bool(gradient.isfinite().all()):
                # On the device where the errors are, and there it stays.
                matrices[name] = matrix = matrices[name].to(gradient.device)
                matrix.grad = gradient.to(matrix.dtype)
                optimizer = self._optimizer(name, matrix)
                optimizer.param_groups[0]["lr"] = self.lr
                optimizer.step()
                matrix.grad = None
                changed.append(name)
        self._pending.clear()
        return changed

    def _optimizer(self, name: str, matrix: Tensor) -> torch.optim.AdamW:
        known = self._optimizers.get(name)
        if known is not None and known.param_groups[0]["params"][0] is matrix:
            return known
        options = self.options
        fresh = torch.optim.AdamW([matrix], lr=options.lr, weight_decay=options.weight_decay)
        if known is not None:  # the matrix has moved to another device, or was loaded
            fresh.load_state_dict(known.state_dict())
        self._optimizers[name] = fresh
        return fresh

    def state_dict(self) -> dict[str, Any]:
        """Return options, moments and what is gathered, as tensors and plain values."""
        return {
            "options": asdict(self.options),
            "lr": self.lr,
            "pending": {name: gradient.clone() for name, gradient in self._pending.items()},
            "optimizers": {n: deepcopy(o.state_dict()) for n, o in self._optimizers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], matrices: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave, for these matrices."""
        self.options = type(self.options)(**state["options"])
        self.lr, self.over_ranks = state["lr"], self.options.over_ranks
        self._pending = {name: gradient.clone() for name, gradient in state["pending"].items()}
        self._optimizers = {}
        for name, saved in state["optimizers"].items():
            self._optimizer(name, matrices[name]).load_state_dict(deepcopy(saved))
