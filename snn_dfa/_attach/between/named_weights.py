"""Which weight, or which matrix of the program's own, a product on the way into a layer takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from snn_dfa._attach.between.moves import NotLinearError
from snn_dfa._attach.between.sources import kept_weights
from snn_dfa._attach.between.walk import Walk, right_factor
from snn_dfa._attach.graph import are_packed, below_of

__all__ = [
    "AS_IT_IS", "PRODUCTS", "known_or_made", "made_of_parameters", "named", "of_all_samples",
    "passed",
]  # fmt: skip

#: Products with a weight, beside convolutions: this library's among them, and those of traces.
PRODUCTS = {
    "AddmmBackward0", "BaddbmmBackward0", "BmmBackward0", "LinearBackward0", "MmBackward0",
    "TracedBackward", "_SpikeLinearBackward",
}  # fmt: skip
#: What leaves a weight's numbers as they are, on its way into a product.
AS_IT_IS = {
    "AliasBackward0", "CloneBackward0", "ExpandBackward0", "PermuteBackward0",
    "ReshapeAliasBackward0", "SqueezeBackward1", "TBackward0", "ToCopyBackward0",
    "TransposeBackward0", "TransposeBackward1", "UnsafeViewBackward0", "UnsqueezeBackward0",
    "ViewBackward0",
}  # fmt: skip


def made_of_parameters(node: Any, walk: Walk, names: Sequence[str | None]) -> str | None:
    """Return the name of the matrix that was made of parameters, if a node is a product with it."""
    count = len(walk.products)
    is_one = 0 < count <= len(names) and walk.products[-1].node is node
    return names[count - 1] if is_one else None


def known_or_made(
    named: Callable[[], str | None], made: str | None, step: Callable[[str | None], Any]
) -> Any:
    """Return the function of a node by the weight that it takes, or else by the matrix it made."""
    try:
        return step(named())
    except NotLinearError:
        if made is None:
            raise
        return step(made)


def named(
    node: Any,
    weights: Mapping[Any, str],
    names: Mapping[Any, str],
    own: Mapping[str, Tensor],
    free: Mapping[str, Tensor],
    computed: set[Any],
) -> str | None:
    """Return the name of the weight, or of the matrix, that a node takes as it is."""
    passing = [weights[n] for n in below_of(node) if n in weights]
    weight = next(iter(passing or kept_weights(node, names)), None)
    as_it_is = computed.isdisjoint(below_of(node))
    if weight is not None and weight in free:
        return _free(node, weight, free) if as_it_is else None
    if weight is not None and weight in own and not (as_it_is and _is_as_it_is(node, own[weight])):
        raise NotLinearError(f"a function of the weight of {weight}")
    return weight


def _free(node: Any, name: str, free: Mapping[str, Tensor]) -> str | None:
    """Return the name of the matrix by which a product multiplies values, if it is one of these."""
    if type(node).__name__ not in PRODUCTS or are_packed():
        return None
    kept = right_factor(node)
    factor = None if kept is None else of_all_samples(kept)
    if factor is None:
        return None
    same = (n for n in (name, f"{name}.T") if _equal(factor, free[n].detach().t()))
    return next(same, None)


def of_all_samples(factor: Tensor) -> Tensor | None:
    """Return the matrix by which all samples are multiplied; ``None`` if each has its own."""
    of_each = factor.dim() > 2 and len(factor) > 1 and factor.stride(0)
    return None if of_each else _first(factor)


def _first(factor: Tensor) -> Tensor:
    """Return the matrix of the first sample, of a factor that may be expanded for all."""
    return factor.reshape(-1, *factor.shape[-2:])[0]


def _equal(factor: Tensor, matrix: Tensor) -> bool:
    return factor.shape == matrix.shape and torch.equal(factor, matrix.to(factor))


def _is_as_it_is(node: Any, weight: Tensor) -> bool:
    """Return whether a product takes a weight as the weight's own module would.

    Of a square matrix no shape tells whether it has been transposed.
    """
    if are_packed() or hasattr(weight, "full_tensor"):  # in shards: the whole one has gone
        return True
    if type(node).__name__ == "ConvolutionBackward0":
        return bool(node._saved_weight.shape == weight.shape)
    factor = right_factor(node)
    if factor is None or len({*weight.shape}) > 1 or node.next_functions[-2][0] is None:
        return True
    matrix = _first(factor)
    wanted = weight.detach().to(factor.dtype).t()
    return matrix.shape != wanted.shape or torch.equal(matrix, wanted)


def passed(node: Any, weights: Mapping[Any, str]) -> dict[Any, str]:
    """Return the weight that a node passes on, but not in a product with something else."""
    below = [weights.get(n) for n, _ in node.next_functions]
    name = next((each for each in below if each), None)
    makes = type(node).__name__ in PRODUCTS or type(node).__name__ == "ConvolutionBackward0"
    return {} if name is None or (makes and set(below) != {name}) else {node: name}
