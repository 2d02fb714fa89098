"""How the values of a whole forward pass use parameters: for feedback alignment."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

from snn_dfa._attach.credits.functions import Detour
from snn_dfa._attach.graph import LEAF, SUMS, post_order

__all__ = ["Uses", "uses_of"]

_DETOUR: Any = Detour._backward_cls


class Uses(NamedTuple):
    """What the values of a forward pass were made of, by identity.

    ``leaves`` are all that are not the own weights of a layer, which a :class:`Detour` is behind.
    ``added`` are those of some parameters that are added to values, and ``multiplied`` those that
    are used in another way, too.
    """

    leaves: set[int]
    added: set[int]
    multiplied: set[int]


def uses_of(values: Iterable[Tensor], parameters: Set[int], since: int) -> Uses:
    """Return how the values of a forward pass use leaves.

    A positional embedding is added, or set beside values: the error at a sum is the error at each
    of its parts. A product would pass the error on through the parameter.

    Args:
        values: Results of a forward pass.
        parameters: Those of which it is asked whether they are added, by identity.
        since: Sequence number of the first node of this pass; older ones are not entered.
    """

    def ends(node: Any) -> bool:
        return type(node) is LEAF or node._sequence_nr() < since

    def below(node: Any) -> list[Any]:
        after = [n for n, _ in node.next_functions]
        return [n for n in (after[-1:] if type(node) is _DETOUR else after) if n is not None]

    #: Of a node the parameters that it is a function of, and whether of a layer with weights, too.
    known: dict[Node, tuple[frozenset[int], bool]] = {}
    leaves, found, wrong = set[int](), set[int](), set[int]()
    roots = [v.grad_fn for v in values if v.grad_fn is not None]
    for node, is_end in post_order(roots, ends, below):
        if is_end and type(node) is LEAF:
            leaf = id(node.variable)
            leaves.add(leaf)
            known[node] = frozenset({leaf} & parameters), False
        elif is_end:
            known[node] = frozenset(), True
        else:
            parts = [known[n] for n in below(node)]
            made = frozenset().union(*(each for each, _ in parts))
            layer = type(node) is _DETOUR or type(node).__name__ == "EmbeddingBackward0"
            if len(parts) > 1 and not layer and type(node).__name__ not in SUMS:
                wrong |= made
            joined = layer or any(reaches for _, reaches in parts)
            found |= made if joined else set()
            known[node] = frozenset() if joined else made, joined
    return Uses(leaves, (found | {p for root in roots for p in known[root][0]}) - wrong, wrong)
