"""Walks over autograd's graph: the calls and leaves that a value was made of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils.checkpoint import CheckpointFunction

from snn_dfa._attach.functions import Port

__all__ = [
    "LEAF", "PORT", "SUMS", "Origin", "are_packed", "are_sums", "begun_at", "below_of", "origin_of",
    "post_order", "shape_of", "signed",
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


def below_of(node: Any) -> list[Any]:
    return [n for n, _ in node.next_functions if n is not None]


def shape_of(node: Any, index: int = 0) -> tuple[int, ...]:
    """Return the shape of one of a node's results."""
    return tuple(node._input_metadata[index].shape)


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
    dims = len(shape_of(below))
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
