"""The walk below a value that comes into a layer: its structure, and what differs by the pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from snn_dfa._attach.between.local_functions import LocalFunction, function_of, of_steps
from snn_dfa._attach.between.moves import MAXIMA, TURNED
from snn_dfa._attach.between.rows import FILLED, Rows, side_by_side, some_of, takes_rows
from snn_dfa._attach.between.sources import up_to_ports
from snn_dfa._attach.graph import LEAF, PORT, are_packed, post_order, shape_of
from snn_dfa._attach.steps.products import Made

__all__ = [
    "NORMS", "Below", "Gains", "Pixels", "Product", "Signature", "Structure", "Walk",
    "below_product", "look_below", "number_of", "right_factor",
]  # fmt: skip

#: What differs from batch to batch.
NORMS = {"CudnnBatchNormBackward0", "NativeBatchNormBackward0"}
#: Under what names products keep their right factor.
_RIGHT = ("_saved_mat2", "_saved_batch2")
#: Numbers of a node on which its linear function depends.
_NUMBERS = {
    "AddBackward0": ("alpha",), "ConstantPadNdBackward0": ("pad",), "FlipBackward0": ("dims",),
    "LerpBackward0": ("weight",), "PermuteBackward0": ("dims",),
    "RollBackward0": ("shifts", "dims"), "RsubBackward1": ("alpha",),
    "SelectBackward0": ("dim", "index"), "SliceBackward0": ("dim", "start", "step"),
    "SubBackward0": ("alpha",), "TransposeBackward0": ("dim0", "dim1"),
}  # fmt: skip


class Pixels(NamedTuple):
    """What a maximum keeps: the shape of what came in, the places taken [N, channels, *S]."""

    shape: tuple[int, ...]
    at: Tensor


class Gains(NamedTuple):
    """What a batch normalisation multiplies by, [channels]; whether its mean is the batch's."""

    gains: Tensor
    of_batch: bool


#: The functions below a value that differ by the pass: names of nodes, and what flows into them.
Signature: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
#: What a value is made of, in order: nodes, with numbers, layers, and parameters. Values that have
#: the same are the same linear function.
Structure: TypeAlias = tuple[Any, ...]


class Product(NamedTuple):
    """A product of values with a weight, and the parameters that this was made of, by identity."""

    node: Any
    parameters: frozenset[int]


