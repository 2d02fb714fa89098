"""Weights that a program makes of parameters in each pass, as by a mask, and multiplies by.

No module holds them. So each pass notes what it has made, and noise drives the last one. A weight
that is another one at each step, as with noise on weights, so has a factor of its mean. Weights of
convolutions are among them, also those that are parameters of no layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from itertools import count
from typing import Any

from torch import Tensor

from snn_dfa._attach.between.named_weights import of_all_samples
from snn_dfa._attach.between.walk import Product, right_factor
from snn_dfa._attach.graph import are_packed
from snn_dfa._attach.weights import layer_of

__all__ = ["MadeMatrices", "made_for"]

#: How their names begin.
_INTO = "into "


def made_for(name: str) -> str | None:
    """Return the layer into which a matrix leads, by its name; ``None`` if it is no such name."""
    return name.removeprefix(_INTO).rpartition(" ")[0] if name.startswith(_INTO) else None


class MadeMatrices:
    """The matrices of the last pass, by the layer that they lead into and a number."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, frozenset[int], int], str] = {}
        self._last: dict[str, tuple[Tensor, Mapping[str, Any]]] = {}
        self._unfit: set[str] = set()
        self._taken: set[str] = set()

    def names(self, layer: str, products: Sequence[Product]) -> list[str]:
        """Return the names of the matrices by which products on the way into a layer multiply.

        One of the same parameters has the same name in each pass.
        """
        found, times = list[str](), Counter[frozenset[int]]()
        for product in products:
            times[product.parameters] += 1
            key = layer, product.parameters, times[product.parameters]
            if key not in self._names:
                used = {name for (of, *_), name in self._names.items() if of == layer}
                every = (f"{_INTO}{layer} {number}" for number in count(1))
                self._names[key] = next(name for name in every if name not in used)
            found.append(self._names[key])
        return found

    def next_round(self) -> None:
        """Forget names for which no factor stands: their parameters may be gone."""
        known = self._taken | self._unfit
        self._names = {key: name for key, name in self._names.items() if name in known}

    def note(
        self, names: Sequence[str], products: Sequence[Product], taken: Container[str]
    ) -> bool:
        """Note the matrices of a call; return whether one is found to fit no factor.

        Args:
            names: Of the matrices.
            products: What multiplies by them.
            taken: The names of those for which factors stand.
        """
        unfit = False
        for name, product in zip(names, products, strict=True):
            if name not in taken or name in self._unfit:
                continue
            made, before = _weight(product), self._last.get(name)
            if made is None or (before is not None and made[0].shape != before[0].shape):
                self._unfit.add(name)
                unfit = True
            else:
                self._last[name] = made
        return unfit

    def known(self, name: str) -> str | None:
        """Return a name; ``None`` of a matrix that differs by sample, or in shape."""
        return None if name in self._unfit else name

    def keep(self, names: Sequence[str], taken: Container[str]) -> None:
        """Forget the matrices, of some, for which no factor stands and none has stood."""
        self._taken |= {name for name in names if name in taken}
        for name in names:
            if name not in self._taken:
                self._last.pop(name, None)

    def weight(self, name: str) -> Tensor | None:
        """Return the last one of a name, [N_out, N_in] or as a convolution has it."""
        return self._last[name][0] if name in self._last else None

    def module(self, name: str) -> Any:
        """Return a module that computes with it; ``None`` if there is none of that name."""
        return layer_of(*self._last[name]) if name in self._last else None

    def restore(self, name: str, factor: Tensor) -> None:
        """Take a factor as the last one of a name."""
        if made_for(name):
            self._last[name] = factor, {}
            self._taken.add(name)


def _weight(product: Product) -> tuple[Tensor, Mapping[str, Any]] | None:
    """Return the weight of a product and how it is used; ``None`` if there is one for each sample.

    What hooks have packed, as in activation checkpointing, is not unpacked for it.
    """
    node = product.node
    if are_packed() or not product.parameters:
        return None
    convolves = type(node).__name__ == "ConvolutionBackward0"
    kept = node._saved_weight.detach() if convolves else right_factor(node)
    if kept is None or not kept.untyped_storage().size():
        return None  # in shards: the whole one has gone
    if convolves:
        options = ("stride", "dilation", "groups", "transposed")
        return kept, {name: getattr(node, f"_saved_{name}") for name in options}
    matrix = of_all_samples(kept)
    return None if matrix is None else (matrix.t(), {})
