"""Which factors make a layer's feedback, where it is a product, and what they follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

from snn_dfa._distributed import whole
from snn_dfa._kinds import PRODUCT, Forward, Sites
from snn_dfa.errors import FeedbackError
from snn_dfa.feedback import product

__all__ = ["Factors"]


class Factors:
    """For each layer the chain of the layers with weights whose factors lead to the output.

    Args:
        forward: The weights.
    """

    def __init__(self, forward: Forward) -> None:
        self.chains: dict[str, list[str]] = {}
        self._forward = forward
        self._made_for: list[Any] = []

    def require(
        self,
        sites: Sites,
        path: Sites,
        factors: dict[str, Tensor],
        draw: Callable[[str, tuple[int, ...]], Tensor],
    ) -> bool:
        """See that each layer has its factors, draw those that are new; return whether any changed.

        Raises:
            FeedbackError: if there is no chain, a factor has another shape than its weight, or a
                weight is none that an optimiser could change.
        """
        wanted = [list(sites.items()), list(path.items())]
        if wanted == self._made_for:
            return False
        chains = {name: self._forward.names(name, path) for name in sites if name in path}
        for layer in dict.fromkeys(layer for chain in chains.values() for layer in chain):
            known = factors.get(layer)
            weight = self.check(layer, None if known is None else known.shape)
            if known is None:
                factors[layer] = draw(layer, tuple(weight.shape))
        self.chains, self._made_for = chains, wanted
        return True

    def check(self, layer: str, shape: torch.Size | None) -> Tensor:
        """Return the weight that a factor, of this shape if it is drawn, follows.

        Raises:
            FeedbackError: if there is none that an optimiser could change, or it is of another
                shape.
        """
        weight = self._forward.weight(layer)
        if not isinstance(weight, Parameter):
            raise FeedbackError(
                f"feedback: {PRODUCT!r} follows weights that are parameters, that of layer "
                f"{layer!r} is computed from others; use 'kolen-pollack'"
            )
        if shape is not None and not is_lazy(weight) and weight.shape != shape:
            raise FeedbackError(
                f"feedback: expected a factor of shape {list(weight.shape)}, that of the weight of "
                f"layer {layer!r}, got {list(shape)}"
            )
        return weight

    def product(self, name: str, factors: dict[str, Tensor], device: torch.device) -> Tensor:
        """Return a layer's matrix on a device; factors that have not learnt may lie elsewhere."""
        return product([factors[layer].to(device) for layer in self.chains[name]])

    def gradients(
        self, factors: dict[str, Tensor], stepped: Iterable[Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradients of those factors' weights that are among the parameters stepped."""
        changed = {id(parameter) for parameter in stepped}
        for layer, factor in factors.items():
            weight = self.check(layer, factor.shape)
            if weight.grad is not None and id(weight) in changed:
                yield layer, whole(weight.grad)