class Walk:
    """The nodes below a value, each after those below it.

    Args:
        root: The value's node.
        layer: Into which it comes.
        mine: Whether a port belongs to this network.
        by_sample: Whether functions whose derivative differs by the sample are looked for.
    """

    def __init__(
        self, root: Any, layer: str, mine: Callable[[Any], bool], *, by_sample: bool
    ) -> None:
        self._root, self._layer, self._mine, self._by_sample = root, layer, mine, by_sample
        self.flows: dict[Any, bool] = {}  # made of other layers
        self.calls: dict[str, Any] = {}  # of each other layer the first one
        self.several = False  # whether a layer has more than one
        self.structure: list[Any] = []
        self.own: dict[Any, bool] = {}  # made of the layer's earlier values
        #: Of nodes whose rows are those of several steps, as of a layer before another one.
        self.stacked: dict[Any, Rows] = {}
        self._filled: dict[Any, int] = {}  # of tensors that are filled how many values they have
        #: Products of values with what was made of parameters alone, in order.
        self.products: list[Product] = []

    def __iter__(self) -> Iterator[tuple[Any, bool, Any]]:
        """Yield nodes, whether each is an end, and its local function."""
        # Of a node its place in the structure, or of one that no layer flows into the parameters.
        known: dict[Any, Any] = {None: None}
        for node, ends in post_order([self._root], up_to_ports(self._mine)):
            if ends:
                of = node.call.layer if type(node) is PORT else None
                self.flows[node] = of is not None and of != self._layer
                self.own[node] = of == self._layer
                if of is not None and self.flows[node]:
                    self.several |= self.calls.setdefault(of, node.call) is not node.call
                    known[node] = self._noted(of)
                else:
                    known[node] = _leaf(node)
                yield node, True, None
                continue
            below = [n for n, _ in node.next_functions]
            flows = [n is not None and self.flows[n] for n in below]
            own = [n is not None and self.own[n] for n in below]
            self.flows[node], self.own[node] = any(flows), any(own)
            of_each = [self._value(known[n], n, i) for n, i in node.next_functions]
            if not self.flows[node]:
                known[node] = frozenset().union(*[each for each in of_each if each is not None])
                yield node, False, None
                continue
            self._see_steps(node)
            at = _weight_edge(node)
            if at is not None and below[at] is not None and not flows[at] and not own[at]:
                self.products.append(Product(node, known[below[at]]))
            # What is added that no layer flows into, as a bias or an own state, changes nothing.
            adds = type(node).__name__ == "AddBackward0" and flows.count(True) == 1
            if adds and node._saved_alpha == 1:
                known[node] = of_each[flows.index(True)]
            else:
                known[node] = self._noted((self._kind(node), *of_each))
            yield node, False, self._function(node, flows, own)

    def _value(self, place: Any, node: Any, index: int) -> Any:
        """Return what stands for a value of a node, of which a layer may hand out several."""
        return (place, index) if index and type(node) is PORT and self.flows[node] else place

    def _noted(self, what: Any) -> int:
        self.structure.append(what)
        return len(self.structure)

    def _see_steps(self, node: Any) -> None:
        """Note whether the rows of a node are those of several steps."""
        rows = self.steps_below(node)
        if rows is None:
            count = self._count(node)
            rows = side_by_side(node, several=self.several, count=count)
        else:
            rows = None if takes_rows(node, rows) else some_of(node, rows)
        if rows is not None:
            self.stacked[node] = rows

    def _count(self, node: Any) -> int:
        """Return how many values have been put into an empty tensor in place, with a node's."""
        if type(node).__name__ != FILLED:
            return 0
        below = node.next_functions[0][0]
        if below is None or below in self._filled:
            self._filled[node] = self._filled.get(below, 0) + 1
        return self._filled.get(node, 0)

    def steps_below(self, node: Any) -> Rows | None:
        """Return how steps lie in what comes into a node, if it is of several of them."""
        if not self.stacked:
            return None
        found = (self.stacked.get(n) for n, _ in node.next_functions)
        return next((each for each in found if each is not None), None)

    def _kind(self, node: Any) -> Any:
        """Return what a node does; which of several steps it takes is nothing that it does."""
        rows = self.steps_below(node)
        return type(node) if rows is not None and takes_rows(node, rows) else _kind(node)

    def _function(self, node: Any, flows: list[bool], own: list[bool]) -> LocalFunction | None:
        kind = type(node).__name__
        found = function_of(node, flows, own) if self._by_sample else None
        rows = self.steps_below(node)
        if found is not None and rows is not None:
            found = of_steps(found, node, rows.sizes) if rows.first else None
        if rows is not None and not rows.first and kind not in NORMS:
            return None  # of a sample's steps the order is another one
        if found is None and kind in MAXIMA:
            return LocalFunction((0,), False, partial(_pixels, node), replaced=True)
        if found is None and kind in NORMS:
            return LocalFunction((0,), False, partial(_gains, node), replaced=True)
        return found


def _weight_edge(node: Any) -> int | None:
    """Return by which edge the weight comes into a product; what it keeps is not read for it."""
    if type(node).__name__ == "ConvolutionBackward0":
        return 1
    return -1 if any(hasattr(type(node), name) for name in _RIGHT) else None


def right_factor(node: Any) -> Tensor | None:
    """Return what a product keeps of its right factor, if it keeps one under a name of its own."""
    name = next((n for n in _RIGHT if hasattr(type(node), n)), None)
    kept = None if name is None else getattr(node, name)
    return kept.detach() if isinstance(kept, Tensor) else None


