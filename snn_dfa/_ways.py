"""Which layers with weights lie between two layers: seen in the first batch.

While a network is looked at, what a hidden layer hands on is cut in the backward pass only. So the
graph of a layer's current leads back to the layers that it was made of, by whatever modules and
functions, and marks on its nodes say which weights lie on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snn_dfa._discover import Layers
from snn_dfa._fences import marks_of
from snn_dfa._hooks import place
from snn_dfa._nested import map_tensors
from snn_dfa._synapses import synapses
from snn_dfa.errors import AttachError, FeedbackError
from snn_dfa.feedback.base import Shapes

__all__ = ["Ways"]

#: Where a value comes from: a layer, and the last two layers with weights after it.
Source: TypeAlias = tuple[str, tuple[str, ...]]


class Ways:
    """From each layer the ways to others, by the names of the layers with weights on them.

    The product of the weights from a hidden layer to the output is what a gradient is multiplied
    by on its way back, but for the neurons' slopes and a normalisation's factors.

    Args:
        net: The network.
        layers: Its layers; their output may not be known yet.
    """

    def __init__(self, net: nn.Module, layers: Layers) -> None:
        self.active = True
        self._net = net
        self._layers = layers
        self._found: dict[str, set[tuple[tuple[str, ...], str]]] = {}
        self._leading: set[str] = set()  # layers with weights from which a way leads to a layer
        self._before: dict[str, set[Source]] = {}  # all that were called, to what they got
        self._looked_for: set[str] = set()
        self._went_back = False
        self._through: dict[str, frozenset[Source]] = {}  # what comes out of layers with weights
        self._key = object()  # of the marks
        self._handles: list[Any] = []

    # -- looking -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Look at what is called from now on."""
        self._layers.looking, self._went_back = True, False
        within = synapses(self._net)
        for name in within:
            module = self._net.get_submodule(name)
            self._handles += place(
                module, partial(self._before_weights, name), partial(self._after_weights, name)
            )
        for name, module in self._layers.modules.items():
            if name not in within:
                self._handles += place(module, partial(self._before_layer, name), first=True)

    def remove(self) -> None:
        """Look no more; what was seen is kept."""
        self._layers.looking = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._through.clear()

    def begin(self) -> None:
        """Say that a layer is about to be called: after the first backward pass no more is looked.

        Up to there all is, so that what activation checkpointing repeats is what it was.
        """
        if self._layers.looking and self._went_back:
            self.remove()

    def note_backward(self, output: str | None) -> None:
        """Say that a backward pass has begun.

        Args:
            output: The output, where it was not named.

        Raises:
            AttachError: if weights behind it lead to no layer.
        """
        self._went_back = True
        for name, before in self._before.items():
            if (output, ()) in before and name not in self._leading:
                raise AttachError(
                    f"output: expected the last neuron to be the output, got weights behind it: "
                    f"{name!r} is called with what {output!r} returned, and the error would come "
                    f"to that through their transpose; name the one that is meant, "
                    f"output={name!r} or output={output!r}"
                )

    def look_for(self, name: str) -> None:
        """See that the ways from a layer, which has just been called, are looked for once.

        A layer that is frozen at first has none that could be seen.
        """
        if name not in self._looked_for and not self._layers.looking:
            self.open()
        self._looked_for.add(name)

    # -- marks -------------------------------------------------------------------------------------

    def _sources(self, value: Any) -> frozenset[Source]:
        """Return where a value comes from: walk its graph up to the nearest marks."""
        found: set[Source] = set()
        start = value.grad_fn if isinstance(value, Tensor) else None
        seen, open_, repeats = {start}, [start] if start is not None else [], False
        while open_:
            node = open_.pop()
            repeats |= node.name() == "CheckpointFunctionBackward"
            mark = marks_of(node).get(self._key)
            if mark is not None:
                found |= mark
                continue
            for below, _ in node.next_functions:
                if below is not None and below not in seen:
                    seen.add(below)
                    open_.append(below)
        if repeats and found:
            raise AttachError(
                "net: expected activation checkpointing with use_reentrant=False after a hidden "
                "layer, got it with True, which gives no gradient where nothing comes in that "
                "wants one"
            )
        return frozenset(found)

    def mark(self, name: str, t: Tensor) -> None:
        """Say that a layer hands this on."""
        if not self._idle:
            self._mark(frozenset([(name, ())]), t)

    def _mark(self, sources: frozenset[Source], t: Tensor) -> Tensor:
        if t.grad_fn is not None:
            marks_of(t.grad_fn)[self._key] = sources
        return t

    @property
    def _idle(self) -> bool:
        return not (self.active and self._layers.looking and torch.is_grad_enabled())

    def _before_weights(self, name: str, args: Any, kwargs: Any) -> None:
        if self._idle:
            return
        before = self._sources(args[0] if args else kwargs.get("input"))
        self._before.setdefault(name, set()).update(before)
        # Of more than two nothing more is asked; without end they would grow in a loop over time.
        sources = frozenset((s, (*w, name)[-2:]) for s, w in before)
        if name in self._layers.modules:  # a plain readout
            self._note(name, sources)
        else:
            self._through[name] = sources

    def _after_weights(self, name: str, output: Any) -> None:
        sources = self._through.pop(name, None)
        if sources is not None:
            map_tensors(partial(self._mark, sources), output)

    def _before_layer(self, name: str, args: Any, kwargs: Any) -> None:
        if not self._idle:
            current = args[0] if args else kwargs.get("input_", kwargs.get("input"))
            self._note(name, self._sources(current))

    def _note(self, name: str, sources: frozenset[Source]) -> None:
        leading = _last_weights(sources)
        while leading:
            last = leading.pop()
            if last not in self._leading:
                self._leading.add(last)
                leading += _last_weights(self._before[last])
        for source, weights in sources:
            if source != name:  # a layer's way to itself is none to the output
                self._found.setdefault(source, set()).add((weights, name))

    # -- what was seen -----------------------------------------------------------------------------

    def weight(self, layer: str) -> Tensor:
        """Return a layer's weight.

        Raises:
            FeedbackError: if the layer is gone.
        """
        known = synapses(self._net).get(layer)
        if known is None:
            raise FeedbackError(
                f"feedback: layer {layer!r} had weights and has none now; call remove() and attach "
                f"DFA to the network as it is"
            )
        return known.weight

    def names(self, name: str, path: Shapes) -> list[str]:
        """Return the layers with weights from a hidden layer to the output, first to last.

        Args:
            name: Of the hidden layer.
            path: All hidden layers with shapes.

        Raises:
            FeedbackError: if there is no way, or more than one, or another than by one dense layer
                between any two.
        """
        known, found, passed = synapses(self._net), [], [name]
        while passed[-1] != self._layers.output:
            at = passed[-1]
            neurons = math.prod(path[at][1:])
            ways = sorted(self._found.get(at, ()))
            weights, to = ways[0] if len(ways) == 1 else ((), at)
            after = math.prod(path[to][1:]) if to in path else path[name][0]
            dense = len(weights) == 1 and isinstance(known.get(weights[0]), nn.Linear)
            if not dense or to in passed or known[weights[0]].weight.shape != (after, neurons):
                seen = [f"{' and '.join(map(repr, w)) or 'no weights'} to {t!r}" for w, t in ways]
                raise FeedbackError(
                    f"feedback: a product of weights or factors needs one nn.Linear from the "
                    f"{neurons} neurons of layer {at!r} to one next layer, found "
                    f"{', '.join(seen) or 'none'}; use another kind"
                )
            found.append(weights[0])
            passed.append(to)
        return found


def _last_weights(sources: Iterable[Source]) -> list[str]:
    return [weights[-1] for _, weights in sources if weights]
