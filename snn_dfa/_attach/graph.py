"""One walk over autograd's graph: the calls, leaves and weights that a value was made of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils.checkpoint import CheckpointFunction

from snn_dfa._attach.functions import Port

__all__ = [
    "LEAF", "PORT", "SUMS", "Origin", "Source", "are_packed", "are_sums", "begun_at", "below_of",
    "kept_weights", "origin_of", "post_order", "signed", "sources_of", "up_to_ports",
]  # fmt: skip

PORT: Any = Port._backward_cls
LEAF: Any = type(torch.autograd.graph.get_gradient_edge(torch.ones(1, requires_grad=True)).node)
#: Where ``register_full_backward_hook`` and ``register_full_backward_pre_hook`` look at gradients.
_HOOKED: Any = BackwardHookFunction._backward_cls
_REENTRANT: Any = CheckpointFunction._backward_cls
_SELECT: Any = type(torch.ones(1, requires_grad=True)[0].grad_fn)
_SLICE: Any = type(torch.ones(2, requires_grad=True)[1:].grad_fn)
_STACK: Any = type(torch.stack([torch.ones(1, requires_grad=True)]).grad_fn)
#: Nodes that a walk does not merely pass.
_SPECIAL = frozenset({PORT, LEAF, _HOOKED, _REENTRANT, _SELECT, _SLICE})

#: The function by which every pass of autograd begins.
_BEGINS: Any = torch.autograd.graph._engine_run_backward.__code__

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


def below_of(node: Any) -> list[Any]:
    return [n for n, _ in node.next_functions if n is not None]


def post_order(
    roots: Iterable[Any],
    ends: Callable[[Any], bool],
    below: Callable[[Any], list[Any]] = below_of,
) -> Iterator[tuple[Any, bool]]:
    """Yield the nodes of a graph, each after those below it, and whether the walk ends there.

    Args:
        roots: Where it begins.
        ends: Whether what lies below a node is not entered.
        below: The nodes below one.
    """
    seen: set[Any] = set()
    todo = [(root, False) for root in roots]
    while todo:
        node, entered = todo.pop()
        if node in seen:
            continue
        if entered or ends(node):
            seen.add(node)
            yield node, not entered
        else:
            todo.append((node, True))
            todo += [(n, False) for n in below(node)]


def begun_at() -> Iterator[list[Any]]:
    """Yield the nodes at which each pass of autograd that is going on began.

    A pass tells a node whether another one is run, and not whether one is left out. So the pass is
    looked up where it was called, which is another thread than that of nodes on a GPU.
    """
    for frame in sys._current_frames().values():
        at: Any = frame
        while at is not None:
            if at.f_code is _BEGINS:
                roots = at.f_locals["t_outputs"]
                yield [t.node if isinstance(t, GradientEdge) else t.grad_fn for t in roots]
            at = at.f_back


def up_to_ports(mine: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return whether a walk ends at a node: at leaves, and at ports of this network."""
    return lambda node: type(node) is LEAF or (type(node) is PORT and mine(node))


class Origin(NamedTuple):
    """What a value was made of: the ports (node, which of its results) and the leaves.

    For the ports of another network stands its leaf. ``nodes`` are those on the way, ``hooked``
    those of them on which hooks of modules are. ``reentrant`` says that reentrant activation
    checkpointing lies on the way.
    """

    ports: list[tuple[Any, int]]
    leaves: dict[int, Tensor]
    nodes: list[Any]
    hooked: list[Any]
    reentrant: bool


def origin_of(
    values: Iterable[Tensor], mine: Callable[[Any], bool], seen: set[Any] | None = None
) -> Origin:
    """Walk the graph of some values up to the nearest ports.

    Args:
        values: Tensors with a graph.
        mine: Whether a port belongs to this network.
        seen: Nodes that are not entered.
    """
    ports: dict[tuple[Any, int], None] = {}
    leaves: dict[int, Tensor] = {}
    seen = set() if seen is None else seen
    nodes: list[Any] = []
    hooked: list[Any] = []
    reentrant = False
    todo: list[tuple[Any, int]] = [(value.grad_fn, value.output_nr) for value in values]
    while todo:
        edge = todo.pop()
        node = edge[0]
        if node is None or node in seen:
            continue
        kind = type(node)
        if kind in _SPECIAL:
            if kind is PORT and mine(node):
                ports[edge] = None
                continue
            if kind is LEAF or kind is PORT:
                seen.add(node)
                leaf = node.variable if kind is LEAF else node.call.collector.core.leaf
                leaves[id(leaf)] = leaf
                continue
            hooked += [node] * (kind is _HOOKED)
            reentrant |= kind is _REENTRANT
            taken = _taken(node) if kind in (_SELECT, _SLICE) else None
            if taken is not None:
                seen.add(node)
                nodes += [node, node.next_functions[0][0]]
                todo += taken
                continue
        seen.add(node)
        nodes.append(node)
        todo += node.next_functions
    return Origin(list(ports), leaves, nodes, hooked, reentrant)


def _taken(node: Any) -> list[tuple[Any, int]] | None:
    """Return what is taken of values that were stacked, as ``stack[-1]``; ``None`` of others."""
    below = node.next_functions[0][0]
    if type(below) is not _STACK:
        return None
    dims = len(below._input_metadata[0].shape)
    if (signed(node._saved_dim) - signed(below._saved_dim)) % dims:
        return None
    values = list(below.next_functions)
    if type(node) is _SELECT:
        return [values[signed(node._saved_index)]]
    start, end = signed(node._saved_start), signed(node._saved_end)
    return values[start : end : node._saved_step]


def signed(number: int) -> int:
    """Return a number that a node keeps without its sign."""
    return number - (1 << 64) if number >= 1 << 63 else number


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


def are_packed() -> bool:
    """Return whether something stands in for what nodes keep, as in activation checkpointing.

    Torch 2.6 cannot say so: there what nodes keep is looked at, and may be computed again.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(True) is not None


#: Joins through which an error passes as it is: sums, and values side by side.
SUMS = frozenset({"AddBackward0", "SubBackward0", "CatBackward0", "StackBackward0"})


def are_sums(nodes: Iterable[Any]) -> bool:
    """Return whether an error passes nodes as it is; such nodes keep no tensor."""
    return all([type(node).__name__ in SUMS for node in nodes])
