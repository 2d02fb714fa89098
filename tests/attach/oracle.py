"""The right gradient of direct feedback alignment, by brute force on a plain network's graph.

The oracle shares no code with the library. It follows the definition:

1. Each call of a layer (hidden or output) owns the nodes of the autograd graph that were made while
   the layer's ``forward`` ran. Autograd numbers its nodes, so that a call is an interval of numbers.
2. The first sweep goes backward from the loss and stops at the nodes of every call. It gives the
   parameters outside of layers the loss's own gradient, and it notes what arrives at each value that
   came out of a call.
3. The error e of an output's call is the sum of what arrived at its values of the spikes' shape.
   e B is added to what arrived at the spikes of each hidden layer's call of the same step.
4. One more sweep for each layer starts with what arrived at its calls. It goes through the layer's
   own calls, early and late, and through all nodes outside of layers, and into no other layer.

A parameter's gradient is the sum over all sweeps. Modules between layers, states, objects and
in-place operations need no case of their own: they are nodes like any other.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Node = Any
Edge = tuple[Node, int]  # a node, and which of its outputs in the forward pass


class OracleError(Exception):
    """The definition does not say what the gradient is, or the oracle cannot compute it."""


@dataclass
class Call:
    """One call of a layer, as the oracle keeps it."""

    layer: str
    forward_pass: int
    spikes: Edge | None  # the first tensor that was returned; None if it has no graph
    shape: torch.Size
    start: int  # number of its first node
    values: dict[Edge, None] = field(default_factory=dict)  # returned or kept, of the spikes' shape


class Oracle:
    """Watches a plain network and computes the gradients that it would get from DFA.

    Args:
        net: The plain network. Its ``forward`` and its layers' are wrapped until ``remove()``.
        hidden: Names of the hidden layers.
        outputs: Names of the outputs, in the order in which their errors are concatenated.
        batch_dims: How many leading dimensions of spikes and outputs are not features: 1 for a
            step [B, ...], 2 for layers that take a whole sequence [T, B, ...].
        along: The dimension of time of outputs that are called once, after the loop, on the values
            of all steps; ``None`` of others.
    """

    def __init__(
        self,
        net: nn.Module,
        hidden: Iterable[str],
        outputs: Iterable[str],
        batch_dims: int = 1,
        along: int | None = None,
    ) -> None:
        self.net, self.batch_dims, self.along = net, batch_dims, along
        self.hidden, self.outputs = list(hidden), list(outputs)
        self._wrapped: list[nn.Module] = []
        self.clear()
        for name in [*self.hidden, *self.outputs]:
            self._watch(name, net.get_submodule(name))
        self._count_passes()

    def clear(self) -> None:
        """Forget all calls, as before a batch whose graph is independent of the last one's."""
        self.forward_pass = 0
        self.calls: dict[str, list[Call]] = {name: [] for name in [*self.hidden, *self.outputs]}
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._owners: list[str] = []
        self._inside: str | None = None

    def remove(self) -> None:
        """Take the wrappers off."""
        for module in self._wrapped:
            del module.forward

    # -- the forward pass --------------------------------------------------------------------------

    def _count_passes(self) -> None:
        plain = self.net.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.forward_pass += 1
            return plain(*args, **kwargs)

        self.net.forward = forward  # type: ignore[method-assign]
        self._wrapped.append(self.net)

    def _watch(self, name: str, module: nn.Module) -> None:
        plain = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._inside is not None:
                raise OracleError(f"{name!r} is called inside {self._inside!r}")
            # A view whose base was changed makes its node when it is asked for. That node belongs
            # to whoever made the view, so it is made before the call begins.
            for t in tensors_in((args, kwargs, attributes(module))):
                _ = t.grad_fn
            self._inside, start = name, torch.autograd._get_sequence_nr()
            try:
                result = plain(*args, **kwargs)
            finally:
                self._inside = None
            result = self._mark_foreign(module, result, start)
            self._note(name, module, result, start, (args, kwargs))
            return result

        module.forward = forward  # type: ignore[method-assign]
        self._wrapped.append(module)

    def _mark_foreign(self, module: nn.Module, result: Any, start: int) -> Any:
        """Give each returned value that the call did not make, such as an input, a node of the call."""
        marked: dict[int, Tensor] = {}
        for t in tensors_in(result):
            foreign = t.grad_fn is None or t.grad_fn._sequence_nr() < start
            if t.requires_grad and foreign and id(t) not in marked:
                marked[id(t)] = t.view_as(t)
        if not marked:
            return result
        for owner, key, t in attributes(module):
            if id(t) in marked:
                setattr(owner, key, marked[id(t)])
        return replace_tensors(result, lambda t: marked.get(id(t), t))

    def _note(self, name: str, module: nn.Module, result: Any, start: int, given: Any) -> None:
        returned = list(tensors_in(result))
        if not returned:
            raise OracleError(f"{name!r} returned no tensor")
        spikes = returned[0]
        call = Call(name, self.forward_pass, edge_of(spikes), spikes.shape, start)
        # In attributes, or written into what the call was given.
        kept = [*(t for _, _, t in attributes(module)), *tensors_in(given)]
        for t in returned + kept:
            # An attribute that this call did not make is an earlier call's value.
            mine = t.grad_fn is not None and t.grad_fn._sequence_nr() >= start
            if mine and t.shape == spikes.shape:
                call.values[edge_of(t)] = None
        self.calls[name].append(call)
        end = torch.autograd._get_sequence_nr()
        if end > start:
            self._starts.append(start)
            self._ends.append(end)
            self._owners.append(name)

    # -- the backward pass -------------------------------------------------------------------------

    def feedback_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each hidden layer's [C, *S], from the calls of the last forward pass."""
        dims = self.batch_dims + (self.along is not None)
        rows = sum(self.calls[o][-1].shape[dims:].numel() for o in self.outputs)
        return {h: (rows, *self.calls[h][-1].shape[self.batch_dims :]) for h in self.hidden}

    def gradients(self, loss: Tensor, feedback: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Return each parameter's gradient by name; ``None`` where no path leads to it.

        Args:
            loss: A scalar; its graph must not have been freed.
            feedback: Hidden layer's name to its matrix [C, *S]. A layer that is not in it gets no
                error (``rule="shallow"`` is an empty mapping).
        """
        at_leaves: dict[Tensor, Tensor] = {}
        arrived: dict[Edge, Tensor] = {}
        with torch.no_grad():
            root = edge_of(loss)
            if root is not None:
                self._first_sweep(root, torch.ones_like(loss), at_leaves, arrived)
            starts = {name: self._arrived_at(name, arrived) for name in self.calls}
            self._add_feedback(starts, arrived, feedback)
            for name, roots in starts.items():
                _sweep(roots, lambda node, n=name: self.owner(node) in (None, n), at_leaves)
        return {n: _hooked(p, at_leaves.get(p)) for n, p in self.net.named_parameters()}

    def owner(self, node: Node) -> str | None:
        """Return the layer in one of whose calls a node was made."""
        number = node._sequence_nr()
        i = bisect_right(self._starts, number) - 1
        return self._owners[i] if i >= 0 and number < self._ends[i] else None

    def _first_sweep(
        self, root: Edge, one: Tensor, at_leaves: dict[Tensor, Tensor], arrived: dict[Edge, Tensor]
    ) -> None:
        if self.owner(root[0]) is None:
            _sweep({root: one}, lambda node: self.owner(node) is None, at_leaves, arrived)
        else:
            arrived[root] = one

    def _arrived_at(self, layer: str, arrived: Mapping[Edge, Tensor]) -> dict[Edge, Tensor]:
        return {edge: g for edge, g in arrived.items() if self.owner(edge[0]) == layer}

    def _add_feedback(
        self,
        starts: dict[str, dict[Edge, Tensor]],
        arrived: Mapping[Edge, Tensor],
        feedback: Mapping[str, Tensor],
    ) -> None:
        for each in range(self.forward_pass + 1):
            calls = {n: [c for c in cs if c.forward_pass == each] for n, cs in self.calls.items()}
            errors = self._errors([calls[o] for o in self.outputs], arrived)
            for name in self.hidden:
                if name not in feedback:
                    continue
                once = len(errors) == 1 and self.along is None and self._reads_the_last(calls)
                of_steps = calls[name][-1:] if once else calls[name]
                if any(e is not None for e in errors) and len(errors) != len(of_steps):
                    raise OracleError(f"{name!r} is out of step with the output")
                for call, e in zip(of_steps, errors, strict=False):
                    if e is not None and call.spikes is not None:
                        sent = (e @ feedback[name].flatten(1)).reshape(call.shape)
                        _add(starts[name], call.spikes, sent)

    def _reads_the_last(self, calls: Mapping[str, list[Call]]) -> bool:
        """Return whether the outputs were called once, after the last call of each hidden layer.

        Then e belongs with these calls: as if the outputs were called at each step, and the loss
        read the last one.
        """
        starts = [call.start for o in self.outputs for call in calls[o]]
        return all(call.start < min(starts) for h in self.hidden for call in calls[h])

    def _errors(
        self, outputs: list[list[Call]], arrived: Mapping[Edge, Tensor]
    ) -> list[Tensor | None]:
        """Return the concatenated errors [B, C] of one forward pass's steps."""
        if len({len(calls) for calls in outputs}) > 1:
            raise OracleError("the outputs are out of step with each other")
        errors: list[Tensor | None] = []
        for step in zip(*outputs, strict=True):
            parts = [[arrived[v] for v in call.values if v in arrived] for call in step]
            if not any(parts):
                errors.append(None)
                continue
            like = next(g for part in parts for g in part)
            rows = [
                (sum(part) if part else like.new_zeros(call.shape)).reshape(  # type: ignore[union-attr]
                    *call.shape[: self.batch_dims + (self.along is not None)], -1
                )
                for call, part in zip(step, parts, strict=True)
            ]
            error = torch.cat(rows, -1)
            errors += [error] if self.along is None else error.unbind(self.along)
        return errors


# -- one sweep over the graph ----------------------------------------------------------------------


def _sweep(
    roots: Mapping[Edge, Tensor],
    follow: Callable[[Node], bool],
    at_leaves: dict[Tensor, Tensor],
    arrived: dict[Edge, Tensor] | None = None,
) -> None:
    """Run reverse mode from some values; add up what comes to leaves.

    Args:
        roots: Gradients at values.
        follow: Whether an edge into a node is followed.
        at_leaves: Where the gradients at leaves are added.
        arrived: Where the gradients at edges that are not followed are added.
    """
    waiting = _count_edges({node for node, _ in roots}, follow)
    at_nodes: dict[Node, dict[int, Tensor]] = {}
    for (node, i), g in roots.items():
        _add(at_nodes.setdefault(node, {}), i, g)
    ready = [node for node, n in waiting.items() if n == 0]
    done = 0
    while ready:
        node = ready.pop()
        done += 1
        grads = _run(node, at_nodes.pop(node, {}))
        for edge, g in zip(node.next_functions, grads, strict=True):
            below = edge[0]
            if below is None:
                continue
            if _is_leaf(below):
                if g is not None:
                    _add(at_leaves, below.variable, _fit(g, below.variable.shape))
                continue
            if g is not None:
                g = _fit(g, below._input_metadata[edge[1]].shape)
            if below in waiting and follow(below):
                if g is not None:
                    _add(at_nodes.setdefault(below, {}), edge[1], g)
                waiting[below] -= 1
                if waiting[below] == 0:
                    ready.append(below)
            elif arrived is not None and g is not None:
                _add(arrived, edge, g)
    if done != len(waiting):
        raise OracleError("a node of the graph was not run")


def _count_edges(start: set[Node], follow: Callable[[Node], bool]) -> Counter[Node]:
    """Return all nodes that a sweep runs, with the number of followed edges into each."""
    count: Counter[Node] = Counter(dict.fromkeys(start, 0))
    stack = list(start)
    while stack:
        for below, _ in stack.pop().next_functions:
            if below is None or _is_leaf(below) or not follow(below):
                continue
            if below not in count:
                stack.append(below)
            count[below] += 1
    return count


def _run(node: Node, grads: Mapping[int, Tensor]) -> list[Tensor | None]:
    """Return what a node's backward formula gives for each of its next edges."""
    if not grads:
        return [None] * len(node.next_functions)
    metadata = node._input_metadata
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return _run_custom(node, grads, metadata)
    out = node(*[grads.get(i) for i in range(len(metadata))])
    return list(out) if isinstance(out, tuple) else [out]


def _run_custom(node: Node, grads: Mapping[int, Tensor], metadata: Any) -> list[Tensor | None]:
    """Run a ``torch.autograd.Function``, which has one result for each argument, tensor or not."""
    some = next(iter(grads.values()))
    full = [grads.get(i, some.new_zeros(m.shape)) for i, m in enumerate(metadata)]
    out = node.apply(*full)
    out = list(out) if isinstance(out, tuple) else [out]
    wanted = iter([g for g, needs in zip(out, node.needs_input_grad, strict=False) if needs])
    return [None if below is None else next(wanted) for below, _ in node.next_functions]


def _hooked(parameter: Tensor, grad: Tensor | None) -> Tensor | None:
    """Let a parameter's own hooks change its gradient, as ``LeakyParallel``'s does."""
    for hook in (parameter._backward_hooks or {}).values() if grad is not None else ():
        changed = hook(grad)
        grad = grad if changed is None else changed
    return grad


def _is_leaf(node: Node) -> bool:
    return type(node).__name__ == "AccumulateGrad"


def _fit(g: Tensor, shape: Iterable[int]) -> Tensor:
    """Sum over what a formula left broadcast, as autograd's engine does."""
    shape = torch.Size(shape)
    return g if g.shape == shape else g.sum_to_size(shape)


def _add(into: dict[Any, Tensor], key: Any, g: Tensor) -> None:
    into[key] = into[key] + g if key in into else g


def edge_of(t: Tensor) -> Edge | None:
    """Return the edge of the graph that leads to a value; ``None`` without a graph."""
    return None if t.grad_fn is None else (t.grad_fn, t.output_nr)


# -- tensors in what modules take, return and keep -------------------------------------------------


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dicts and plain objects, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from tensors_in(v)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif _is_plain_object(value):
        yield from tensors_in(vars(value))


def replace_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the same structure with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replace_tensors(v, change) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(replace_tensors(v, change) for v in value)
    if isinstance(value, dict):
        return {k: replace_tensors(v, change) for k, v in value.items()}
    if _is_plain_object(value):
        twin = copy.copy(value)
        vars(twin).update({k: replace_tensors(v, change) for k, v in vars(value).items()})
        return twin
    return value


def attributes(module: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Return the tensors with a graph that a module and its children keep as attributes."""
    return [
        (owner, key, t)
        for owner in module.modules()
        for store in (owner._buffers, vars(owner))
        for key, t in store.items()
        if isinstance(t, Tensor) and t.requires_grad
    ]


def _is_plain_object(value: Any) -> bool:
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (nn.Module, type))
        and not callable(value)
    )
