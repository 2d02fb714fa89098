"""The layers that a value was made of, and the weights that lie after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from snn_dfa._attach.graph import LEAF, PORT, are_packed, below_of, post_order

__all__ = ["Source", "kept_weights", "sources_of", "up_to_ports"]

#: Nodes of products, and under what names they keep the factors.
_WEIGHT_OF = {
    "AddmmBackward0": ("_saved_mat2", "_saved_mat1"),
    "BmmBackward0": ("_saved_mat2",),  # of values [B, T, N] that are transposed
    "MmBackward0": ("_saved_mat2", "_saved_self"),
    "ConvolutionBackward0": ("_saved_weight",),
}
#: How the names of nodes begin in which a matrix multiplies a value.
_MATRIX = (
    "Addmm", "Addmv", "Baddbmm", "Bmm", "Convolution", "CudnnRnn", "MkldnnRnn", "Mm", "Mv",
    "Trilinear",
)  # fmt: skip
#: Where a value comes from: a layer, and the first and the last layer with weights after it.
Source: TypeAlias = tuple[str, tuple[str, ...]]


def up_to_ports(mine: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return whether a walk ends at a node: at leaves, and at ports of this network."""
    return lambda node: type(node) is LEAF or (type(node) is PORT and mine(node))


def sources_of(
    value: Tensor,
    mine: Callable[[Any], bool],
    weights: Mapping[Any, str],
    *,
    by_product: bool = False,
) -> frozenset[Source]:
    """Return the layers that a value was made of, with the first and last weights after each.

    A weight lies on the way from a layer if a node of the graph joins both. A weight that is
    frozen is no leaf; it is told by the memory that the node keeps it in.

    Args:
        value: A tensor with a graph.
        mine: Whether a port belongs to this network.
        weights: Identity of a parameter, address of its memory, or shape of one in shards, to the
            name of its layer.
        by_product: Whether the node has to be a product of matrices, or a function of the user's:
            a parameter that is added, or that multiplies each number alone, is no weight then.
    """
    known: dict[Node, frozenset[Source]] = {}
    passing: dict[Node, frozenset[str]] = {}  # weights below a node that no source lies below
    root: Any = value.grad_fn
    for node, ends in post_order([root], up_to_ports(mine)):
        if not ends:
            named = {} if by_product and not _is_product(node) else weights
            known[node], passing[node] = _joined(node, known, passing, named)
        elif type(node) is PORT:
            layer = node.call.layer
            known[node] = frozenset() if layer is None else frozenset([(layer, ())])
        else:
            leaf, known[node] = node.variable, frozenset()
            name = weights.get(id(leaf)) or weights.get(leaf.shape)
            passing[node] = frozenset([name] if name else [])
    return known[root]


def _joined(
    node: Any,
    known: Mapping[Node, frozenset[Source]],
    passing: Mapping[Node, frozenset[str]],
    weights: Mapping[Any, str],
) -> tuple[frozenset[Source], frozenset[str]]:
    below = below_of(node)
    sources = frozenset(s for n in below for s in known[n])
    names = frozenset(name for n in below for name in passing.get(n, ()))
    if not sources:
        return sources, names
    if not weights:
        return sources, frozenset()
    if not names:
        names = frozenset(kept_weights(node, weights))
    for name in sorted(names):
        sources = frozenset((layer, (*way[:1], name)) for layer, way in sources)
    return sources, frozenset()


def _is_product(node: Any) -> bool:
    return type(node).__name__.startswith(_MATRIX) or isinstance(node, BackwardCFunction)


def kept_weights(node: Any, weights: Mapping[Any, str]) -> list[str]:
    """Return the layer whose frozen weight a node keeps for its backward pass.

    Where something stands in for what nodes keep, as in activation checkpointing, none is looked
    at: that would compute it again.
    """
    if are_packed():
        return []
    for attribute in _WEIGHT_OF.get(type(node).__name__, ()):
        try:
            kept = getattr(node, attribute, None)
        except RuntimeError:  # used up by an earlier backward pass, as the pass itself says
            return []
        if not isinstance(kept, Tensor) or kept.dim() < 2 or kept.is_sparse:
            continue  # a sparse one, as of a graph, is no weight
        if kept.data_ptr() in weights:
            return [weights[kept.data_ptr()]]
    return []
