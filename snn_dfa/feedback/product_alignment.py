"""Product feedback alignment: each factor is a fixed random matrix times one that learns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from snn_dfa._distributed import whole
from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.base import Forward
from snn_dfa.feedback.draw import gaussian, generator_for
from snn_dfa.feedback.kolen_pollack_product import KolenPollackProductFeedback
from snn_dfa.feedback.learning import LearningOptions

__all__ = ["ProductFeedbackAlignment", "ProductFeedbackAlignmentFeedback"]


@dataclass(frozen=True)
class ProductFeedbackAlignment(LearningOptions):
    r"""Feedback in which no matrix becomes a weight: a product of two becomes it.

    Each weight W [N_out, N_in] after a hidden layer has a fixed random R [N_out, K] and a U
    [K, N_in] that learns; K is N_out times ``expansion``. R U takes the place that a factor V has
    in :class:`KolenPollackProduct`. With ``rule="fa"`` the error passes R and then U on its way
    from W to the layer below: product feedback alignment as published. With the direct rules the B
    of a layer is the product of all R U after it.

    At each step of the weights' optimiser, AdamW updates U by R^T times the gradient of W, which is
    what reaches the K units between R and U times the input of W. With gradient descent and decay
    U becomes R^T W, so that R U becomes R R^T W. R has variance 1 / K, and R R^T is nearer to the
    identity the larger K is. Under AdamW that holds roughly.

    Call ``dfa.follow(optimizer)`` before the first backward pass.

    Args:
        lr: Learning rate of AdamW; use the rate of the weights.
        weight_decay: Of AdamW; use the decay of the weights.
        initial: Factor on the standard deviation of each first U, 1 / sqrt(N_in), beside ``scale``.
        expansion: K over N_out, a whole number.

    Source: Ji-An and Benna 2024, arXiv 2405.20594 (R and U are named B and R in their code).

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
        >>> options = ProductFeedbackAlignment(lr=1e-2, weight_decay=0.1)
        >>> dfa = DFA(net, rule="fa", output="4", feedback=options)
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
        >>> dfa.follow(optimizer)
        >>> net(torch.rand(3, 4)).sum().backward()
        >>> {name: tuple(B.shape) for name, B in dfa.feedback.items()}
        {'2': (6, 8), '4': (2, 6)}
    """

    expansion: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.expansion, int) or self.expansion < 1:
            raise FeedbackError(
                f"ProductFeedbackAlignment: expansion: expected a whole number above zero, got "
                f"{self.expansion!r}"
            )


class ProductFeedbackAlignmentFeedback(KolenPollackProductFeedback):
    """Factors R U, one for each weight after a layer; :attr:`matrices` holds the U.

    R is drawn from seed, name and shape whenever it is needed first, and not saved.
    """

    options = ProductFeedbackAlignment

    def __init__(
        self, type_name: str, scale: float, seed: int, forward: Forward, given: Any = None
    ) -> None:
        super().__init__(type_name, scale, seed, forward, given)
        self._drawn: dict[str, Tensor] = {}  # R by layer

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        r"""Return the first U [K, \*N_in] of a weight of a shape [N_out, \*N_in]."""
        return super().draw(name, (self._expansion * shape[0], *shape[1:]))

    def stored(self, name: str, shape: tuple[int, ...]) -> int:
        """Return how many numbers U and R have."""
        return self._expansion * shape[0] * (math.prod(shape[1:]) + shape[0])

    @property
    def _expansion(self) -> int:
        return int(getattr(self.feedback_optimizer.options, "expansion", 1))

    def _weight(self, layer: str, shape: torch.Size | None) -> Tensor:
        weight = super()._weight(layer, None)
        if shape is None or is_lazy(weight) or shape[0] % len(weight):
            return super()._weight(layer, shape)
        return super()._weight(layer, torch.Size((len(weight), *shape[1:])))

    def _fixed(self, layer: str, outputs: int, like: Tensor) -> Tensor:
        """Return R [N_out, K] of a layer, on the device and in the dtype of its U."""
        shape = outputs, len(like)
        if layer not in self._drawn or self._drawn[layer].shape != shape:
            self._drawn[layer] = gaussian(shape, generator_for(self.seed, f"{layer} R", shape))
        self._drawn[layer] = self._drawn[layer].to(like.device)
        return self._drawn[layer].to(like.dtype)

    def _factors(self, device: torch.device) -> dict[str, Tensor]:
        found = {}
        for layer, learned in super()._factors(device).items():
            outputs = len(self.forward.weight(layer))
            found[layer] = torch.tensordot(self._fixed(layer, outputs, learned), learned, 1)
        return found

    def learn(self, stepped: Iterable[Tensor] = ()) -> None:
        """Take one step of AdamW with R^T times the gradients of the weights that were stepped."""
        changed, found = {id(parameter) for parameter in stepped}, {}
        for layer, learned in self.matrices.items():
            weight = self._weight(layer, learned.shape)
            if weight.grad is not None and id(weight) in changed:
                gradient = whole(weight.grad)
                fixed = self._fixed(layer, len(weight), learned).to(gradient)
                found[layer] = weight, torch.tensordot(fixed.t(), gradient, 1)
        self._step(found)
