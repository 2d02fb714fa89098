"""A loss may look into a hidden layer, another layer may not.

A hidden layer hands on its spikes and states with their graph, so that a loss on them, such as a
penalty on rates, reaches the layer. Where they are about to enter another layer, or a module that
may lead to one, they are cut: at the first module that is called with them, or else, where only
functions lie between, at the next layer's current.

What is a layer's own is told by a mark on the node of the graph that made it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from snn_dfa._autograd import Gate
from snn_dfa._discover import Layers
from snn_dfa._hooks import place
from snn_dfa._nested import map_tensors

__all__ = ["Fences", "marks_of"]

_CURRENTS = ("input_", "input")  # what snnTorch and PyTorch call them
_CLEAN = ""  # the mark of what was made of cut values


class Fences:
    """Hooks on the layers, for their currents, and on all modules that hold no layer.

    Args:
        net: The network.
        layers: Its layers. While it is not known which is the output and what leads where, what
            the layers hand on is cut in the backward pass only.
    """

    def __init__(self, net: nn.Module, layers: Layers) -> None:
        self.active = True
        self.taken: set[str] = set()  # layers whose spikes or states others were given
        self._layers = layers
        self._key = object()  # of the marks, so that two networks do not see each other's
        self._handles: list[Any] = []
        for module in _outermost(net, set(layers.modules.values())):
            self._handles += place(module, self._before, self._after)
        for module in layers.modules.values():
            self._handles += place(module, self._before_layer)

    def remove(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def mark(self, name: str, t: Tensor) -> None:
        """Say that a layer hands this on; of the output, which all may look into, that it is."""
        if t.grad_fn is not None:
            marks_of(t.grad_fn)[self._key] = _CLEAN if name == self._layers.output else name

    def cut(self, t: Tensor, owner: str = _CLEAN) -> Tensor:
        """Return the values with no way back into a hidden layer but the owner, all others left."""
        mark = _CLEAN if t.grad_fn is None else marks_of(t.grad_fn).get(self._key)
        if mark in (_CLEAN, owner):
            return t
        edges, others = ([], False) if mark else self._edges(t.grad_fn, owner)
        names = {mark} if mark else {name for *_, name in edges}
        self.taken.update(names)
        if names and not others and (self._layers.output is not None or len(names) == 1):
            return t.detach() if self._layers.cut else self._gate(names, t)
        for node, index, name in edges:
            node.register_hook(partial(self._stop, index, name))
        return t

    def _gate(self, names: set[str], t: Tensor) -> Tensor:
        """Return the values behind a gate, which opens if they are of what is the output."""
        return self._mark_clean(Gate.apply(lambda: self._layers.output in names, t))

    def learns(self, t: Tensor) -> bool:
        """Whether a value was made of anything that learns, hidden layers apart."""
        if t.grad_fn is None or self._layers.cut:
            return t.requires_grad
        seen, open_ = {t.grad_fn}, [t.grad_fn]
        while open_:
            node = open_.pop()
            if marks_of(node).get(self._key, _CLEAN) != _CLEAN:
                continue
            if not node.next_functions:  # it gathers the gradient of a leaf
                return True
            below = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= below
            open_ += below
        return False

    def _edges(self, root: Any, owner: str) -> tuple[list[tuple[Node, int, str]], bool]:
        """Return the edges from the graph of a value into hidden layers, and if it has other ends.

        An edge is the node before it, which of that node's inputs it is, and the layer's name.
        """
        edges: list[tuple[Node, int, str]] = []
        others, seen, open_ = False, {root}, [root]
        while open_:
            node = open_.pop()
            others |= not node.next_functions
            for index, (below, _) in enumerate(node.next_functions):
                if below is None:
                    continue
                mark = marks_of(below).get(self._key)
                if mark in (_CLEAN, owner):
                    others = True
                elif mark:
                    edges.append((node, index, mark))
                elif below not in seen:
                    seen.add(below)
                    open_.append(below)
        return edges, others

    def _stop(self, index: int, name: str, at_inputs: Any, _: Any) -> Any:
        """Let nothing through an edge, unless it leads to what turned out to be the output."""
        if name == self._layers.output:
            return None
        return tuple(None if i == index else g for i, g in enumerate(at_inputs))

    def _before(self, args: Any, kwargs: Any) -> Any:
        if not self.active or not torch.is_grad_enabled():
            return None
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):  # at every step
            t = self.cut(args[0])
            return None if t is args[0] else ((t,), kwargs)
        return map_tensors(self.cut, args), map_tensors(self.cut, kwargs)

    def _before_layer(self, args: Any, kwargs: Any) -> Any:
        """Cut the current; a layer's states are for others to see to."""
        if not self.active or not torch.is_grad_enabled():
            return None
        if args:
            current = map_tensors(self.cut, args[0])
            return None if current is args[0] else ((current, *args[1:]), kwargs)
        named = {k: map_tensors(self.cut, v) for k, v in kwargs.items() if k in _CURRENTS}
        return args, {**kwargs, **named}

    def _after(self, output: Any) -> None:
        if self.active:
            map_tensors(self._mark_clean, output)

    def _mark_clean(self, t: Tensor) -> Tensor:
        if t.grad_fn is not None:
            marks_of(t.grad_fn).setdefault(self._key, _CLEAN)
        return t


def marks_of(node: Node) -> dict[Any, Any]:
    """Return what is noted at a node of the graph, by whom."""
    marks: Any = node.metadata  # a property, which PyTorch's types take for a method
    return marks


def _outermost(net: nn.Module, layers: set[nn.Module]) -> list[nn.Module]:
    """Return the largest parts of the network that are called, and neither are nor hold layers."""
    if net in layers:
        return []
    called = type(net).forward is not nn.Module.forward  # a ModuleList is not
    if called and not any(module in layers for module in net.modules()):
        return [net]
    inside = [part for child in net.children() for part in _outermost(child, layers)]
    return list(dict.fromkeys(inside))