def _kind(node: Any) -> Any:
    """Return what a node does, with the numbers that it does it with."""
    kind = type(node)
    if kind.__name__ in ("MulBackward0", "DivBackward0") and not are_packed():
        factor = number_of(node)
        # On a device a number is not read, which would wait for it.
        read = factor is not None and factor.device.type == "cpu"
        return kind, None if factor is None else factor.item() if read else factor.data_ptr()
    names = _NUMBERS.get(kind.__name__)
    if names is None:
        return kind
    # Of one sample no shape tells which dimension is that of the samples, if it changes places.
    alone = kind.__name__ in TURNED and _ones_first(node)
    return (kind, alone, *(getattr(node, f"_saved_{n}") for n in names))


def _ones_first(node: Any) -> int:
    """Return how many dimensions of size one come first in what comes into a node."""
    below, index = node.next_functions[0]
    sizes = () if below is None else below._input_metadata[index].shape
    return next((dim for dim, size in enumerate(sizes) if size != 1), len(sizes))


def _leaf(node: Any) -> frozenset[int]:
    """Return the parameter at the end of a graph; other leaves may be new ones in each pass."""
    is_one = type(node) is LEAF and isinstance(node.variable, Parameter)
    return frozenset([id(node.variable)] if is_one else [])


def number_of(node: Any) -> Tensor | None:
    """Return the one number that a product or a quotient is with, ``None`` if there is none."""
    first = node.next_functions[0][0] is not None
    other = node._saved_other if first else node._saved_self
    return other.detach() if isinstance(other, Tensor) and other.dim() == 0 else None


class Below(NamedTuple):
    """What lies below a value that other layers flow into.

    Args:
        functions: The nodes, in order, whose linear function differs by the pass; and whether each
            is of several steps.
        own: Whether an own value of the layer flows in, too.
        structure: What the value is made of.
        products: See :class:`Walk`.
    """

    functions: Sequence[tuple[Any, LocalFunction, bool]]
    own: bool
    structure: Structure
    products: Sequence[Product] = ()


def look_below(
    value: Tensor, layer: str, mine: Callable[[Any], bool], *, by_sample: bool
) -> Below | None:
    """Return what lies below a value; ``None`` where no other layer's value flows in.

    Args:
        value: What comes into a layer.
        layer: Its name.
        mine: Whether a port belongs to this network.
        by_sample: See :func:`inflow_of`.
    """
    root = value.grad_fn
    if root is None or are_packed():
        return None
    walk = Walk(root, layer, mine, by_sample=by_sample)
    found = [
        (node, function, walk.steps_below(node) is not None)
        for node, _, function in walk
        if function is not None
    ]
    if not walk.flows[root]:
        return None
    which = [value.output_nr] * (type(root) is PORT)
    structure = (*walk.structure, *which)
    return Below(found, walk.own[root], structure, walk.products)


def below_product(value: Tensor, made: Made, port: Any) -> Below | None:
    """Return the same of a value that a linear layer alone made, from what is known of it.

    Args:
        value: What comes into a layer.
        made: What it was made of.
        port: Which its input came through, if any.
    """
    if port is None:
        return None
    parameters = [frozenset([id(p)] * isinstance(p, Parameter)) for p in (made.bias, made.weight)]
    node: Any = value.grad_fn
    index = next(i for n, i in node.next_functions if n is port)
    x: Any = (1, index) if index else 1
    of_each = (parameters[0], x, parameters[1]) if made.bias is not None else (x, parameters[1])
    return Below((), False, (port.call.layer, (type(node), *of_each)))


def _pixels(node: Any) -> Pixels:
    below, index = node.next_functions[0]
    return Pixels(shape_of(below, index), node._saved_result1)


def _gains(node: Any) -> Gains:
    if node._saved_training:
        gains = node._saved_result2.detach()
    else:
        gains = torch.rsqrt(node._saved_running_var.detach() + _epsilon(node))
    weight = node._saved_weight
    gains = gains if weight is None else gains * weight.detach()
    return Gains(gains, node._saved_training)


def _epsilon(node: Any) -> float:
    return float(getattr(node, "_saved_eps", None) or node._saved_epsilon)
