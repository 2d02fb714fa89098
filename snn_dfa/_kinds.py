"""The kinds of feedback by name, and what a kind stands for that is made of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from snn_dfa.errors import FeedbackError
from snn_dfa.feedback import KINDS, product
from snn_dfa.kolen_pollack import KolenPollack, KolenPollackProduct

__all__ = [
    "FUNCTION",
    "GIVEN",
    "KOLEN_POLLACK",
    "LEARNED",
    "NAMES",
    "PRODUCT",
    "SHARED",
    "TRANSPOSE",
    "ZHANG",
    "Forward",
    "Sites",
    "check_names",
    "check_tensor",
    "fits",
    "product_of_weights",
    "sliced",
]

#: Layer name to shape [C, *S] of its matrix, in the order in which the layers are called.
Sites: TypeAlias = Mapping[str, tuple[int, ...]]

KOLEN_POLLACK, PRODUCT = "kolen-pollack", "kolen-pollack-product"
TRANSPOSE, ZHANG, SHARED = "transpose", "zhang", "shared"
GIVEN, FUNCTION = "given", "function"  # what a user gave instead of a name
#: The kinds that learn, by their options.
LEARNED: Mapping[str, type[KolenPollack] | type[KolenPollackProduct]] = MappingProxyType(
    {KOLEN_POLLACK: KolenPollack, PRODUCT: KolenPollackProduct}
)
NAMES = (*KINDS, SHARED, ZHANG, TRANSPOSE, *LEARNED)


class Forward(Protocol):
    """The weights that a layer's feedback stands for."""

    def names(self, name: str, path: Sites) -> list[str]:
        """Return the names of their layers, first to last."""

    def weight(self, layer: str) -> Tensor:
        """Return one of them, as it is at this moment."""


def product_of_weights(forward: Forward, name: str, path: Sites) -> Tensor:
    """Return the matrix that a layer's feedback stands for, of the weights of this moment."""
    weights = [forward.weight(layer).detach() for layer in forward.names(name, path)]
    return product(weights).reshape(path[name])


def check_names(names: Iterable[str], known: list[str], argument: str) -> None:
    """Refuse matrices for layers that take none."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise FeedbackError(
            f"{argument}: expected matrices for layers among {known}, got one for {unknown[0]!r}"
        )


def fits(matrix: torch.Size, wanted: tuple[int, ...]) -> bool:
    """Whether a matrix is of the shape, or one that is spread over the places of an image."""
    return (
        len(matrix) == len(wanted)
        and tuple(matrix[:2]) == wanted[:2]
        and all(m in (1, w) for m, w in zip(matrix[2:], wanted[2:], strict=True))
    )


def check_tensor(name: str, matrix: object) -> None:
    """Refuse what is no matrix of numbers."""
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        raise FeedbackError(
            f"feedback[{name!r}]: expected a floating point tensor [C, *spike shape], got "
            f"{matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__}"
        )


def sliced(base: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return what a layer takes of a flat matrix that all share."""
    return base[: math.prod(shape)].view(shape)
